"""Losses and module of the SE(3) training: what counts, how it is averaged, what is logged, what is refused."""

import copy
import dataclasses
import hashlib
import json
import math
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_network import TINY
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
from openmm_diffusion.models.score_network import ScoreNetwork
from openmm_diffusion.training.se3_data import EpochSampler, SE3DataModule
from openmm_diffusion.training.se3_fit import SE3FitOptions, _n_processes, check_options
from openmm_diffusion.training.se3_loss import LossWeights, se3_losses
from openmm_diffusion.training.se3_module import SE3Module

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


def weighted(batch: Batch) -> Tensor:
    """Half of the residues masked, the others with weights between a half and two."""
    generator = torch.Generator().manual_seed(2)
    batch["res_mask"] = torch.ones(12, 35)
    batch["res_mask"][:, 18:] = 0
    batch["res_weight"] = batch["res_mask"] * (0.5 + 1.5 * torch.rand(12, 35, generator=generator))
    return batch["res_weight"]


def test_residue_weights_count_in_every_loss(batch: Batch) -> None:
    """Horvitz-Thompson weights multiply each residue's error, and a pair's by their geometric mean, in all five losses;
    the control: without them the losses are others."""
    weight = weighted(batch)
    batch["t"] = torch.full((12,), 0.1)
    prediction = zero_prediction(batch) | {"atom37": 1.1 * batch["atom37_pos"]}
    losses = se3_losses(batch, prediction, LossWeights())
    error = {key: (batch[f"{key}_score"] / batch[f"{key}_score_scaling"][:, None, None]) for key in ("rot", "trans")}
    error["psi"] = prediction["psi"] - batch["torsion_angles_sin_cos"][..., 2, :]
    counts = {key: batch["res_mask"] for key in ("rot", "trans")}
    counts["psi"] = batch["res_mask"] * batch["torsion_angles_mask"][..., 2]
    for key, count in counts.items():
        square = error[key].square().sum(-1) * count
        assert torch.allclose(getattr(losses, key), (square * weight).sum(1) / count.sum(1), rtol=1e-5)
        assert not torch.allclose(getattr(losses, key), square.sum(1) / count.sum(1), rtol=1e-2)
    terms = {"atoms": 0, "distances": 0}
    for name in terms:
        only = LossWeights(0.0, 0.0, 0.0, **{name: 1.0})
        found, plain = (
            se3_losses(given, prediction, only).total for given in (batch, batch | {"res_weight": batch["res_mask"]})
        )
        atoms = batch["atom37_pos"][..., :5, :] / batch["coord_scale"][0]
        there = (batch["res_mask"][..., None] * batch["atom37_mask"][..., :5]).flatten(1)
        share = weight[..., None].expand(12, 35, 5).flatten(1)
        atoms = atoms.flatten(1, 2)
        if name == "atoms":
            each, count = (0.1 * atoms).square().sum(-1), there
        else:
            distance = (atoms[:, :, None] - atoms[:, None]).norm(dim=-1)
            each, count = (0.1 * distance).square(), there[:, :, None] * there[:, None] * (distance < 6.0)
            share = (share[:, :, None] * share[:, None]).sqrt()
        expected = (each * count * share).flatten(1).sum(1) / count.flatten(1).sum(1)
        assert torch.allclose(found, expected, rtol=1e-3)
        assert not torch.allclose(found, plain, rtol=1e-2)


def test_B14_atom_losses_have_finite_gradients(batch: Batch) -> None:
    """Through the losses on atoms and distances gradients are finite, on the diagonal and where atoms coincide; the
    control: with plain square roots, as in the bug, they are NaN."""
    batch["t"] = torch.full((12,), 0.1)
    atoms = batch["atom37_pos"].clone()
    atoms[:, :, 3] = atoms[:, :, 1]
    atoms.requires_grad_()
    prediction = zero_prediction(batch) | {"atom37": atoms}
    total = se3_losses(batch, prediction, LossWeights(atoms=1.0, distances=1.0)).total.sum()
    (gradient,) = torch.autograd.grad(total, atoms)
    assert bool(torch.isfinite(gradient).all()) and float(gradient.abs().max()) > 0
    points = atoms[:, :4, :5].flatten(1, 2)
    plain = (points[:, :, None] - points[:, None]).square().sum(-1).sqrt()
    (gradient,) = torch.autograd.grad(plain.square().sum(), atoms)
    assert bool(torch.isnan(gradient).any())


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


AUTO: dict[str, Any] = {"r3": {"coordinate_scaling": "auto"}}


def trainer_of(**options: Any) -> Any:
    return types.SimpleNamespace(**({"datamodule": None, "train_dataloader": None, "val_dataloaders": None} | options))


def test_auto_scaling_comes_from_the_training_set(arguments: dict[str, Any]) -> None:
    """With "auto" and a coord_scale of its own the module takes 1 / std from a data module or a loader, keeps it in the
    checkpoint, and refuses data with another; before there are data, the network has no units."""
    train = MDGenDataset(arguments | {"coord_scale": 0.5}, SE3Diffuser(AUTO), "train")
    other = MDGenDataset(arguments, SE3Diffuser(AUTO), "val")
    other.coordinate_scaling = 0.31
    data = SE3DataModule(train, other)
    assert other.coordinate_scaling == train.coordinate_scaling == pytest.approx(1 / train.std)
    batch = collate(train.__getitems__(range(4)))
    for trainer in (trainer_of(datamodule=data), trainer_of(train_dataloader=DataLoader(train, 4))):
        net = SE3Module(TINY, AUTO)
        with pytest.raises(SettingError, match="auto"):
            logged(net, [batch])
        net._trainer = trainer
        net.on_fit_start()
        net.on_train_start()
        net.on_validation_start()
        assert float(net.coordinate_scaling) == net.network.diffuser.coordinate_scaling == train.coordinate_scaling
        assert math.isfinite(logged(net, [batch])["val_loss"])
        assert net.network.diffuser.r3.scale == pytest.approx(train.diffuser.r3.scale)
    other.coordinate_scaling = 0.31
    net._trainer = trainer_of(val_dataloaders=[DataLoader(other, 4)])
    with pytest.raises(TrainingError, match=r"coordinate_scaling 0\.31 per A"):
        net.on_validation_start()
    checkpoint: dict[str, Any] = {"state_dict": net.state_dict()}
    net.on_save_checkpoint(checkpoint)
    again = SE3Module(TINY, AUTO)
    again.on_load_checkpoint(checkpoint)
    assert again.network.diffuser.coordinate_scaling == train.coordinate_scaling
    with pytest.raises(TrainingError, match="coordinate_scaling"):
        again.set_coordinate_scaling(0.31)
    with pytest.raises(TrainingError, match=r"expected 0\.1"):
        module().set_coordinate_scaling(0.31)


def test_checkpoints_without_the_scaling_are_taken(batch: Batch) -> None:
    """A checkpoint made before the buffer existed loads; there "auto" meant coord_scale, a number itself."""
    for conf, expected in ((AUTO, 0.2), (SE3, 0.1)):
        net = SE3Module(TINY, conf)
        net.set_coord_scale(0.2)
        net.set_coordinate_scaling(expected)
        state = {key: value for key, value in net.state_dict().items() if key != "coordinate_scaling"}
        checkpoint: dict[str, Any] = {"state_dict": dict(state), "current_model_state": dict(state)}
        net.on_save_checkpoint(checkpoint)
        again = SE3Module(TINY, conf)
        again.on_load_checkpoint(checkpoint)
        for name in ("state_dict", "current_model_state"):
            again.load_state_dict(checkpoint[name])
        assert again.network.diffuser.coordinate_scaling == float(again.coordinate_scaling) == pytest.approx(expected)


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


def test_a_process_without_validation_samples_takes_part() -> None:
    """It gathers zeros with the others instead of leaving them waiting, and logs what they have seen."""
    net, gathered = module(), []
    values: dict[str, float] = {}
    net.log = lambda name, value, **_: values.update({name: value})  # type: ignore[method-assign, assignment]
    net.log_dict = lambda many, **_: values.update(many)  # type: ignore[method-assign, assignment]

    def all_gather(own: Tensor) -> Tensor:
        gathered.append(own)
        return torch.stack([own, torch.tensor([[2.0, 4.0, 6.0, 8.0], [0.0] * 4], dtype=torch.float64)])

    net.all_gather = all_gather  # type: ignore[method-assign, assignment]
    net.on_validation_epoch_start()
    net.on_validation_epoch_end()
    assert gathered[0].shape == (2, 4) and not gathered[0].any()
    assert values == {"val_loss": 9.0, "val_rot_loss": 2.0, "val_trans_loss": 3.0, "val_psi_loss": 4.0}


def test_every_process_has_validation_samples(train_set: MDGenDataset) -> None:
    """All samples once where there are enough; with fewer samples than processes, all of them in each."""
    data = SE3DataModule(train_set, train_set, batch_size=5)
    for world_size, n in ((7, 60), (100, 60 * 100)):
        data._place = lambda rank=0, size=world_size: (rank, size)  # type: ignore[method-assign]
        seen = []
        for rank in range(world_size):
            data._place = lambda rank=rank, size=world_size: (rank, size)  # type: ignore[method-assign]
            seen.append(list(data.val_dataloader().sampler))
        assert min(map(len, seen)) > 0 and sum(map(len, seen)) == n
        counts = torch.bincount(torch.tensor([row for rows in seen for row in rows]))
        assert len(counts) == 60 and counts.unique().numel() == 1


def test_buffers_are_not_sent_around(tmp_path: Path) -> None:
    """Processes have unequally many validation batches, so a forward pass must not wait for the others: torch's wrapper
    finds no buffers to send. The control: without the attribute it finds both."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        found = []
        for ignored in (SE3Module._ddp_params_and_buffers_to_ignore, ()):
            net = module()
            net._ddp_params_and_buffers_to_ignore = ignored  # type: ignore[assignment]
            found.append(len(torch.nn.parallel.DistributedDataParallel(net).modules_buffers))
        assert found == [0, 2]
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize(
    ("devices", "expected"), [(1, 1), ("2", 2), ("0,1", 2), ("auto", 4), ("-1", 4), (-1, 4), ("0,2,3", 3)]
)
def test_processes_are_counted_as_lightning_starts_them(
    devices: Any, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lists, "auto" and -1 stand for the devices that there are, on each of two nodes; a batch larger than a process's
    share is then refused."""
    for kind in ("fabric", "pytorch"):
        monkeypatch.setattr(f"lightning.{kind}.accelerators.cuda.num_cuda_devices", lambda: 4)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    options = SE3FitOptions(accelerator="gpu", devices=devices, num_nodes=2, strategy="ddp", progress=False)
    assert _n_processes(options) == 2 * expected


@pytest.mark.parametrize("devices", ["0,1", "-1", "many"])
def test_devices_that_a_cpu_has_not_are_refused(devices: str) -> None:
    """A list, -1 or a word is one sentence on a CPU; the control: "auto" and numbers are taken."""
    with pytest.raises(SettingError, match=f"devices {devices}"):
        check_options(SE3FitOptions(accelerator="cpu", devices=devices, progress=False))
    assert _n_processes(SE3FitOptions(accelerator="cpu", devices="auto", progress=False)) == 1
    assert _n_processes(SE3FitOptions(accelerator="cpu", devices="3", num_nodes=2, progress=False)) == 6


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


def test_model_files_keep_the_units(tmp_path: Path, batch: Batch) -> None:
    """The scaling that a network has, by "auto" or by the setter, is in its card and sha256, and comes back exactly."""

    def made(se3_conf: dict[str, Any], scaling: float) -> models.Model:
        config = {"model_conf": TINY, "se3_conf": se3_conf, "coordinate_scaling": scaling}
        model = models.create("se3", protein("AGPW"), 7, **config)
        assert model.sha256() == store.from_recipe(model.source["create"]).sha256()
        return dataclasses.replace(model, source={})

    measured, changed = made(AUTO, 1.0), made({}, 0.1)
    before = measured.sha256(), changed.sha256()
    measured.network.diffuser.with_auto_scaling(2.5)  # type: ignore[union-attr]
    changed.network.diffuser.coordinate_scaling = 0.4  # type: ignore[union-attr]
    for model, sha256 in zip((measured, changed), before, strict=True):
        assert model.sha256() != sha256
        again = models.load(models.save(model, tmp_path / "model"))
        assert again.sha256() == model.sha256() and again.card["network"]["coordinate_scaling"] == 0.4
        assert again.network.diffuser.r3.scale == 0.4  # type: ignore[union-attr]
        with torch.no_grad():
            first, second = model.network(batch)["trans_score"], again.network(batch)["trans_score"]
        assert torch.equal(first, second)
    assert made(AUTO, 0.3).sha256() != made(AUTO, 0.4).sha256()


@pytest.mark.parametrize("se3_conf", [AUTO, SE3])
def test_cards_without_the_scaling_are_read(se3_conf: dict[str, Any], tmp_path: Path) -> None:
    """A card made before that key existed loads with its old sha256; "auto" meant one over 1 / coord_scale there."""
    network = ScoreNetwork(TINY, SE3Diffuser(se3_conf, 0.17).with_auto_scaling(1.0 / 0.17), seed=3)
    model = models.Model("se3", network, protein("AGPW"))
    path = models.save(model, tmp_path / "model")
    card = json.loads(path.with_suffix(".json").read_text())
    del card["network"]["coordinate_scaling"]
    digest = hashlib.sha256(repr(("se3", model.molecule.to_dict())).encode())
    digest.update(repr(sorted(card["network"].items())).encode())
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(name.encode() + tensor.numpy().tobytes())
    card["sha256"] = digest.hexdigest()
    path.with_suffix(".json").write_text(json.dumps(card))
    again = models.load(path)
    assert again.sha256() == card["sha256"]
    assert again.network.diffuser.r3.scale == network.diffuser.r3.scale  # type: ignore[union-attr]


def test_auto_without_data_is_refused() -> None:
    """Nobody can know "auto" without data: creating or saving such a model says what to give."""
    with pytest.raises(SettingError, match="give coordinate_scaling, a number"):
        models.create("se3", protein("AG"), model_conf=TINY, se3_conf=AUTO)
    with pytest.raises(SettingError, match="give coordinate_scaling, a number"):
        models.Model("se3", ScoreNetwork(TINY, SE3Diffuser(AUTO)), protein("AG")).sha256()
    for wrong in (0.0, -1.0, True, "wide", math.inf):
        with pytest.raises(SettingError, match="coordinate_scaling is"):
            models.create("se3", protein("AG"), model_conf=TINY, coordinate_scaling=wrong)


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
