"""Times at which the noise is what is asked for: uniform in the mean logarithm of its two standard deviations."""

import numpy as np
from numpy.typing import NDArray

from ..diffusion.se3_diffuser import SE3Diffuser
from ..errors import SettingError
from ..sampling.noise_grid import times

_SHARES = np.linspace(0.0, 1.0, 4097)


class NoiseTimes:
    """t(u) between min_t and max_t, u in [0, 1] uniform in (log sigma_rot + log sigma_trans) / 2.

    The levels of a path (`sampling.noise_grid`) are spaced likewise. Score matching at such times, each score
    normalised, is close to the likelihood weighting, which minimises the divergence of the path (Song et al., "Maximum
    likelihood training of score-based diffusion models", 2021, eq. 7), so the spread of its log weights. Close, because
    the two parts share their times: each is weighed by the ratio of this logarithm to its own.

    Raises
    ------
    SettingError
        Where max_t is not above the diffuser's min_t.
    """

    def __init__(self, diffuser: SE3Diffuser, max_t: float = 1.0) -> None:
        self.min_t, self.max_t = float(diffuser.conf.min_t), float(max_t)
        if not self.max_t > self.min_t:
            raise SettingError(f"max_t is {max_t}; expected above min_t, {self.min_t} in the noise process")
        # The unit of the translations shifts the logarithm, no more, and need not be known yet.
        in_any_unit = SE3Diffuser(diffuser.conf).with_auto_scaling(1.0)
        self._t = times(in_any_unit, self.min_t, self.max_t, _SHARES).numpy()

    def __call__(self, u: NDArray[np.float64]) -> NDArray[np.float64]:
        """Times of numbers u in [0, 1]."""
        return np.interp(u, _SHARES, self._t)
