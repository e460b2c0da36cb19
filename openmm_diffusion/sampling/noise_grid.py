"""Levels of noise for paths and flows between clean frames and the base, in variance-exploding coordinates.

Translations are y = x / alpha(t), so that both parts only spread: rotations with variance sigma_rot(t)^2, translations
with sigma_trans(t)^2 (Angstrom^2), and the noise between two levels has the difference of their variances.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..diffusion.se3_diffuser import SE3Diffuser
from ..errors import SettingError

_TABLE = 4001
# Exponent of the levels' shares of the way. On alanine dipeptide with 64 levels the divergence of the path is 0.64 nats
# at 1, 0.57 at 0.65 and 0.58 at 0.5; with 48 levels 0.82, 0.76 and 0.72.
PACE = 0.6


@dataclass(frozen=True)
class NoiseGrid:
    """K levels of noise, ascending; all tensors [K], float64.

    Attributes
    ----------
    t
        Times of the noise process.
    rot_variance, trans_variance
        Noise at each level: rad^2, Angstrom^2 (of y = x / alpha).
    alpha
        Factor of the clean translations.
    """

    t: Tensor
    rot_variance: Tensor
    trans_variance: Tensor
    alpha: Tensor

    def __len__(self) -> int:
        return len(self.t)

    @classmethod
    def at(cls, diffuser: SE3Diffuser, t: Tensor) -> "NoiseGrid":
        """The levels at ascending times t [K]."""
        t = t.double()
        rot, trans = diffuser.sigma(t)
        return cls(t, rot**2, (trans / diffuser.coord_scale) ** 2, diffuser.alpha(t))

    @classmethod
    def geometric(cls, diffuser: SE3Diffuser, n_levels: int, min_t: float, max_t: float) -> "NoiseGrid":
        """Levels from min_t to max_t in the mean logarithm of both noises, closer to each other where it is large.

        There a step of rotations is long, and a normal increment fits least (`PACE`).
        Raises SettingError for fewer than two levels or times out of order.
        """
        if n_levels < 2:
            raise SettingError(f"n_diffusion_steps is {n_levels}; expected at least 2")
        if not 0.0 < min_t < max_t <= 1.0:
            raise SettingError(f"the times of the path are {min_t:g} to {max_t:g}; expected 0 < min_t < max_t <= 1")
        return cls.at(diffuser, times(diffuser, min_t, max_t, np.linspace(0.0, 1.0, n_levels) ** PACE))

    def to(self, device: torch.device) -> "NoiseGrid":
        """The levels on another device."""
        return NoiseGrid(*(value.to(device) for value in (self.t, self.rot_variance, self.trans_variance, self.alpha)))


def times(diffuser: SE3Diffuser, min_t: float, max_t: float, share: object) -> Tensor:
    """Times [...] at shares [...] in [0, 1] of the way from min_t to max_t in (log sigma_rot + log sigma_trans) / 2."""
    t = torch.exp(torch.linspace(np.log(min_t), np.log(max_t), _TABLE, dtype=torch.float64))
    rot, trans = diffuser.sigma(t)
    level = 0.5 * (torch.log(rot) + torch.log(trans)).numpy()
    wanted = level[0] + np.asarray(share, dtype=np.float64) * (level[-1] - level[0])
    return torch.as_tensor(np.interp(wanted, level, t.numpy()))
