"""Local moves of one peptide chain: its auxiliary links, its noise path, candidates that share what was noised."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..diffusion.stiff_links import StiffLinks
from ..geometry.links import log_volume
from ..geometry.rigid import Rigid
from ..models.score_network import ScoreNetwork
from ..molecule.frames import ChainLinks
from ..sampling.path import SE3Path
from .chain_density import residue_types


class LocalChain:
    """Local moves of one chain's torsions."""

    def __init__(
        self,
        chain: ChainLinks,
        network: ScoreNetwork,
        width: float,
        statistics: dict[str, Any],
        grid: dict[str, Any],
    ) -> None:
        mine = {label: value for label, value in statistics.items() if label.startswith(chain.prefix)}
        own = {label.removeprefix(chain.prefix): (float(m), float(w)) for label, (m, w) in mine.items()}
        self.chain, self.columns = chain, chain.columns
        self._network, self._grid = network, grid
        self._stiff = StiffLinks.of(chain.names, chain.soft, width, own)
        self._types = residue_types(chain.names)
        self._paths: dict[bytes, SE3Path] = {}

    def move(
        self, tau: Tensor, mask: NDArray[np.bool_], n: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Torsions [B, n, n_soft], their log density [B, n] and the present one [B], for torsions tau [B, T]."""
        path = self.path(mask)
        links = self._stiff.draw(self.chain.links(tau), generator)
        walk, steps = path.walk(Rigid.from_tensor_7(self._stiff.frames(links, generator)), path.n_steps, generator)
        present = path.log_ratio(walk, steps) + self._auxiliary(links)
        # Every candidate of a state starts from the same noised frames.
        shared = Rigid(walk.rots.repeat_interleave(n, 1), walk.trans.repeat_interleave(n, 1))
        frames, ratio = path.descend(shared[-1], path.n_steps, generator, None if mask.all() else shared)
        new = self._stiff.links(frames.to_tensor_7())
        log_q = (ratio + self._auxiliary(new)).unflatten(0, (-1, n))
        kept = torch.as_tensor(~(mask[:-1] | mask[1:]), device=new.device)[:, None]
        new = torch.where(kept, links[:, None], new.unflatten(0, (-1, n)))
        return self.chain.torsions(new), log_q, present

    def _auxiliary(self, links: Tensor) -> Tensor:
        return log_volume(links) - self._stiff.log_density(links)

    def path(self, mask: NDArray[np.bool_]) -> SE3Path:
        """The path of a mask [N]; made once."""
        key = mask.tobytes()
        if key not in self._paths:
            free = torch.as_tensor(mask.copy())
            self._paths[key] = SE3Path(self._network, self._stiff, aatype=self._types, free=free, **self._grid)
        return self._paths[key]
