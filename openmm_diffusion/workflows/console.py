"""What every program of this package does at its edges: logging, and errors as one sentence."""

import logging
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import OpenMMDiffusionError


def run_program(program: Callable[[], None]) -> int:
    """Run a program and return its exit status: errors of the package become one sentence on stderr and status 1.

    An error on one of several MPI ranks ends all of them, since they would wait for it for ever.
    """
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    logging.getLogger("pymbar").setLevel(logging.ERROR)  # it greets with a banner on missing optional packages
    try:
        program()
    except OpenMMDiffusionError as error:
        print(f"Error: {error}", file=sys.stderr)
        _end_ranks()
        return 1
    except OSError as error:  # a full disk, a read-only folder
        name = f" {error.filename}" if error.filename else ""
        print(
            f"Error: cannot read or write{name}: {error.strerror or error}; check path, rights and space",
            file=sys.stderr,
        )
        _end_ranks()
        return 1
    except KeyboardInterrupt:
        print("\nInterrupted; what was finished is kept, --resume goes on with it.", file=sys.stderr)
        sys.stderr.flush()
        os._exit(130)  # without waiting for the threads of libraries
    return 0


def _end_ranks() -> None:
    mpi = sys.modules.get("mpi4py.MPI")
    if mpi is not None and mpi.COMM_WORLD.size > 1:
        sys.stderr.flush()
        mpi.COMM_WORLD.Abort(1)


def output_tree(folder: Path, files: Mapping[str, str]) -> str:
    """What a run left in its folder, a line each: `files` maps names to their meaning."""
    width = max(map(len, files))
    there = [f"  {name:<{width}}  {meaning}" for name, meaning in files.items() if (folder / name).exists()]
    return "\n".join([f"{folder}{os.sep}", *there])


def run_stages(folder: Path, stages: Sequence[tuple[str, str]], **values: Any) -> None:
    """Run commands of `openmm-diffusion` in a folder, each (its result, its words), but those whose result is there.

    `values` fill the braces in the words. Raises CalledProcessError where a command fails.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for result, words in stages:
        words = words.format(**values)
        print(f"{folder}$ openmm-diffusion {words}", flush=True)
        if not (folder / result).exists():
            subprocess.run([sys.executable, "-m", "openmm_diffusion", *shlex.split(words)], cwd=folder, check=True)


def use_one_thread() -> None:
    """Let torch compute on one thread: networks this small gain nothing from more, and lose where cores are busy."""
    import torch

    torch.set_num_threads(1)
