"""One peptide chain of a frame model: its auxiliary links, and one interface to both of its exact densities."""

from typing import Any, Literal

import torch
from torch import Tensor

from ..diffusion.stiff_links import StiffLinks
from ..errors import ModelError, SettingError
from ..geometry.links import log_volume
from ..geometry.residue_constants import RESTYPES_3, UNKNOWN
from ..models import Model
from ..models.score_network import ScoreNetwork
from ..molecule.frames import ChainLinks
from ..sampling.path import PathSample, SE3Path
from ..sampling.se3_flow import SE3Flow

DensityName = Literal["path", "flow"]


class ChainDensity:
    """Soft links of one chain under a frame model, the stiff ones being auxiliary.

    Parameters
    ----------
    chain
        The chain's links and which of them are torsions of the move.
    network
        Of the model, in the dtype that the density takes.
    density
        "path" or "flow".
    n_steps, max_t
        Levels of noise, and the time where they end.
    width
        Of a(s).
    statistics
        (mean, width) of torsions that are kept, by label.
    """

    def __init__(
        self,
        chain: ChainLinks,
        network: ScoreNetwork,
        density: DensityName,
        n_steps: int,
        max_t: float,
        width: float,
        statistics: dict[str, tuple[float, float]] | None = None,
    ) -> None:
        self.chain = chain
        self.stiff = StiffLinks.of(chain.names, chain.soft, width, statistics)
        aatype = residue_types(chain.names)
        if density == "path":
            self.frames: SE3Path | SE3Flow = SE3Path(network, self.stiff, n_steps=n_steps, max_t=max_t, aatype=aatype)
        elif density == "flow":
            self.frames = SE3Flow(network, len(chain.names), aatype, n_steps=n_steps, max_t=max_t)
        else:
            raise SettingError(f"density is {density!r}; expected 'path' or 'flow'")

    def sample(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Any]:
        """Torsions [n, n_soft] of this chain, log (q / a * volume) [n], and what `returns` needs."""
        sample = self.frames.sample(n, generator)
        log_q = sample.log_q if isinstance(sample, PathSample) else torch.where(sample.valid, sample.log_q, -torch.inf)
        links = self.stiff.links(sample.rigids)
        return self.chain.torsions(links), log_q + self._auxiliary(links), sample

    def score(self, torsions: Tensor, generator: torch.Generator) -> Tensor:
        """log (q / a * volume) [n] of all torsions [n, T] of the molecule, with fresh stiff links and rotation."""
        links = self.stiff.draw(self.chain.links(torsions), generator)
        rigids = self.stiff.frames(links, generator)
        if isinstance(self.frames, SE3Path):
            return self.frames.score(rigids, generator) + self._auxiliary(links)
        log_q, valid = self.frames.score(rigids)
        return torch.where(valid, log_q, -torch.inf) + self._auxiliary(links)

    def returns(self, sample: Any, index: int) -> bool:
        """Whether the way back from a drawn candidate is the one it was drawn on; always, in path space."""
        return bool(self.frames.returns(sample, index)) if isinstance(self.frames, SE3Flow) else True

    def _auxiliary(self, links: Tensor) -> Tensor:
        return log_volume(links) - self.stiff.log_density(links)


def check_chains(chains: list[ChainLinks], model: Model) -> None:
    """Raise ModelError where a chain is not among those that the model is for."""
    for chain in chains:
        if chain.names not in model.molecule.sequences:
            raise ModelError(
                f"the model is for {model.molecule}, the topology holds {'-'.join(chain.names)}; train or load a "
                "model for it, caps included"
            )


def residue_types(names: tuple[str, ...]) -> Tensor:
    """Residue types [N] for the network; caps are unknown ones."""
    return torch.tensor([RESTYPES_3.index(name) if name in RESTYPES_3[:UNKNOWN] else UNKNOWN for name in names])


def chain_to_state(chain: ChainLinks) -> dict[str, Any]:
    """What a move needs of a chain, as few plain values: hosts write each of them as YAML in every iteration."""
    index = " ".join(str(value) for value in chain.torsion_index.flatten().tolist())
    return {"names": " ".join(chain.names), "prefix": chain.prefix, "torsion_index": index}


def chain_from_state(state: dict[str, Any]) -> ChainLinks:
    """The chain that gave `chain_to_state`, without its atoms."""
    names = tuple(state["names"].split())
    index = torch.tensor([int(value) for value in state["torsion_index"].split()]).view(len(names) - 1, -1)
    no_atoms = torch.empty(0, 3, dtype=torch.long)
    return ChainLinks(names, state["prefix"], index >= 0, index, no_atoms)
