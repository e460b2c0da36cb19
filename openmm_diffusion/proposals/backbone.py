"""Independent proposals of backbone torsions from an SE(3) frame model, with auxiliary stiff links (DESIGN 2.4)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import ModelError, SettingError
from ..models import Model, store
from ..models.score_network import ScoreNetwork
from ..molecule import BackboneTorsions
from ..molecule.frames import ChainLinks, chain_links
from ..sampling.generators import torch_generator
from ..units import wrap
from .base import Candidates
from .chain_density import ChainDensity, DensityName, chain_from_state, chain_to_state, check_chains
from .devices import choose_device
from .pool import CandidatePool, DrawnBatch

DEFAULTS: dict[str, Any] = {"width": 0.15, "max_t": 0.4, "soft": ["phi", "psi"], "n_steps": 48}


class BackboneProposal:
    """Draws backbone frames from a score network on SE(3)^N and sets their torsions on the present structure.

    The frames' soft links tau (phi, psi) go into the structure, which keeps everything else; the stiff ones s (bonds,
    angles, cap impropers, torsions not moved) are auxiliary: the target is extended to pi(x) a(s), s is drawn from a(s)
    for the present state, and with T the frames of (tau, s) the weight of a structure is

        log w = -u(x) + log a(s) - log q_T(T) - sum_i log(r_i^2 sin theta1_i sin theta2_i).

    Several chains are drawn independently of each other. Candidates do not depend on the present structure and are
    drawn ahead, `pool_size` at a time; each is used once.

    Parameters
    ----------
    model
        An SE(3) model without self-conditioning (`models.load`, `models.create`).
    topology
        The OpenMM `Topology` of the whole system.
    torsions
        Which kinds to set, out of "phi", "psi", "omega"; those that the model was trained for by default.
    density
        "path": exact in the space of noising paths, cheap, for any length. "flow": the exact density of the discrete
        probability flow, for chains of up to ten residues.
    n_diffusion_steps
        Levels of noise; the model's own number by default.
    max_t
        Time of the noise process at which paths end in the base; the model's own by default.
    width
        Standard deviation of the stiff links in a(s), rad and Angstrom; the model's own by default.
    pool_size
        Candidates drawn in one batch.
    background
        Draw the next batch in a thread while the chain goes on, which changes no result.
    device
        torch device; cuda where there is one, else the CPU.

    Raises
    ------
    ModelError
        The model is for other residues or caps, or needs self-conditioning.
    MoleculeError
        A chain has a missing atom or a break, or nothing that the move could set.
    """

    def __init__(
        self,
        model: Model,
        topology: Any,
        *,
        torsions: Sequence[str] | None = None,
        density: DensityName = "path",
        n_diffusion_steps: int | None = None,
        max_t: float | None = None,
        width: float | None = None,
        pool_size: int = 512,
        background: bool = True,
        device: str | None = None,
    ) -> None:
        if model.kind != "se3":
            raise ModelError(f"the model is of kind {model.kind!r}; expected 'se3' for proposals of backbone frames")
        own = {**DEFAULTS, **model.card.get("acceptance", {})}
        kinds = tuple(own["soft"]) if torsions is None else tuple(torsions)
        moved = BackboneTorsions(topology, kinds)
        chains = chain_links(topology, moved)
        check_chains(chains, model)
        settings = {
            "density": density,
            "n_diffusion_steps": own["n_steps"] if n_diffusion_steps is None else n_diffusion_steps,
            "max_t": own["max_t"] if max_t is None else max_t,
            "width": own["width"] if width is None else width,
            "pool_size": pool_size,
            "background": background,
            "device": device,
        }
        self._setup(model, moved, chains, settings)

    def _setup(
        self, model: Model, torsions: BackboneTorsions, chains: list[ChainLinks], settings: dict[str, Any]
    ) -> None:
        if settings["pool_size"] < 1:
            raise SettingError(f"pool_size is {settings['pool_size']}; expected at least 1")
        self.model, self._sha256 = store.remember(model)
        self.torsions, self._settings = torsions, settings
        self.n_diffusion_steps = int(settings["n_diffusion_steps"])
        self.pool_size = int(settings["pool_size"])
        device = choose_device(settings["device"])
        dtype = torch.float64 if settings["density"] == "flow" else torch.float32
        network = store.evaluation_network(self._sha256, device, dtype)
        if not isinstance(network, ScoreNetwork):
            raise ModelError(f"the model is of kind {model.kind!r}; a BackboneProposal takes an SE(3) model")
        self._device = device
        self._chains = [
            ChainDensity(
                chain,
                network,
                settings["density"],
                self.n_diffusion_steps,
                settings["max_t"],
                settings["width"],
                _statistics(model, chain),
            )
            for chain in chains
            if bool(chain.soft.any())
        ]
        self._pool = CandidatePool(self._draw, self.pool_size, settings.get("background", True))

    def propose(self, positions: NDArray[np.float64], n: int, rng: np.random.Generator) -> Candidates:
        """n candidates for positions [atoms, 3] (nm); see `Candidates`."""
        batch, rows = self._pool.take(n, rng)
        tau, log_q = batch.tau[rows], batch.log_q[rows]
        present = self.torsions.get(positions)
        log_q_present = self.log_density(present[None], rng)[0]
        return Candidates(
            positions=self.torsions.turn(positions, tau - present),
            log_q=log_q,
            log_q_present=np.full(n, log_q_present),
            invalid=~np.isfinite(log_q),
            reversible=lambda index: self._returns(batch.samples, rows.start + index),
        )

    def log_density(self, tau: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
        """log q - log a + log volume [n] of torsions [n, T], with fresh auxiliary variables; -inf without a density."""
        generator = self._generator(int(rng.integers(2**63 - 1)))
        values = torch.as_tensor(wrap(tau), device=self._device)
        return _finite(torch.stack([chain.score(values, generator) for chain in self._chains]).sum(0))

    def draw(self, n: int, rng: np.random.Generator) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """n fresh draws: torsions [n, T], and log q - log a + log volume [n], -inf where it is not defined."""
        batch = self._draw(n, int(rng.integers(2**63 - 1)))
        return batch.tau, batch.log_q

    def export_pool(self) -> dict[str, NDArray[Any]]:
        """The candidates drawn ahead, as arrays."""
        return self._pool.export()

    def import_pool(self, pool: dict[str, NDArray[Any]]) -> None:
        """Go on with the candidates that `export_pool` gave."""
        self._pool.load(pool)

    def to_state(self) -> dict[str, Any]:
        """Plain values from which `from_state` makes this proposal again, without weights and with an empty pool."""
        return {
            "source": dict(self.model.source),
            "sha256": self._sha256,
            "torsions": self.torsions.to_text(),
            "chains": [chain_to_state(chain.chain) for chain in self._chains],
            "settings": dict(self._settings),
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> "BackboneProposal":
        """The proposal that gave `to_state`; loads the model through the cache of this process."""
        proposal = cls.__new__(cls)
        model = store.resolve(state["source"], state["sha256"])
        chains = [chain_from_state(chain) for chain in state["chains"]]
        proposal._setup(model, BackboneTorsions.from_text(state["torsions"]), chains, dict(state["settings"]))
        return proposal

    def _returns(self, samples: tuple[Any, ...], index: int) -> bool:
        return all(chain.returns(sample, index) for chain, sample in zip(self._chains, samples, strict=False))

    def _draw(self, n: int, seed: int) -> DrawnBatch:
        generator = self._generator(seed)
        tau = torch.zeros(n, len(self.torsions), dtype=torch.float64, device=self._device)
        total = torch.zeros(n, dtype=torch.float64, device=self._device)
        samples = []
        for chain in self._chains:
            tau[:, chain.chain.columns], log_q, sample = chain.sample(n, generator)
            total = total + log_q
            samples.append(sample)
        # A structure without a density may have NaN for a torsion; it is invalid, and must still be a structure.
        torsions = np.asarray(wrap(np.nan_to_num(tau.cpu().numpy())))
        return DrawnBatch(torsions, _finite(total), tuple(samples) if self._settings["density"] == "flow" else ())

    def _generator(self, seed: int) -> torch.Generator:
        return torch_generator(seed, self._device)


def _finite(log_q: torch.Tensor) -> NDArray[np.float64]:
    values = log_q.cpu().numpy()
    return np.where(np.isfinite(values), values, -np.inf)


def _statistics(model: Model, chain: ChainLinks) -> dict[str, tuple[float, float]]:
    """(mean, width) of the torsions of a chain that the model's training data had, by label within the chain."""
    known = model.card.get("torsion_statistics", {})
    own = {label: value for label, value in known.items() if label.startswith(chain.prefix)}
    return {label.removeprefix(chain.prefix): (float(m), float(w)) for label, (m, w) in own.items()}
