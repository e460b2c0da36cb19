"""The score network: what it reads, what it may not see, its symmetries, its start, and its size at low noise."""

import copy
import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from openmm_diffusion.diffusion.se3_config import SE3Config
from openmm_diffusion.diffusion.se3_diffuser import SE3Diffuser
from openmm_diffusion.errors import ModelError, SettingError
from openmm_diffusion.geometry import rotations
from openmm_diffusion.geometry.rigid import Rigid
from openmm_diffusion.models.ipa_score import TransformerLayer
from openmm_diffusion.models.score_network import ScoreNetwork
from openmm_diffusion.models.se3_config import ScoreNetworkConfig

SEVEN = {"rigids_t", "res_mask", "fixed_mask", "seq_idx", "t", "sc_ca_t", "torsion_angles_sin_cos"}
SMALL = {
    "node_embed_size": 32,
    "edge_embed_size": 16,
    "ipa": {"num_blocks": 2, "no_heads": 3, "c_hidden": 8, "c_skip": 16, "seq_tfmr_num_layers": 1},
}
RELATIVE = {**SMALL, "embed": {"relative_frames": True}}
VARIANTS = pytest.mark.parametrize("conf", [SMALL, RELATIVE], ids=["plain", "relative_frames"])
OUTPUTS = ("rot_score", "trans_score", "psi", "rigids", "atom37", "atom14")


def network(conf: dict, zero_init: bool = False, se3: dict | None = None, seed: int = 0) -> ScoreNetwork:
    diffuser = SE3Diffuser(SE3Config.of(se3 or {}))
    return ScoreNetwork(conf, diffuser, seed, zero_init).double()


def make_batch(n: int = 7, size: int = 2, t: float = 0.3, seed: int = 0) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    trans = 4.0 * torch.randn(size, n, 3, generator=g, dtype=torch.float64)
    trans = trans - trans.mean(-2, keepdim=True)
    angles = 2 * math.pi * torch.rand(size, n, 7, generator=g, dtype=torch.float64)
    return {
        "rigids_t": Rigid(rotations.haar((size, n), g), trans).to_tensor_7(),
        "res_mask": torch.ones(size, n, dtype=torch.float64),
        "fixed_mask": torch.zeros(size, n, dtype=torch.float64),
        "seq_idx": torch.arange(1, n + 1).expand(size, n).clone(),
        "t": torch.full((size,), t, dtype=torch.float64),
        "sc_ca_t": 5.0 * torch.randn(size, n, 3, generator=g, dtype=torch.float64),
        "torsion_angles_sin_cos": torch.stack([torch.sin(angles), torch.cos(angles)], -1),
    }


def moved(batch: dict[str, Tensor], motion: Rigid) -> dict[str, Tensor]:
    rigids = motion.compose(Rigid.from_tensor_7(batch["rigids_t"])).to_tensor_7()
    return {**batch, "rigids_t": rigids, "sc_ca_t": motion.apply(batch["sc_ca_t"])}


def random_motion(seed: int = 9) -> Rigid:
    g = torch.Generator().manual_seed(seed)
    return Rigid(rotations.haar((1, 1), g), 3.0 * torch.randn(1, 1, 3, generator=g, dtype=torch.float64))


class Recording(dict):
    """A dictionary that remembers what was read."""

    def __init__(self, values: dict) -> None:
        super().__init__(values)
        self.read: set[str] = set()

    def __getitem__(self, key: str) -> Tensor:
        self.read.add(key)
        return super().__getitem__(key)

    def get(self, key: str, default: Tensor | None = None) -> Tensor | None:
        self.read.add(key)
        return super().get(key, default)

    def __iter__(self) -> Iterator[str]:
        raise AssertionError("the network must not go through all keys")


@VARIANTS
def test_reads_exactly_the_seven_keys(conf: dict) -> None:
    """Of everything the data set makes the network reads the seed's seven keys; the outputs have their shapes."""
    batch = Recording({**make_batch(), "rigids_0": None, "aatype": None, "atom37_pos": None})
    output = network(conf)(batch)
    assert batch.read == SEVEN
    shapes = {"rot_score": (3,), "trans_score": (3,), "psi": (2,), "rigids": (7,), "atom37": (37, 3), "atom14": (14, 3)}
    assert {key: tuple(value.shape[2:]) for key, value in output.items()} == shapes


def test_residue_types_are_read_on_request_only() -> None:
    """embed_residue_type adds the key aatype, and the scores depend on it."""
    net = network({**SMALL, "embed": {"embed_residue_type": True}})
    batch = Recording({**make_batch(), "aatype": torch.zeros(2, 7, dtype=torch.long)})
    first = net(batch)["rot_score"]
    assert batch.read == SEVEN | {"aatype"}
    other = net({**make_batch(), "aatype": torch.arange(14).reshape(2, 7)})["rot_score"]
    assert float((other - first).detach().abs().amax(-1)[:, 1:].min()) > 1e-9


@VARIANTS
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_B6_padding_is_masked_in_train_and_eval(conf: dict, mode: str) -> None:
    """What stands in absent residues, NaN included, changes nothing, bit for bit, in both modes, which agree.

    Negative control: the same change in a present residue reaches every other one.
    """
    net = network(conf).train(mode == "train")
    batch = make_batch()
    batch["res_mask"][0, 4:] = 0
    batch["res_mask"][1, 2] = 0
    present = batch["res_mask"] > 0.5
    reference = net(batch)
    poisoned = {key: value.clone() for key, value in batch.items()}
    for key in ("rigids_t", "sc_ca_t", "torsion_angles_sin_cos"):
        poisoned[key][~present] = math.nan
    poisoned["fixed_mask"][~present] = 1.0
    poisoned["seq_idx"][~present] = -1000
    output = net(poisoned)
    for key in OUTPUTS:
        assert torch.equal(output[key][present], reference[key][present])
    for key in ("rot_score", "trans_score", "atom37", "atom14"):
        assert float(output[key][~present].detach().abs().max()) == 0.0
    other_mode = net.train(mode != "train")(batch)
    assert torch.equal(other_mode["rot_score"], reference["rot_score"])
    shown = {**batch, "rigids_t": batch["rigids_t"].clone()}
    shown["rigids_t"][0, 0, 4:] += 1.0
    change = (net(shown)["rot_score"] - reference["rot_score"])[0, :4].detach().abs().amax(-1)
    assert float(change.min()) > 1e-9


def leak(bad_mask: bool) -> float:
    """How much a padded row reaches the others through torch's own transformer in train mode, bug 6 or its remedy."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 16, dropout=0.0, batch_first=True)
    transformer = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False).train()
    x, padded = torch.randn(1, 6, 16), torch.tensor([[0.0, 0, 0, 0, 1, 1]])
    other = torch.where(padded[..., None] > 0, x + 3.0, x)
    mask = padded if bad_mask else padded.bool()
    with torch.no_grad():
        change = transformer(other, src_key_padding_mask=mask) - transformer(x, src_key_padding_mask=mask)
    return float(change[:, :4].abs().max())


def test_B6_the_published_mask_leaks() -> None:
    """The control of bug 6: a float padding mask is added to the logits in train mode, and padding is seen; the same
    layer with a bool mask, and this package's layer, see nothing of it."""
    assert leak(bad_mask=True) > 1e-2
    assert leak(bad_mask=False) == 0.0
    layer = TransformerLayer(16, 2).train()
    x, padded = torch.randn(1, 6, 16), torch.tensor([[False] * 4 + [True] * 2])
    other = torch.where(padded[..., None], x + 3.0, x)
    with torch.no_grad():
        assert torch.equal(layer(other, padded)[:, :4], layer(x, padded)[:, :4])


@VARIANTS
def test_padding_is_equal_to_a_shorter_chain(conf: dict) -> None:
    """A padded chain has the outputs of the same chain without padding (1e-10)."""
    net, batch = network(conf), make_batch()
    batch["res_mask"][:, 5:] = 0
    padded, short = net(batch), net({key: value[:, :5] if key != "t" else value for key, value in batch.items()})
    for key in OUTPUTS:
        torch.testing.assert_close(padded[key][:, :5], short[key], rtol=1e-9, atol=1e-10)


def test_untrained_rotation_loss_is_three() -> None:
    """Untrained, the normalised rotation loss is 3.0 at every noise level; with other scalings it is not."""
    diffuser, g = SE3Diffuser(SE3Config.of({})), torch.Generator().manual_seed(1)
    net = ScoreNetwork(SMALL, diffuser)
    clean = make_batch(n=20, size=100, seed=2)
    for t in (0.01, 0.2, 1.0):
        times = torch.full((100,), t, dtype=torch.float64)
        noised = diffuser.forward_marginal(clean["rigids_t"], times, generator=g)
        batch = {**clean, "rigids_t": noised["rigids_t"], "t": times}
        with torch.no_grad():
            predicted = net(batch)["rot_score"]
        assert float(predicted.abs().max()) < 1e-3 * float(noised["rot_score_scaling"][0])
        scaling = noised["rot_score_scaling"][:, None, None]
        each = (((predicted - noised["rot_score"]) / scaling) ** 2).sum(-1)
        error = float(each.std()) / math.sqrt(each.numel())
        assert abs(float(each.mean()) - 3.0) < 5 * error
        assert abs(float((each * 1.2**2).mean()) - 3.0) > 5 * error


def test_B10_translation_score_trains_at_every_noise_level() -> None:
    """The translation score itself carries a gradient at every t: no threshold on t swaps it for another target.

    Its normalised loss is weighted by alpha/sigma against the clean positions; with the update scaled by sigma the
    gradient keeps its size down to the lowest noise.
    """
    sizes = []
    for t in (0.01, 0.1, 0.3):
        net, batch = network(SMALL, zero_init=True), make_batch(t=t)
        target = torch.randn(2, 7, 3, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
        scaling = net.diffuser.score_scaling(batch["t"])[1][:, None, None]
        ((net(batch)["trans_score"] / scaling - target) ** 2).sum(-1).mean().backward()
        gradient = net.score_model.blocks[-1].backbone_update.linear.weight.grad
        sizes.append(float(gradient[3:].norm()))
    assert min(sizes) > 0.1 and max(sizes) < 10 * min(sizes)


def test_B13_psi_starts_on_the_circle() -> None:
    """Untrained psi are unit vectors with the loss 2.0 +- 0.3 over random angles and a gradient of ordinary size."""
    net, batch = ScoreNetwork(SMALL, SE3Diffuser({})), make_batch(n=20, size=20)
    psi = net(batch)["psi"]
    torch.testing.assert_close(psi.norm(dim=-1), torch.ones(20, 20), rtol=0, atol=1e-5)
    loss = ((psi - batch["torsion_angles_sin_cos"][..., 2, :].float()) ** 2).sum(-1).mean()
    assert abs(float(loss.detach()) - 2.0) < 0.3
    loss.backward()
    gradient = net.torsion_angles.out.weight.grad
    assert gradient is not None and 0 < float(gradient.abs().max()) < 10


def test_B13_a_zero_layer_starts_in_the_centre() -> None:
    """The control of bug 13: a last layer of zero weights with its length clamped to 1e-8 gives no direction, the psi
    loss 1.0 and a gradient ten thousand times as large."""
    net, batch = ScoreNetwork(SMALL, SE3Diffuser({})), make_batch(n=20, size=20)
    true = batch["torsion_angles_sin_cos"][..., 2, :].float()

    def start(zero: bool) -> tuple[float, float]:
        nodes = torch.randn(20, 20, 32, generator=torch.Generator().manual_seed(0))
        head = copy.deepcopy(net.torsion_angles)
        if zero:
            with torch.no_grad():
                head.out.weight.zero_()
        raw = head.out(nodes)
        psi = raw / torch.sqrt((raw**2).sum(-1, keepdim=True).clamp(min=1e-8)) if zero else head(nodes)[..., 0, :]
        loss = ((psi - true) ** 2).sum(-1).mean()
        loss.backward()
        return float(loss.detach()), float(head.out.weight.grad.abs().max())

    (loss, gradient), (bad_loss, bad_gradient) = start(False), start(True)
    assert abs(loss - 2.0) < 0.3 and gradient < 10
    assert bad_loss == pytest.approx(1.0, abs=1e-6) and bad_gradient > 1e3 * gradient


@VARIANTS
def test_B14_no_cdist_nan_gradients(conf: dict) -> None:
    """Gradients are finite with all frames and all self-conditioning positions in one point, and at zero updates."""
    for zero_init in (True, False):
        net, batch = network(conf, zero_init), make_batch()
        batch["sc_ca_t"] = torch.zeros(2, 7, 3, dtype=torch.float64).requires_grad_()
        identity = Rigid.identity((2, 7), torch.float64).to_tensor_7().clone()
        batch["rigids_t"] = identity.requires_grad_()
        output = net(batch)
        sum((output[key] ** 2).sum() for key in ("rot_score", "trans_score", "psi")).backward()
        assert bool(torch.isfinite(identity.grad).all())
        for parameter in net.parameters():
            assert parameter.grad is None or bool(torch.isfinite(parameter.grad).all())
    # The control: with points in one place, plain distances have no gradient, and cdist no forward-mode derivative.
    points = torch.zeros(7, 3, dtype=torch.float64)
    plain = torch.func.grad(lambda x: (x[:, None] - x).square().sum(-1).sqrt().sum())(points)
    assert bool(torch.isnan(plain).all())
    with pytest.raises(NotImplementedError):
        torch.func.jvp(lambda x: torch.cdist(x, x), (points,), (points,))


@VARIANTS
def test_global_motion(conf: dict) -> None:
    """Under a global motion rotation scores and psi stay, translation scores turn, predicted frames move (1e-9)."""
    net, batch, motion = network(conf), make_batch(), random_motion()
    reference, output = net(batch), net(moved(batch, motion))
    turn = motion.rots[0, 0]
    torch.testing.assert_close(output["rot_score"], reference["rot_score"], rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(output["psi"], reference["psi"], rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(output["trans_score"], reference["trans_score"] @ turn.T, rtol=1e-8, atol=1e-9)
    frames = motion.compose(Rigid.from_tensor_7(reference["rigids"]))
    torch.testing.assert_close(Rigid.from_tensor_7(output["rigids"]).rots, frames.rots, rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(output["rigids"][..., 4:], frames.trans, rtol=1e-8, atol=1e-8)
    # Negative control: the scores are not zero, and a motion of one residue is seen.
    assert float(reference["trans_score"].detach().abs().mean()) > 1e-2


@VARIANTS
def test_permutation_of_the_batch(conf: dict) -> None:
    """Samples do not see each other: permuting the batch permutes the outputs (1e-12)."""
    net, batch = network(conf), make_batch(size=4)
    batch["t"] = torch.tensor([0.05, 0.2, 0.5, 0.9], dtype=torch.float64)
    order = torch.tensor([2, 0, 3, 1])
    reference, output = net(batch), net({key: value[order] for key, value in batch.items()})
    for key in OUTPUTS:
        torch.testing.assert_close(output[key], reference[key][order], rtol=1e-11, atol=1e-11)


@VARIANTS
def test_fixed_residues_stay(conf: dict) -> None:
    """Fixed residues keep frame and psi and have no score, and the others see them."""
    net, batch = network(conf), make_batch()
    batch["fixed_mask"][:, 2:4] = 1
    output = net(batch)
    assert torch.equal(output["rigids"][:, 2:4], batch["rigids_t"][:, 2:4])
    assert torch.equal(output["psi"][:, 2:4], batch["torsion_angles_sin_cos"][:, 2:4, 2])
    for key in ("rot_score", "trans_score"):
        assert float(output[key][:, 2:4].detach().abs().max()) == 0.0
    shifted = {**batch, "rigids_t": batch["rigids_t"].clone()}
    shifted["rigids_t"][:, 2, 4:] += 1.0
    assert float((net(shifted)["rot_score"] - output["rot_score"])[:, 0].detach().abs().min()) > 1e-9


@VARIANTS
def test_scores_are_the_processes_with_and_without_fixed_residues(conf: dict) -> None:
    """Scores are the diffuser's for the predicted frames: beside fixed residues not centred, without any centred,
    sample by sample in one batch. The control: the other way about they are not."""
    net, batch = network(conf), make_batch(size=3)
    batch["fixed_mask"][0, 2:4] = 1
    batch["res_mask"][1:, 5:] = 0
    batch["fixed_mask"][2, 6] = 1  # absent, so nothing is fixed
    output = net(batch)
    moved = batch["res_mask"] * (1 - batch["fixed_mask"])
    for row, fixed in enumerate((True, False, False)):
        given = [batch["rigids_t"][row], output["rigids"][row], batch["t"][row], moved[row]]
        rot_score, trans_score = net.diffuser.score(*given, center=not fixed)
        torch.testing.assert_close(output["rot_score"][row], rot_score, rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(output["trans_score"][row], trans_score, rtol=1e-8, atol=1e-8)
        wrong = net.diffuser.score(*given, center=fixed)[1]
        assert float((output["trans_score"][row] - wrong).detach().abs().max()) > 1e-3


@pytest.mark.parametrize("t", [0.05, 0.4, 1.0])
def test_untrained_scores_are_those_of_the_base(t: float) -> None:
    """With updates of zero the prediction is alpha x_t about the point that the process contracts to, so that the score
    is that of the unit normal: about the origin beside fixed residues, wherever these are, else about the centroid.

    The control: about the centroid of all present residues, fixed ones among them, it is another.
    """
    net, batch = network(SMALL, zero_init=True), make_batch(t=t)
    batch["fixed_mask"][0, 4:] = 1
    batch["rigids_t"][..., 4:] += torch.tensor([10.0, -4.0, 2.0])
    trans, scale = batch["rigids_t"][..., 4:], net.diffuser.r3.scale
    score = net(batch)["trans_score"].detach()
    torch.testing.assert_close(score[0, :4], -scale * trans[0, :4], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(score[1], -scale * (trans[1] - trans[1].mean(0)), rtol=1e-6, atol=1e-6)
    # Prediction alpha x_t + (1 - alpha) centroid; the score is -scale (x_t - alpha prediction) / variance.
    alpha, variance = float(net.diffuser.alpha(t)), float(net.diffuser.r3.variance(t))
    predicted = alpha * trans[0] + (1 - alpha) * trans[0].mean(0)
    about_centroid = -scale / variance * (trans[0] - alpha * predicted)
    assert float((score[0, :4] - about_centroid[:4]).abs().max()) > 1e-3


@VARIANTS
def test_motion_about_the_origin_with_fixed_residues(conf: dict) -> None:
    """Beside fixed residues the origin is a place: turning everything about it turns the scores; the same frames seen
    from another origin have another score, since the process would contract them elsewhere."""
    net, batch = network(conf), make_batch()
    batch["fixed_mask"][:, 2:4] = 1
    motion = random_motion()
    turned = Rigid(motion.rots, torch.zeros_like(motion.trans))
    reference, output = net(batch), net(moved(batch, turned))
    expected = reference["trans_score"] @ motion.rots[0, 0].T
    torch.testing.assert_close(output["trans_score"], expected, rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(output["rot_score"], reference["rot_score"], rtol=1e-8, atol=1e-9)
    away = net(moved(batch, motion))["trans_score"]
    assert float((away - expected).detach().abs().max()) > 1e-2


@VARIANTS
def test_forward_mode_derivative_equals_finite_differences(conf: dict) -> None:
    """torch.func.jvp through the scores agrees with central differences (float64, 1e-6), in eval mode without grad."""
    net, batch = network(conf).eval().requires_grad_(False), make_batch(n=4, t=0.05)
    batch["res_mask"][0, 3] = 0
    tangent = torch.randn(2, 4, 7, generator=torch.Generator().manual_seed(3), dtype=torch.float64)

    def scores(rigids: Tensor) -> Tensor:
        output = net.predict({**batch, "rigids_t": rigids})
        return torch.cat([output["rot_score"], output["trans_score"]], -1)

    value, derivative = torch.func.jvp(scores, (batch["rigids_t"],), (tangent,))
    step = 1e-5 * tangent
    differences = (scores(batch["rigids_t"] + step) - scores(batch["rigids_t"] - step)) / 2e-5
    scale = float(differences.abs().max())
    torch.testing.assert_close(value, scores(batch["rigids_t"]), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(derivative / scale, differences / scale, rtol=0, atol=1e-6)


def displacement(conf: dict, t: float) -> tuple[float, float, tuple[float, float]]:
    """Root mean square turn (rad) and shift (A) from x_t to the predicted frame, and the noise levels at t."""
    net = network(conf, se3={"so3": {"min_sigma": 0.001}})
    batch = make_batch(n=6, size=4, t=t)
    with torch.no_grad():
        clean, noised = Rigid.from_tensor_7(net(batch)["rigids"]), Rigid.from_tensor_7(batch["rigids_t"])
    turn = rotations.log(noised.rots.transpose(-1, -2) @ clean.rots).square().mean().sqrt()
    shift = (clean.trans - noised.trans).square().mean().sqrt()
    rot, trans = net.diffuser.sigma(torch.tensor(t, dtype=torch.float64))
    return float(turn), float(shift), (float(rot), float(trans))


@VARIANTS
def test_update_scales_with_the_noise(conf: dict) -> None:
    """A random network moves frames in proportion to sigma(t) as t -> 0; without preconditioning it does not."""
    ratios = {True: [], False: []}
    for precondition, found in ratios.items():
        for t in (1e-4, 1e-3, 5e-3):
            turn, shift, (rot, trans) = displacement({**conf, "precondition": precondition}, t)
            found.append((turn / rot, shift / trans))
    for found in zip(*ratios[True], strict=True):
        assert max(found) < 3 * min(found)
    for found in zip(*ratios[False], strict=True):
        assert max(found) > 3 * min(found)


def test_relative_frames_resolve_a_bond_at_low_noise() -> None:
    """With relative_frames, 0.02 A along the chain changes the first node embedding at low noise; damped at high."""
    net = network(RELATIVE)
    batch = make_batch(n=4, size=1, t=1e-3)
    near = {**batch, "rigids_t": batch["rigids_t"].clone()}
    near["rigids_t"][0, 2, 4] += 0.02
    nodes: list[Tensor] = []
    net.embedder.register_forward_hook(lambda module, given, output: nodes.append(output[0].detach()))
    for t in (1e-3, 0.9):
        for values in (batch, near):
            net({**values, "t": torch.full((1,), t, dtype=torch.float64)})
    low, high = (float((nodes[k + 1] - nodes[k])[0, 1].norm()) for k in (0, 2))
    assert low > 3 * high


def test_seed_decides_the_weights() -> None:
    """Equal seeds give equal weights whatever the global generator does; other seeds give others."""
    torch.manual_seed(1)
    first = ScoreNetwork(SMALL, SE3Diffuser({}), 4).state_dict()
    torch.manual_seed(2)
    second, other = (ScoreNetwork(SMALL, SE3Diffuser({}), seed).state_dict() for seed in (4, 5))
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not torch.equal(first["embedder.node.0.weight"], other["embedder.node.0.weight"])


def test_bf16_autocast_keeps_rotations_in_float32() -> None:
    """Under bf16 autocast outputs are float32, frames are orthogonal to 1e-5 and close to the float32 result."""
    net, batch = ScoreNetwork(SMALL, SE3Diffuser({}), zero_init=False), make_batch()
    reference = net(batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = net(batch)
    assert all(output[key].dtype == torch.float32 for key in OUTPUTS)
    rots = Rigid.from_tensor_7(output["rigids"]).rots
    torch.testing.assert_close(rots @ rots.transpose(-1, -2), torch.eye(3).expand_as(rots), rtol=0, atol=1e-5)
    torch.testing.assert_close(output["rigids"], reference["rigids"], rtol=0, atol=0.1)


def test_default_size() -> None:
    """The seed's configuration has the seed's size, 9.8 million parameters."""
    count = sum(parameter.numel() for parameter in ScoreNetwork(None, SE3Diffuser({})).parameters())
    assert 9.7e6 < count < 9.95e6


def test_configuration_round_trip_and_repeated_widths() -> None:
    """to_dict is accepted back; c_s and c_z may be repeated in ipa if they agree."""
    config = ScoreNetworkConfig.of({**SMALL, "ipa": {**SMALL["ipa"], "c_s": 32, "c_z": 16}})
    assert ScoreNetworkConfig.of(config.to_dict()) == config == ScoreNetworkConfig.of(SMALL)
    with pytest.raises(SettingError, match="c_s"):
        ScoreNetworkConfig.of({"ipa": {"c_s": 12}})


@pytest.mark.parametrize(
    "conf", [{"nodes": 3}, {"embed": {"bins": 2}}, {"ipa": {"num_blocks": 0}}, {"node_embed_size": 33}, [1]]
)
def test_wrong_configurations_are_refused(conf: object) -> None:
    """Unknown keys and impossible values raise SettingError."""
    with pytest.raises(SettingError):
        ScoreNetworkConfig.of(conf)


def test_omegaconf_is_accepted() -> None:
    """An OmegaConf object with interpolations is a configuration."""
    omegaconf = pytest.importorskip("omegaconf")
    conf = omegaconf.OmegaConf.create({"node_embed_size": 64, "ipa": {"c_s": "${node_embed_size}", "no_heads": 2}})
    assert ScoreNetworkConfig.of(conf).node_embed_size == 64


@pytest.mark.parametrize("key", sorted(SEVEN))
def test_bad_batches_are_refused(key: str) -> None:
    """A missing key and a wrong shape raise ModelError naming the key."""
    net, batch = network(SMALL), make_batch()
    with pytest.raises(ModelError, match=key):
        net({name: value for name, value in batch.items() if name != key})
    with pytest.raises(ModelError, match=key):
        net({**batch, key: batch[key][..., None]})
