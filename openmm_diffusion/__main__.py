"""`python -m openmm_diffusion` is the command `openmm-diffusion`."""

from .cli import main

if __name__ == "__main__":
    main()
