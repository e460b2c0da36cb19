"""The discrete probability-flow map on the torus, with the exact log-determinant of what it does.

One map F, noise -> data, defines the density q. F is a chain of implicit midpoint steps of the probability-flow ODE
d tau / d(sigma^2) = -score / 2 (Song et al., ICLR 2021, eq. 13). A step from `high` to `low` noise solves

    low = high + (H/2) score((low + high)/2, sigma_mid),    H = sigma_high^2 - sigma_low^2

The rule is self-adjoint: the same equation read from `low` to `high` is the inverse step. Its log-determinant is
log|det(I + (H/4) A)| - log|det(I - (H/4) A)| with A = d score / d tau at the midpoint (Hairer, Lubich & Wanner,
"Geometric numerical integration", 2nd ed., II.3 and VI.4).
"""

import math
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ..errors import SettingError
from ..units import TWO_PI, wrap

TOLERANCE = 1e-12  # rad, of the equation of a step
REVERSAL_TOLERANCE = 1e-9  # rad, between the end of a step and where the other direction leads


class ScoreModel(Protocol):
    """A score with its derivatives; `condition` is what noise levels [...] turn into once and for all.

    `score_and_jacobian` takes torsions [..., n, T], n points for each of those levels, and gives [..., n, T] and
    [..., n, T, T]. Conditions can be indexed along their levels.
    """

    def condition(self, sigma: Tensor) -> Any: ...

    def score_and_jacobian(self, tau: Tensor, condition: Any) -> tuple[Tensor, Tensor]: ...


@dataclass(frozen=True)
class FlowSample:
    """Torsions [n, T], their log density [n], which of them are valid [n], and the paths that lead to them.

    `path` [K + 1, n, T] goes from noise (first) to data (last), unwrapped.
    """

    tau: Tensor
    log_q: Tensor
    valid: Tensor
    path: Tensor

    def __getitem__(self, rows: slice) -> "FlowSample":
        return FlowSample(self.tau[rows], self.log_q[rows], self.valid[rows], self.path[:, rows])


def geometric_grid(min_sigma: float, max_sigma: float, n_steps: int) -> Tensor:
    """n_steps + 1 noise levels (rad, float64) from max_sigma down to min_sigma, evenly spaced in log sigma."""
    if n_steps < 1:
        raise SettingError(f"n_diffusion_steps is {n_steps}; expected at least 1")
    return torch.logspace(0.0, 1.0, n_steps + 1, base=min_sigma / max_sigma, dtype=torch.float64) * max_sigma


def power_grid(min_sigma: float, max_sigma: float, n_steps: int, exponent: float = 5.0) -> Tensor:
    """n_steps + 1 noise levels (rad, float64) from max_sigma down to min_sigma, evenly spaced in sigma^(1/exponent).

    Karras et al., NeurIPS 2022, eq. 5: shorter steps at high noise than a geometric grid. Its largest step changes the
    torsions less, so that fewer steps stay one-to-one.
    """
    if n_steps < 1:
        raise SettingError(f"n_diffusion_steps is {n_steps}; expected at least 1")
    root = 1.0 / exponent
    return torch.linspace(max_sigma**root, min_sigma**root, n_steps + 1, dtype=torch.float64) ** exponent


class TorusFlow:
    """The map F on T torsions for a score model and a descending grid of K + 1 noise levels.

    The base is uniform on the torus. Every result is a function of its arguments only; random numbers enter as `z`.
    """

    def __init__(self, model: ScoreModel, sigmas: Tensor, max_iterations: int = 30) -> None:
        if sigmas.ndim != 1 or len(sigmas) < 2 or not bool((sigmas[1:] < sigmas[:-1]).all()) or float(sigmas[-1]) <= 0:
            raise SettingError("the noise levels of a flow have to be at least two, descending and positive")
        self._model = model
        self._max_iterations = max_iterations
        squared = sigmas**2
        # [K, 1, 1], H / 4 of each step: half of its increment is H / 4 times the score.
        self._quarter = (squared[:-1] - squared[1:])[:, None, None] / 4
        with torch.no_grad():
            self._condition = model.condition(torch.sqrt((squared[:-1] + squared[1:]) / 2))
        # Down and up in one batch: verifying a path takes as many calls of the network as one of its steps.
        self._both_quarters = torch.cat([self._quarter, -self._quarter])
        self._both_conditions = self._condition[torch.arange(self.n_steps).repeat(2)]

    @property
    def n_steps(self) -> int:
        return len(self._quarter)

    @torch.inference_mode()
    def sample(self, z: Tensor) -> FlowSample:
        """Map base draws z [n, T], uniform in [-pi, pi), to torsions; log q = log p(z) - log|det dF/dz|."""
        path, x = [z], z
        log_q = z.new_full(z.shape[:1], -z.shape[-1] * _LOG_TWO_PI)
        valid = torch.isfinite(z).all(-1)
        for k in range(self.n_steps):
            x, jacobian, converged = self._patient_step(x, self._quarter[k], self._condition[k])
            log_q = log_q - _log_det(self._quarter[k, :, None] * jacobian)
            valid = valid & converged
            path.append(x)
        return FlowSample(wrap(x), log_q, valid & torch.isfinite(log_q), torch.stack(path))

    @torch.inference_mode()
    def solve(self, tau: Tensor, guess: Tensor | None = None) -> FlowSample:
        """log q of torsions tau [n, T] by solving F(z) = tau; `valid` where F leads from z back to tau.

        `guess` [K + 1, n, T] are paths that end nearby, to start from. It decides how fast the path is found, not
        which: a path that the steps of the map do not verify is replaced by the one that they lead along.
        """
        path, jacobian, found = self._newton_path(tau, guess)
        found = found & self.is_path(path)
        if not bool(found.all()):
            path, jacobian, found = self._climb(tau)
            found = found & self.is_path(path)
        log_q = -tau.shape[-1] * _LOG_TWO_PI - _log_det(self._quarter[..., None] * jacobian).sum(0)
        return FlowSample(tau, log_q, found & torch.isfinite(log_q), path)

    @torch.inference_mode()
    def log_density(self, tau: Tensor) -> tuple[Tensor, Tensor]:
        """log q [n] of torsions tau [n, T], and which are scorable [n]: see `solve`."""
        solution = self.solve(tau)
        return solution.log_q, solution.valid

    @torch.inference_mode()
    def is_path(self, paths: Tensor) -> Tensor:
        """Whether every step of paths [K + 1, n, T] leads from each of its ends to the other [n].

        On such paths F and its inverse agree. Both directions of a move then use the same one-to-one region, also
        where the map folds or the solver fails: the present state's path and the accepted candidate's have to pass.
        """
        starts, ends = torch.cat([paths[:-1], paths[1:]]), torch.cat([paths[1:], paths[:-1]])
        reached, _, converged = self._step(starts, self._both_quarters, self._both_conditions)
        return (converged & ((reached - ends).abs().amax(-1) < REVERSAL_TOLERANCE)).all(0)

    def _patient_step(self, x: Tensor, quarter: Tensor, condition: Any) -> tuple[Tensor, Tensor, Tensor]:
        """A step of many points [n, T] at one level: the few that take long are finished by themselves."""
        end, jacobian, converged = self._step(x, quarter, condition, min(self._max_iterations, _USUAL_ITERATIONS))
        slow = torch.nonzero(~converged).flatten()
        if len(slow):
            end[slow], jacobian[slow], converged[slow] = self._step(x[slow], quarter, condition)
        return end, jacobian, converged

    def _step(
        self, x: Tensor, quarter: Tensor, condition: Any, max_iterations: int | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One implicit midpoint step from x [..., n, T]; quarter [..., 1, 1] is H/4, negative for the inverse step.

        Newton's method from the fixed starting point u = 0 for the half increment u = (H/4) score(x + u), so that the
        result depends on x alone. Returns the end, A at the midpoint, and where the equation holds [..., n].
        """
        u = torch.zeros_like(x)
        for _ in range(max_iterations or self._max_iterations):
            score, jacobian = self._model.score_and_jacobian(x + u, condition)
            residual = u - quarter * score
            converged = residual.abs().amax(-1) < TOLERANCE
            if bool(converged.all()):
                break
            u = u - _bounded(_solve(_identity(x) - quarter[..., None] * jacobian, residual))
        return x + 2 * u, jacobian.contiguous(), converged

    def _newton_path(self, tau: Tensor, guess: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Paths [K + 1, n, T] that end in tau, A [K, n, T, T] at their midpoints, and where the equations hold [n].

        Newton's method for all steps at once: a few calls of the network instead of several for each step. Where the
        equations have several solutions it may find another one than the steps of the map.
        """
        path = tau.expand(self.n_steps + 1, *tau.shape).clone() if guess is None else guess + (tau - guess[-1])
        for _ in range(self._max_iterations):
            score, jacobian = self._model.score_and_jacobian((path[1:] + path[:-1]) / 2, self._condition)
            residual = path[1:] - path[:-1] - 2 * self._quarter * score
            found = residual.abs().amax((0, -1)) < TOLERANCE
            if bool(found.all()):
                return path, jacobian, found
            path[:-1] -= _bounded(self._newton_update(self._quarter[..., None] * jacobian, residual))
        return path, jacobian, found

    def _newton_update(self, scaled: Tensor, residual: Tensor) -> Tensor:
        """Solve the block bidiagonal system of all steps for the change of the points above the data end [K, n, T]."""
        k, n, t = residual.shape
        identity = _identity(residual)
        matrix = residual.new_zeros(n, k, t, k, t)
        # The residual of step i depends on its upper end, unknown i, and its lower end, unknown i + 1 (or tau).
        matrix.diagonal(dim1=1, dim2=3).copy_((-identity - scaled).permute(1, 2, 3, 0))
        matrix.diagonal(1, dim1=1, dim2=3).copy_((identity - scaled[:-1]).permute(1, 2, 3, 0))
        change = _solve(matrix.reshape(n, k * t, k * t), residual.transpose(0, 1).reshape(n, k * t))
        return change.unflatten(-1, (k, t)).transpose(0, 1)

    def _climb(self, tau: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The same, by the inverse steps of the map one after the other."""
        path, jacobians, x = [tau], [], tau
        found = torch.isfinite(tau).all(-1)
        for k in reversed(range(self.n_steps)):
            x, jacobian, converged = self._step(x, -self._quarter[k], self._condition[k])
            found = found & converged
            path.append(x)
            jacobians.append(jacobian)
        return torch.stack(path[::-1]), torch.stack(jacobians[::-1]), found


def _identity(like: Tensor) -> Tensor:
    return torch.eye(like.shape[-1], dtype=like.dtype, device=like.device)


def _solve(matrix: Tensor, vector: Tensor) -> Tensor:
    """Solutions of linear systems; a singular one gives infinities, and its point does not converge.

    For pairs a formula is many times faster than a call of LAPACK for each.
    """
    if matrix.shape[-1] == 2:
        (a, b), (c, d) = (row.unbind(-1) for row in matrix.unbind(-2))
        first, second = vector.unbind(-1)
        return torch.stack([d * first - b * second, a * second - c * first], -1) / (a * d - b * c)[..., None]
    return torch.linalg.solve_ex(matrix, vector[..., None])[0][..., 0]


def _bounded(change: Tensor) -> Tensor:
    """Newton changes cut to one radian, within which the model's score is roughly linear."""
    return torch.nan_to_num(change).clamp(-1.0, 1.0)


def _log_det(scaled: Tensor) -> Tensor:
    """log|det| of a step from (H/4) A [..., T, T]: of I + (H/4) A over I - (H/4) A."""
    both = torch.stack([_identity(scaled) + scaled, _identity(scaled) - scaled])
    if scaled.shape[-1] == 2:
        (a, b), (c, d) = (row.unbind(-1) for row in both.unbind(-2))
        log_det = (a * d - b * c).abs().log()
    else:
        log_det = torch.linalg.slogdet(both).logabsdet
    return log_det[0] - log_det[1]


_LOG_TWO_PI = math.log(TWO_PI)
_USUAL_ITERATIONS = 5
