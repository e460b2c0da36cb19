"""The discrete flow on SE(3)^N: its density is that of what it does, on random networks and on analytic scores."""

import math

import pytest
import torch
from tiny_network import TINY
from torch import Tensor, nn

from openmm_diffusion.diffusion import igso3
from openmm_diffusion.diffusion.se3_config import R3Config, SE3Config, SO3Config
from openmm_diffusion.diffusion.se3_diffuser import SE3Diffuser
from openmm_diffusion.errors import SettingError
from openmm_diffusion.geometry import rotations
from openmm_diffusion.geometry.rigid import Rigid
from openmm_diffusion.models.score_network import ScoreNetwork
from openmm_diffusion.sampling.se3_flow import SE3Flow, SE3FlowSample
from openmm_diffusion.sampling.se3_flow_step import Frames, helmert
from openmm_diffusion.sampling.se3_process import centred

PER_ANGSTROM = 1 / 2.2
CONF = {**TINY, "embed": {"index_embed_size": 8, "embed_self_conditioning": False, "embed_residue_type": True}}
RELATIVE = {**CONF, "embed": {**CONF["embed"], "relative_frames": True}}


def network(conf: dict = RELATIVE, seed: int = 0, scale: float = 1.0, se3: SE3Config | None = None) -> ScoreNetwork:
    """Random weights; `scale` multiplies the updates of the frames."""
    net = ScoreNetwork(conf, SE3Diffuser(se3 or SE3Config.acceptance(PER_ANGSTROM)), seed, zero_init=False)
    with torch.no_grad():
        net.score_model.blocks[-1].backbone_update.linear.weight.mul_(scale)
    return net


def flow_of(net: nn.Module, n_residues: int, n_steps: int, **options: object) -> SE3Flow:
    types = torch.full((n_residues,), 20)
    types[1] = 0
    return SE3Flow(net, n_residues, types, n_steps=n_steps, **options)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Stand(nn.Module):
    """What a flow asks of a network, with scores (per rad, per Angstrom) from a function of (rots, y, t)."""

    def __init__(self, se3: SE3Config) -> None:
        super().__init__()
        self.diffuser = SE3Diffuser(se3)

    def scores(self, rots: Tensor, y: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def predict(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        frames, t = Rigid.from_tensor_7(batch["rigids_t"]), batch["t"]
        alpha = self.diffuser.alpha(t)[:, None, None]
        rot, trans = self.scores(frames.rots, frames.trans / alpha, t)
        return {"rot_score": rot, "trans_score": trans / (alpha * self.diffuser.r3.scale)}


class Gaussian(Stand):
    """The exact score of independent data: IGSO(3) of width `turn` about the identity (None: uniform rotations),
    normals of covariance `spread` [N - 1, N - 1] in the Helmert basis."""

    def __init__(self, se3: SE3Config, turn: float | None, spread: Tensor) -> None:
        super().__init__(se3)
        self.turn, self.spread, self.basis = turn, spread, helmert(len(spread) + 1)

    def scores(self, rots: Tensor, y: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        rot_sigma, trans_sigma = self.diffuser.sigma(t)
        covariance = self.spread + trans_sigma[:, None, None] ** 2 * torch.eye(len(self.spread), dtype=y.dtype)
        pull = torch.linalg.solve(covariance, self.basis @ y)
        if self.turn is None:
            return torch.zeros_like(y), -self.basis.T @ pull
        width = torch.sqrt(rot_sigma**2 + self.turn**2)[:, None].expand(rots.shape[:2])
        return igso3.score(rotations.log(rots), width), -self.basis.T @ pull


def wide(min_t: float = 0.05) -> SE3Config:
    """Noise that leaves rotations uniform to 1e-6 at t = 1, and translations not much wider than data."""
    return SE3Config(
        min_t=min_t,
        so3=SO3Config(min_sigma=0.1, max_sigma=4.0, base="haar"),
        r3=R3Config(max_b=5.0, coordinate_scaling=PER_ANGSTROM),
    )


def explicit_twin(flow: SE3Flow, rigids: Tensor) -> Tensor:
    """log q by explicit midpoint steps towards noise on the same grid, with the log-determinant of those very steps."""
    half_step = flow._half_step
    frames = Rigid.from_tensor_7(rigids)
    here, total = Frames(rotations.to_quaternion(frames.rots), frames.trans), torch.zeros(len(rigids)).double()
    identity = torch.eye(half_step.n_coordinates, dtype=torch.float64)

    def adjoint(u: Tensor) -> Tensor:
        blocks = rotations.exp(half_step.split(u)[0])
        rest = torch.eye(3 * flow.n_residues - 3, dtype=u.dtype)
        return torch.stack([torch.block_diag(*b, rest) for b in blocks])

    for k in reversed(range(flow.n_steps)):
        step = torch.full((len(rigids),), k)
        first = -half_step(here, step)
        middle = half_step.moved(here, first)
        move = -2 * half_step(middle, step)
        to_middle = adjoint(-first) @ (identity - half_step.turned(first, half_step.jacobian(here, step)))
        slope = -2 * half_step.jacobian(middle, step) @ to_middle
        total = total + torch.linalg.slogdet(identity + half_step.turned(move, slope)).logabsdet
        here = half_step.moved(here, move)
    return log_base(flow, here.trans) + total


def log_base(flow: SE3Flow, trans: Tensor) -> Tensor:
    dimension = 3 * (flow.n_residues - 1)
    return -0.5 * (trans**2).sum((-1, -2)) / flow.base_std**2 - dimension / 2 * math.log(2 * math.pi * flow.base_std**2)


def assert_scored_as_sampled(flow: SE3Flow, n: int) -> None:
    sample = flow.sample(n, generator(1))
    log_q, scorable = flow.score(sample.rigids)
    assert sample.valid.all() and scorable.all()
    assert float(sample.log_q.std()) > 0.5, "the density is too flat for the comparison to mean anything"
    assert float((log_q - sample.log_q).abs().max()) < 1e-9
    few = slice(0, 50)
    twin = (explicit_twin(flow, sample.rigids[few]) - sample.log_q[few]).abs().median()
    assert float(twin) > 1e-4, "explicit steps backwards have to be seen to miss"


@pytest.mark.parametrize("conf, n_residues, n_steps", [(CONF, 2, 2), (RELATIVE, 3, 3), (CONF, 3, 1)])
def test_sampling_and_scoring_agree(conf: dict, n_residues: int, n_steps: int) -> None:
    """log q of sampling and of scoring agree to 1e-9; explicit midpoint steps backwards miss by far more."""
    assert_scored_as_sampled(flow_of(network(conf), n_residues, n_steps), 200 if n_steps < 3 else 60)


@pytest.mark.slow
def test_sampling_and_scoring_agree_on_ten_thousand() -> None:
    """The same on 10^4 samples."""
    assert_scored_as_sampled(flow_of(network(CONF), 2, 3), 10_000)


@pytest.mark.parametrize("n_residues, n_steps", [(2, 1), (2, 3), (3, 2)])
def test_log_determinant_is_that_of_the_whole_map(n_residues: int, n_steps: int) -> None:
    """log q - log p(base) is minus the log|det| of finite differences of the base -> frames map on the manifold."""
    flow, h, n = flow_of(network(), n_residues, n_steps), 1e-3, 3
    base = flow.draw_base(n, generator(2))
    sample, half_step = flow.map(base), flow._half_step
    size = half_step.n_coordinates
    # [4, D, n, D]: four distances along every coordinate of every base draw.
    shifts = h * torch.tensor([-2.0, -1.0, 1.0, 2.0], dtype=torch.float64)[:, None, None, None]
    changes = shifts * torch.eye(size, dtype=torch.float64)[:, None].expand(size, n, size)
    copies = torch.arange(n).repeat(4 * size)
    with torch.no_grad():
        ends = flow._follow(half_step.moved(base[copies], changes.reshape(-1, size)), 1.0)[0][-1]
    here = sample.path[-1][copies]
    turns = rotations.log(rotations.from_quaternion(here.quats).mT @ rotations.from_quaternion(ends.quats))
    moves = torch.cat([turns.flatten(1), (half_step.basis @ (ends.trans - here.trans)).flatten(1)], -1)
    a, b, c, d = moves.reshape(4, size, n, size)
    jacobian = ((a - 8 * b + 8 * c - d) / (12 * h)).transpose(0, 1)
    expected = log_base(flow, base.trans) - torch.linalg.slogdet(jacobian).logabsdet
    assert sample.valid.all()
    torch.testing.assert_close(sample.log_q, expected, rtol=0, atol=1e-6)


def test_normal_data_have_the_discrete_maps_own_closed_form() -> None:
    """On correlated normal translations F is linear: log q is the normal of the product of the steps' matrices."""
    spread = torch.tensor([[2.0, 0.8], [0.8, 0.5]], dtype=torch.float64)
    flow = flow_of(Gaussian(wide(), None, spread), 3, 4, max_t=0.5)
    sample = flow.sample(50, generator())
    matrix, identity = torch.eye(2, dtype=torch.float64), torch.eye(2, dtype=torch.float64)
    sigma = flow.levels.trans
    for k in range(4):
        noise = float(SE3Diffuser(wide()).sigma(flow.levels.middle[k])[1])
        half = -(sigma[k] ** 2 - sigma[k + 1] ** 2) / 4 * torch.linalg.inv(spread + noise**2 * identity)
        matrix = torch.linalg.inv(identity - half) @ (identity + half) @ matrix
    covariance = flow.base_std**2 * matrix @ matrix.T
    coordinates = (helmert(3) @ sample.rigids[..., 4:]).mT
    normal = torch.distributions.MultivariateNormal(torch.zeros(2, dtype=torch.float64), covariance)
    torch.testing.assert_close(sample.log_q, normal.log_prob(coordinates).sum(-1), rtol=0, atol=1e-9)
    torch.testing.assert_close(flow.score(sample.rigids)[0], sample.log_q, rtol=0, atol=1e-9)


def test_exact_score_gives_the_known_density_in_order_two() -> None:
    """With the score of IGSO(3) times normal data log q tends to their density at min_t as 1 / K^2, below 1e-3."""
    turn, std, errors = 0.5, 1.5, []
    net = Gaussian(wide(), turn, std**2 * torch.eye(1, dtype=torch.float64))
    rot_sigma, trans_sigma = net.diffuser.sigma(torch.tensor(0.05, dtype=torch.float64))
    for n_steps in (8, 16, 200):
        flow = flow_of(net, 2, n_steps, max_t=1.0, prior_std=std)
        sample = flow.sample(40, generator())
        frames = Rigid.from_tensor_7(sample.rigids)
        width = torch.sqrt(rot_sigma**2 + turn**2).expand(40, 2)
        variance = std**2 + float(trans_sigma) ** 2
        squares = (frames.trans**2).sum((-1, -2))
        known = igso3.log_density_of(rotations.log(frames.rots), width).sum(-1) - squares / (2 * variance)
        known = known - 1.5 * math.log(2 * math.pi * variance)
        assert sample.valid.all()
        errors.append(float((sample.log_q - known).abs().max()))
    assert 3.0 < errors[0] / errors[1] < 5.0
    assert errors[2] < 1e-3


def test_global_rotation_of_the_base_turns_the_frames() -> None:
    """F(g base) = g F(base) with the same density, and scoring turned or shifted frames changes nothing."""
    flow, turn = flow_of(network(), 3, 3), rotations.haar((), generator(5))
    base = flow.draw_base(30, generator())
    frames = Rigid(rotations.from_quaternion(base.quats), base.trans)
    turned = Rigid(turn @ frames.rots, frames.trans @ turn.T)
    sample = flow.map(base)
    there = flow.map(Frames(rotations.to_quaternion(turned.rots), turned.trans))
    ends, moved = Rigid.from_tensor_7(sample.rigids), Rigid.from_tensor_7(there.rigids)
    torch.testing.assert_close(moved.rots, turn @ ends.rots, rtol=0, atol=1e-9)
    torch.testing.assert_close(moved.trans, ends.trans @ turn.T, rtol=0, atol=1e-9)
    torch.testing.assert_close(there.log_q, sample.log_q, rtol=0, atol=1e-9)
    shifted = torch.cat([there.rigids[..., :4], there.rigids[..., 4:] + 3.0], -1)
    torch.testing.assert_close(flow.score(shifted)[0], sample.log_q, rtol=0, atol=1e-9)


def mean_ratio(flow: SE3Flow, n: int) -> tuple[tuple[float, float], tuple[float, float]]:
    """Mean of q / r and its error over n draws of a wide reference r (uniform rotations), and the same for the base's
    density carried along the map instead of q: the log-determinant dropped."""
    std = 1.25 * float((flow._half_step.basis @ flow.sample(200, generator(8)).rigids[..., 4:]).std())
    rots = rotations.haar((n, flow.n_residues), generator(3))
    trans = std * centred(torch.randn(n, flow.n_residues, 3, generator=generator(4), dtype=torch.float64))
    dimension = 3 * (flow.n_residues - 1)
    log_r = -0.5 * (trans**2).sum((-1, -2)) / std**2 - dimension / 2 * math.log(2 * math.pi * std**2)
    solution = flow.solve(torch.cat([rotations.to_quaternion(rots), trans], -1))
    found = []
    for log_q in (solution.log_q, log_base(flow, solution.path.trans[0])):
        ratio = torch.where(solution.valid, torch.exp(log_q - log_r), 0.0)
        found.append((float(ratio.mean()), float(ratio.std() / math.sqrt(n))))
    return found[0], found[1]


def test_density_integrates_to_one() -> None:
    """E_r[q / r] over a wide reference is 1 within 4 errors of at most 0.03; without the log-determinant it is not."""
    se3 = SE3Config.acceptance(PER_ANGSTROM).model_copy(update={"min_t": 0.15})
    (mean, error), (control, control_error) = mean_ratio(flow_of(network(CONF, se3=se3), 2, 2), 2000)
    assert error < 0.03
    assert abs(mean - 1.0) < 4 * error
    assert abs(control - 1.0) > 10 * control_error


def test_honest_samples_return_and_tampered_ones_do_not() -> None:
    """returns() is true for what was sampled or solved; false where frames, base, or the flag are altered by 1e-6."""
    flow = flow_of(network(), 3, 3)
    sample = flow.sample(6, generator())
    assert all(flow.returns(sample, k) for k in range(-1, 6))
    assert flow.returns(flow.solve(sample.rigids), 2)
    shift = torch.zeros_like(sample.rigids)
    shift[2, 0, 4], shift[2, 1, 4] = 1e-6, -1e-6
    frames = SE3FlowSample(sample.rigids + shift, sample.log_q, sample.valid, sample.path)
    trans = sample.path.trans.clone()
    trans[0] = trans[0] + shift[..., 4:]
    base = SE3FlowSample(sample.rigids, sample.log_q, sample.valid, Frames(sample.path.quats, trans))
    flag = SE3FlowSample(sample.rigids, sample.log_q, torch.arange(6) != 2, sample.path)
    for tampered in (frames, base, flag):
        assert flow.returns(tampered, 1)
        assert not flow.returns(tampered, 2)


class Folding(Stand):
    """A score so steep that neighbouring points overtake one another in one step."""

    def scores(self, rots: Tensor, y: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        turn = 0.3 * torch.sin(3 * rotations.log(rots))
        return turn, centred(0.3 * torch.sin(2 * y))


def test_folding_map_agrees_where_paths_are_verified() -> None:
    """Where the map folds, samples that return are scored as they were sampled, and others are seen not to return."""
    flow = flow_of(Folding(SE3Config.acceptance(PER_ANGSTROM)), 2, 3, max_t=0.3)
    sample = flow.sample(300, generator())
    verified = sample.valid & flow._returns(sample.path, -1.0)
    assert 0.02 < float(verified.double().mean()) < 0.98, "the map has to fold for this test to mean anything"
    log_q, scorable = flow.score(sample.rigids)
    assert scorable[verified].all()
    error = (log_q - sample.log_q)[verified].abs()
    assert float(error.median()) < 1e-10 and float(error.max()) < 1e-5
    other = sample.valid & scorable & ~verified
    assert other.any() and float((log_q - sample.log_q)[other].abs().max()) > 0.1
    # What is scorable comes from a base draw that leads there and is verified: drawable and scorable are one set.
    again = flow.solve(sample.rigids)
    drawn = flow.map(again.path[0][again.valid])
    assert drawn.valid.all() and flow._returns(drawn.path, -1.0).all()


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e6])
def test_broken_network_gives_invalid_samples(value: float) -> None:
    """NaN, infinite or exploding weights make candidates and present states invalid, without an exception."""
    net = network(CONF)
    frames = flow_of(net, 2, 2).sample(5, generator()).rigids
    with torch.no_grad():
        net.score_model.blocks[0].backbone_update.linear.bias.fill_(value)
        net.score_model.blocks[0].ipa.out.weight.mul_(value)
    flow = flow_of(net, 2, 2)
    sample = flow.sample(5, generator())
    if not math.isfinite(value):
        assert not sample.valid.any()
        assert not flow.score(frames)[1].any()
    for k in range(5):
        good = flow.returns(sample, k)
        assert good <= bool(sample.valid[k])
        assert not good or abs(float(flow.score(sample.rigids)[0][k] - sample.log_q[k])) < 1e-6


def test_broken_frames_are_unscorable_and_leave_others_alone() -> None:
    """NaN frames are not scorable; the densities of the frames beside them stay what they were."""
    flow = flow_of(network(), 3, 2)
    sample = flow.sample(4, generator())
    rigids = sample.rigids.clone()
    rigids[1, 0, 5], rigids[2, 1, 0] = math.nan, math.inf
    log_q, scorable = flow.score(rigids)
    assert scorable.tolist() == [True, False, False, True]
    torch.testing.assert_close(log_q[scorable], sample.log_q[scorable], rtol=0, atol=1e-9)


def test_lengths_are_angstrom_whatever_the_batch_unit() -> None:
    """coord_scale, the unit of the network's batches, changes neither frames nor densities."""
    net, other = network(CONF), network(CONF)
    other.diffuser.coord_scale = 0.1
    expected, found = (flow_of(n, 2, 2).sample(5, generator()) for n in (net, other))
    torch.testing.assert_close(found.rigids, expected.rigids, rtol=0, atol=1e-9)
    torch.testing.assert_close(found.log_q, expected.log_q, rtol=0, atol=1e-9)


def test_samples_are_one_for_each_generator_and_network() -> None:
    """The same generator state gives the same samples, and training the network on does not change a flow."""
    net = network(CONF)
    flow = flow_of(net, 2, 2)
    first = flow.sample(5, generator(7))
    with torch.no_grad():
        next(net.parameters()).add_(1.0)
    second, other = flow.sample(5, generator(7)), flow.sample(5, generator(8))
    assert torch.equal(first.rigids, second.rigids)
    assert not torch.allclose(first.rigids, other.rigids)
    assert len(first[:2]) == 2 and first.rigids.dtype == torch.float64
    assert float(first.rigids[..., 4:].mean(-2).abs().max()) < 1e-12


@pytest.mark.parametrize(
    "options, words",
    [
        ({"n_steps": 0}, "at least 1"),
        ({"max_t": 0.0005}, "max_t is 0.0005"),
        ({"max_t": 1.5}, "at most 1"),
        ({"prior_std": -1.0}, "prior_std"),
        ({"dtype": torch.float32}, "float64"),
    ],
)
def test_settings_out_of_range_are_refused(options: dict, words: str) -> None:
    """A setting out of range is one sentence that names it."""
    with pytest.raises(SettingError, match=words):
        SE3Flow(network(CONF), 2, torch.tensor([20, 0]), **options)


def test_residues_and_types_have_to_match() -> None:
    """One residue, or types for another number of residues, are refused; so is a model without rotation noise."""
    for n, types in ((1, [0]), (3, [0, 0])):
        with pytest.raises(SettingError, match="n_residues"):
            SE3Flow(network(CONF), n, torch.tensor(types))
    still = SE3Config(diffuse_rot=False)
    with pytest.raises(SettingError, match="without noise"):
        SE3Flow(network(CONF, se3=still), 2, torch.tensor([0, 0]))
