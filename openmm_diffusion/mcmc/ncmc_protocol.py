"""The driven trajectory of a nonequilibrium move: rotations with propagations in between, and their work."""

import math
import time
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import openmm
from numpy.typing import NDArray

from ..proposals import Candidates
from .kernel import _energy
from .propagators import Propagator

Positions = NDArray[np.float64]

# kT. Beyond these a propagation has burst, and rounding and constraints that did not converge decide its shadow work.
_SHADOW_LIMIT, _ENERGY_LIMIT = 1e6, 1e12


class Turnable(Protocol):
    """Coordinates on a torus: `get` reads them [T] (rad), `turn` changes them by [T] and keeps volumes."""

    def get(self, positions: Any) -> NDArray[np.float64]: ...

    def turn(self, positions: Any, angles: Any) -> Any: ...


class TurningProposal(Protocol):
    """What a nonequilibrium move asks of a proposal: the torsions that it sets, and `propose` of `Proposal`.

    Candidates have to be the present positions with other torsions, drawn from a density that does not depend on the
    present ones. `log_q` and `log_q_present` are densities of torsions alone, up to one constant for all calls.
    `log_q_present` of positions with torsions tau_f - Delta is the log density that the way back needs, auxiliary
    variables drawn afresh included: the candidate of that second call is not used.
    """

    @property
    def torsions(self) -> Turnable: ...

    def propose(self, positions: Positions, n: int, rng: np.random.Generator) -> Candidates: ...


@dataclass(frozen=True)
class Drive:
    """The end of a protocol: positions, reduced potential, and the terms of its work in kT; `finite` False for NaN."""

    positions: Positions
    u: float
    work: float
    exchanged: float
    shadow_work: float
    propagator_acceptance: float | None
    seconds_propagation: float

    @property
    def finite(self) -> bool:
        return math.isfinite(self.u) and math.isfinite(self.work) and math.isfinite(self.shadow_work)


def drive(
    context: openmm.Context,
    torsions: Turnable,
    positions: Positions,
    u_present: float,
    delta: NDArray[np.float64],
    n_rotations: int,
    propagator: Propagator,
    beta: float,
    rng: np.random.Generator,
) -> Drive:
    """Run the protocol: n rotations by delta / n, n - 1 propagations in between.

    `exchanged` is what the potential gains during propagations, so that work = u - u_present - exchanged. A protocol
    that meets a NaN, an infinite energy or a propagation that bursts stops there: its way back would meet the same
    energies and the opposite shadow work, so both have weight zero.
    """
    x, u, step = positions, u_present, delta / n_rotations
    work = exchanged = shadow = seconds = 0.0
    shares: list[float] = []
    for _ in range(n_rotations - 1):
        started = time.perf_counter()
        try:
            done = propagator(context, torsions.turn(x, step), beta, rng)
        except openmm.OpenMMException as error:
            # The CPU platform raises where the Reference platform goes on with NaN.
            if "nan" not in str(error).lower():
                raise
            return Drive(x, math.nan, math.nan, math.nan, math.nan, None, seconds)
        work += done.u_start - u
        exchanged += done.u_end - done.u_start
        shadow += done.shadow_work
        x, u = done.positions, done.u_end
        if done.acceptance is not None:
            shares.append(done.acceptance)
        seconds += time.perf_counter() - started
        burst = abs(done.shadow_work) > _SHADOW_LIMIT or max(abs(done.u_start), abs(done.u_end)) > _ENERGY_LIMIT
        if burst or not (math.isfinite(work) and math.isfinite(u) and np.isfinite(x).all()):
            return Drive(x, math.nan, math.nan, math.nan, math.nan, None, seconds)
    x = torsions.turn(x, step)
    u_end = beta * _energy(context, x)
    share = float(np.mean(shares)) if shares else None
    return Drive(x, u_end, work + (u_end - u), exchanged, shadow, share, seconds)
