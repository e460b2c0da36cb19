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
    """The network at fixed noise levels [...]: its layers with the modulation multiplied into weights and biases.

    `weights[i]` is [..., in, out], the first one [..., T, 2 H, out]; `biases[i]` is [..., 1, out].
    """

    weights: tuple[Tensor, ...]
    biases: tuple[Tensor, ...]

    def __getitem__(self, index: Any) -> "Condition":
        return Condition(tuple(w[index] for w in self.weights), tuple(b[index] for b in self.biases))


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
        """The network at fixed noise levels sigma [...]; computed once for a grid, then used at every step."""
        modulation, scale = self._modulation(sigma)
        weights, biases = [], []
        for index, layer in enumerate(self._layers()):
            gain = 1 + modulation[..., index, 0, :]
            weights.append(layer.weight.T * gain[..., None, :])
            biases.append((layer.bias * gain + modulation[..., index, 1, :])[..., None, :])
        weights[0] = weights[0].unflatten(-2, (self.config.n_torsions, -1))
        weights.append(self.output.weight.T * scale[..., None, None])
        biases.append((self.output.bias * scale[..., None])[..., None, :])
        return Condition(tuple(weights), tuple(biases))

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
        n, half = tau.shape[-2], 2 * self.config.n_harmonics
        # sin and cos of each harmonic, then their slopes cos and -sin, from one call of sin: [..., T, n, 4 H].
        waves = torch.sin(tau.transpose(-1, -2)[..., None] * self._frequencies + self._phases)
        rows = torch.cat([waves[..., :half], waves[..., half:] * self._frequencies[:half]], -2)
        y = rows @ condition.weights[0]  # [..., T, 2 n, hidden]: each torsion's share of the value, its tangent
        x = _activate(y[..., :n, :].sum(-3), condition.biases[0], y[..., n:, :].transpose(-2, -3))
        for weight, bias in zip(condition.weights[1:-1], condition.biases[1:-1], strict=True):
            # Value and tangents of all points in one product: [..., n (1 + T), hidden].
            y = (x.flatten(-3, -2) @ weight).unflatten(-2, x.shape[-3:-1])
            x = _activate(y[..., 0, :], bias, y[..., 1:, :])
        y = (x.flatten(-3, -2) @ condition.weights[-1]).unflatten(-2, x.shape[-3:-1])
        return y[..., 0, :] + condition.biases[-1], y[..., 1:, :].transpose(-1, -2)

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


def _activate(value: Tensor, bias: Tensor, tangents: Tensor) -> Tensor:
    """SiLU of value [..., hidden] + bias and its tangents [..., T, hidden], stacked [..., 1 + T, hidden]."""
    y = value + bias
    gate = torch.sigmoid(y)
    silu = y * gate
    slope = torch.addcmul(gate + silu, silu, gate, value=-1)
    return torch.cat([silu[..., None, :], tangents * slope[..., None, :]], -2)


_NOISE_FEATURES = 12
