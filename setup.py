"""All metadata of the package; pyproject.toml holds the build system and the tools only."""

from pathlib import Path

from setuptools import find_packages, setup

README = Path(__file__).parent / "README.md"

REQUIREMENTS = [
    "openmm>=8.2",
    "openmmtools>=0.27",
    # 2.6 brought EMAWeightAveraging; 2.6.2 and 2.6.3 are avoided by other trainers of molecular networks too
    "lightning>=2.6,!=2.6.2,!=2.6.3",
    "torch>=2.4",
    "roma",
    "safetensors",
    "mdtraj>=1.11",
    "pdbfixer",
    "parmed",
    "netCDF4",
    # the ceiling is mdtraj's
    "numpy>=2,<2.5",
    "scipy",
    "networkx",
    "mpiplus",
    "pymbar",
    "arviz-stats",
    "matplotlib",
    "pydantic>=2",
    "PyYAML",
    "typer",
    "tqdm",
]

EXTRAS = {
    "mpi": ["mpi4py", "mpich"],
    "notebook": ["jupyterlab", "ipykernel", "nbclient", "nbformat", "omegaconf", "py3Dmol"],
    "dev": [
        "pytest",
        "pytest-timeout",
        "pytest-xdist",
        # the upstream test modules of openmmtools that the acceptance tests call need these two
        "pytest-rerunfailures",
        "requests",
        "hypothesis",
        "ruff",
        "mypy",
        "types-PyYAML",
        "nbclient",
        "nbformat",
        "ipykernel",
        # configurations of the SE(3) model may be OmegaConf objects; the package itself does not import it
        "omegaconf",
        # two ranks run in the tests
        "mpi4py",
        "mpich",
    ],
}

setup(
    name="openmm_diffusion",
    version="0.1.0",
    description="Diffusion models propose, Metropolis-Hastings accepts exactly: hybrid AI/physics sampling for OpenMM",
    long_description=README.read_text(encoding="utf-8") if README.exists() else "",
    long_description_content_type="text/markdown",
    author="openmm_diffusion contributors",
    license="MIT",
    license_files=["LICENSE"],
    keywords=["openmm", "openmmtools", "molecular dynamics", "diffusion model", "Monte Carlo", "protein"],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Operating System :: OS Independent",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Chemistry",
        "Typing :: Typed",
    ],
    python_requires=">=3.11",
    packages=find_packages(include=["openmm_diffusion", "openmm_diffusion.*"]),
    package_data={
        "openmm_diffusion": [
            "py.typed",
            "models/pretrained/*.safetensors",
            "models/pretrained/*.json",
            "workflows/*.json",
            "data/splits/*.csv",
        ]
    },
    install_requires=REQUIREMENTS,
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["openmm-diffusion = openmm_diffusion.cli:main"]},
    zip_safe=False,
)
