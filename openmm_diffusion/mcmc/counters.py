"""Counters of a move that several MPI ranks increase, merged so that no count is lost.

openmmtools gathers the statistics of a state's move from all ranks and then sets them one after the other, so that the
last one wins. Where two ranks have replicas in one state that loses the counts of the others. So every rank's counts
travel by themselves, and setting them takes the larger of what is known of each rank: counts only grow.
"""

from collections.abc import Mapping
from typing import Any

from . import streams

NAMES = ("n_proposed", "n_accepted", "n_invalid")


class Counted:
    """The counters of a move, and their exchange between ranks."""

    n_proposed: int
    n_accepted: int
    n_invalid: int

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.statistics = {}

    @property
    def fraction_accepted(self) -> float:
        """Accepted moves over moves tried; NaN before the first."""
        return self.n_accepted / self.n_proposed if self.n_proposed else float("nan")

    @property
    def statistics(self) -> dict[str, Any]:
        """The counters `n_proposed`, `n_accepted`, `n_invalid`; settable.

        With several MPI ranks `by_rank` holds the three counts of each. Counters are set to the values given, but what
        has it is merged: of each rank the larger counts are taken.
        """
        totals = {name: getattr(self, name) for name in NAMES}
        return {**totals, "by_rank": self._by_rank()} if streams.n_ranks() > 1 else totals

    @statistics.setter
    def statistics(self, value: Mapping[str, Any]) -> None:
        theirs = value.get("by_rank")
        if theirs is not None and streams.n_ranks() > 1:
            counts = self._by_rank()
            for name, row in theirs.items():
                mine = counts.get(name, [0] * len(NAMES))
                counts[name] = [max(int(a), b) for a, b in zip(row, mine, strict=True)]
            totals = [sum(row[k] for row in counts.values()) for k in range(len(NAMES))]
            counts.pop(str(streams.rank()), None)
            self._elsewhere = counts
        else:
            totals = [int(value.get(name, 0)) for name in NAMES]
            self._elsewhere = {"earlier": list(totals)}
        self.n_proposed, self.n_accepted, self.n_invalid = totals

    def _by_rank(self) -> dict[str, list[int]]:
        """The counts of ranks that have any, and of earlier runs without ranks, in the order of `NAMES`."""
        others = {name: list(row) for name, row in getattr(self, "_elsewhere", {}).items()}
        own = [getattr(self, name, 0) - sum(row[k] for row in others.values()) for k, name in enumerate(NAMES)]
        return {name: row for name, row in {**others, str(streams.rank()): own}.items() if any(row)}
