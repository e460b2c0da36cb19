"""One implicit midpoint step of the probability flow on SE(3)^N: its equation, the solution, the log-determinant.

Frames are (R_i, y_i) with y = x / alpha in Angstrom and no centroid. In these variance-exploding coordinates rotations
and translations are Brownian motions of width sigma(t), and the probability flow is d point / d(sigma^2) = -score / 2
(Song et al., ICLR 2021, eq. 13). A step from `high` to `low` noise solves, for the half increment u = (u_R, u_y),

    u = (H/4) score(M),    M = (R Exp(u_R), y + u_y),    end = (R Exp(2 u_R), y + 2 u_y)

with H = sigma_high^2 - sigma_low^2 of either kind. Read from the end, the equation holds with -u and -H: the rule is
self-adjoint and that is the inverse step. Coordinates of increments are D = 6 N - 3 numbers: 3 N of rotations in body
axes, 3 (N - 1) of translations in an orthonormal basis of the zero-centroid subspace.
"""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor

from ..geometry import rotations
from ..models.score_network import ScoreNetwork

TOLERANCE = 1e-12  # rad and Angstrom, of the equation of a step
_BROYDEN_ITERATIONS = 30
_NEWTON_ITERATIONS = 30
_PAIRS = 20_000  # of residues in one call of the network, and
_JACOBIAN_ROWS = 1000  # rows of Jacobians: more is not faster, and takes memory


@dataclass(frozen=True)
class Frames:
    """Unit quaternions [..., N, 4] (w, x, y, z) of either sign and centred translations [..., N, 3] (Angstrom)."""

    quats: Tensor
    trans: Tensor

    def __getitem__(self, index: Tensor | slice | int | tuple[slice | int, ...]) -> "Frames":
        return Frames(self.quats[index], self.trans[index])

    def distance(self, other: "Frames") -> Tensor:
        """Largest component [...] of the differences: of rotations (rad) and of translations (Angstrom)."""
        sign = torch.where((self.quats * other.quats).sum(-1, keepdim=True) < 0, -1.0, 1.0)
        turns, shifts = 2 * (self.quats - sign * other.quats), self.trans - other.trans
        return torch.maximum(turns.abs().amax((-1, -2)), shifts.abs().amax((-1, -2)))


@dataclass(frozen=True)
class Levels:
    """A grid of K steps: times [K + 1], descending, with the widths of rotations (rad) and translations (Angstrom).

    `middle` [K] are the times at which the steps ask for scores.
    """

    times: Tensor
    rot: Tensor
    trans: Tensor
    middle: Tensor


def helmert(n: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Orthonormal rows [n - 1, n] whose entries sum to zero."""
    k = torch.arange(1, n, dtype=dtype)[:, None]
    column = torch.arange(n, dtype=dtype)
    rows = torch.where(column < k, 1.0, torch.where(column == k, -k, 0.0))
    return rows / torch.sqrt(k * (k + 1))


class HalfStep:
    """The right-hand side g = (H/4) score of the equation of every step, and its Jacobian.

    Parameters
    ----------
    network
        Copied, in float64; its `predict` is called without self-conditioning.
    aatype
        [N] residue types.
    levels
        The grid.
    """

    def __init__(self, network: ScoreNetwork, aatype: Tensor, levels: Levels, device: torch.device | str) -> None:
        self._network = copy.deepcopy(network).to(device).double().eval().requires_grad_(False)
        diffuser = self._network.diffuser
        n = len(aatype)
        self.n_residues, self.n_coordinates = n, 6 * n - 3
        self.basis = helmert(n).to(device)
        self._aatype = aatype.to(device)
        self._unit = diffuser.coord_scale
        alpha = diffuser.alpha(levels.middle)
        rot, trans = ((width[:-1] ** 2 - width[1:] ** 2) / 4 for width in (levels.rot, levels.trans))
        # d(diffused coordinate) / dy = alpha coordinate_scaling turns the network's score into that of y.
        trans = trans * alpha * diffuser.r3.scale * self._unit
        self._times, self._alpha, self._rot, self._trans = (x.to(device) for x in (levels.middle, alpha, rot, trans))
        # Steps measured in these make rotations and translations comparable.
        widths = [((w[:-1] ** 2 + w[1:] ** 2) / 2).sqrt()[:, None] for w in (levels.rot, levels.trans)]
        self.widths = torch.cat([widths[0].expand(-1, 3 * n), widths[1].expand(-1, 3 * n - 3)], -1).to(device)

    def moved(self, frames: Frames, increment: Tensor) -> Frames:
        """(R Exp(v), y + w) of increments [..., D]."""
        turn, shift = self.split(increment)
        return Frames(_product(frames.quats, _exp_quaternion(turn)), frames.trans + shift)

    def split(self, increment: Tensor) -> tuple[Tensor, Tensor]:
        """Rotation vectors and centred shifts [..., N, 3] of increments [..., D]."""
        turn, shift = increment.split([3 * self.n_residues, 3 * self.n_residues - 3], -1)
        return turn.unflatten(-1, (-1, 3)), self.basis.T @ shift.unflatten(-1, (-1, 3))

    def __call__(self, points: Frames, step: Tensor) -> Tensor:
        """g [P, D] at points [P] for the steps of these numbers [P]."""
        n = self.n_residues
        rows, times = len(step), self._times[step]
        trans = points.trans * (self._alpha[step] * self._unit)[:, None, None]
        ones = torch.ones(rows, n, dtype=trans.dtype, device=trans.device)
        found = self._network.predict(
            {
                "rigids_t": torch.cat([points.quats, trans], -1),
                "t": times,
                "res_mask": ones,
                "fixed_mask": torch.zeros_like(ones),
                "seq_idx": torch.arange(n, dtype=trans.dtype, device=trans.device).expand(rows, n),
                "aatype": self._aatype.expand(rows, n),
                "sc_ca_t": torch.zeros_like(trans),
                "torsion_angles_sin_cos": trans.new_zeros(rows, n, 7, 2),
            }
        )
        rot = self._rot[step][:, None, None] * found["rot_score"]
        shift = self._trans[step][:, None, None] * (self.basis @ found["trans_score"])
        return torch.cat([rot.flatten(1), shift.flatten(1)], -1)

    def jacobian(self, points: Frames, step: Tensor) -> Tensor:
        """dg / d(increment) [P, D, D] at points [P], increments in body axes.

        By reverse mode, all rows in one pass: 2 to 6 times faster than forward mode on this network (CPU).
        """
        chunk = max(1, _JACOBIAN_ROWS // self.n_coordinates)
        parts = [self._jacobian(points[i : i + chunk], step[i : i + chunk]) for i in range(0, len(step), chunk)]
        return torch.cat(parts) if parts else points.trans.new_zeros(0, self.n_coordinates, self.n_coordinates)

    def _jacobian(self, points: Frames, step: Tensor) -> Tensor:
        with torch.enable_grad():
            change = points.trans.new_zeros(len(step), self.n_coordinates).requires_grad_()
            turn, shift = self.split(change)
            # To first order Exp is the quaternion (1, v/2), which the network normalises.
            small = torch.cat([torch.ones_like(turn[..., :1]), turn / 2], -1)
            value = self(Frames(_product(points.quats, small), points.trans + shift), step)
        identity = torch.eye(self.n_coordinates, dtype=change.dtype, device=change.device)
        rows = identity[:, None].expand(-1, len(step), -1)
        return torch.autograd.grad(value, change, rows, is_grads_batched=True)[0].transpose(0, 1)

    def turned(self, half: Tensor, matrix: Tensor) -> Tensor:
        """J_l(u) matrix for half increments u [P, D] and matrices [P, D, D]; J_l is the identity on translations.

        J_r(u) = J_l(-u) = J_l(u)^T.
        """
        size = 3 * self.n_residues
        jacobians = rotations.left_jacobian(half[:, :size].unflatten(-1, (-1, 3)))
        top = (jacobians @ matrix[:, :size].unflatten(1, (-1, 3))).flatten(1, 2)
        return torch.cat([top, matrix[:, size:]], 1)


class MidpointSteps:
    """Solves the steps of a grid, each from its start alone, and gives their log-determinants."""

    def __init__(self, half_step: HalfStep) -> None:
        self._g = half_step

    def solve(self, start: Frames, step: Tensor, sign: float) -> tuple[Tensor, Tensor]:
        """Half increments u [P, D] of steps with numbers [P], and whether they satisfy the equation [P].

        sign is 1 towards data, -1 towards noise. Broyden's method from u = 0, and where that fails Newton's from u = 0,
        each sample stopped by itself: the result depends on start and step alone, up to rounding.
        """
        chunk = max(1, _PAIRS // self._g.n_residues**2)
        parts = [self._broyden(start[i : i + chunk], step[i : i + chunk], sign) for i in range(0, len(step), chunk)]
        half, found = (torch.cat(x) for x in zip(*parts, strict=True))
        failed = torch.nonzero(~found).flatten()
        if len(failed):
            half[failed], found[failed] = self._newton(start[failed], step[failed], sign)
        return half, found

    def end(self, start: Frames, half: Tensor) -> Frames:
        """Where half increments u [P, D] lead from start [P]."""
        return self._g.moved(start, 2 * half)

    def log_det(self, start: Frames, half: Tensor, step: Tensor) -> Tensor:
        """log|det| [P] of steps towards data that go from start by half increments u: d(end) / d(start), body axes.

        log|det(I + J_l(u) A)| - log|det(I - J_r(u) A)|, A = dg/dM, J_l and J_r the Jacobians of SO(3) and the
        identity on translations. (M Exp(u) and M Exp(-u) are the ends, and adjoint actions have determinant one.)
        """
        slope = self._g.jacobian(self._g.moved(start, half), step)
        identity = torch.eye(slope.shape[-1], dtype=slope.dtype, device=slope.device)
        both = torch.stack([identity + self._g.turned(half, slope), identity - self._g.turned(-half, slope)])
        up, down = torch.linalg.slogdet(both).logabsdet
        return up - down

    def _broyden(self, start: Frames, step: Tensor, sign: float) -> tuple[Tensor, Tensor]:
        """Broyden's good method, u and the residual measured in widths of the noise, from the identity."""
        widths = self._g.widths[step]
        result, found = torch.zeros_like(widths), torch.zeros(len(step), dtype=torch.bool, device=step.device)
        rows, u = torch.arange(len(step), device=step.device), torch.zeros_like(widths)
        inverse = torch.eye(u.shape[-1], dtype=u.dtype, device=u.device).repeat(len(u), 1, 1)
        residual = -sign * self._g(start, step) / widths
        for _ in range(_BROYDEN_ITERATIONS):
            done = (residual * widths).abs().amax(-1) < TOLERANCE
            result[rows[done]], found[rows[done]] = (u * widths)[done], True
            going = ~done & torch.isfinite(residual).all(-1)
            if not bool(going.any()):
                break
            rows, u, residual, inverse, widths = (x[going] for x in (rows, u, residual, inverse, widths))
            change = -(inverse @ residual[..., None])[..., 0]
            u = u + change
            following = u - sign * self._g(self._g.moved(start[rows], u * widths), step[rows]) / widths
            inverse = _updated(inverse, change, following - residual)
            residual = following
        return result, found

    def _newton(self, start: Frames, step: Tensor, sign: float) -> tuple[Tensor, Tensor]:
        widths = self._g.widths[step]
        u = torch.zeros_like(widths)
        found = torch.zeros(len(step), dtype=torch.bool, device=step.device)
        identity = torch.eye(u.shape[-1], dtype=u.dtype, device=u.device)
        for _ in range(_NEWTON_ITERATIONS):
            points = self._g.moved(start, u)
            residual = u - sign * self._g(points, step)
            found = residual.abs().amax(-1) < TOLERANCE
            going = ~found & torch.isfinite(residual).all(-1)
            if not bool(going.any()):
                break
            slope = self._g.jacobian(points, step)
            matrix = identity - sign * self._g.turned(u, slope.mT).mT  # slope J_r(u)
            change = torch.linalg.solve_ex(matrix, residual[..., None])[0][..., 0]
            # Within one width of the noise scores are roughly linear.
            bounded = torch.nan_to_num(change / widths).clamp(-1.0, 1.0) * widths
            u = torch.where(going[:, None], u - bounded, u)
        return u, found


def _updated(inverse: Tensor, change: Tensor, difference: Tensor) -> Tensor:
    """The inverse Jacobians [P, D, D] after Broyden's update with secants (change, difference) [P, D]."""
    expected = (inverse @ difference[..., None])[..., 0]
    weight = (change * expected).sum(-1)[:, None, None]
    left = change[:, None, :] @ inverse
    update = (change - expected)[..., None] * left / weight
    safe = (weight.abs() > 1e-2 * (change**2).sum(-1)[:, None, None]) & torch.isfinite(update)
    return inverse + torch.where(safe, update, 0.0)


def _product(first: Tensor, second: Tensor) -> Tensor:
    """Hamilton products [..., 4] of quaternions (w, x, y, z)."""
    a, b = first[..., :1], second[..., :1]
    v, w = first[..., 1:], second[..., 1:]
    return torch.cat([a * b - (v * w).sum(-1, keepdim=True), a * w + b * v + torch.linalg.cross(v, w)], -1)


def _exp_quaternion(rotvec: Tensor) -> Tensor:
    """Unit quaternions [..., 4] of rotation vectors [..., 3] of any length."""
    half = 0.5 * torch.linalg.vector_norm(rotvec, dim=-1, keepdim=True)
    return torch.cat([torch.cos(half), 0.5 * torch.sinc(half / torch.pi) * rotvec], -1)
