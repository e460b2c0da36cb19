"""Noise of translations: the variance-preserving SDE on the subspace where the visible residues have no centroid.

Song et al., "Score-based generative modeling through SDEs", ICLR 2021, eq. 11: dx = -beta(t)/2 x dt + sqrt(beta(t)) dw,
beta(t) = min_b + t (max_b - min_b). Translations [..., N, 3] come in and go out in batch units (Angstrom times
coord_scale) and are multiplied by `scale` = coordinate_scaling / coord_scale inside; **scores and densities are those
of the scaled coordinates**, as in the first seed. Masked residues are left as they are, have no score and do not count
in the centroid. With center=False (moves among fixed residues) nothing is projected: it contracts to the origin.
"""

import math

import torch
from torch import Tensor

from ..errors import SettingError
from .se3_config import R3Config
from .times import as_double, check_order, like

SMALLEST_STD, LARGEST_STD = 0.3, 3.0


class R3Diffuser:
    """Translation noise x_t = alpha(t) x_0 + sqrt(1 - alpha(t)^2) z with alpha = exp(-B/2), B the integral of beta.

    Parameters
    ----------
    conf
        Range of beta, and coordinate_scaling (diffused units per Angstrom; "auto" is filled in by `with_auto_scaling`).
    coord_scale
        Length units per Angstrom of the translations handed in.
    """

    def __init__(self, conf: R3Config, coord_scale: float = 1.0) -> None:
        self.conf = conf
        self.coord_scale = coord_scale
        self.coordinate_scaling = conf.coordinate_scaling

    @property
    def scale(self) -> float:
        """Diffused units per unit of the translations handed in.

        Raises
        ------
        SettingError
            While coordinate_scaling is "auto" and no standard deviation is known.
        """
        if self.coordinate_scaling == "auto":
            raise SettingError('r3.coordinate_scaling is "auto" and not yet set; call with_auto_scaling(std) first')
        return float(self.coordinate_scaling) / self.coord_scale

    def with_auto_scaling(self, std: float) -> "R3Diffuser":
        """Set coordinate_scaling to 1 / std (A) where the settings say "auto", and return self; else change nothing.

        Raises
        ------
        SettingError
            If std is not a positive number.
        """
        if not (math.isfinite(std) and std > 0):
            raise SettingError(f"the standard deviation of the coordinates is {std} A; expected a number above 0")
        if self.conf.coordinate_scaling == "auto":
            self.coordinate_scaling = 1.0 / std
        return self

    def check_scale(self, std: float) -> float:
        """Standard deviation of the diffused coordinates, from that of the data (batch units, about the centroids).

        Raises
        ------
        SettingError
            If the result is outside 0.3 to 3, where noise and data do not match.
        """
        diffused = self.scale * std
        if not SMALLEST_STD <= diffused <= LARGEST_STD:
            raise SettingError(
                f"the diffused coordinates have the standard deviation {diffused:.3g}; expected {SMALLEST_STD} to "
                f"{LARGEST_STD}; check coord_scale ({self.coord_scale}, units per A) and r3.coordinate_scaling "
                f'({self.coordinate_scaling} per A), or set the latter to "auto"'
            )
        return diffused

    def beta(self, t: Tensor | float) -> Tensor:
        """beta(t), which is also the squared diffusion coefficient, in t's dtype."""
        return like(self.conf.min_b + as_double(t) * (self.conf.max_b - self.conf.min_b), t)

    def integral_of_beta(self, t: Tensor | float) -> Tensor:
        """B(t), the integral of beta from 0 to t, in t's dtype."""
        exact = as_double(t)
        return like(self.conf.min_b * exact + 0.5 * (self.conf.max_b - self.conf.min_b) * exact**2, t)

    def alpha(self, t: Tensor | float) -> Tensor:
        """Factor exp(-B/2) of the clean translations at times t, in t's dtype."""
        return torch.exp(-0.5 * self.integral_of_beta(t))

    def variance(self, t: Tensor | float) -> Tensor:
        """Variance 1 - exp(-B) of the noise at times t, in diffused units and in t's dtype."""
        return -torch.expm1(-self.integral_of_beta(t))

    def score_scaling(self, t: Tensor | float) -> Tensor:
        """Root mean square of a component of the score, 1 / sqrt(variance).

        The projection takes three of the 3 n components, so that a mean over n residues is (n - 1) / n times as large.
        """
        return self.variance(t).rsqrt()

    def drift(self, trans: Tensor, t: Tensor | float) -> Tensor:
        """Drift -beta x / 2 of the noising SDE, [..., N, 3] in the units of trans."""
        return -0.5 * _wide(self.beta(t), trans) * trans

    def forward_marginal(
        self,
        trans_0: Tensor,
        t: Tensor | float,
        mask: Tensor | None = None,
        generator: torch.Generator | None = None,
        center: bool = True,
    ) -> tuple[Tensor, Tensor]:
        """Noised translations [..., N, 3] at times t [...] and their scores (diffused units)."""
        alpha, std = _wide(self.alpha(as_double(t)), trans_0), _wide(self.variance(as_double(t)).sqrt(), trans_0)
        clean = _project(trans_0, mask, center)
        noise = _noise(trans_0, mask, generator, center)
        trans_t = torch.where(
            visible_residues(trans_0, mask)[..., None], alpha * clean + std / self.scale * noise, trans_0
        )
        return trans_t, -noise / std

    def calc_trans_score(
        self, trans_t: Tensor, trans_0: Tensor, t: Tensor | float, mask: Tensor | None = None, center: bool = True
    ) -> Tensor:
        """Score [..., N, 3] (diffused units) of translations at times t [...] given clean ones; differentiable."""
        alpha, variance = _wide(self.alpha(as_double(t)), trans_t), _wide(self.variance(as_double(t)), trans_t)
        return _project_or_zero(trans_t - alpha * trans_0, mask, center) * (-self.scale / variance)

    def transition(
        self,
        trans_s: Tensor,
        t_from: Tensor | float,
        t_to: Tensor | float,
        mask: Tensor | None = None,
        generator: torch.Generator | None = None,
        center: bool = True,
    ) -> Tensor:
        """Translations [..., N, 3] noised on from time t_from to t_to: an Ornstein-Uhlenbeck step."""
        factor, variance = self._step(t_from, t_to)
        noise = _noise(trans_s, mask, generator, center)
        moved = _wide(factor, trans_s) * _project(trans_s, mask, center)
        moved = moved + _wide(variance.sqrt(), trans_s) / self.scale * noise
        return torch.where(visible_residues(trans_s, mask)[..., None], moved, trans_s)

    def log_transition(
        self,
        trans_t: Tensor,
        trans_s: Tensor,
        t_from: Tensor | float,
        t_to: Tensor | float,
        mask: Tensor | None = None,
        center: bool = True,
    ) -> Tensor:
        """log density [...] of `transition`, against Lebesgue measure of the diffused coordinates' subspace; float64.

        Centred, it is a density on the translations whose visible residues have no centroid: both arguments are
        projected there first, so that a centroid, of rounding or not, changes nothing, and is not scored. In batch
        units it is larger by dimension * log(scale), dimension 3 (n - 1), or 3 n without centring.
        """
        factor, variance = (x.to(trans_t.device) for x in self._step(t_from, t_to))
        moved = trans_t.double() - _wide(factor, trans_t, torch.float64) * trans_s.double()
        return self._log_normal(moved, variance, mask, center)

    def reverse(
        self,
        trans_t: Tensor,
        score: Tensor,
        t: Tensor | float,
        dt: Tensor | float,
        mask: Tensor | None = None,
        center: bool = True,
        noise_scale: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """One Euler-Maruyama step of the reverse SDE, t to t - dt: x - [(f - g^2 s) dt + noise_scale g sqrt(dt) z]."""
        beta, step = _wide(self.beta(as_double(t)), trans_t), _wide(as_double(dt), trans_t)
        moved = trans_t - (self.drift(trans_t, t) - beta / self.scale * score) * step
        if noise_scale != 0.0:
            noise = _noise(trans_t, mask, generator, center)
            moved = moved - noise_scale * (beta * step).sqrt() / self.scale * noise
        return torch.where(visible_residues(trans_t, mask)[..., None], _project(moved, mask, center), trans_t)

    def sample_ref(
        self,
        shape: tuple[int, ...],
        mask: Tensor | None = None,
        generator: torch.Generator | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
        center: bool = True,
    ) -> Tensor:
        """Translations [*shape, 3] (batch units) from the base, the standard normal of the diffused coordinates."""
        place = device or (generator.device if generator is not None else "cpu")
        return _noise(torch.empty((*shape, 3), dtype=dtype, device=place), mask, generator, center) / self.scale

    def log_ref(self, trans: Tensor, mask: Tensor | None = None, center: bool = True) -> Tensor:
        """log density [...] of the base at translations [..., N, 3], measure and projection as in `log_transition`."""
        one = torch.ones((), dtype=torch.float64, device=trans.device)
        return self._log_normal(trans.double(), one, mask, center)

    def _step(self, t_from: Tensor | float, t_to: Tensor | float) -> tuple[Tensor, Tensor]:
        """Factor and variance of the noising step."""
        start, end = as_double(t_from), as_double(t_to)
        check_order(start, end)
        difference = self.integral_of_beta(end) - self.integral_of_beta(start)
        return torch.exp(-0.5 * difference), -torch.expm1(-difference)

    def _log_normal(self, moved: Tensor, variance: Tensor, mask: Tensor | None, centred: bool) -> Tensor:
        residual = self.scale * _project_or_zero(moved, mask, centred)
        count = visible_residues(moved, mask).expand(moved.shape[:-1]).sum(-1).double()
        dimension = 3 * (count - 1).clamp(min=0) if centred else 3 * count
        return -0.5 * (residual**2).sum((-1, -2)) / variance - 0.5 * dimension * torch.log(2 * math.pi * variance)


def visible_residues(trans: Tensor, mask: Tensor | None) -> Tensor:
    """The mask [..., N] (1 = visible, 0 = masked, None = all visible) as booleans."""
    if mask is None:
        return torch.ones(trans.shape[-2], dtype=torch.bool, device=trans.device)
    return mask.to(trans.device) > 0.5


def center(x: Tensor, mask: Tensor | None = None) -> Tensor:
    """x [..., N, 3] less the centroid of the visible residues, in all residues."""
    weights = visible_residues(x, mask)[..., None].to(x.dtype)
    return x - (x * weights).sum(-2, keepdim=True) / weights.sum(-2, keepdim=True).clamp(min=1)


def _project(x: Tensor, mask: Tensor | None, centred: bool) -> Tensor:
    return center(x, mask) if centred else x


def _project_or_zero(x: Tensor, mask: Tensor | None, centred: bool) -> Tensor:
    """x on the subspace: zero in masked residues, without centroid if centred."""
    visible = visible_residues(x, mask)[..., None]
    return torch.where(visible, _project(x, mask, centred), 0.0)


def _noise(like: Tensor, mask: Tensor | None, generator: torch.Generator | None, centred: bool) -> Tensor:
    noise = torch.randn(like.shape, generator=generator, dtype=like.dtype, device=like.device)
    return _project_or_zero(noise, mask, centred)


def _wide(t: Tensor, trans: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Values [...] of times as [..., 1, 1], against translations [..., N, 3] and in their dtype."""
    return t.to(trans.device, dtype or trans.dtype)[..., None, None]
