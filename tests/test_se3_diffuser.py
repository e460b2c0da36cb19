"""The noise of frames: shapes, masks, symmetries, densities, settings, and agreement of scores with what was drawn."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from openmm_diffusion.diffusion.se3_config import R3Config, SE3Config, SO3Config
from openmm_diffusion.diffusion.se3_diffuser import SE3Diffuser
from openmm_diffusion.errors import SettingError
from openmm_diffusion.geometry import rotations
from openmm_diffusion.geometry.rigid import Rigid

MASK = torch.tensor([1.0, 1.0, 0.0, 1.0, 1.0])


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def frames(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = seeded(seed)
    trans = 6 * torch.randn((*shape, 3), generator=generator, dtype=torch.float64)
    return Rigid(rotations.haar(shape, generator), trans).to_tensor_7().to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_forward_marginal_has_the_seeds_keys(dtype: torch.dtype) -> None:
    """Five keys with the seed's shapes, all in the input's dtype, quaternions of length 1 with w >= 0."""
    rigids_0, t = frames(3, 5, dtype=dtype), torch.tensor([0.01, 0.4, 1.0])
    noised = SE3Diffuser({}).forward_marginal(rigids_0, t, MASK, seeded(1))
    shapes = {key: tuple(value.shape) for key, value in noised.items()}
    assert shapes == {
        "rigids_t": (3, 5, 7),
        "rot_score": (3, 5, 3),
        "trans_score": (3, 5, 3),
        "rot_score_scaling": (3,),
        "trans_score_scaling": (3,),
    }
    assert {value.dtype for value in noised.values()} == {dtype}
    quats = noised["rigids_t"][..., :4]
    torch.testing.assert_close(quats.norm(dim=-1), torch.ones(3, 5, dtype=dtype))
    assert bool((quats[..., 0] >= 0).all())


def test_one_sample_without_batch_dimension() -> None:
    """Frames [N, 7] with a number or a 0-dim tensor as t work as a batch of one does, draw for draw."""
    diffuser, rigids_0 = SE3Diffuser({}), frames(5)
    batch = diffuser.forward_marginal(rigids_0[None], torch.tensor([0.3], dtype=torch.float64), MASK, seeded(2))
    for t in (0.3, torch.tensor(0.3, dtype=torch.float64)):
        single = diffuser.forward_marginal(rigids_0, t, MASK, seeded(2))
        for key, value in single.items():
            torch.testing.assert_close(value, batch[key][0], rtol=1e-12, atol=1e-12)


def test_masked_residues_are_untouched() -> None:
    """Masked residues keep their frames bit for bit (w < 0 included) and have zero scores, in every operation."""
    diffuser, rigids_0, hidden = SE3Diffuser({}), -frames(4, 5), MASK < 0.5
    t, generator = torch.linspace(0.1, 0.9, 4, dtype=torch.float64), seeded(3)
    noised = diffuser.forward_marginal(rigids_0, t, MASK, generator)
    later = diffuser.transition(noised["rigids_t"], 0.9, 0.95, MASK, generator)
    back = diffuser.reverse(later, noised["rot_score"], noised["trans_score"], t, 0.01, MASK, generator=generator)
    for rigids in (noised["rigids_t"], later, back):
        assert torch.equal(rigids[:, hidden], rigids_0[:, hidden])
        assert bool((rigids[:, ~hidden] != rigids_0[:, ~hidden]).any(-1).all())
    rot_score, trans_score = diffuser.score(noised["rigids_t"], rigids_0, t, MASK)
    for score in (noised["rot_score"], noised["trans_score"], rot_score, trans_score):
        assert bool((score[:, hidden] == 0).all())
        assert bool((score[:, ~hidden] != 0).all())
    base = diffuser.sample_ref((4,), 5, generator, MASK)
    assert torch.equal(base[:, hidden], torch.tensor([1.0, 0, 0, 0, 0, 0, 0]).expand(4, 1, 7))


def test_score_is_that_of_the_kernel_drawn_from() -> None:
    """forward_marginal's scores are score(rigids_t, rigids_0) to 1e-8, and to 1e-3 of their scale in float32."""
    diffuser, rigids_0, t = SE3Diffuser({}), frames(6, 5), torch.linspace(0.01, 1, 6, dtype=torch.float64)
    noised = diffuser.forward_marginal(rigids_0, t, MASK, seeded(4))
    scores = diffuser.score(noised["rigids_t"], rigids_0, t, MASK)
    for key, score in zip(("rot_score", "trans_score"), scores, strict=True):
        torch.testing.assert_close(score, noised[key], rtol=1e-8, atol=1e-8)
    single = diffuser.forward_marginal(rigids_0.float(), t.float(), MASK, seeded(4))
    scores = diffuser.score(single["rigids_t"], rigids_0.float(), t.float(), MASK)
    for key, score in zip(("rot_score", "trans_score"), scores, strict=True):
        assert score.dtype == torch.float32
        scale = single[f"{key}_scaling"][:, None, None]
        assert float(((score - single[key]) / scale).abs().max()) < 1e-3


def test_a_rigid_motion_of_everything() -> None:
    """Rotation scores are invariant, translation scores turn along; log densities of transitions do not change."""
    diffuser, rigids_0, t = SE3Diffuser({}), frames(3, 5), torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    rigids_t = diffuser.forward_marginal(rigids_0, t, MASK, seeded(5))["rigids_t"]
    turn = Rigid(rotations.haar((), seeded(6)), torch.tensor([3.0, -8.0, 1.0], dtype=torch.float64))

    def moved(rigids: Tensor) -> Tensor:
        return turn.compose(Rigid.from_tensor_7(rigids)).to_tensor_7()

    rot_score, trans_score = diffuser.score(rigids_t, rigids_0, t, MASK)
    rot_moved, trans_moved = diffuser.score(moved(rigids_t), moved(rigids_0), t, MASK)
    torch.testing.assert_close(rot_moved, rot_score, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(trans_moved, trans_score @ turn.rots.T, rtol=1e-8, atol=1e-8)
    zero = torch.zeros_like(t)
    before = diffuser.log_transition(rigids_t, rigids_0, zero, t, MASK)
    after = diffuser.log_transition(moved(rigids_t), moved(rigids_0), zero, t, MASK)
    torch.testing.assert_close(after, before, rtol=1e-9, atol=1e-8)


def test_log_transition_adds_rotations_and_translations() -> None:
    """The joint density is the product over visible residues' rotations and of the translations."""
    diffuser, rigids_s = SE3Diffuser({}), frames(3, 5)
    rigids_t = diffuser.transition(rigids_s, 0.2, 0.6, MASK, seeded(7))
    start, end = Rigid.from_tensor_7(rigids_s), Rigid.from_tensor_7(rigids_t)
    rotation = diffuser.so3.log_transition(end.rots, start.rots, 0.2, 0.6)
    expected = (rotation * MASK).sum(-1) + diffuser.r3.log_transition(end.trans, start.trans, 0.2, 0.6, MASK)
    found = diffuser.log_transition(rigids_t.float(), rigids_s.float(), 0.2, 0.6, MASK)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(diffuser.log_transition(rigids_t, rigids_s, 0.2, 0.6, MASK), expected)


@pytest.mark.parametrize("conf", [SE3Config(), SE3Config.acceptance()])
def test_base_draws_from_its_density(conf: SE3Config) -> None:
    """The mean of log_ref over sample_ref is minus the base's entropy, within 5 errors: masks, units and dimension."""
    diffuser, draws = SE3Diffuser(conf, coord_scale=0.3), 4000
    log_ref = diffuser.log_ref(diffuser.sample_ref((draws,), 5, seeded(8), MASK, torch.float64), MASK)
    entropy = -0.5 * 9 * (1 + math.log(2 * math.pi))
    relative = {"igso3": 4 * 0.046, "haar": 0.0}[conf.so3.base]
    error = float(log_ref.std()) / math.sqrt(draws)
    assert abs(float(log_ref.mean()) - entropy - relative) < 5 * error + 0.003
    assert abs(float(log_ref.mean()) - entropy * 12 / 9) > 20 * error


@pytest.mark.parametrize("part", ["rot", "trans"])
def test_a_part_can_be_switched_off(part: str) -> None:
    """diffuse_rot=False or diffuse_trans=False leaves that part as it is, with zero scores and no density."""
    diffuser = SE3Diffuser({f"diffuse_{part}": False})
    kept, moved = (slice(0, 4), slice(4, 7)) if part == "rot" else (slice(4, 7), slice(0, 4))
    rigids_0, generator = frames(3, 5), seeded(9)
    noised = diffuser.forward_marginal(rigids_0, 0.5, None, generator)
    rot_score, trans_score = diffuser.score(noised["rigids_t"], frames(3, 5, seed=1), 0.5)
    still, live = (rot_score, trans_score) if part == "rot" else (trans_score, rot_score)
    assert bool((noised[f"{part}_score"] == 0).all() and (still == 0).all() and (live != 0).all())
    later = diffuser.transition(noised["rigids_t"], 0.5, 0.6, None, generator)
    back = diffuser.reverse(later, rot_score + 1, trans_score + 1, 0.6, 0.1, None, generator=generator)
    for rigids in (noised["rigids_t"], later, back):
        assert torch.equal(rigids[..., kept], rigids_0[..., kept])
        assert not torch.equal(rigids[..., moved], rigids_0[..., moved])
    both = SE3Diffuser({})
    assert float(both.log_transition(later, rigids_0, 0.1, 0.6)[0]) != float(
        diffuser.log_transition(later, rigids_0, 0.1, 0.6)[0]
    )
    base = diffuser.sample_ref((2,), 5, generator)
    assert torch.equal(base[..., kept], torch.tensor([1.0, 0, 0, 0, 0, 0, 0])[kept].expand(2, 5, -1))


def test_without_centring() -> None:
    """center=False leaves centroids alone, noises all 3 n coordinates, and its density is the kernel's own."""
    diffuser, rigids_0 = SE3Diffuser({}), frames(3, 5) + torch.tensor([0.0] * 4 + [30.0] * 3)
    noised = diffuser.forward_marginal(rigids_0, 0.1, MASK, seeded(10), center=False)
    centroid = noised["rigids_t"][:, MASK > 0.5, 4:].mean(-2)
    assert float(centroid.min()) > 10.0
    score = diffuser.score(noised["rigids_t"], rigids_0, 0.1, MASK, center=False)[1]
    torch.testing.assert_close(score, noised["trans_score"], rtol=1e-8, atol=1e-8)
    assert float(score[:, MASK > 0.5].sum(-2).abs().min()) > 0.1
    args = (noised["rigids_t"], rigids_0, 0.0, 0.1, MASK)
    assert bool((diffuser.log_transition(*args, center=False) != diffuser.log_transition(*args)).all())


def test_B8_every_step_is_centred_over_visible_residues() -> None:
    """Bug 8, through the joint diffuser: after noising, a transition and a reverse step the *visible* residues have no
    centroid and masked ones are as they were. The control: centring over all residues, as in the bug, leaves one."""
    diffuser, rigids_0, visible = SE3Diffuser({}), frames(3, 5), MASK > 0.5
    rigids_0[..., 4:] += 20.0
    t, generator = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64), seeded(12)

    def centroid(trans: Tensor) -> float:
        return float(trans[:, visible].mean(1).abs().max())

    noised = diffuser.forward_marginal(rigids_0, t, MASK, generator)
    rigids_t = noised["rigids_t"]
    steps = [
        rigids_t,
        diffuser.transition(rigids_0, 0.2, 0.5, MASK, generator),
        diffuser.reverse(
            rigids_0, noised["rot_score"], noised["trans_score"] + 1.0, t, 0.01, MASK, generator=generator
        ),
    ]
    for rigids in steps:
        assert centroid(rigids[..., 4:]) < 1e-12
        assert torch.equal(rigids[:, ~visible], rigids_0[:, ~visible])
        assert centroid(rigids[..., 4:] - rigids[..., 4:].mean(1, keepdim=True)) > 1.0
    assert centroid(noised["trans_score"]) < 1e-12


def test_densities_are_on_the_subspace() -> None:
    """A centroid of the frames is projected out of log_ref and log_transition; without centring it counts."""
    diffuser, rigids_s, rigids_t = SE3Diffuser({}), frames(3, 5), frames(3, 5, seed=1)
    away = torch.tensor([0.0] * 4 + [9.0, -3.0, 5.0])
    for mask in (None, MASK):
        torch.testing.assert_close(diffuser.log_ref(rigids_t + away, mask), diffuser.log_ref(rigids_t, mask))
        moved = diffuser.log_transition(rigids_t + away, rigids_s - away, 0.2, 0.5, mask)
        torch.testing.assert_close(moved, diffuser.log_transition(rigids_t, rigids_s, 0.2, 0.5, mask))
    change = diffuser.log_ref(rigids_t + away, center=False) - diffuser.log_ref(rigids_t, center=False)
    assert float(change.abs().min()) > 1e-2


def test_noise_levels_and_units() -> None:
    """sigma is (rad, sigma/alpha in batch units), g2 the slopes of both variances, coord_scale settable."""
    diffuser = SE3Diffuser({})
    rot, trans = diffuser.sigma(0.01)
    assert float(rot) == pytest.approx(0.130, abs=1e-3)
    assert float(trans) == pytest.approx(0.447, abs=1e-3)
    diffuser.coord_scale = 0.2
    assert float(diffuser.sigma(0.01)[1]) == pytest.approx(0.2 * float(trans))
    assert diffuser.coord_scale == 0.2
    t = torch.linspace(0.1, 0.9, 5, dtype=torch.float64, requires_grad=True)
    # In y = x / alpha the SDE has no drift, and variance sigma^2 / alpha^2 grows by g^2 / alpha^2.
    sigma_rot, sigma_trans = diffuser.sigma(t)
    (slope_rot,) = torch.autograd.grad((sigma_rot**2).sum(), t, retain_graph=True)
    (slope_trans,) = torch.autograd.grad((sigma_trans**2).sum(), t)
    g2_rot, g2_trans = diffuser.g2(t)
    torch.testing.assert_close(g2_rot, slope_rot)
    torch.testing.assert_close(g2_trans / (diffuser.alpha(t) * diffuser.r3.scale) ** 2, slope_trans)


def test_reverse_sde_with_the_exact_score_returns_to_the_data() -> None:
    """From the base, with the score of one known structure, 200 steps end within the noise at min_t; without the
    rotation's or translation's score they do not."""
    diffuser, generator = SE3Diffuser(SE3Config.acceptance()), seeded(11)
    target = frames(4)
    target[:, 4:] -= target[:, 4:].mean(0)
    times = torch.logspace(0, -2, 201, dtype=torch.float64)

    def end(rot_weight: float, trans_weight: float) -> tuple[float, float]:
        rigids = diffuser.sample_ref((50,), 4, generator, dtype=torch.float64)
        for t, after in zip(times[:-1].tolist(), times[1:].tolist(), strict=True):
            rot_score, trans_score = diffuser.score(rigids, target.expand(50, 4, 7), t)
            rigids = diffuser.reverse(
                rigids, rot_weight * rot_score, trans_weight * trans_score, t, t - after, generator=generator
            )
        found, clean = Rigid.from_tensor_7(rigids), Rigid.from_tensor_7(target)
        angles = rotations.log(clean.rots.transpose(-1, -2) @ found.rots).norm(dim=-1)
        return float(angles.square().mean().sqrt()), float((found.trans - clean.trans).square().mean().sqrt())

    angle, distance = end(1.0, 1.0)
    sigma, spread = diffuser.sigma(0.01)
    assert angle == pytest.approx(math.sqrt(3) * float(sigma), rel=0.15)
    assert distance == pytest.approx(math.sqrt(3 / 4) * float(spread), rel=0.15)
    angle, distance = end(0.0, 0.0)
    assert angle > 1.0 and distance > 2.0


class Foreign(Mapping[str, Any]):
    """A mapping that is no dict, as OmegaConf's DictConfig is."""

    def __init__(self, values: dict[str, Any]) -> None:
        self.values_ = values

    def __getitem__(self, key: str) -> Any:
        value = self.values_[key]
        return Foreign(value) if isinstance(value, dict) else value

    def __iter__(self) -> Iterator[str]:
        return iter(self.values_)

    def __len__(self) -> int:
        return len(self.values_)


def test_configuration_from_any_mapping() -> None:
    """of() takes dicts, other mappings, nested, and itself; the defaults are the seed's table."""
    values = {"min_t": 0.02, "so3": {"min_sigma": 0.05}, "r3": {"coordinate_scaling": "auto"}}
    for conf in (values, Foreign(values)):
        found = SE3Config.of(conf)
        assert found == SE3Config(min_t=0.02, so3=SO3Config(min_sigma=0.05), r3=R3Config(coordinate_scaling="auto"))
        assert SE3Config.of(found) is found
    assert SE3Config().model_dump() == {
        "diffuse_rot": True,
        "diffuse_trans": True,
        "min_t": 0.01,
        "so3": {"schedule": "logarithmic", "min_sigma": 0.1, "max_sigma": 1.5, "base": "igso3"},
        "r3": {"min_b": 0.1, "max_b": 20.0, "coordinate_scaling": 0.1},
    }
    preset = SE3Config.acceptance()
    assert (preset.so3.base, preset.so3.min_sigma, preset.so3.max_sigma) == ("haar", 0.02, 2.5)


def test_configuration_from_omegaconf() -> None:
    """An OmegaConf object is accepted where the seed hands one over."""
    omegaconf = pytest.importorskip("omegaconf")
    conf = omegaconf.OmegaConf.create({"so3": {"max_sigma": 2.0}, "r3": {"max_b": 10.0}})
    diffuser = SE3Diffuser(conf)
    assert (diffuser.conf.so3.max_sigma, diffuser.conf.r3.max_b) == (2.0, 10.0)


@pytest.mark.parametrize(
    ("conf", "message"),
    [
        ({"so3": {"n_sigma": 5}}, r"unknown key 'so3\.n_sigma'; expected one of schedule, min_sigma"),
        ({"so3": {"base": "haar"}}, r"so3\.max_sigma is 1\.5 .* at least 2\.5"),
        ({"so3": {"min_sigma": 2.0}}, r"so3\.min_sigma is 2\.0; expected below so3\.max_sigma, 1\.5"),
        ({"so3": {"schedule": "linear"}}, r"so3\.schedule is 'linear'"),
        ({"r3": {"coordinate_scaling": -1.0}}, r"r3\.coordinate_scaling is -1\.0"),
        ({"r3": {"min_b": 30.0}}, r"r3\.min_b is 30\.0; expected below r3\.max_b, 20\.0"),
        ({"min_t": 0.0}, r"^min_t is 0\.0"),
        (3, "is a int; expected a mapping"),
    ],
)
def test_bad_configurations(conf: Any, message: str) -> None:
    """Unknown keys and values out of range are a SettingError with the value and what was expected."""
    with pytest.raises(SettingError, match=message):
        SE3Diffuser(conf)
