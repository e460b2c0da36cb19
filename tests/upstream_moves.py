"""What stands in the place of openmmtools' moves in its own test-suite: asymmetric proposals, and moves of ours.

Each class is at module level, where openmmtools looks for it when it reads a stored move.
"""

import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any, Self

import numpy as np
import pytest
from openmmtools import mcmc, testsystems

from openmm_diffusion import models
from openmm_diffusion.mcmc import DiffusionMove, ProposalMove
from openmm_diffusion.mcmc.ncmc import NCMCDiffusionMove
from openmm_diffusion.proposals import Candidates

# How many stand-ins were made, and how often they were applied: a test in which neither happened shows nothing.
COUNTS: Counter[str] = Counter()
QUICK: dict[str, Any] = {"device": "cpu", "n_diffusion_steps": 8, "pool_size": 16}


@pytest.fixture(autouse=True)
def restored_globals() -> Iterator[None]:
    """Fixed global random numbers (openmmtools mixes replicas with them); the upstream tests leave settings behind."""
    root_level, print_options, random_state = logging.root.level, np.get_printoptions(), np.random.get_state()  # noqa: NPY002
    np.random.seed(20261121)  # noqa: NPY002
    yield
    np.random.set_state(random_state)  # noqa: NPY002
    np.set_printoptions(**print_options)
    logging.root.setLevel(root_level)


@dataclass(frozen=True)
class GaussianProposal:
    """x' = memory x + shift + width * noise; memory 0 is an independence sampler. Lengths in nm.

    Its own stationary distribution is none of the oscillators', so that a ratio without log q samples another one.
    """

    memory: float
    shift: float
    width: float
    with_density: bool = True

    def propose(self, positions: np.ndarray, n: int, rng: np.random.Generator) -> Candidates:
        mean = self.memory * positions + self.shift
        candidates = mean + self.width * rng.standard_normal((n, *positions.shape))
        log_q = self._log_density(candidates, mean)
        log_q_present = self._log_density(positions, self.memory * candidates + self.shift)
        if not self.with_density:
            log_q, log_q_present = np.zeros(n), np.zeros(n)
        return Candidates(candidates, log_q, log_q_present, np.zeros(n, dtype=bool))

    def _log_density(self, x: np.ndarray, mean: np.ndarray) -> np.ndarray:
        scaled = (x - mean) / self.width
        return -0.5 * (scaled**2).sum((-2, -1)) - scaled[0].size * np.log(self.width * np.sqrt(2 * np.pi))

    def to_state(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Self:
        return cls(**state)


@dataclass(frozen=True)
class Drift:
    """Rigid translation by `shift` + `width` times noise (nm), the same along each axis: asymmetric, for any system."""

    shift: float = 2e-5
    width: float = 4e-5

    def propose(self, positions: np.ndarray, n: int, rng: np.random.Generator) -> Candidates:
        step = self.shift + self.width * rng.standard_normal((n, 1, 3))
        log_q, log_q_present = (-0.5 * (((sign * step - self.shift) / self.width) ** 2).sum((1, 2)) for sign in (1, -1))
        return Candidates(positions + step, log_q, log_q_present, np.zeros(n, dtype=bool))

    def to_state(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Self:
        return cls(**state)


@cache
def alanine() -> tuple[Any, models.Model]:
    """The topology of alanine dipeptide, and a shipped model for it."""
    return testsystems.AlanineDipeptideVacuum().topology, models.load("alanine-dipeptide-torsion-vacuum")


class _Counted:
    """Counts what is made and applied; `atom_subset` is what upstream asks of a Metropolised move."""

    def __init__(self, *_: Any, atom_subset: Any = None, **__: Any) -> None:
        COUNTS["made"] += 1
        self.atom_subset = atom_subset
        self._build()

    def _build(self) -> None:
        raise NotImplementedError

    def apply(self, *arguments: Any, **options: Any) -> None:
        COUNTS["applied"] += 1
        super().apply(*arguments, **options)  # type: ignore[misc]


class DriftStandIn(_Counted, ProposalMove):
    """`ProposalMove`, which goes on every system."""

    def _build(self) -> None:
        ProposalMove.__init__(self, Drift(), seed=1)


class DiffusionStandIn(_Counted, DiffusionMove):
    """`DiffusionMove` for alanine dipeptide."""

    def _build(self) -> None:
        topology, model = alanine()
        DiffusionMove.__init__(self, model, topology, 4, seed=1, **QUICK)


class NCMCStandIn(_Counted, NCMCDiffusionMove):
    """`NCMCDiffusionMove` of three rotations."""

    def _build(self) -> None:
        topology, model = alanine()
        NCMCDiffusionMove.__init__(self, model, topology, n_rotations=3, seed=1, **QUICK)


class Dynamics(mcmc.IntegratorMove):
    """Theirs, under a name that stays when theirs is replaced."""


class Beside(mcmc.SequenceMove):
    """Ours and then theirs."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__([DiffusionStandIn(), Dynamics(*arguments, **options)])


# Twins are of another class, for a test in which one of their moves must not be taken for the other.
class DriftTwin(DriftStandIn):
    pass


class DiffusionTwin(DiffusionStandIn):
    pass


class NCMCTwin(NCMCStandIn):
    pass


STAND_INS: dict[str, tuple[type, type]] = {
    "proposal": (DriftTwin, DriftStandIn),
    "diffusion": (DiffusionTwin, DiffusionStandIn),
    "ncmc": (NCMCTwin, NCMCStandIn),
    "beside": (Beside, Beside),
}
