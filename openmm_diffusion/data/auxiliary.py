"""Training frames with auxiliary stiff links: the data's phi and psi, and everything else drawn from a(s).

What a model under an exact acceptance test learns is p(tau) a(s) (DESIGN 2.4): bonds, angles and stiff torsions come
from `StiffLinks`, not from the data. Frames are built afresh for every sample, with a random global rotation.
"""

from collections import defaultdict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..diffusion.stiff_links import TORSION_COLUMNS, StiffLinks
from ..errors import SettingError
from ..geometry.dihedral import dihedral
from ..geometry.rigid import Rigid
from .md_arrays import check_frames, open_array, sequence_name
from .md_features import Fields, file_weights, groups, merged, torch_generator
from .md_options import DataOptions
from .md_trajectories import Trajectory
from .weights import flattened

_CHUNK = 1024  # frames read at once
_STD_SEED = 0


class AuxiliaryFrames:
    """Frames of the soft torsions of the data and of stiff links drawn from a(s), for each sample anew.

    In samples N, CA and C stand as ideal residues have them in their frames; there are no other atoms and no torsions.

    Attributes
    ----------
    stiff
        a(s) by the residues of the chain.

    Raises
    ------
    SettingError
        With crops: a part of a chain has other links.
    """

    in_memory = True
    first_index = 0  # as the densities of frame models count: sampling/path_kernel.py

    def __init__(self, trajectories: list[Trajectory], options: DataOptions) -> None:
        width = options.auxiliary_width
        if width is None or options.crop_ratio < 1:
            raise SettingError(
                f"crop_ratio is {options.crop_ratio} with auxiliary_width {width}; expected whole chains (crop_ratio "
                "1) where their links are drawn"
            )
        self.stiff = {t.residues: StiffLinks.of(t.residues, width=width) for t in trajectories}
        self._trajectories, self._options = trajectories, options
        self._torsions = [_torsions(t, np.arange(t.start, t.stop)) for t in trajectories]
        self._fixed: dict[int, Tensor] = {}

    def weights(self) -> NDArray[np.float64] | None:
        """Weights of all frames, one trajectory after another, flattened if asked for; None where all are equal."""
        weights = file_weights(self._trajectories)
        if not self._options.flatten:
            return weights
        given = np.ones(sum(map(len, self._trajectories))) if weights is None else weights
        parts = np.split(given, np.cumsum([len(t) for t in self._trajectories])[:-1])
        return np.concatenate(self._flattened(self._torsions, parts))

    def std(self) -> float:
        """Standard deviation (Angstrom) of the origins of the training frames about their centroids, as drawn."""
        total = sum(t.train_stop - t.train_start for t in self._trajectories)
        stride = -(-total // self._options.scale_frames)
        rows = [np.arange(t.train_start, t.train_stop, stride) for t in self._trajectories]
        torsions = [_torsions(t, frames) for t, frames in zip(self._trajectories, rows, strict=True)]
        weights = [
            np.ones(len(frames)) if given is None else given[frames - t.train_start]
            for t, frames in zip(self._trajectories, rows, strict=True)
            for given in [t.of_training().weights()]
        ]
        weights = self._flattened(torsions, weights)
        generator = torch.Generator().manual_seed(_STD_SEED)
        squares, count = 0.0, 0.0
        for k, trajectory in enumerate(self._trajectories):
            centred = self._drawn(trajectory, torsions[k], generator)[..., 4:].numpy()
            squares += float(weights[k] @ (centred**2).sum((1, 2)))
            count += float(weights[k].sum()) * centred[0].size
        return float(np.sqrt(squares / count))

    def fields(
        self,
        which: NDArray[np.int64],
        frames: NDArray[np.int64],
        items: NDArray[np.int64],
        length: int,
        rng: np.random.Generator | None,
    ) -> Fields:
        """What `md_samples.clean_samples` takes, of frames (counted from each trajectory's start) of trajectories.

        Stiff links come from `rng`, or, where it is None, are always the same for the items of one number.
        """
        generator = None if rng is None else torch_generator(rng)

        def of(k: int, rows: NDArray[np.int64]) -> tuple[Trajectory, Fields]:
            trajectory, torsions = self._trajectories[k], self._torsions[k][torch.as_tensor(frames[rows])]
            if generator is not None:
                rigids = self._drawn(trajectory, torsions, generator)
            else:
                pairs = zip(items[rows].tolist(), torsions, strict=True)
                rigids = torch.stack([self._fixed_frames(trajectory, item, row) for item, row in pairs])
            return trajectory, _fields(rigids, self.stiff[trajectory.residues])

        return merged(which, length, (of(k, rows) for k, rows in groups(which)))

    def _drawn(self, trajectory: Trajectory, torsions: Tensor, generator: torch.Generator) -> Tensor:
        stiff = self.stiff[trajectory.residues]
        return stiff.frames(stiff.draw(torsions, generator), generator)

    def _fixed_frames(self, trajectory: Trajectory, item: int, torsions: Tensor) -> Tensor:
        if item not in self._fixed:
            rng = np.random.default_rng([self._options.seed, item, 1])
            self._fixed[item] = self._drawn(trajectory, torsions, torch_generator(rng))
        return self._fixed[item]

    def _flattened(self, torsions: list[Tensor], weights: list[NDArray[np.float64]]) -> list[NDArray[np.float64]]:
        """Flattened weights of each trajectory, the densities being those of all trajectories of a protein."""
        if not self._options.flatten:
            return weights
        proteins = defaultdict(list)
        for k, trajectory in enumerate(self._trajectories):
            proteins[sequence_name(trajectory.name)].append(k)
        result = list(weights)
        for members in proteins.values():
            soft = self.stiff[self._trajectories[members[0]].residues].soft
            angles = torch.cat([torsions[k][:, soft] for k in members]).numpy()
            flat = flattened(angles, np.concatenate([weights[k] for k in members]), self._options.flatten)
            ends = np.cumsum([len(weights[k]) for k in members])[:-1]
            for k, part in zip(members, np.split(flat, ends), strict=True):
                result[k] = part
        return result


def _torsions(trajectory: Trajectory, frames: NDArray[np.int64]) -> Tensor:
    """Links [n, L-1, 6] (float64) of frames with the torsions of their atoms; angles and bonds are zero.

    Not those of `links_from_frames`, whose N and C are ideal ones: a move sets the torsions of the atoms.
    """
    array = open_array(trajectory.path)
    links = torch.zeros(len(frames), len(trajectory.sequence) - 1, 6, dtype=torch.float64)
    for first in range(0, len(frames), _CHUNK):
        rows = frames[first : first + _CHUNK]
        atoms = np.asarray(array[rows], np.float32)
        check_frames(atoms, trajectory.path, rows, trajectory.caps)
        n, ca, c = torch.from_numpy(atoms[:, :, :3]).double().unbind(2)
        along = (n[:, :-1], ca[:, :-1], c[:, :-1], n[:, 1:], ca[:, 1:], c[:, 1:])
        for k, column in enumerate(TORSION_COLUMNS):
            links[first : first + len(rows), :, column] = dihedral(*along[k : k + 4])
    return links


def _fields(rigids: Tensor, stiff: StiffLinks) -> Fields:
    """Fields of frames [n, L, 7]: N, CA and C of ideal residues, nothing else."""
    frames, shape = Rigid.from_tensor_7(rigids), rigids.shape[:-1]
    atom14 = torch.zeros(*shape, 14, 3)
    for slot, local in enumerate((stiff.geometry.n_local, torch.zeros(3), stiff.geometry.c_local)):
        atom14[..., slot, :] = frames.apply(local.to(rigids)).float()
    no_torsions = torch.tensor([0.0, 1.0]).expand(*shape, 7, 2)
    return {
        "rigids_0": rigids.float(),
        "atom14_pos": atom14,
        "torsion_angles_sin_cos": no_torsions,
        "torsion_angles_mask": torch.zeros(*shape, 7),
    }
