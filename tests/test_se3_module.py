"""Losses and module of the SE(3) training: what counts, how it is averaged, what is logged, what is refused."""

import copy
import math
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from villin_data import options, prepared

from openmm_diffusion import models
from openmm_diffusion.data.collate import collate
from openmm_diffusion.data.mdgen_dataset import MDGenDataset
from openmm_diffusion.diffusion.se3_diffuser import SE3Diffuser
from openmm_diffusion.errors import ModelFileError, OpenMMDiffusionError, SettingError, TrainingError
from openmm_diffusion.models import store
from openmm_diffusion.models.model import protein
from openmm_diffusion.training.se3_data import EpochSampler, SE3DataModule
from openmm_diffusion.training.se3_loss import LossWeights, se3_losses
from openmm_diffusion.training.se3_module import SE3Module

TINY = {
    "node_embed_size": 16,
    "edge_embed_size": 8,
    "embed": {"index_embed_size": 8},
    "ipa": {
        "num_blocks": 1,
        "no_heads": 2,
        "c_hidden": 4,
        "no_qk_points": 2,
        "no_v_points": 2,
        "c_skip": 8,
        "seq_tfmr_num_heads": 2,
        "seq_tfmr_num_layers": 1,
    },
}
SE3: dict[str, Any] = {"so3": {"min_sigma": 0.1}}
Batch = dict[str, Any]


@pytest.fixture(scope="module")
def arguments(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return options(prepared(tmp_path_factory.mktemp("villin"), 100))


@pytest.fixture(scope="module")
def train_set(arguments: dict[str, Any]) -> MDGenDataset:
    return MDGenDataset(arguments, SE3Diffuser(SE3), "train")


@pytest.fixture
def batch(train_set: MDGenDataset) -> Batch:
    train_set.set_epoch(0)
    return collate(train_set.__getitems__(list(range(12))))


def module(**options: Any) -> SE3Module:
    return SE3Module(TINY, SE3, **options)


def logged(net: SE3Module, batches: list[Batch], step: str = "validation") -> dict[str, float]:
    """What a module logs for some batches."""
    values: dict[str, float] = {}
    keep = lambda name, value, **_: values.update({name: float(value)})  # noqa: E731
    net.log = keep  # type: ignore[method-assign, assignment]
    net.log_dict = lambda many, **_: [keep(k, v) for k, v in many.items()]  # type: ignore[method-assign, assignment]
    net.all_gather = lambda tensor, *_, **__: tensor[None]  # type: ignore[method-assign, assignment]
    net._trainer = types.SimpleNamespace(global_step=0)  # type: ignore[assignment]
    with torch.no_grad():
        net.on_validation_epoch_start()
        for index, one in enumerate(batches):
            (net.validation_step if step == "validation" else net.training_step)(one, index)
        if step == "validation":
            net.on_validation_epoch_end()
    return values


def zero_prediction(batch: Batch) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(5)
    angle = 2 * math.pi * torch.rand(batch["t"].shape[0], 35, generator=generator)
    zero = torch.zeros_like(batch["rot_score"])
    return {"rot_score": zero, "trans_score": zero, "psi": torch.stack([angle.sin(), angle.cos()], -1)}


def seed_losses(batch: Batch, prediction: dict[str, Tensor]) -> dict[str, list[float]]:
    """Slow twin: the first seed's three formulas, one sample and one residue at a time."""
    result: dict[str, list[float]] = {"rot": [], "trans": [], "psi": []}
    for b in range(len(batch["t"])):
        sums = dict.fromkeys(result, 0.0)
        n_visible, n_psi = 0.0, 0.0
        for i in range(batch["res_mask"].shape[1]):
            if batch["res_mask"][b, i] == 0:
                continue
            n_visible += 1
            for key in ("rot", "trans"):
                scale = batch[f"{key}_score_scaling"][b]
                error = prediction[f"{key}_score"][b, i] / scale - batch[f"{key}_score"][b, i] / scale
                sums[key] += float(error @ error)
            if batch["torsion_angles_mask"][b, i, 2]:
                n_psi += 1
                error = prediction["psi"][b, i] - batch["torsion_angles_sin_cos"][b, i, 2]
                sums["psi"] += float(error @ error)
        for key, count in (("rot", n_visible), ("trans", n_visible), ("psi", n_psi)):
            result[key].append(sums[key] / count)
    return result


def test_losses_are_the_seeds(batch: Batch) -> None:
    """Each term of each sample is that of a loop over residues; the batch's loss is the mean over its samples."""
    crop = torch.ones(12, 35)
    crop[:6, 10:] = 0
    batch |= {"res_mask": crop, "res_weight": crop}
    batch["torsion_angles_mask"][3, 4, 2] = 0
    prediction = zero_prediction(batch)
    losses, twin = se3_losses(batch, prediction, LossWeights(0.5, 2.0, 3.0)), seed_losses(batch, prediction)
    for name in ("rot", "trans", "psi"):
        assert torch.allclose(getattr(losses, name), torch.tensor(twin[name]), rtol=1e-5)
    assert torch.allclose(losses.total, 0.5 * losses.rot + 2.0 * losses.trans + 3.0 * losses.psi)


def test_long_and_short_samples_count_alike(batch: Batch) -> None:
    """Averaged over a sample's residues first: 5 visible residues weigh as 35; the control: a sum over the batch."""
    crop = torch.ones(12, 35)
    crop[0, 5:] = 0
    batch |= {"res_mask": crop, "res_weight": crop}
    prediction = zero_prediction(batch)
    prediction["rot_score"] = batch["rot_score"].clone()
    prediction["rot_score"][0] += batch["rot_score_scaling"][0]
    rot = se3_losses(batch, prediction, LossWeights()).rot
    assert float(rot[0]) == pytest.approx(3.0, rel=1e-5) and float(rot[1:].abs().max()) < 1e-8
    assert float(rot.mean()) == pytest.approx(3.0 / 12, rel=1e-5)
    over_batch = 3.0 * 5 / float(crop.sum())
    assert abs(over_batch - float(rot.mean())) > 0.1


def test_a_zero_score_has_losses_three_three_two(train_set: MDGenDataset) -> None:
    """Over many samples a zero score has rotation and translation losses of 3, random psi of 2; the control: 2 x 3."""
    batch = collate(train_set.__getitems__([i % len(train_set) for i in range(600)]))
    prediction = zero_prediction(batch)
    losses = se3_losses(batch, prediction, LossWeights())
    assert float(losses.rot.mean()) == pytest.approx(3.0, abs=0.06)
    # The zero-centroid subspace has 3 (N - 1) dimensions.
    assert float(losses.trans.mean()) == pytest.approx(3.0 * 34 / 35, abs=0.06)
    assert float(losses.psi.mean()) == pytest.approx(2.0, abs=0.06)
    prediction["rot_score"] = -batch["rot_score"]
    assert float(se3_losses(batch, prediction, LossWeights()).rot.mean()) > 11


def test_masked_residues_do_not_contribute(batch: Batch) -> None:
    """NaN in masked residues changes neither losses nor gradients; the control: in a visible one it does."""
    crop = torch.ones(12, 35)
    crop[:, 20:] = 0
    batch |= {"res_mask": crop, "res_weight": crop}
    prediction = {key: value.clone().requires_grad_() for key, value in zero_prediction(batch).items()}
    clean = se3_losses(batch, prediction, LossWeights()).total
    poisoned = copy.deepcopy({key: batch[key] for key in ("rot_score", "trans_score", "torsion_angles_sin_cos")})
    for value in poisoned.values():
        value[:, 20:] = math.nan
    total = se3_losses(batch | poisoned, prediction, LossWeights()).total
    assert torch.equal(total, clean)
    poisoned["rot_score"][2, 3] = math.nan
    assert torch.isnan(se3_losses(batch | poisoned, prediction, LossWeights()).total[2])


def test_psi_without_atoms_does_not_count(batch: Batch) -> None:
    """Where the torsion mask is zero psi has no loss; the control: with the mask it has."""
    prediction = zero_prediction(batch)
    prediction["psi"] = batch["torsion_angles_sin_cos"][..., 2, :].clone()
    prediction["psi"][:, 7] *= -1
    assert float(se3_losses(batch, prediction, LossWeights()).psi.mean()) == pytest.approx(4 / 35, rel=1e-4)
    batch["torsion_angles_mask"][:, 7, 2] = 0
    assert float(se3_losses(batch, prediction, LossWeights()).psi.abs().max()) < 1e-10


def test_B10_weighting_of_translations_is_chosen(train_set: MDGenDataset, batch: Batch) -> None:
    """The three weightings of one prediction of x_0: alpha^2/sigma^2, 1 and 1/sigma^2 times its squared error."""
    diffuser, t = train_set.diffuser, batch["t"]
    true = batch["rigids_0"][..., 4:]
    shift = torch.randn(true.shape, generator=torch.Generator().manual_seed(0))
    shift -= shift.mean(1, keepdim=True)
    score = diffuser.calc_trans_score(batch["rigids_t"][..., 4:], true + shift, t)
    prediction = zero_prediction(batch) | {"trans_score": score}
    error = (shift * diffuser.r3.scale).square().sum(-1).mean(-1)
    alpha2 = diffuser.alpha(t.double()) ** 2
    expected = {"score": alpha2 / (1 - alpha2), "x0": torch.ones_like(alpha2), "balanced": 1 / (1 - alpha2)}
    for name, factor in expected.items():
        weights = LossWeights(rot=0.0, psi=0.0, trans_weighting=name)  # type: ignore[arg-type]
        losses = se3_losses(batch, prediction, weights)
        assert torch.allclose(losses.total.double(), factor * error, rtol=2e-2)
        assert torch.allclose(losses.trans.double(), expected["score"] * error, rtol=2e-2)


def test_spikes_are_clipped(batch: Batch) -> None:
    """A sample's loss above the limit is the limit, without a gradient; what is logged is not clipped."""
    prediction = zero_prediction(batch)
    prediction["rot_score"] = (batch["rot_score"] + 0.01).requires_grad_()
    with torch.no_grad():
        prediction["rot_score"][4] += 1e4
    losses = se3_losses(batch, prediction, LossWeights(trans=0, psi=0, clip=5.0))
    assert losses.total[4].item() == 5.0 and losses.rot[4].item() > 1e3
    (gradient,) = torch.autograd.grad(losses.total.sum(), prediction["rot_score"])
    assert float(gradient[4].abs().max()) == 0.0 and float(gradient[3].abs().max()) > 0.0


def test_atom_losses(batch: Batch) -> None:
    """The losses on atoms vanish for the true ones and above t = 0.25; a shift of 1 A costs 1 A^2 and no distance."""
    batch["t"] = torch.linspace(0.05, 0.9, 12)
    low = batch["t"] < 0.25
    perfect = {key: batch[key] for key in ("rot_score", "trans_score")}
    perfect |= {"psi": batch["torsion_angles_sin_cos"][..., 2, :], "atom37": batch["atom37_pos"]}
    assert float(se3_losses(batch, perfect, LossWeights(atoms=1, distances=1)).total.abs().max()) < 1e-6
    shifted = perfect | {"atom37": batch["atom37_pos"] + batch["coord_scale"][0] * torch.tensor([1.0, 0.0, 0.0])}
    atoms = se3_losses(batch, shifted, LossWeights(atoms=1)).total
    assert torch.allclose(atoms, low.float(), atol=1e-3)
    assert float(se3_losses(batch, shifted, LossWeights(distances=1)).total.abs().max()) < 1e-6
    stretched = perfect | {"atom37": 1.1 * batch["atom37_pos"]}
    distances = se3_losses(batch, stretched, LossWeights(distances=1)).total
    assert bool(((distances > 0.01) == low).all())


def test_first_losses_of_the_network(batch: Batch) -> None:
    """An untrained network starts at a rotation loss of 3; its metrics have the first seed's names."""
    net = module(self_conditioning=0.0)
    values = logged(net, [batch], "training")
    assert set(values) == {"train_loss", "train_rot_loss", "train_trans_loss", "train_psi_loss"}
    assert values["train_rot_loss"] == pytest.approx(3.0, abs=0.35)
    parts = sum(values[f"train_{name}_loss"] for name in ("rot", "trans", "psi"))
    assert values["train_loss"] == pytest.approx(parts, rel=1e-5)


def test_validation_repeats_and_keeps_t_one_apart(arguments: dict[str, Any], train_set: MDGenDataset) -> None:
    """The same losses every time, whatever the batches; t = 1 under names of its own and in no other."""
    grid = [0.05, 0.3, 0.7, 1.0]
    data = MDGenDataset(arguments | {"val_t": grid}, SE3Diffuser(SE3), "val")
    data.coord_scale = train_set.coord_scale
    net = module()
    values = [logged(net, list(DataLoader(data, size, collate_fn=collate))) for size in (5, 5, 20)]
    names = {f"{p}_{t}loss" for p in ("val", "val_t1") for t in ("", "rot_", "trans_", "psi_")}
    assert set(values[0]) == names
    assert values[0] == values[1]
    assert values[2] == pytest.approx(values[0], rel=1e-4, abs=1e-4)
    # At t = 1 the normalised translation loss is almost nothing, whatever is predicted.
    assert values[0]["val_t1_trans_loss"] < 0.01 < values[0]["val_trans_loss"]
    without = MDGenDataset(arguments | {"val_t": grid[:3]}, SE3Diffuser(SE3), "val")
    without.coord_scale = train_set.coord_scale
    assert not any(name.startswith("val_t1") for name in logged(net, [collate(without.__getitems__(range(20)))]))


@pytest.fixture
def watched() -> Iterator[tuple[SE3Module, list[Tensor]]]:
    """A module, and the sc_ca_t of every call of its network."""
    net, seen = module(self_conditioning=0.5, seed=3), []
    inner = net.network.forward

    def forward(batch: Batch) -> dict[str, Tensor]:
        seen.append(batch["sc_ca_t"].clone())
        return inner(batch)

    net.network.forward = forward  # type: ignore[method-assign, assignment]
    yield net, seen


def test_self_conditioning_in_half_of_the_steps(watched: tuple[SE3Module, list[Tensor]], batch: Batch) -> None:
    """About half of the steps show the network the CA of its own prediction; the other half zeros."""
    net, seen = watched
    logged(net, [batch] * 100, "training")
    conditioned = sum(1 for ca in seen if float(ca.abs().max()) > 0)
    assert 35 <= conditioned <= 65
    assert len(seen) == 100 + conditioned
    with torch.no_grad():
        expected = net.network(batch)["rigids"][..., 4:]
    assert torch.equal(next(ca for ca in seen if float(ca.abs().max()) > 0), expected)


def test_self_conditioning_can_be_switched_off(watched: tuple[SE3Module, list[Tensor]], batch: Batch) -> None:
    """With a share of 0 the network never sees itself, in training and validation."""
    net, seen = watched
    net.self_conditioning = 0.0
    logged(net, [batch] * 10, "training")
    logged(net, [batch])
    assert len(seen) == 11 and all(float(ca.abs().max()) == 0 for ca in seen)


def test_self_conditioning_leaves_no_gradient_through_the_first_pass(batch: Batch) -> None:
    """The self-conditioned CA are constants, without absent residues."""
    batch["res_mask"][:, 30:] = 0
    ca = module()._self_conditioned(batch)["sc_ca_t"]
    assert not ca.requires_grad and float(ca[:, 30:].abs().max()) == 0 and float(ca[:, :30].abs().max()) > 0


def test_coord_scale_is_kept_and_others_are_refused(batch: Batch, train_set: MDGenDataset) -> None:
    """The first batch's scale goes to network and checkpoint; a batch of another one is an error."""
    net = module()
    logged(net, [batch])
    assert float(net.coord_scale) == pytest.approx(train_set.coord_scale, rel=1e-6)
    assert net.network.diffuser.coord_scale == pytest.approx(train_set.coord_scale, rel=1e-6)
    assert float(net.state_dict()["coord_scale"]) == float(net.coord_scale)
    with pytest.raises(TrainingError, match="coord_scale"):
        logged(net, [batch | {"coord_scale": 1.1 * batch["coord_scale"]}])
    checkpoint: dict[str, Any] = {"state_dict": net.state_dict()}
    net.on_save_checkpoint(checkpoint)
    again = module()
    again.on_load_checkpoint(checkpoint)
    assert again.network.diffuser.coord_scale == net.network.diffuser.coord_scale


def test_checkpoints_of_another_configuration_are_refused(batch: Batch) -> None:
    """One sentence with the key and both values; the control: the same configuration is taken."""
    net = module()
    checkpoint: dict[str, Any] = {"state_dict": net.state_dict()}
    net.on_save_checkpoint(checkpoint)
    module().on_load_checkpoint(checkpoint)
    with pytest.raises(ModelFileError, match=r"model_conf\.node_embed_size = 16, expected 24"):
        SE3Module({**TINY, "node_embed_size": 24}, SE3).on_load_checkpoint(checkpoint)
    with pytest.raises(ModelFileError, match=r"se3_conf\.so3\.min_sigma = 0\.1, expected 0\.05"):
        SE3Module(TINY, {"so3": {"min_sigma": 0.05}}).on_load_checkpoint(checkpoint)
    with pytest.raises(ModelFileError, match="not of an SE"):
        module().on_load_checkpoint({"state_dict": {}})


def test_nan_stops_the_training(batch: Batch) -> None:
    """A NaN weight ends in an error of the package at the first step."""
    net = module()
    with torch.no_grad():
        net.network.torsion_angles.out.weight.fill_(math.nan)
    with pytest.raises(TrainingError, match="NaN"):
        logged(net, [batch], "training")


@pytest.mark.parametrize(
    "options",
    [{"lr": 0.0}, {"self_conditioning": 1.5}, {"rot_loss_weight": -1.0}, {"trans_weighting": "eps"}, {"loss_clip": 0}],
)
def test_bad_options_are_refused(options: dict[str, Any]) -> None:
    """Values out of range raise SettingError; so do unknown keys of either configuration."""
    with pytest.raises(SettingError):
        module(**options)
    with pytest.raises(SettingError):
        SE3Module({"blocks": 3}, SE3)
    with pytest.raises(SettingError):
        SE3Module(TINY, {"sigma": 3})


def test_B12_noising_is_batched(arguments: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """A loader's batch of 64 frames is noised by one call of the diffuser; the control: one by one it is 64."""
    calls: list[tuple[int, ...]] = []
    original = SE3Diffuser.forward_marginal

    def counted(self: SE3Diffuser, rigids_0: Tensor, *arguments: Any, **options: Any) -> dict[str, Tensor]:
        calls.append(tuple(rigids_0.shape))
        return original(self, rigids_0, *arguments, **options)

    data = MDGenDataset(arguments, SE3Diffuser(SE3), "train")
    monkeypatch.setattr(SE3Diffuser, "forward_marginal", counted)
    sampler = [i % len(data) for i in range(128)]
    batches = list(DataLoader(data, 64, sampler=sampler, collate_fn=collate))
    assert calls == [(64, 35, 7)] * 2 and batches[0]["rigids_t"].shape == (64, 35, 7)
    calls.clear()
    collate([data[i % len(data)] for i in range(64)])
    assert len(calls) == 64


def test_processes_share_the_frames_and_draw_different_noise(train_set: MDGenDataset) -> None:
    """Two ranks take disjoint frames with different noise; another epoch has another order and another noise."""
    data = SE3DataModule(train_set, train_set, batch_size=5, seed=4)

    def epoch(rank: int, number: int, world_size: int = 2) -> tuple[list[int], Tensor]:
        data._place = lambda: (rank, world_size)  # type: ignore[method-assign]
        loader = data.train_dataloader()
        loader.sampler.set_epoch(number)  # type: ignore[attr-defined]
        batches = list(loader)
        return torch.cat([b["frame_indices"] for b in batches]).tolist(), torch.cat([b["t"] for b in batches])

    first, second, again = epoch(0, 0), epoch(1, 0), epoch(0, 0)
    assert len(first[0]) == len(second[0]) == 30 and not set(first[0]) & set(second[0])
    assert not torch.equal(first[1], second[1])
    assert again[0] == first[0] and torch.equal(again[1], first[1])
    later = epoch(0, 1)
    assert later[0] != first[0] and not torch.equal(later[1], first[1])
    with pytest.raises(SettingError, match="batch_size is 5"):
        data.steps_per_epoch(world_size=20)


def test_workers_draw_reproducible_noise(train_set: MDGenDataset) -> None:
    """With worker processes the noise follows from seed and epoch alone, as a resumed training needs."""

    def times(number: int) -> Tensor:
        loader = SE3DataModule(train_set, train_set, batch_size=30, num_workers=1, seed=4).train_dataloader()
        loader.sampler.set_epoch(number)  # type: ignore[attr-defined]
        return torch.cat([b["t"] for b in loader])

    torch.manual_seed(1)
    first = times(1)
    torch.manual_seed(2)
    assert torch.equal(times(1), first)
    assert not torch.equal(times(2), first)


def test_validation_rows_cover_all_noise_levels(train_set: MDGenDataset) -> None:
    """A subset of the validation frames takes whole runs of the grid, spread over the set."""
    rows = SE3DataModule(train_set, train_set, validation_frames=40)._validation_rows()
    assert len(rows) == 40 and len(set(rows)) == 40 and sorted(r % 20 for r in rows) == sorted(list(range(20)) * 2)
    assert max(rows) >= len(train_set) - 20
    assert len(EpochSampler(train_set, 0)) == len(train_set) == 60


def test_se3_models_are_saved_and_evaluated_in_double_precision(tmp_path: Path, batch: Batch) -> None:
    """load(save(model)) predicts the same, in float64 too; the card holds configurations, scale and sequence."""
    config = {"model_conf": TINY, "se3_conf": SE3, "coord_scale": 0.15}
    model = models.create("se3", protein("AGPW"), 7, **config)
    again = models.load(models.save(model, tmp_path / "model"))
    assert again.kind == "se3" and again.sequence == "AGPW" and again.sha256() == model.sha256()
    card = again.card
    assert card["sequence"] == "AGPW" and card["network"]["coord_scale"] == 0.15
    assert card["network"]["model_conf"]["node_embed_size"] == 16
    assert card["network"]["se3_conf"]["so3"]["max_sigma"] == 1.5
    assert again.network.diffuser.coord_scale == 0.15  # type: ignore[union-attr]
    _, sha256 = store.remember(again)
    double = store.evaluation_network(sha256, torch.device("cpu"))
    with torch.no_grad():
        single, exact = again.network(batch), double(batch)
    assert exact["rot_score"].dtype == torch.float64
    assert torch.allclose(exact["rigids"].float(), single["rigids"], atol=1e-4)
    assert store.resolve(model.source, model.sha256()).sha256() == model.sha256()
    other = models.create("se3", protein("AGPW"), 7, **{**config, "coord_scale": 0.2})
    assert other.sha256() != model.sha256()


@pytest.mark.parametrize(
    "config", [{"hidden_size": 8}, {"coord_scale": -1.0}, {"model_conf": {"x": 1}}, {"se3_conf": {"x": 1}}]
)
def test_wrong_se3_configurations_are_refused(config: dict[str, Any]) -> None:
    """Unknown keys and impossible values raise SettingError."""
    with pytest.raises(OpenMMDiffusionError):
        models.create("se3", protein("AG"), **config)


def test_usage_in_code_of_the_seed(arguments: dict[str, Any]) -> None:
    """The first seed's code block runs on OmegaConf objects, with the names of this package."""
    from omegaconf import OmegaConf

    se3_conf = OmegaConf.create(
        {
            "diffuse_rot": True,
            "diffuse_trans": True,
            "so3": {"schedule": "logarithmic", "min_sigma": 0.1, "max_sigma": 1.5},
            "r3": {"min_b": 0.1, "max_b": 20.0, "coordinate_scaling": 0.1},
        }
    )
    model_conf = OmegaConf.create({**TINY, "ipa": {**TINY["ipa"], "c_s": 16, "c_z": 8}})
    data_args = OmegaConf.create({key: str(value) for key, value in arguments.items()})

    diffuser = SE3Diffuser(se3_conf)

    train_dataset = MDGenDataset(args=data_args, diffuser=diffuser, mode="train")
    val_dataset = MDGenDataset(args=data_args, diffuser=diffuser, mode="val")
    val_dataset.coord_scale = float(train_dataset.coord_scale)

    model = SE3Module(model_conf=model_conf, se3_conf=se3_conf, lr=1e-4)

    loader = DataLoader(train_dataset, batch_size=8, shuffle=True, collate_fn=collate)
    values = logged(model, [next(iter(loader))], "training")
    assert math.isfinite(values["train_loss"])
    assert math.isfinite(logged(model, [collate(val_dataset.__getitems__(range(8)))])["val_loss"])
