"""Torsions of trajectory frames with weights: the training data of the torsion model, in one .npz file."""

import json
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import InputFileError, TrajectoryError
from ..peptide import MoleculeDescription
from .weights import flattened


@dataclass(frozen=True)
class TorsionDataset:
    """Torsions [n, T] in rad, weights [n] that sum to one, the molecule, and where the frames came from."""

    torsions: NDArray[np.float64]
    weights: NDArray[np.float64]
    molecule: MoleculeDescription
    source: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        n, width = self.torsions.shape
        if width != len(self.molecule.torsions):
            raise TrajectoryError(f"the data have {width} torsions a frame; expected {len(self.molecule.torsions)}")
        if n < 10:
            raise TrajectoryError(f"the data have {n} frames; expected at least 10, give a longer trajectory")
        if self.weights.shape != (n,):
            raise TrajectoryError(f"{self.weights.size} weights for {n} frames; expected one for each frame")
        if not np.isfinite(self.torsions).all():
            raise TrajectoryError("some torsions are NaN; expected finite positions, check the trajectory")
        if not (np.isfinite(self.weights).all() and (self.weights >= 0).all() and self.weights.sum() > 0):
            raise TrajectoryError(
                "the weights have to be finite, not negative, and not all zero; check the weights file"
            )
        object.__setattr__(self, "weights", self.weights / self.weights.sum())

    def __len__(self) -> int:
        return len(self.torsions)

    def split(self, validation_share: float, rng: np.random.Generator) -> tuple["TorsionDataset", "TorsionDataset"]:
        """Training and validation sets, disjoint, drawn at random."""
        order = rng.permutation(len(self))
        cut = max(1, round(validation_share * len(self)))
        return self._take(order[cut:]), self._take(order[:cut])

    def flattened(self, exponent: float, bandwidth: float = 0.7) -> "TorsionDataset":
        """The same frames with weights w / h^exponent, h their smoothed density: see `weights.flattened`."""
        weights = flattened(self.torsions, self.weights, exponent, bandwidth)
        return TorsionDataset(self.torsions, weights, self.molecule, self.source)

    def _take(self, rows: NDArray[np.int64]) -> "TorsionDataset":
        return TorsionDataset(self.torsions[rows], self.weights[rows], self.molecule, self.source)

    def save(self, path: Path) -> None:
        """Write the data set as a NumPy archive without pickles."""
        card = json.dumps({"format": _FORMAT, "molecule": self.molecule.to_dict(), "source": self.source})
        np.savez(path, torsions=self.torsions, weights=self.weights, card=np.array(card))

    @classmethod
    def load(cls, path: str | Path) -> "TorsionDataset":
        """Read what `save` wrote; raises InputFileError where the file is missing or something else."""
        if not Path(path).exists():
            raise InputFileError(f"there is no data set {path}; make one with 'openmm-diffusion prepare torsion'")
        try:
            with np.load(path, allow_pickle=False) as file:
                card = json.loads(str(file["card"]))
                torsions, weights = file["torsions"].astype(np.float64), file["weights"].astype(np.float64)
            if card.get("format") != _FORMAT:
                raise ValueError(f"format {card.get('format')!r}")
            molecule = MoleculeDescription.from_dict(card["molecule"])
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise InputFileError(
                f"{path} is not a torsion data set ({error}); make one with 'openmm-diffusion prepare torsion'"
            ) from error
        return cls(torsions, weights, molecule, dict(card["source"]))


_FORMAT = "openmm_diffusion torsions 1"


class WeightedBatches(torch.utils.data.IterableDataset[Tensor]):
    """Epochs of n_batches batches [batch_size, T], frames drawn in proportion to their weights.

    Every epoch draws anew, or the same batches with `same_every_time` (for validation).
    """

    def __init__(
        self, data: TorsionDataset, batch_size: int, n_batches: int, seed: int, same_every_time: bool = False
    ) -> None:
        self._torsions = torch.as_tensor(data.torsions, dtype=torch.float32)
        self._cumulative = torch.as_tensor(np.cumsum(data.weights))
        self._batch_size, self._n_batches = batch_size, n_batches
        self._seed, self._same_every_time = seed, same_every_time
        self._generator = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return self._n_batches

    def __iter__(self) -> Iterator[Tensor]:
        last = len(self._torsions) - 1
        if self._same_every_time:
            self._generator.manual_seed(self._seed)
        for _ in range(self._n_batches):
            uniform = torch.rand(self._batch_size, generator=self._generator, dtype=torch.float64)
            yield self._torsions[torch.searchsorted(self._cumulative, uniform).clamp(max=last)]
