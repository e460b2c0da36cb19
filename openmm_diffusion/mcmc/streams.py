"""Random streams of moves: no two copies, ranks or restarts draw the same numbers."""

import itertools
from collections import defaultdict
from collections.abc import Iterator

import numpy as np

_copies: defaultdict[int | None, Iterator[int]] = defaultdict(itertools.count)


def new_stream(seed: int | None, n_proposed: int) -> np.random.Generator:
    """A generator of its own for a move that draws for the first time in this process.

    Its key is the MPI rank, how many moves with this seed have drawn before in this process, and the count of moves
    stored with it: what a copy and a restart differ in. Without a seed the operating system's entropy is used.
    """
    copy_number = next(_copies[seed])
    sequence = np.random.SeedSequence(seed, spawn_key=(_rank(), copy_number, n_proposed))
    return np.random.default_rng(sequence)


def _rank() -> int:
    import mpiplus

    communicator = mpiplus.get_mpicomm()
    return 0 if communicator is None else int(communicator.rank)
