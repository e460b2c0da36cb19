"""The torsion score network: a multilayer perceptron on periodic features, modulated by the noise level."""

import math
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from ..diffusion.torus_diffuser import TorusDiffuser
from ..errors import SettingError


@dataclass(frozen=True)
class TorsionNetworkConfig:
    """Sizes of a `TorsionNetwork`, and the noise range of the diffusion that it belongs to."""

    n_torsions: int
    hidden_size: int = 64
    n_layers: int = 3
    n_harmonics: int = 4
    min_sigma: float = 0.05
    max_sigma: float = math.pi
    data_scale: float = 0.3

    def __post_init__(self) -> None:
        for name in ("n_torsions", "hidden_size", "n_layers", "n_harmonics"):
            if getattr(self, name) < 1:
                raise SettingError(f"{name} is {getattr(self, name)}; expected a positive number")
        TorusDiffuser(self.min_sigma, self.max_sigma)  # raises where the noise range is impossible

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Condition:
    """What fixed noise levels [...] do to the network.

    `gains[i]` and `shifts[i]` [..., 1, hidden] act on the i-th hidden layer (its bias is in the shift), `scale`
    [..., 1, 1] on the output.
    """

    gains: tuple[Tensor, ...]
    shifts: tuple[Tensor, ...]
    scale: Tensor

    def __getitem__(self, index: Any) -> "Condition":
        return Condition(tuple(g[index] for g in self.gains), tuple(s[index] for s in self.shifts), self.scale[index])


class TorsionNetwork(nn.Module):
    """Score of noised torsions: (tau [..., T] rad, sigma [...] rad) -> d log p_sigma / d tau [..., T].

    Features are sin and cos of the first harmonics of each torsion, so the score is periodic and smooth. Its scale is
    fixed by the noise level (`output_scale`), as in Karras et al., "Elucidating the design space of diffusion-based
    generative models", NeurIPS 2022: 1/sigma where noise dominates, finite where the data's own width does.
    """

    _scale_log_sigma: Tensor
    _scale_log: Tensor
    _harmonics: Tensor
    _frequencies: Tensor
    _phases: Tensor
    _own: Tensor
    _centres: Tensor

    def __init__(self, config: TorsionNetworkConfig, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        width, n_features = config.hidden_size, 2 * config.n_harmonics * config.n_torsions
        modulation = nn.Linear(width, config.n_layers * 2 * width)
        self.noise = nn.Sequential(nn.Linear(_NOISE_FEATURES, width), nn.SiLU(), modulation)
        sizes = [n_features] + [width] * config.n_layers
        self.hidden = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
        self.output = nn.Linear(width, config.n_torsions)
        harmonics = torch.arange(1, config.n_harmonics + 1, dtype=torch.float64)
        self.register_buffer("_harmonics", harmonics.float(), persistent=False)
        self.register_buffer("_frequencies", harmonics.repeat(4), persistent=False)
        phases = torch.tensor([0.0, 0.5, 0.5, 1.0], dtype=torch.float64) * math.pi
        self.register_buffer("_own", torch.eye(config.n_torsions, dtype=torch.float64), persistent=False)
        self.register_buffer("_phases", phases.repeat_interleave(config.n_harmonics), persistent=False)
        low, high = math.log(config.min_sigma), math.log(config.max_sigma)
        self.register_buffer("_centres", torch.linspace(low, high, _NOISE_FEATURES), persistent=False)
        self._tabulate_scale(config)
        self._initialise(torch.Generator().manual_seed(seed))
        with torch.no_grad():
            modulation.weight.mul_(0.3)
            # Not zero: an untrained model has to be a map with a density of its own.
            self.output.weight.mul_(0.8)

    def _initialise(self, generator: torch.Generator) -> None:
        with torch.no_grad():
            for layer in [*self.noise, *self.hidden, self.output]:
                if isinstance(layer, nn.Linear):
                    layer.weight.normal_(0.0, math.sqrt(2.0 / layer.in_features), generator=generator)
                    layer.bias.normal_(0.0, 0.1, generator=generator)

    def _tabulate_scale(self, config: TorsionNetworkConfig) -> None:
        """log of the output scale on a fine grid of log sigma; linear interpolation of it defines the network."""
        t = torch.linspace(0.0, 1.0, 512, dtype=torch.float64)
        diffuser = TorusDiffuser(config.min_sigma, config.max_sigma)
        sigma = diffuser.sigma(t)
        scale = diffuser.score_scaling(t) * sigma / torch.sqrt(sigma**2 + config.data_scale**2)
        self.register_buffer("_scale_log_sigma", torch.log(sigma).float(), persistent=False)
        self.register_buffer("_scale_log", torch.log(scale).float(), persistent=False)

    def forward(self, tau: Tensor, sigma: Tensor) -> Tensor:
        """Score [..., T] at torsions tau [..., T] (rad) and noise levels sigma [...] (rad)."""
        modulation, scale = self._modulation(sigma)
        angles = tau[..., None] * self._harmonics
        x = torch.cat([torch.sin(angles), torch.cos(angles)], -1).flatten(-2)
        for index, layer in enumerate(self._layers()):
            x = nn.functional.silu(layer(x) * (1 + modulation[..., index, 0, :]) + modulation[..., index, 1, :])
        return self.output(x) * scale[..., None]

    def condition(self, sigma: Tensor) -> Condition:
        """What noise levels sigma [...] (rad) do to the network; computed once for a grid, then used at every step."""
        modulation, scale = self._modulation(sigma)
        gains = tuple((1 + gain)[..., None, :] for gain in modulation[..., 0, :].unbind(-2))
        shifts = modulation[..., 1, :].unbind(-2)
        folded = tuple(
            layer.bias * gain + shift[..., None, :]
            for layer, gain, shift in zip(self._layers(), gains, shifts, strict=True)
        )
        return Condition(gains, folded, scale[..., None, None])

    def score_and_jacobian(self, tau: Tensor, condition: Condition) -> tuple[Tensor, Tensor]:
        """Score and its derivatives by forward accumulation, several times faster than automatic differentiation.

        Parameters
        ----------
        tau
            Torsions [..., n, T] (rad).
        condition
            Of noise levels [...], each for n points.

        Returns
        -------
        Score [..., n, T] and its derivatives [..., n, T, T] (row: component, column: torsion).
        """
        half = 2 * self.config.n_harmonics
        # sin and cos of each harmonic, then their slopes cos and -sin, from one call of sin: [..., n, T, 4 H].
        waves = torch.sin(tau[..., None] * self._frequencies + self._phases)
        slopes = waves[..., half:] * self._frequencies[:half]
        # A tangent row holds the slopes of its own torsion only; row 0 is the value: [..., n, 1 + T, T 2 H].
        own = self._own[:, :, None] * slopes[..., None, :, :]
        x = torch.cat([waves[..., None, :, :half], own], -3).flatten(-2)
        for layer, gain, shift in zip(self._layers(), condition.gains, condition.shifts, strict=True):
            # Value and tangents of all points and levels in one product.
            x = _activate(x @ layer.weight.T, gain, shift)
        y = x @ self.output.weight.T
        score = (y[..., 0, :] + self.output.bias) * condition.scale
        return score, (y[..., 1:, :] * condition.scale[..., None]).transpose(-1, -2)

    def _layers(self) -> list[nn.Linear]:
        return [layer for layer in self.hidden if isinstance(layer, nn.Linear)]

    def _modulation(self, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """Gain and shift of every layer [..., layers, 2, hidden], and the scale of the output [...]."""
        log_sigma = torch.log(sigma)
        spacing = (self._centres[-1] - self._centres[0]) / (_NOISE_FEATURES - 1)
        features = torch.exp(-0.5 * ((log_sigma[..., None] - self._centres) / spacing) ** 2)
        modulation = self.noise(features).unflatten(-1, (self.config.n_layers, 2, self.config.hidden_size))
        position = (log_sigma - self._scale_log_sigma[0]) / (self._scale_log_sigma[1] - self._scale_log_sigma[0])
        left = position.floor().clamp(0, len(self._scale_log) - 2).long()
        share = position - left
        return modulation, torch.exp((1 - share) * self._scale_log[left] + share * self._scale_log[left + 1])


def _activate(linear: Tensor, gain: Tensor, shift: Tensor) -> Tensor:
    """SiLU of the modulated value, row 0 of linear [..., 1 + T, hidden], and the tangents behind it."""
    y = torch.addcmul(shift, linear[..., 0, :], gain)
    gate = torch.sigmoid(y)
    silu = y * gate
    slope = torch.addcmul(gate + silu, silu, gate, value=-1) * gain
    return torch.cat([silu[..., None, :], linear[..., 1:, :] * slope[..., None, :]], -2)


_NOISE_FEATURES = 12
