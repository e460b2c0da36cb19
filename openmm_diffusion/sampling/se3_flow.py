"""The discrete probability-flow map on SE(3)^N, with the exact log-determinant of what it does.

One map F, noise -> data, defines the density q of frames: a chain of implicit midpoint steps (`se3_flow_step`) from the
base at max_t down to min_t. Scoring solves the same steps upwards. Whatever the network is, and for any number of
steps, q is the density of what the program draws.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..diffusion.se3_diffuser import SE3Diffuser
from ..errors import SettingError
from ..geometry import rotations
from ..geometry.rigid import Rigid
from ..models.score_network import ScoreNetwork
from .se3_flow_step import Frames, HalfStep, Levels, MidpointSteps
from .se3_process import centred

REVERSAL_TOLERANCE = 1e-9  # rad and Angstrom, between the end of a step and where the other direction leads


@dataclass(frozen=True)
class SE3FlowSample:
    """Frames [n, N, 7] (float64, Angstrom, centred), their log density [n], and which of them are valid [n].

    `path` [K + 1, n] holds the frames at every noise level, from the base (first) to `rigids` (last).
    """

    rigids: Tensor
    log_q: Tensor
    valid: Tensor
    path: Frames

    def __len__(self) -> int:
        return len(self.log_q)

    def __getitem__(self, rows: slice) -> "SE3FlowSample":
        return SE3FlowSample(self.rigids[rows], self.log_q[rows], self.valid[rows], self.path[:, rows])


class SE3Flow:
    """The map F and its density for a score network on chains of N <= 10 residues or so.

    A step costs about 6 N - 3 derivatives of the network. Densities are against normalised Haar measure
    of every rotation and Lebesgue measure (Angstrom) of the zero-centroid subspace of the translations x / alpha.

    Parameters
    ----------
    network
        Copied, in float64; asked without self-conditioning.
    n_residues, aatype
        N, and the residue types [N].
    n_steps
        K; the levels are evenly spaced in the mean of the logarithms of both widths of the noise.
    max_t
        Time of the base: uniform rotations, normal translations on the zero-centroid subspace. The flow ends at the
        diffuser's min_t: frames keep the noise of that time.
    prior_std
        Standard deviation (Angstrom) of a coordinate of the data about the centroid; with the noise at max_t it makes
        the width of the base. One diffused unit by default.
    dtype
        Only float64: a map in single precision is a staircase without a density at the tolerance kept here.
    """

    def __init__(
        self,
        network: ScoreNetwork,
        n_residues: int,
        aatype: Tensor,
        *,
        n_steps: int = 25,
        max_t: float = 0.4,
        prior_std: float | None = None,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str = "cpu",
    ) -> None:
        if dtype != torch.float64:
            raise SettingError(
                f"the dtype of an SE(3) flow is {dtype}; expected torch.float64, or use the path density"
            )
        if n_residues < 2 or tuple(aatype.shape) != (n_residues,):
            raise SettingError(
                f"n_residues is {n_residues} and aatype has the shape {list(aatype.shape)}; expected at least two "
                "residues and one type for each"
            )
        diffuser = network.diffuser
        self.levels = noise_levels(diffuser, n_steps, diffuser.conf.min_t, max_t)
        if prior_std is None:
            prior_std = 1 / (diffuser.r3.scale * diffuser.coord_scale)
        if not (math.isfinite(prior_std) and prior_std >= 0):
            raise SettingError(f"prior_std is {prior_std} Angstrom; expected a number of at least 0")
        self.n_steps, self.n_residues, self.device = n_steps, n_residues, torch.device(device)
        self.base_std = math.sqrt(float(self.levels.trans[0]) ** 2 + prior_std**2)
        self._half_step = HalfStep(network, aatype, self.levels, device)
        self.steps = MidpointSteps(self._half_step)

    @torch.no_grad()
    def sample(self, n: int, generator: torch.Generator) -> SE3FlowSample:
        """n frames with their log density; `valid` is False where a step has no solution or a number is not finite."""
        return self.map(self.draw_base(n, generator))

    def draw_base(self, n: int, generator: torch.Generator) -> Frames:
        """n draws of the base."""
        rots = rotations.haar((n, self.n_residues), generator)
        normals = torch.randn(n, self.n_residues, 3, generator=generator, dtype=torch.float64, device=generator.device)
        quats, trans = rotations.to_quaternion(rots), self.base_std * centred(normals)
        return Frames(quats.to(self.device), trans.to(self.device))

    @torch.no_grad()
    def map(self, base: Frames) -> SE3FlowSample:
        """The frames that base draws [n] lead to, as `sample`."""
        path, halves, valid = self._follow(base, 1.0)
        log_q = self._log_q(path, halves)
        return SE3FlowSample(_rigids(path[-1]), log_q, valid & torch.isfinite(log_q), path)

    @torch.no_grad()
    def solve(self, rigids: Tensor) -> SE3FlowSample:
        """log q of frames [n, N, 7] (Angstrom) by solving F(base) = frames; `valid` where F leads back to them.

        A common shift of the frames changes nothing.
        """
        frames = Rigid.from_tensor_7(rigids.to(self.device, torch.float64))
        ends = Frames(rotations.to_quaternion(frames.rots), centred(frames.trans))
        path, halves, valid = self._follow(ends, -1.0)
        path, halves = Frames(path.quats.flip(0), path.trans.flip(0)), -halves.flip(0)
        valid = valid & self._returns(path, 1.0)
        log_q = self._log_q(path, halves)
        return SE3FlowSample(_rigids(path[-1]), log_q, valid & torch.isfinite(log_q), path)

    def score(self, rigids: Tensor) -> tuple[Tensor, Tensor]:
        """log q [n] of frames [n, N, 7] (Angstrom), and which of them are scorable [n]: see `solve`."""
        solution = self.solve(rigids)
        return solution.log_q, solution.valid

    @torch.no_grad()
    def returns(self, sample: SE3FlowSample, index: int) -> bool:
        """Whether the steps solved upwards lead from the frames of a sample along its path to its base draw.

        On such paths F and its inverse agree, so that both directions of a move use the same one-to-one region, also
        where the map folds or the solver fails. Every step is checked from the path's own points, in one batch.
        """
        index = index % len(sample)
        chosen = sample[index : index + 1]
        if not bool(chosen.valid.all()):
            return False
        frames = Rigid.from_tensor_7(chosen.rigids)
        shown = Frames(rotations.to_quaternion(frames.rots), frames.trans)
        reached = shown.distance(chosen.path[-1]) < REVERSAL_TOLERANCE
        return bool((reached & self._returns(chosen.path, -1.0)).all())

    def _follow(self, start: Frames, sign: float) -> tuple[Frames, Tensor, Tensor]:
        """Path [K + 1, n], half increments [K, n, D] and success [n] of all steps, down (1) or up (-1)."""
        n, here = len(start.trans), start
        points, halves = [start], []
        valid = torch.isfinite(start.trans).all((-1, -2)) & torch.isfinite(start.quats).all((-1, -2))
        for k in range(self.n_steps) if sign > 0 else reversed(range(self.n_steps)):
            half, solved = self.steps.solve(here, torch.full((n,), k, device=self.device), sign)
            here, valid = self.steps.end(here, half), valid & solved
            points.append(here)
            halves.append(half)
        path = Frames(torch.stack([p.quats for p in points]), torch.stack([p.trans for p in points]))
        return path, torch.stack(halves), valid

    def _returns(self, path: Frames, sign: float) -> Tensor:
        """Whether every step, down (1) or up (-1), leads from its start on paths [K + 1, n] to its end [n]."""
        starts, ends = (path[:-1], path[1:]) if sign > 0 else (path[1:], path[:-1])
        flat, step = self._flat(starts)
        half, solved = self.steps.solve(flat, step, sign)
        good = solved & (self.steps.end(flat, half).distance(self._flat(ends)[0]) < REVERSAL_TOLERANCE)
        return good.unflatten(0, (self.n_steps, -1)).all(0)

    def _log_q(self, path: Frames, halves: Tensor) -> Tensor:
        """log density [n] at the ends of paths: of the base less the log-determinants of the steps."""
        flat, step = self._flat(path[:-1])
        log_det = self.steps.log_det(flat, halves.flatten(0, 1), step).unflatten(0, (self.n_steps, -1)).sum(0)
        squares = (path.trans[0] ** 2).sum((-1, -2)) / self.base_std**2
        dimension = 3 * (self.n_residues - 1)
        return -0.5 * squares - dimension * (math.log(self.base_std) + 0.5 * math.log(2 * math.pi)) - log_det

    def _flat(self, points: Frames) -> tuple[Frames, Tensor]:
        """Points [K, n] as one batch [K n], with the numbers of their steps."""
        n = points.trans.shape[1]
        step = torch.arange(self.n_steps, device=self.device).repeat_interleave(n)
        return Frames(points.quats.flatten(0, 1), points.trans.flatten(0, 1)), step


def noise_levels(diffuser: SE3Diffuser, n_steps: int, min_t: float, max_t: float) -> Levels:
    """Levels from max_t to min_t, evenly spaced in the mean of log sigma of rotations and of translations.

    Raises
    ------
    SettingError
        For fewer than one step, for times that are not min_t < max_t <= 1, and where a part is not diffused.
    """
    if n_steps < 1:
        raise SettingError(f"n_diffusion_steps is {n_steps}; expected at least 1")
    if not min_t < max_t <= 1.0:
        raise SettingError(f"max_t is {max_t}; expected above min_t, {min_t}, and at most 1")
    if not (diffuser.conf.diffuse_rot and diffuser.conf.diffuse_trans):
        raise SettingError("the model leaves rotations or translations without noise; a flow needs a model of both")

    def widths(t: Tensor) -> tuple[Tensor, Tensor]:
        rot, trans = diffuser.sigma(t)
        return rot, trans / diffuser.coord_scale

    def level(t: Tensor) -> Tensor:
        rot, trans = widths(t)
        return (rot.log() + trans.log()) / 2

    def times_of(levels: Tensor) -> Tensor:
        low, high = torch.full_like(levels, min_t), torch.full_like(levels, max_t)
        for _ in range(60):
            t = (low + high) / 2
            above = level(t) > levels
            low, high = torch.where(above, low, t), torch.where(above, t, high)
        return (low + high) / 2

    ends = torch.tensor([max_t, min_t], dtype=torch.float64)
    top, bottom = level(ends).tolist()
    times = times_of(torch.linspace(top, bottom, n_steps + 1, dtype=torch.float64))
    times[0], times[-1] = max_t, min_t
    rot, trans = widths(times)
    rot_variance, trans_variance = ((w[:-1] ** 2 + w[1:] ** 2) / 2 for w in (rot, trans))
    return Levels(times, rot, trans, times_of((rot_variance.log() + trans_variance.log()) / 4))


def _rigids(frames: Frames) -> Tensor:
    """[..., N, 7] with w >= 0 and normalised quaternions."""
    quats = torch.where(frames.quats[..., :1] < 0, -frames.quats, frames.quats)
    return torch.cat([quats / torch.linalg.vector_norm(quats, dim=-1, keepdim=True), frames.trans], -1)
