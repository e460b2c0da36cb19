"""MDGenDataset: every key of the seed, centred before noising, cropped in training only, reproducible, and loud."""

import argparse
import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from villin_data import SEQUENCE, options, prepared, shaken

from openmm_diffusion.data.collate import collate
from openmm_diffusion.data.mdgen_dataset import MDGenDataset
from openmm_diffusion.diffusion.se3_config import SE3Config
from openmm_diffusion.diffusion.se3_diffuser import SE3Diffuser
from openmm_diffusion.errors import InputFileError, SettingError, TrajectoryError
from openmm_diffusion.geometry.rigid import Rigid
from openmm_diffusion.workflows.prepare_se3 import PreparedSE3

# The seed's table and the list below it, with the shape of one sample.
KEYS: dict[str, tuple[int, ...]] = {
    **{"rigids_0": (35, 7), "rigids_t": (35, 7), "rot_score": (35, 3), "trans_score": (35, 3)},
    **{"rot_score_scaling": (), "trans_score_scaling": (), "t": (), "res_mask": (35,), "fixed_mask": (35,)},
    **{"torsion_angles_sin_cos": (35, 7, 2), "seq_idx": (35,), "sc_ca_t": (35, 3), "atom14_pos": (35, 14, 3)},
    **{"atom37_pos": (35, 37, 3), "aatype": (35,), "chain_idx": (35,), "residue_index": (35,)},
    **{"residx_atom14_to_atom37": (35, 14), "atom37_mask": (35, 37), "centroid": (3,), "coord_scale": ()},
    "frame_indices": (),
}


@pytest.fixture(scope="module")
def villin(tmp_path_factory: pytest.TempPathFactory) -> PreparedSE3:
    return prepared(tmp_path_factory.mktemp("villin"), 40)


def diffuser(**conf: Any) -> SE3Diffuser:
    return SE3Diffuser(conf)


def training(villin: PreparedSE3, **more: Any) -> MDGenDataset:
    return MDGenDataset(options(villin, **more), diffuser(), "train")


def batch_of(dataset: MDGenDataset, *indices: int) -> dict[str, Any]:
    return collate(dataset.__getitems__(indices or range(len(dataset))))


def test_every_key_of_the_seed_is_there(villin: PreparedSE3) -> None:
    """A sample has the seed's keys with its shapes, and a name; a batch has one axis more."""
    data = training(villin)
    sample, batch = data[0], batch_of(data, 0, 1, 2)
    assert {key: tuple(sample[key].shape) for key in KEYS} == KEYS
    assert sample["name"] == "villin_R1" and batch["name"] == ["villin_R1"] * 3
    assert all(batch[key].shape == (3, *shape) for key, shape in KEYS.items())
    assert sample["seq_idx"].tolist() == list(range(1, 36)) and not sample["fixed_mask"].any()
    assert not sample["sc_ca_t"].any() and sample["res_mask"].all()


def test_atoms_are_those_of_the_file(villin: PreparedSE3) -> None:
    """Centred, scaled atoms taken back are the file's; frames and torsions belong to them; absent atoms are zeros."""
    batch, file = batch_of(training(villin), 3, 5), np.load(next(iter(villin.files))).astype(np.float32)
    back = batch["atom14_pos"] / batch["coord_scale"][:, None, None, None] + batch["centroid"][:, None, None]
    there = torch.as_tensor(file[[3, 5]]).any(-1)
    assert (back - torch.as_tensor(file[[3, 5]]))[there].abs().max() < 1e-4
    assert not batch["atom14_pos"][~there].any()
    assert batch["atom37_mask"].sum() == there.sum()
    frames = Rigid.from_tensor_7(batch["rigids_0"])
    assert torch.allclose(frames.trans, batch["atom37_pos"][:, :, 1])
    local = frames.invert_apply(batch["atom37_pos"][:, :, 2]) / batch["coord_scale"][:, None, None]
    assert (local[..., 1:].abs() < 1e-4).all() and (local[..., 0] - 1.54).abs().max() < 0.2
    assert torch.allclose((batch["torsion_angles_sin_cos"] ** 2).sum(-1), torch.ones(2, 35, 7), atol=1e-4)
    assert batch["torsion_angles_mask"][:, 0, :2].sum() == 0
    assert batch["frame_indices"].tolist() == [3, 5]


def test_the_scale_is_one_over_the_spread(villin: PreparedSE3) -> None:
    """coord_scale = 1 / std of CA about each frame's centroid, over training frames; the samples' std is then one."""
    data = training(villin)
    ca = np.load(next(iter(villin.files)))[:24, :, 1].astype(np.float64)
    assert data.coord_scale == pytest.approx(1 / (ca - ca.mean(1, keepdims=True)).std(), rel=1e-6)
    assert batch_of(data)["rigids_0"][..., 4:].std(correction=0).item() == pytest.approx(1, abs=1e-4)
    few = training(villin, scale_frames=5)
    assert few.coord_scale == pytest.approx(data.coord_scale, rel=1e-3) and few.coord_scale != data.coord_scale


def test_one_scale_for_all_modes(villin: PreparedSE3) -> None:
    """Validation measures the training frames too, takes a value that is set, and the caller's diffuser is
    untouched."""
    mine = diffuser()
    train, val = (MDGenDataset(options(villin), mine, mode) for mode in ("train", "val"))
    assert val.coord_scale == train.coord_scale != 1
    val.coord_scale = 0.5
    assert (val.diffuser.coord_scale, train.diffuser.coord_scale, mine.coord_scale) == (0.5, train.coord_scale, 1.0)
    assert val[0]["coord_scale"] == 0.5
    with pytest.raises(SettingError, match="coord_scale is nan"):
        val.coord_scale = float("nan")
    with pytest.raises(TrajectoryError, match="have the coord_scale"):
        collate([train[0], val[0]])


def test_the_diffused_coordinates_fit_the_noise(villin: PreparedSE3) -> None:
    """Their std is within 0.3 to 3, by default and with "auto"; a scaling applied twice is an error (seed's bug)."""
    auto = SE3Diffuser({"r3": {"coordinate_scaling": "auto"}})
    data = MDGenDataset(options(villin), auto, "train")
    assert data.diffuser.coordinate_scaling == pytest.approx(data.coord_scale)
    assert auto.coordinate_scaling == "auto"
    with pytest.raises(SettingError, match="standard deviation"):
        MDGenDataset(options(villin), SE3Diffuser({"r3": {"coordinate_scaling": 0.01}}), "train")


def test_auto_is_one_over_the_spread_whatever_the_units(villin: PreparedSE3) -> None:
    """With coord_scale given, or set later, "auto" is 1 / std in Angstrom, in every mode; scores do not depend on the
    units then. The control: one over 1 / coord_scale, as in the bug, is far off."""
    auto = SE3Diffuser({"r3": {"coordinate_scaling": "auto"}})
    plain, given = (MDGenDataset(options(villin, coord_scale=scale), auto, "train") for scale in (None, 0.5))
    assert given.coord_scale == 0.5 and given.std == plain.std
    for data in (plain, given, MDGenDataset(options(villin, coord_scale=2.0), auto, "val")):
        assert data.coordinate_scaling == data.diffuser.coordinate_scaling == pytest.approx(1 / plain.std)
    assert abs(given.coordinate_scaling - 0.5) > 0.1
    first, second = (batch_of(data, 0, 1) for data in (plain, given))
    assert torch.allclose(first["trans_score"], second["trans_score"], rtol=1e-4, atol=1e-4)
    plain.coord_scale = 0.7
    assert plain.coordinate_scaling == given.coordinate_scaling
    val = MDGenDataset(options(villin), auto, "val")
    before = val[0]["trans_score"]
    val.coordinate_scaling = 0.3
    assert val.diffuser.coordinate_scaling == 0.3 and torch.equal(val[0]["trans_score"], before)
    assert val.diffuser.r3.scale == pytest.approx(0.3 / val.coord_scale)


@pytest.mark.parametrize(("wide", "fits"), [(slice(0, 1), True), (slice(1, None), False)])
def test_the_scale_is_checked_on_all_training_frames(tmp_path: Path, wide: slice, fits: bool) -> None:
    """One frame 1.65 times as wide, the first, is no error; all the others are, whatever the first one says."""

    def stretch(array: np.ndarray) -> np.ndarray:
        array[wide] *= 1.65
        return array

    args = damaged(tmp_path, stretch)
    first = np.load(args["data_dir"] / "villin_R1.npy")[0, :, 1].astype(np.float64)
    of_first = float((first - first.mean(0)).std()) / (1.65 if fits else 1.0)
    process = diffuser(r3={"coordinate_scaling": 2.0 / of_first})  # 2 is within 0.3 to 3, 3.3 is not
    if fits:
        assert MDGenDataset(args, process, "train").std == pytest.approx(
            of_first * np.sqrt((5 + 1.65**2) / 6), rel=0.01
        )
    else:
        with pytest.raises(SettingError, match=r"standard deviation 3\.1"):
            MDGenDataset(args, process, "train")


def visible_mean(x: Tensor, mask: Tensor) -> Tensor:
    return (x * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)


@pytest.mark.parametrize("ratio", [1.0, 0.5])
def test_B8_samples_are_centred_before_they_are_noised(villin: PreparedSE3, ratio: float) -> None:
    """Clean and noised visible frames and the score have no centroid, whatever the crop; all CA together have."""
    batch = batch_of(training(villin, crop_ratio=ratio))
    mask = batch["res_mask"]
    for x in (batch["rigids_0"][..., 4:], batch["rigids_t"][..., 4:], batch["trans_score"]):
        assert visible_mean(x, mask).abs().max() < 1e-4 * max(1, x.abs().max())
    if ratio < 1:
        assert visible_mean(batch["rigids_0"][..., 4:], torch.ones_like(mask)).abs().max() > 0.05


def test_scores_belong_to_frames_and_times(villin: PreparedSE3) -> None:
    """The stored scores are the diffuser's for (rigids_t, rigids_0, t), with its scalings; another time's are not."""
    data = training(villin)
    batch = batch_of(data)
    rot, trans = data.diffuser.score(batch["rigids_t"], batch["rigids_0"], batch["t"])
    assert ((rot - batch["rot_score"]) / batch["rot_score_scaling"][:, None, None]).abs().max() < 1e-2
    assert ((trans - batch["trans_score"]) / batch["trans_score_scaling"][:, None, None]).abs().max() < 1e-2
    wrong, _ = data.diffuser.score(batch["rigids_t"], batch["rigids_0"], 0.9 * batch["t"])
    assert ((wrong - batch["rot_score"]) / batch["rot_score_scaling"][:, None, None]).abs().max() > 0.1
    scaling = data.diffuser.score_scaling(batch["t"])
    assert torch.allclose(batch["rot_score_scaling"], scaling[0].float())
    assert torch.allclose(batch["trans_score_scaling"], scaling[1].float())


def test_crops_in_training_only(villin: PreparedSE3) -> None:
    """k residues are visible; the others keep their clean frames and have no score; validation sees all residues."""
    data = training(villin, crop_ratio=0.5)
    batch = batch_of(data)
    hidden = batch["res_mask"] == 0
    assert (batch["res_mask"].sum(1) == 17).all() and len(batch["res_mask"].unique(dim=0)) > 5
    assert torch.equal(batch["rigids_t"][hidden], batch["rigids_0"][hidden])
    assert not batch["rot_score"][hidden].any() and not batch["trans_score"][hidden].any()
    assert batch["rot_score"][~hidden].abs().min() > 0
    assert data.inclusion_reports()["villin"].deviation < 1e-3
    val = MDGenDataset(options(villin, crop_ratio=0.5), diffuser(), "val")
    assert batch_of(val)["res_mask"].all() and val.inclusion_reports() == {}


def test_weights_instead_of_equal_inclusion(villin: PreparedSE3) -> None:
    """Horvitz-Thompson weights are in res_weight, in the visible residues only; otherwise these are res_mask."""
    batch = batch_of(training(villin, crop_ratio=0.5, inclusion="horvitz-thompson"))
    assert ((batch["res_weight"] > 0) == (batch["res_mask"] > 0)).all()
    assert len(batch["res_weight"].unique()) > 5
    equal = batch_of(training(villin, crop_ratio=0.5))
    assert torch.equal(equal["res_weight"], equal["res_mask"])


def test_B12_a_batch_is_noised_in_one_call(villin: PreparedSE3, monkeypatch: pytest.MonkeyPatch) -> None:
    """A training batch takes one call of the diffuser, not one for each sample, and each sample its own time and
    noise."""
    data, shapes = training(villin), []
    original = SE3Diffuser.forward_marginal

    def counted(self: SE3Diffuser, rigids: Tensor, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        shapes.append(tuple(rigids.shape))
        return original(self, rigids, *args, **kwargs)

    monkeypatch.setattr(SE3Diffuser, "forward_marginal", counted)
    batch = batch_of(data, 0, 0, 1, 2)
    assert shapes == [(4, 35, 7)]
    assert len(batch["t"].unique()) == 4 and not torch.equal(batch["rot_score"][0], batch["rot_score"][1])


def test_times_are_uniform_in_training(villin: PreparedSE3) -> None:
    """4800 times lie in [min_t, 1] with the mean and variance of the uniform distribution to 6 sigma; t = x^2 fails."""
    data = MDGenDataset(options(villin), diffuser(min_t=0.2), "train")
    t = torch.cat([batch_of(data)["t"] for _ in range(200)]).double()
    assert t.min() >= 0.2 and t.max() <= 1
    for u, good in (((t - 0.2) / 0.8, True), (((t - 0.2) / 0.8) ** 2, False)):
        error = 6 / np.sqrt(len(u))
        assert (abs(u.mean() - 1 / 2) < error * np.sqrt(1 / 12)) == good
        assert (abs(((u - 0.5) ** 2).mean() - 1 / 12) < error * np.sqrt(1 / 180)) == good


def test_a_share_of_the_times_is_uniform_in_log_t(villin: PreparedSE3) -> None:
    """Half of 4800 times uniform in log t from 0.01 on: the share below 0.1 is that of the mixture to 6 sigma."""
    for share in (0.5, 0.0):
        data = MDGenDataset(options(villin, low_noise_share=share), diffuser(), "train")
        t = torch.cat([batch_of(data)["t"] for _ in range(200)]).double()
        expected = 0.5 * 0.5 + 0.5 * 0.09 / 0.99
        assert t.min() >= 0.01 and t.max() <= 1
        close = abs(float((t < 0.1).double().mean()) - expected) < 6 * np.sqrt(expected * (1 - expected) / len(t))
        assert close == (share == 0.5)


def test_validation_is_always_the_same(villin: PreparedSE3) -> None:
    """Times cycle through a grid, and time and noise of an index do not depend on batch, order, epoch or cache."""
    val = MDGenDataset(options(villin, n_val_t=4), diffuser(), "val")
    whole = batch_of(val)
    grid = 0.01 + 0.99 * (np.arange(4) + 0.5) / 4
    assert whole["t"].tolist() == pytest.approx([*grid, *grid])
    val.set_epoch(3)
    uncached = MDGenDataset(options(villin, n_val_t=4, cache_mb=0), diffuser(), "val")
    for other in (val[5], batch_of(val, 7, 5)["rigids_t"][1], uncached[5]):
        other = other if isinstance(other, Tensor) else other["rigids_t"]
        assert torch.equal(other, whole["rigids_t"][5])
    val.coord_scale = 2 * val.coord_scale
    assert not torch.equal(val[5]["rigids_t"], whole["rigids_t"][5])


def test_times_can_be_given(villin: PreparedSE3) -> None:
    """val_t replaces the grid and fixed_t every time, in training too."""
    val = MDGenDataset(options(villin, val_t=[0.1, 1.0]), diffuser(), "val")
    assert batch_of(val)["t"].tolist() == pytest.approx([0.1, 1.0] * 4)
    assert set(batch_of(training(villin, fixed_t=0.25))["t"].tolist()) == {0.25}


def epoch(data: MDGenDataset, workers: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    loader = DataLoader(data, batch_size=6, num_workers=workers, collate_fn=collate, shuffle=True, generator=generator)
    return torch.cat([batch["trans_score"] * batch["trans_score_scaling"][:, None, None] for batch in loader])


def distinct(*noise: Tensor) -> bool:
    """Whether no sample's noise occurs twice."""
    together = torch.cat(noise).flatten(1)
    return len(together.unique(dim=0)) == len(together)


def test_noise_repeats_neither_in_workers_nor_epochs_nor_ranks(villin: PreparedSE3) -> None:
    """Two workers, two epochs, and two ranks with other indices have different noise; a copy with the same seed has
    the same, which is the control."""
    data = training(villin)
    twin = copy.deepcopy(data)
    assert distinct(epoch(data, 2), epoch(data, 2, seed=1))
    first, second = epoch(data, 0), epoch(data, 0)
    assert distinct(first, second)
    assert torch.equal(epoch(twin, 0), first) and not distinct(first, first)
    ranks = [training(villin).__getitems__([k, k + 2]).batch["rot_score"] for k in (0, 1)]
    assert distinct(*ranks)
    other = training(villin, seed=1)
    assert distinct(epoch(other, 0), first)
    other.set_epoch(1)
    assert distinct(epoch(other, 0), epoch(training(villin, seed=1), 0))


def test_splits_do_not_overlap(villin: PreparedSE3) -> None:
    """Training, validation and test frames are disjoint and in order; "all" has every frame, "overfit" the first
    ones."""
    frames = {
        mode: batch_of(MDGenDataset(options(villin), diffuser(), mode))["frame_indices"].tolist()
        for mode in ("train", "val", "test", "all")
    }
    assert frames["train"] + frames["val"] + frames["test"] == frames["all"] == list(range(40))
    assert len(training(villin, overfit=3)) == 3
    with pytest.raises(SettingError, match="the mode is 'validation'"):
        MDGenDataset(options(villin), diffuser(), "validation")


def test_any_kind_of_arguments(villin: PreparedSE3) -> None:
    """A mapping, argparse's Namespace and OmegaConf's DictConfig serve, with options of others among them."""
    plain = {key: str(value) for key, value in options(villin).items()} | {"epochs": 3, "crop_ratio": None}
    expected = training(villin)[2]["rigids_t"]
    for args in (plain, argparse.Namespace(**plain)):
        assert torch.equal(MDGenDataset(args, diffuser(), "train")[2]["rigids_t"], expected)
    omegaconf = pytest.importorskip("omegaconf")
    conf = omegaconf.OmegaConf.create(plain | {"val_t": [0.5]})
    assert torch.equal(MDGenDataset(conf, diffuser(), "train")[2]["rigids_t"], expected)
    with pytest.raises(SettingError, match="atlas_csv is missing"):
        MDGenDataset({"data_dir": "x"}, diffuser())
    with pytest.raises(SettingError, match=r"crop_ratio is 1\.5"):
        training(villin, crop_ratio=1.5)


def two_proteins(folder: Path) -> PreparedSE3:
    """Villin, and its residues 3-20 as another protein."""
    prepared(folder, 10, name="whole")
    part = shaken(10)
    atoms = [a.index for a in part.top.atoms if 2 <= a.residue.index < 20]
    return prepared(folder, frames=part.atom_slice(atoms), name="part")


@pytest.mark.parametrize("ratio", [1.0, 0.5])
def test_chains_of_different_length_are_padded(tmp_path: Path, ratio: float) -> None:
    """A padded batch has identity frames and mask 0 in the padding, and the samples' numbers everywhere else."""
    data = MDGenDataset(options(two_proteins(tmp_path), crop_ratio=ratio), diffuser(), "train")
    samples = data.__getitems__([7, 0, 8])
    lengths = [len(sample["res_mask"]) for sample in samples]
    assert lengths == [18, 35, 18] and [data.trajectories[i].name for i in (0, 1)] == ["whole_R1", "part_R1"]
    batch = collate(samples)
    assert not batch["res_mask"][0, 18:].any() and batch["aatype"][0, 18:].tolist() == [20] * 17
    assert (batch["rigids_t"][0, 18:] == torch.tensor([1.0, 0, 0, 0, 0, 0, 0])).all()
    again = collate(list(samples))
    for key, value in batch.items():
        same = torch.equal(again[key], value) if isinstance(value, Tensor) else again[key] == value
        assert same, key
    assert visible_mean(batch["rigids_0"][..., 4:], batch["res_mask"]).abs().max() < 1e-5
    val = MDGenDataset(options(prepared_again(data), cache_mb=0), diffuser(), "all")
    alone, together = val[12], collate(val.__getitems__([3, 12]))
    assert torch.equal(alone["rigids_t"], together["rigids_t"][1, :18])


def prepared_again(data: MDGenDataset) -> PreparedSE3:
    folder = data.options.data_dir
    return PreparedSE3({folder / "part_R1.npy": 10}, data.options.atlas_csv, folder / "frame_splits.csv", "")


def test_default_collate_serves_equal_lengths(villin: PreparedSE3) -> None:
    """PyTorch's own collate function makes the same batch where all chains are of one length."""
    val = MDGenDataset(options(villin), diffuser(), "val")
    own, default = (next(iter(DataLoader(val, batch_size=8, collate_fn=f))) for f in (collate, None))
    assert own.keys() == default.keys()
    assert all(torch.equal(own[k], default[k]) for k in own if isinstance(own[k], Tensor))


def test_nested_suffixed_and_all_frames(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Nested files with a suffix are found by names that carry it; without a table of splits all frames are taken."""
    data = prepared(tmp_path, 10, nested=True, suffix="_i2")
    text = data.train_split.read_text()
    data.train_split.write_text(text.replace("villin_R1", "villin_R1_i2"))
    args = options(data, suffix="_i2") | {"data_dir": tmp_path / "data"}
    assert MDGenDataset(args, diffuser(), "train")[0]["name"] == "villin_R1"
    assert not caplog.text
    assert len(MDGenDataset(args | {"train_split": None}, diffuser(), "val")) == 10
    assert "takes all frames" in caplog.text


def damaged(tmp_path: Path, change: Any) -> dict[str, Any]:
    data = prepared(tmp_path, 10)
    array = np.load(next(iter(data.files)))
    np.save(next(iter(data.files)), change(array))
    return options(data)


def with_nan(array: np.ndarray) -> np.ndarray:
    array[4, 3, 2, 1] = np.nan
    return array


def with_zeros(array: np.ndarray) -> np.ndarray:
    array[5, 8, 1] = 0
    return array


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (with_nan, r"villin_R1\.npy: frame 4 has NaN"),
        (with_zeros, r"villin_R1\.npy: frame 5 has no CA in residue 9"),
        (lambda a: a[:, :30], "has 30 residues, its sequence in .* has 35"),
        (lambda a: a[:5], "has 5 frames, but its row of the frame splits says 10"),
        (lambda a: a[..., :2], "expected .frames, residues, 14, 3."),
    ],
)
def test_bad_arrays_are_one_sentence(tmp_path: Path, change: Any, sentence: str) -> None:
    """NaN, absent atoms, another length and other shapes are errors when the data set is made, with file and frame."""
    with pytest.raises(TrajectoryError, match=sentence):
        MDGenDataset(damaged(tmp_path, change), diffuser(), "train")


def test_what_is_read_late_is_checked_late(tmp_path: Path) -> None:
    """Without the cache, bad frames outside the training split are found when they are read."""
    args = damaged(tmp_path, lambda a: np.concatenate([a[:9], a[9:] * np.nan])) | {"cache_mb": 0}
    data = MDGenDataset(args, diffuser(), "test")
    assert data[0]["frame_indices"] == 8
    with pytest.raises(TrajectoryError, match="frame 9 has NaN"):
        data[1]
    with pytest.raises(IndexError):
        data[2]


def test_bad_tables_are_one_sentence(villin: PreparedSE3, tmp_path: Path) -> None:
    """Letters that are no residue, missing proteins and missing files are errors with the remedy."""
    atlas = tmp_path / "atlas.csv"
    for text, sentence in (
        (f"villin,{SEQUENCE[:-1]}X", r"has the letters \['X'\]"),
        (f"other,{SEQUENCE}", "has no row 'villin'"),
    ):
        atlas.write_text(f"name,seqres\n{text}\n")
        with pytest.raises(TrajectoryError, match=sentence):
            MDGenDataset(options(villin) | {"atlas_csv": atlas}, diffuser())
    with pytest.raises(InputFileError, match=r"such as villin_R1_i9\.npy; it holds villin_R1\.npy; check data_dir"):
        training(villin, suffix="_i9")
    with pytest.raises(InputFileError, match="cannot read the table"):
        MDGenDataset(options(villin) | {"train_split": tmp_path / "none.csv"}, diffuser())


def test_the_configuration_of_the_diffuser_is_not_touched(villin: PreparedSE3) -> None:
    """The acceptance preset serves as it is: times start at its min_t."""
    preset = SE3Diffuser(SE3Config.acceptance())
    data = MDGenDataset(options(villin, n_val_t=3), preset, "val")
    assert data[0]["t"].item() == pytest.approx(0.001 + 0.999 / 6)
    assert preset.coord_scale == 1.0
