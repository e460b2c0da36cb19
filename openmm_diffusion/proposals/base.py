"""What a proposal is: an object that draws candidates and knows the density of what it drew."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Candidates:
    """n candidate configurations of one move.

    Attributes
    ----------
    positions
        [n, atoms, 3] in nm.
    log_q
        [n] log density of drawing each candidate, up to one constant shared with `log_q_present`. Where the proposal
        changes coordinates with a Jacobian, it is the density in Cartesian measure.
    log_q_present
        [n] log density of drawing the present configuration; n equal values where it does not depend on the
        candidate. -inf where the present configuration cannot be scored.
    invalid
        [n] candidates without a density: weight zero, counted.
    reversible
        Called with the index of a candidate about to be accepted; False means that the reverse move would not find
        the way back, and rejects. None where every candidate is reversible.
    """

    positions: NDArray[np.float64]
    log_q: NDArray[np.float64]
    log_q_present: NDArray[np.float64]
    invalid: NDArray[np.bool_]
    reversible: Callable[[int], bool] | None = None


@runtime_checkable
class Proposal(Protocol):
    """Draws candidates for a move; see `Candidates`.

    One call draws all auxiliary variables, so that both sides of a ratio share them. A proposal that is to survive a
    restart of a multistate sampler also has `to_state() -> dict` of plain values and a class method
    `from_state(dict)`.
    """

    def propose(self, positions: NDArray[np.float64], n: int, rng: np.random.Generator) -> Candidates:
        """n candidates for the present positions [atoms, 3] (nm), with random numbers from `rng` only."""
        ...
