"""Independent proposals of backbone torsions from a torsion diffusion model."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..diffusion.torus_diffuser import TorusDiffuser
from ..errors import ModelError, SettingError
from ..models import Model, TorsionNetwork, store
from ..molecule import BackboneTorsions
from ..peptide import find_chains
from ..sampling.flow import FlowSample, TorusFlow, power_grid
from ..units import TWO_PI, wrap
from .base import Candidates
from .devices import choose_device


class TorsionProposal:
    """Draws torsions from the discrete probability flow of a model and sets them on the present structure.

    Everything but the torsions is kept, so the density of a candidate is that of its torsions: the Jacobian of setting
    them does not depend on them. Candidates do not depend on the present structure and are drawn ahead, `pool_size`
    at a time; each is used once.

    A model may know more torsions than the move sets. The others, s, are auxiliary then: the target is extended to
    pi(x) a(s), with a(s) a product of wrapped normals fitted to the training data (uniform where there are none), s is
    drawn afresh for the present state, and log q is replaced by log q(tau, s) - log a(s). This is exact for any a.

    Parameters
    ----------
    model
        A torsion model (`models.load`, `models.create`).
    topology
        The OpenMM `Topology` of the whole system.
    torsions
        Which kinds to set, out of those that the model knows; all of them by default.
    n_diffusion_steps
        Steps of the map from noise to data; the model's own number by default.
    pool_size
        Candidates drawn in one batch.
    device
        torch device; cuda where there is one, else the CPU.

    Raises
    ------
    ModelError
        The model is for another molecule, or knows none of the torsions asked for.
    """

    def __init__(
        self,
        model: Model,
        topology: Any,
        *,
        torsions: Sequence[str] | None = None,
        n_diffusion_steps: int | None = None,
        pool_size: int = 1024,
        device: str | None = None,
    ) -> None:
        if model.kind != "torsion":
            raise ModelError(
                f"the model is of kind {model.kind!r}; expected 'torsion', whose draws can be accepted exactly: train "
                "one with 'openmm-diffusion train torsion'"
            )
        sequences = tuple(chain.sequence for chain in find_chains(topology))
        if sequences != model.molecule.sequences:
            here = " + ".join("-".join(sequence) for sequence in sequences)
            raise ModelError(
                f"the model is for {model.molecule}, the topology holds {here}; train or load a model for it"
            )
        known = BackboneTorsions(topology)
        missing = [label for label in model.molecule.torsions if label not in known.labels]
        if missing:
            raise ModelError(
                f"the model moves {', '.join(missing)}, which this topology cannot turn; use another model"
            )
        kinds = dict(zip(known.labels, known.kinds, strict=True))
        labels = [label for label in model.molecule.torsions if torsions is None or kinds[label] in torsions]
        if not labels or (torsions is not None and set(torsions) - set(kinds.values())):
            raise ModelError(
                f"torsions {list(torsions or [])} asked for; expected some of those of the model: "
                f"{', '.join(sorted({kinds[label] for label in model.molecule.torsions}))}"
            )
        self._setup(model, BackboneTorsions(topology, labels=labels), n_diffusion_steps, pool_size, device)

    def _setup(
        self,
        model: Model,
        torsions: BackboneTorsions,
        n_diffusion_steps: int | None,
        pool_size: int,
        device: str | None,
    ) -> None:
        if pool_size < 1:
            raise SettingError(f"pool_size is {pool_size}; expected at least 1")
        self.model, self._sha256 = store.remember(model)
        self.torsions = torsions
        self.n_diffusion_steps = model.n_diffusion_steps if n_diffusion_steps is None else n_diffusion_steps
        self.pool_size = pool_size
        self._requested_device = device
        self._device = choose_device(device)
        network = store.evaluation_network(self._sha256, self._device)
        if not isinstance(network, TorsionNetwork):
            raise ModelError(f"the model is of kind {model.kind!r}; a TorsionProposal takes a torsion model")
        config = network.config
        grid = power_grid(config.min_sigma, config.max_sigma, self.n_diffusion_steps)
        self._flow = TorusFlow(network, grid.to(self._device))
        labels = model.molecule.torsions
        self._moved = np.array([labels.index(label) for label in torsions.labels])
        kept = [i for i in range(len(labels)) if i not in self._moved]
        self._auxiliary = _Auxiliary.fit(model, kept) if kept else None
        self._pool: FlowSample | None = None
        self._next = 0

    def propose(self, positions: NDArray[np.float64], n: int, rng: np.random.Generator) -> Candidates:
        """n candidates for positions [atoms, 3] (nm); see `Candidates`."""
        drawn = self._take(n, rng)
        tau, log_q = drawn.tau.cpu().numpy(), drawn.log_q.cpu().numpy()
        tau_now = self.torsions.get(positions)
        present_tau = self._complete(tau_now, rng)
        present = self._solve(present_tau)
        log_q_present = present.log_q.cpu().numpy()
        if self._auxiliary is not None:
            log_q = log_q - self._auxiliary.log_density(tau)
            log_q_present = log_q_present - self._auxiliary.log_density(present_tau[None])
        return Candidates(
            positions=self.torsions.turn(positions, tau[:, self._moved] - tau_now),
            log_q=log_q,
            log_q_present=np.full(n, log_q_present[0] if bool(present.valid[0]) else -np.inf),
            invalid=~drawn.valid.cpu().numpy(),
            reversible=lambda index: bool(self._flow.is_path(drawn.path[:, index : index + 1])[0]),
        )

    def draw(
        self, n: int, rng: np.random.Generator
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
        """n fresh draws of the model: all its torsions [n, T], their log density [n], which of them have one [n]."""
        sample = self._flow.sample(self._base(n, rng))
        valid = sample.valid & self._flow.is_path(sample.path)
        return sample.tau.cpu().numpy(), sample.log_q.cpu().numpy(), valid.cpu().numpy()

    def log_density(self, tau: NDArray[np.float64]) -> NDArray[np.float64]:
        """log q [n] of all the model's torsions [n, T]; -inf where the map does not reach them."""
        log_q, valid = self._flow.log_density(torch.as_tensor(wrap(tau), device=self._device))
        return np.where(valid.cpu().numpy(), log_q.cpu().numpy(), -np.inf)

    def export_pool(self) -> dict[str, NDArray[Any]]:
        """The candidates drawn ahead, as arrays, with the number of those used."""
        if self._pool is None:
            return {}
        arrays = {name: getattr(self._pool, name).cpu().numpy() for name in ("tau", "log_q", "valid", "path")}
        return {**arrays, "used": np.array(self._next)}

    def import_pool(self, pool: dict[str, NDArray[Any]]) -> None:
        """Go on with the candidates that `export_pool` gave."""
        tensors = {name: torch.as_tensor(value, device=self._device) for name, value in pool.items() if name != "used"}
        self._pool, self._next = (FlowSample(**tensors), int(pool["used"])) if tensors else (None, 0)

    def to_state(self) -> dict[str, Any]:
        """Plain values from which `from_state` makes this proposal again, without weights and with an empty pool."""
        return {
            "source": dict(self.model.source),
            "sha256": self._sha256,
            "torsions": self.torsions.to_text(),
            "n_diffusion_steps": self.n_diffusion_steps,
            "pool_size": self.pool_size,
            "device": self._requested_device,
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> "TorsionProposal":
        """The proposal that gave `to_state`; loads the model through the cache of this process."""
        proposal = cls.__new__(cls)
        torsions = BackboneTorsions.from_text(state["torsions"])
        model = store.resolve(state["source"], state["sha256"])
        proposal._setup(model, torsions, state["n_diffusion_steps"], state["pool_size"], state["device"])
        return proposal

    def _complete(self, tau: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
        """All torsions of the model [T]: those set by the move as they are, the others drawn from a(s)."""
        if self._auxiliary is None:
            return tau
        full = self._auxiliary.draw(rng)
        full[self._moved] = tau
        return full

    def _solve(self, tau: NDArray[np.float64]) -> FlowSample:
        """Score one state, from the path of the candidate nearest to it as the first guess."""
        x = torch.as_tensor(tau[None], device=self._device)
        pool = self._pool
        if pool is None:
            return self._flow.solve(x)
        nearest = int(torch.cos(pool.tau - x).sum(-1).argmax())
        guess = pool.path[:, nearest : nearest + 1]
        # Paths are unwrapped: continue x on the sheet where the guess ends.
        return self._flow.solve(guess[-1] + wrap(x - guess[-1]), guess)

    def _take(self, n: int, rng: np.random.Generator) -> FlowSample:
        if self._pool is None or self._next + n > len(self._pool.tau):
            # What is left over is dropped unseen: it does not depend on any state, so nothing is selected.
            self._pool = self._flow.sample(self._base(max(n, self.pool_size), rng))
            self._next = 0
        rows = slice(self._next, self._next + n)
        self._next += n
        return self._pool[rows]

    def _base(self, n: int, rng: np.random.Generator) -> Tensor:
        z = rng.uniform(-np.pi, np.pi, (n, len(self.model.molecule.torsions)))
        return torch.as_tensor(z, device=self._device)


@dataclass(frozen=True)
class _Auxiliary:
    """a(s) of the torsions that a model knows and a move keeps: wrapped normals, or uniform where the width is inf."""

    kept: NDArray[np.int64]
    centres: NDArray[np.float64]
    widths: NDArray[np.float64]
    n_torsions: int

    @classmethod
    def fit(cls, model: Model, kept: list[int]) -> "_Auxiliary":
        statistics = model.card.get("torsion_statistics", {})
        pairs = [statistics.get(model.molecule.torsions[i], (0.0, np.inf)) for i in kept]
        centres, widths = np.array([p[0] for p in pairs], float), np.array([p[1] for p in pairs], float)
        widths = np.where(widths > 1.0, np.inf, np.maximum(widths, 0.05))
        return cls(np.array(kept), centres, widths, len(model.molecule.torsions))

    def draw(self, rng: np.random.Generator) -> NDArray[np.float64]:
        """One draw, in its places among all torsions [T]; the other places are zero."""
        n = len(self.kept)
        uniform, normal = rng.uniform(-np.pi, np.pi, n), rng.standard_normal(n)
        finite = np.isfinite(self.widths)
        tau = np.zeros(self.n_torsions)
        tau[self.kept] = wrap(np.where(finite, self.centres + np.where(finite, self.widths, 0.0) * normal, uniform))
        return tau

    def log_density(self, tau: NDArray[np.float64]) -> NDArray[np.float64]:
        """log a [n] at torsions [n, T]."""
        finite = np.isfinite(self.widths)
        result = np.full(len(tau), -np.log(TWO_PI) * (~finite).sum())
        if finite.any():
            displacement = torch.as_tensor(tau[:, self.kept[finite]] - self.centres[finite])
            result += TorusDiffuser().log_density(displacement, torch.as_tensor(self.widths[finite])).sum(-1).numpy()
        return result
