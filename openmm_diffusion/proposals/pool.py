"""Candidates drawn ahead of time, each used once; the next batch is drawn in a thread while the chain goes on."""

import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class DrawnBatch:
    """Candidates of one draw: torsions [n, T], log density [n], and what the reversal check of a flow needs."""

    tau: NDArray[np.float64]
    log_q: NDArray[np.float64]
    samples: tuple[Any, ...] = ()


class CandidatePool:
    """Hands out candidates that do not depend on any state, `size` of them drawn at a time.

    The seed of a batch is drawn from the move's generator when the batch before it is taken into use, so that what a
    chain does depends on its seed only and never on which thread is faster. A batch is a function of its seed: the pool
    is exported as the seed of the batch ahead and the rows that are left.

    Parameters
    ----------
    draw
        Makes a batch of n candidates from a seed.
    size
        Candidates a batch.
    in_background
        Draw the next batch in a thread of its own. MD, which waits for one core, then hides the network's time.
    """

    def __init__(self, draw: Callable[[int, int], DrawnBatch], size: int, in_background: bool) -> None:
        self._draw, self.size = draw, size
        self._in_background = in_background
        self._lock = threading.Lock()
        self._start()

    def _start(self) -> None:
        self._process = os.getpid()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="candidates") if self._in_background else None
        self._batch: DrawnBatch | None = None
        self._used = 0
        self._seed: int | None = None  # of the batch ahead
        self._ahead: Future[DrawnBatch] | None = None

    def take(self, n: int, rng: np.random.Generator) -> tuple[DrawnBatch, slice]:
        """A batch and n of its rows that were not used before."""
        with self._lock:
            if self._process != os.getpid():
                self._start()  # a forked process has neither the thread nor a right to these candidates
            if self._batch is None or self._used + n > len(self._batch.log_q):
                # What is left over is dropped unseen: it does not depend on any state, so nothing is selected.
                self._batch, self._used = self._next(n, rng), 0
            rows = slice(self._used, self._used + n)
            self._used += n
            return self._batch, rows

    def export(self) -> dict[str, NDArray[Any]]:
        """The pool as arrays, for a checkpoint; empty before the first use.

        Batches with samples (of flows) are dropped: the candidates left are nothing without the paths that led to them.
        """
        if self._seed is None:
            return {}
        kept = {}
        if self._batch is not None and not self._batch.samples:
            kept = {"tau": self._batch.tau[self._used :], "log_q": self._batch.log_q[self._used :]}
        return {**kept, "seed": np.array(self._seed)}

    def load(self, arrays: dict[str, NDArray[Any]]) -> None:
        """Go on with what `export` gave."""
        self._batch, self._used, self._seed, self._ahead = None, 0, None, None
        if arrays:
            self._order(int(arrays["seed"]))
        if "tau" in arrays:
            self._batch = DrawnBatch(np.asarray(arrays["tau"]), np.asarray(arrays["log_q"]))

    def _next(self, n: int, rng: np.random.Generator) -> DrawnBatch:
        if self._seed is None:
            self._order(_seed(rng))
        assert self._seed is not None
        try:
            batch = self._ahead.result() if self._ahead is not None else self._draw(max(n, self.size), self._seed)
        except BaseException:
            self._order(self._seed)  # the same batch again at the next call, whatever went wrong
            raise
        if len(batch.log_q) < n:  # a move that takes more than a batch at once
            batch = self._draw(n, self._seed)
        self._order(_seed(rng))
        return batch

    def _order(self, seed: int) -> None:
        self._seed = seed
        self._ahead = None if self._thread is None else self._thread.submit(self._draw, self.size, seed)


def _seed(rng: np.random.Generator) -> int:
    return int(rng.integers(2**63 - 1))
