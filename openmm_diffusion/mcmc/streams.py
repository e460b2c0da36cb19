"""Random streams of moves: no two copies, ranks, processes or restarts draw the same numbers."""

import itertools
import os
import secrets
import signal
import sys
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import numpy as np

_copies: defaultdict[int | None, Iterator[int]] = defaultdict(itertools.count)
_process: tuple[int, int] = (0, 0)
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGABRT)


def new_stream(seed: int | None, n_proposed: int, origin: int | None = None) -> np.random.Generator:
    """A generator of its own for a move that draws for the first time in this process.

    Its key is the MPI rank, how many moves with this seed have drawn before in this process, and the count of moves
    made with it: what copies differ in. Without a seed the operating system's entropy is used.

    Parameters
    ----------
    seed, n_proposed
        The seed and the count of moves.
    origin
        `process_key()` of the process that made the move, this one by default. Copies of a move from elsewhere may have
        drawn there what is not counted here, so they get the operating system's entropy besides the seed.
    """
    copy_number = next(_copies[seed])
    foreign = origin not in (None, process_key())
    entropy: Any = [seed, secrets.randbits(128)] if foreign and seed is not None else seed
    return np.random.default_rng(np.random.SeedSequence(entropy, spawn_key=(rank(), copy_number, n_proposed)))


def process_key() -> int:
    """A number that no other process has, a forked one neither."""
    global _process
    if _process[0] != os.getpid():
        _process = (os.getpid(), secrets.randbits(62))
    return _process[1]


def rank() -> int:
    """The MPI rank of this process; 0 without MPI."""
    communicator = _communicator()
    return 0 if communicator is None else int(communicator.rank)


def n_ranks() -> int:
    """The number of MPI ranks; 1 without MPI."""
    communicator = _communicator()
    return 1 if communicator is None else int(communicator.size)


def _communicator() -> Any:
    """The MPI communicator of openmmtools; None without MPI."""
    import mpiplus

    hook, handlers = sys.excepthook, {number: signal.getsignal(number) for number in _SIGNALS}
    communicator = mpiplus.get_mpicomm()
    if communicator is None or communicator.size == 1:
        # What mpiplus looks for may be set by a batch queue, too. Its handlers then keep a lone process from ending.
        sys.excepthook = hook
        for number, handler in handlers.items():
            if handler is not None and signal.getsignal(number) is not handler:
                signal.signal(number, handler)
    return communicator
