"""Local proposals: the present frames are noised part of the way and denoised again (DESIGN 2.5, "Local moves")."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from ..diffusion.se3_diffuser import SE3Diffuser
from ..errors import ModelError, SettingError
from ..models import Model, store
from ..models.score_network import ScoreNetwork
from ..molecule import BackboneTorsions
from ..molecule.frames import ChainLinks, chain_links
from ..sampling.generators import torch_generator
from ..units import wrap
from .backbone import DEFAULTS
from .base import Candidates
from .chain_density import chain_from_state, chain_to_state, check_chains
from .devices import choose_device
from .local_chain import LocalChain
from .masks import alpha_carbons, masks_of

_FROZEN = ("t_star", "window", "n_diffusion_steps", "masks", "model", "torsions")


class LocalProposal:
    """Noises the present frames up to the time t_star and denoises candidates from there.

    With s ~ a(s) and a Haar-random global rotation the present torsions tau become frames T_0, as in
    `BackboneProposal`. One noise path T_0 .. T_m leads up to the level of t_star, and every candidate has a path of its
    own from the shared T_m down to T_0'. In terms of the increments (see `sampling.path`; forward ones u, backward ones
    v = -u, unit Jacobian) the extended target of the present path given T_m is

        pi(x) a(s) / volume(s) * prod_k f(u_k),

    and candidates are independent draws of prod_k p(v_k | T_k) given T_m. So, conditional on T_m, this is independence
    sampling of paths with the weights

        log w = -u(x) + log a(s) - log volume(s) - sum_k [log p(v_k | T_k) - log f(u_k)],

    for any number of candidates (DESIGN 2.2): neither the base nor anything above T_m appears. Exact for every network,
    t_star, number of levels and mask; t_star is the step size.

    With `window` (or `masks`) a few residues move, the rest of the frames stays. The mask is drawn uniformly in each
    move from a list made once, from the sequence or from a reference structure, never from the present one. Not local
    in space: bond lengths and angles of the structure are kept, so what comes behind a window follows rigidly.

    Parameters
    ----------
    model
        An SE(3) model without self-conditioning (`models.load`, `models.create`).
    topology
        The OpenMM `Topology` of the whole system.
    torsions
        Which kinds to set, out of "phi", "psi", "omega"; those that the model was trained for by default.
    t_star
        Time of the noise process where the path turns, in (min_t, 1].
    window
        Residues that move at a time, caps included; all by default.
    reference
        Positions [atoms, 3] (nm or a Quantity) of a fixed structure: windows are then the `window` residues nearest to
        each one in it (`data.crops.balls`), not those along the sequence.
    masks
        Instead of `window`: bool [W, N], True = moves, over the residues of all chains that have a torsion to set.
    n_diffusion_steps
        Levels of noise between min_t and t_star; by default as dense as the model's own.
    width
        Standard deviation of the stiff links in a(s), rad and Angstrom; the model's own by default.
    device
        torch device; cuda where there is one, else the CPU.

    Raises
    ------
    ModelError
        The model is for other residues or caps.
    MoleculeError
        A chain has a missing atom or a break, or nothing that the move could set.
    SettingError
        t_star out of range, a window longer than a chain, masks that fix everything.
    """

    def __init__(
        self,
        model: Model,
        topology: Any,
        *,
        t_star: float,
        torsions: Sequence[str] | None = None,
        window: int | None = None,
        reference: Any = None,
        masks: ArrayLike | None = None,
        n_diffusion_steps: int | None = None,
        width: float | None = None,
        device: str | None = None,
    ) -> None:
        if model.kind != "se3":
            raise ModelError(f"the model is of kind {model.kind!r}; expected 'se3' for proposals of backbone frames")
        own = {**DEFAULTS, **model.card.get("acceptance", {})}
        moved = BackboneTorsions(topology, tuple(own["soft"]) if torsions is None else tuple(torsions))
        chains = chain_links(topology, moved)
        check_chains(chains, model)
        settings = {
            "t_star": t_star,
            "window": window,
            "reference": None if reference is None else alpha_carbons(reference, chains),
            "masks": None if masks is None else np.asarray(masks, bool).tolist(),
            "n_diffusion_steps": n_diffusion_steps,
            "width": own["width"] if width is None else width,
            "device": device,
        }
        self._setup(model, moved, chains, settings)

    def _setup(
        self, model: Model, torsions: BackboneTorsions, chains: list[ChainLinks], settings: dict[str, Any]
    ) -> None:
        self.model, self._sha256 = store.remember(model)
        self.torsions, self._settings = torsions, settings
        self._device = choose_device(settings["device"])
        network = store.evaluation_network(self._sha256, self._device, torch.float32)
        if not isinstance(network, ScoreNetwork):
            raise ModelError(f"the model is of kind {model.kind!r}; a LocalProposal takes an SE(3) model")
        self.t_star, self.window = _checked_time(settings["t_star"], network.diffuser), settings["window"]
        own = {**DEFAULTS, **model.card.get("acceptance", {})}
        given = settings["n_diffusion_steps"]
        self.n_diffusion_steps = _levels(network.diffuser, self.t_star, own) if given is None else int(given)
        chains = [chain for chain in chains if bool(chain.soft.any())]
        self.masks = masks_of(chains, settings)
        statistics = model.card.get("torsion_statistics", {})
        grid = {"n_steps": self.n_diffusion_steps, "max_t": self.t_star}
        grid["reads_fixed"] = bool(own.get("reads_fixed", False))
        self._chains = [LocalChain(chain, network, settings["width"], statistics, grid) for chain in chains]
        for chain, free in self._parts(self.masks[0]):
            chain.path(free)  # settings that no path can have are found now

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _FROZEN and name in self.__dict__:
            raise SettingError(
                f"{name} of a proposal is frozen, because moves that adapt do not leave the target unchanged; tune "
                "before production (mcmc.tuning.tune_local), or make another proposal with `with_settings`"
            )
        super().__setattr__(name, value)

    def propose(self, positions: NDArray[np.float64], n: int, rng: np.random.Generator) -> Candidates:
        """n candidates for positions [atoms, 3] (nm); see `Candidates`."""
        present = self.torsions.get(positions)
        tau, log_q, log_q_present = self.move(present[None], n, rng)
        return Candidates(
            positions=self.torsions.turn(positions, wrap(tau[0] - present)),
            log_q=log_q[0],
            log_q_present=np.full(n, log_q_present[0]),
            invalid=~np.isfinite(log_q[0]),
        )

    def move(
        self, tau: NDArray[np.float64], n: int, rng: np.random.Generator
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """n candidates for each of B states that share one mask.

        Parameters
        ----------
        tau
            Present torsions [B, T], rad.

        Returns
        -------
        Torsions [B, n, T]; log weights' densities sum (log p - log f) + log volume - log a of the candidates [B, n] and
        of the present states [B], -inf where there is none.
        """
        mask = self.masks[int(rng.integers(len(self.masks)))]
        generator = torch_generator(int(rng.integers(2**63 - 1)), self._device)
        values = torch.as_tensor(wrap(tau), device=self._device)
        new = values[:, None].repeat(1, n, 1)
        log_q, present = torch.zeros_like(new[..., 0]), torch.zeros_like(values[:, 0])
        for chain, free in self._parts(mask):
            torsions, log_new, log_present = chain.move(values, free, n, generator)
            new[..., chain.columns] = torsions
            log_q, present = log_q + log_new, present + log_present
        # A candidate without a density may have NaN for a torsion; it is invalid, and must still be a structure.
        defined = torch.isfinite(log_q) & torch.isfinite(new).all(-1)
        new = torch.where(defined[..., None], new, values[:, None])
        log_q = torch.where(defined, log_q, -torch.inf)
        present = torch.where(torch.isfinite(present), present, -torch.inf)
        return new.cpu().numpy(), log_q.cpu().numpy(), present.cpu().numpy()

    def with_settings(self, **changes: Any) -> "LocalProposal":
        """Another proposal of the same model and molecule, with another t_star, window or n_diffusion_steps."""
        known = ("t_star", "window", "n_diffusion_steps")
        if unknown := sorted(set(changes) - set(known)):
            raise SettingError(f"unknown settings {unknown}; expected some of {', '.join(known)}")
        state = self.to_state()
        return self.from_state({**state, "settings": {**state["settings"], **changes}})

    def to_state(self) -> dict[str, Any]:
        """Plain values from which `from_state` makes this proposal again, without weights."""
        return {
            "source": dict(self.model.source),
            "sha256": self._sha256,
            "torsions": self.torsions.to_text(),
            "chains": [chain_to_state(chain.chain) for chain in self._chains],
            "settings": dict(self._settings),
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> "LocalProposal":
        """The proposal that gave `to_state`; loads the model through the cache of this process."""
        proposal = cls.__new__(cls)
        model = store.resolve(state["source"], state["sha256"])
        chains = [chain_from_state(chain) for chain in state["chains"]]
        proposal._setup(model, BackboneTorsions.from_text(state["torsions"]), chains, dict(state["settings"]))
        return proposal

    def _parts(self, mask: NDArray[np.bool_]) -> list[tuple["LocalChain", NDArray[np.bool_]]]:
        """The chains with residues that move, and which of theirs."""
        ends = np.cumsum([len(chain.chain.names) for chain in self._chains])[:-1]
        parts = zip(self._chains, np.split(mask, ends), strict=True)
        return [(chain, free) for chain, free in parts if free.any()]


def _checked_time(t_star: Any, diffuser: SE3Diffuser) -> float:
    lowest = diffuser.conf.min_t
    if isinstance(t_star, bool) or not isinstance(t_star, int | float) or not lowest < t_star <= 1.0:
        raise SettingError(f"t_star is {t_star!r}; expected a time above min_t = {lowest:g} and at most 1")
    return float(t_star)


def _levels(diffuser: SE3Diffuser, t_star: float, own: dict[str, Any]) -> int:
    """Levels up to t_star that are as dense as the model's own n_steps up to max_t."""
    times = torch.tensor([diffuser.conf.min_t, t_star, own["max_t"]], dtype=torch.float64)
    rot, trans = diffuser.sigma(times)
    lowest, turn, top = torch.log(rot * trans).tolist()
    return max(2, round(own["n_steps"] * (turn - lowest) / (top - lowest)))
