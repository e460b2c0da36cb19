"""The openmmtools adapter: `ProposalMove` for any proposal, `DiffusionMove` for a model.

Both are `openmmtools.mcmc.MCMCMove`s and go wherever a `LangevinDynamicsMove` goes.
"""

import dataclasses
import logging
import numbers
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openmm
from openmm import unit
from openmmtools import mcmc

from ..errors import ModelError, SettingError, StateError
from ..models import Model, store
from ..molecule import check_system, check_unbroken
from ..molecule.quantities import in_nanometers
from ..proposals import BackboneProposal, LocalProposal, Proposal, TorsionProposal
from .counters import Counted
from .kernel import StepRecord, metropolis_step
from .move_state import canonical, describe, restore
from .streams import new_stream, process_key

logger = logging.getLogger(__name__)
_STATE_VERSION = 1


class ProposalMove(Counted, mcmc.MCMCMove):
    """A Metropolis-Hastings move with any proposal, on any system.

    On acceptance velocities are drawn afresh from their Maxwell-Boltzmann distribution at the new positions, which
    cancels in the ratio; on rejection the sampler state is not touched. Thermodynamic states with a pressure are
    sampled at fixed volume, which leaves the constant-pressure ensemble invariant too.

    Parameters
    ----------
    proposal
        A `Proposal`.
    n_candidates
        Candidates a move. More than one takes a proposal whose candidates are independent draws that do not depend on
        the present state, or not but for what a local proposal scores for all of them alike.
    seed
        Seed of this move's random stream; every copy and restart has a stream of its own.

    Attributes
    ----------
    n_proposed, n_accepted
        Moves tried and accepted.
    n_invalid
        Candidates without a finite energy or a density.
    last
        The `StepRecord` of the last move, None before the first.

    Notes
    -----
    A multistate sampler has one copy of the move for each thermodynamic state, on every MPI rank. After each iteration
    the counters of a copy are those of its state summed over all replicas and ranks, for any number of replicas a state
    (`statistics["by_rank"]` has the share of each rank); within an iteration a rank knows its own alone. Iterations of
    `equilibrate` count too, unless it is given moves of its own. After a restart counters include the iterations since
    the last checkpoint, which are run again. `last` belongs to the rank that made the move.
    """

    def __init__(self, proposal: Proposal, n_candidates: int = 1, seed: int | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not _is_whole(n_candidates) or n_candidates < 1:
            raise SettingError(f"n_candidates is {n_candidates!r}; expected a whole number of at least 1")
        if seed is not None and (not _is_whole(seed) or seed < 0):
            raise SettingError(f"seed is {seed!r}; expected None or a whole number of at least 0")
        self.n_candidates = int(n_candidates)
        self.seed = None if seed is None else int(seed)
        self._origin = process_key()  # kept by copies and in storage
        self._set_proposal(proposal)

    def _set_proposal(self, proposal: Proposal | None, pending: dict[str, Any] | None = None) -> None:
        self._proposal, self._pending = proposal, pending
        self._rng: np.random.Generator | None = None
        self._rng_process = 0  # that the generator belongs to
        # Contexts whose System has been checked, and how many particles it has.
        self._checked: weakref.WeakKeyDictionary[openmm.Context, int] = weakref.WeakKeyDictionary()
        self.last: StepRecord | None = None

    @property
    def proposal(self) -> Proposal:
        """The proposal; after a restart it is made from the stored state at its first use."""
        if self._proposal is None:
            self._proposal = restore(self._pending or {})
        return self._proposal

    def apply(self, thermodynamic_state: Any, sampler_state: Any, context_cache: Any = None) -> None:
        """Propose, and accept or reject, in place.

        Raises
        ------
        StateError
            The present state has NaN positions, an infinite energy, or a molecule broken across the box.
        IncompatibleSystemError
            A constraint or a frozen atom forbids the move.
        """
        contexts = self._get_context_cache(context_cache)
        context, _ = contexts.get_context(thermodynamic_state)
        positions = self._present(sampler_state, context)
        _enter(context, thermodynamic_state, sampler_state)
        rng = self._stream()
        beta = 1.0 / thermodynamic_state.kT.value_in_unit(unit.kilojoule_per_mole)
        record, _ = metropolis_step(context, self.proposal, positions, beta, self.n_candidates, rng)
        if thermodynamic_state.pressure is not None:
            record = _with_pressure(record, thermodynamic_state, context, beta)
        self.n_proposed += 1
        self.n_invalid += record.n_invalid
        self.last = record
        if record.accepted:
            self.n_accepted += 1
            context.setVelocitiesToTemperature(thermodynamic_state.temperature, int(rng.integers(1, 2**31 - 1)))
            # Ours now, not those that another replica left in the shared Context.
            sampler_state.update_from_context(context)

    def _stream(self) -> np.random.Generator:
        """The random generator of this move, made at its first draw."""
        if self._rng is not None and self._rng_process != process_key():
            self.import_stream({"generator": None}, {})  # after a fork: generator and pool are the parent's
        if self._rng is None:
            self._rng = new_stream(self.seed, self.n_proposed, self._origin)
            self._rng_process = process_key()
        return self._rng

    def export_stream(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """The random generator's state (plain values) and the pool (arrays), for a checkpoint that goes on bit for bit.

        They are not part of the serialised move, whose copies and restarts have streams of their own.
        """
        generator = None if self._rng is None else self._rng.bit_generator.state
        pool = self.proposal.export_pool() if hasattr(self.proposal, "export_pool") else {}
        return {"generator": generator}, pool

    def import_stream(self, stream: dict[str, Any], pool: dict[str, np.ndarray]) -> None:
        """Go on with what `export_stream` gave."""
        self._rng = None
        if stream["generator"] is not None:
            self._rng = np.random.default_rng()
            self._rng.bit_generator.state = stream["generator"]
            self._rng_process = process_key()
        if hasattr(self.proposal, "import_pool"):
            self.proposal.import_pool(pool)

    def _present(self, sampler_state: Any, context: openmm.Context) -> np.ndarray:
        positions = in_nanometers(sampler_state.positions)
        if context not in self._checked:
            self._check(context.getSystem())
            self._checked[context] = context.getSystem().getNumParticles()
        if positions.shape != (self._checked[context], 3):
            raise StateError(
                f"positions have shape {positions.shape}; expected ({self._checked[context]}, 3), one a particle"
            )
        return positions

    def _check(self, system: openmm.System) -> None:
        """Raise where the System cannot be sampled by this move; done once a Context."""

    def __getstate__(self) -> dict[str, Any]:
        return {
            "version": _STATE_VERSION,
            "n_candidates": self.n_candidates,
            "seed": self.seed,
            "origin": self._origin,
            "proposal": canonical(self._pending if self._proposal is None else describe(self._proposal)),
            **self.statistics,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        if state.get("version", 0) > _STATE_VERSION:
            raise ModelError("the move was stored by a newer openmm_diffusion; update the package to read it")
        self._context_cache = None
        self.n_candidates = int(state.get("n_candidates", 1))
        self.seed = state.get("seed")
        self.statistics = state
        self._set_proposal(None, dict(state.get("proposal") or {}))
        self._origin = int(state.get("origin", 0))


class DiffusionMove(ProposalMove):
    """Backbone conformations from a diffusion model, accepted exactly by the force field.

    Parameters
    ----------
    model
        A model (`openmm_diffusion.models.load`, `create`), or the name or path of one.
    topology
        The OpenMM `Topology` of the whole system, solvent included.
    n_candidates
        Candidates a move: they are scored together, and one of them is taken or none.
    seed
        Seed of this move's random stream.
    device
        torch device of the network; cuda where there is one, else the CPU.
    torsions
        Which kinds of torsions to set, such as ("phi", "psi"); all that the model knows by default.
    options
        Further options of the proposal: `n_diffusion_steps`, `pool_size`, and for SE(3) models `background`,
        `density`, `max_t`, `width` (see `BackboneProposal`). With `t_star` the move is local: the present frames are
        noised up to that time and denoised, a `window` of residues at a time or all (see `LocalProposal`).

    Raises
    ------
    ModelError
        The model is for another molecule.
    MoleculeError
        The topology has no peptide backbone.
    """

    def __init__(
        self,
        model: Model | str | Path,
        topology: Any,
        n_candidates: int = 8,
        seed: int | None = None,
        device: str | None = None,
        torsions: Sequence[str] | None = None,
        **options: Any,
    ) -> None:
        loaded = model if isinstance(model, Model) else store.load(model)
        if options.get("t_star", 0) is None:
            del options["t_star"]
        name = f"local {loaded.kind}" if "t_star" in options else loaded.kind
        if name == "local torsion":
            raise SettingError(
                "t_star makes a move local, which a model of kind 'torsion' cannot be; take an SE(3) model, such as "
                "'alanine-dipeptide', or leave t_star out"
            )
        kind, known = _PROPOSALS.get(name, _PROPOSALS["torsion"])
        if unknown := sorted(set(options) - known - {"context_cache"}):
            raise SettingError(
                f"unknown options {unknown} for a model of kind {loaded.kind!r}; expected some of {sorted(known)}"
            )
        forwarded = {key: options.pop(key) for key in ("context_cache",) if key in options}
        proposal = kind(loaded, topology, torsions=torsions, device=device, **options)
        super().__init__(proposal, n_candidates, seed, **forwarded)

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path, topology: Any, **options: Any) -> "DiffusionMove":
        """A move with a shipped model (`openmm-diffusion models` lists them) or a model file."""
        return cls(store.load(name_or_path), topology, **options)

    def _present(self, sampler_state: Any, context: openmm.Context) -> np.ndarray:
        positions = super()._present(sampler_state, context)
        check_unbroken(self._torsions, positions)
        return positions

    def _check(self, system: openmm.System) -> None:
        check_system(system, self._torsions)

    @property
    def _torsions(self) -> Any:
        return self.proposal.torsions  # type: ignore[attr-defined]


_PROPOSALS: dict[str, tuple[Any, set[str]]] = {
    "torsion": (TorsionProposal, {"n_diffusion_steps", "pool_size"}),
    "se3": (BackboneProposal, {"n_diffusion_steps", "pool_size", "background", "density", "max_t", "width", "t_star"}),
    "local se3": (LocalProposal, {"t_star", "window", "reference", "masks", "n_diffusion_steps", "width"}),
}


def _is_whole(value: Any) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def _enter(context: openmm.Context, thermodynamic_state: Any, sampler_state: Any) -> None:
    """Put positions and box into a Context. Its own box and velocities are those of whatever used it last."""
    if sampler_state.box_vectors is None and thermodynamic_state.is_periodic:
        context.setPeriodicBoxVectors(*thermodynamic_state.default_box_vectors)
    sampler_state.apply_to_context(context, ignore_velocities=True)


def _with_pressure(record: StepRecord, state: Any, context: openmm.Context, beta: float) -> StepRecord:
    """Add what the reduced potential has besides the energy (p V, surface tension): the same on both sides."""
    energy = beta * context.getState(energy=True).getPotentialEnergy().value_in_unit(unit.kilojoule_per_mole)
    extra = float(state.reduced_potential(context)) - energy
    candidate = None if record.u_candidate is None else record.u_candidate + extra
    return dataclasses.replace(record, u_present=record.u_present + extra, u_candidate=candidate)
