"""Training for exact acceptance: auxiliary frames, weights, noise times, the preset, the probe, the commands."""

import csv
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import pytest
import torch
import yaml
from dipeptide_data import SIMULATE, prepared_dipeptide, torsions
from scipy import stats
from torch import Tensor, nn
from typer.testing import CliRunner
from villin_data import prepared

from openmm_diffusion import models
from openmm_diffusion.cli.main import app
from openmm_diffusion.data.collate import collate
from openmm_diffusion.data.mdgen_dataset import MDGenDataset
from openmm_diffusion.data.noise_times import NoiseTimes
from openmm_diffusion.data.torsion_dataset import TorsionDataset
from openmm_diffusion.data.weights import draw_by_weight, flattened
from openmm_diffusion.diffusion.se3_diffuser import SE3Diffuser
from openmm_diffusion.diffusion.stiff_links import StiffLinks
from openmm_diffusion.errors import SettingError, TrajectoryError
from openmm_diffusion.models.score_network import ScoreNetwork
from openmm_diffusion.peptide import MoleculeDescription
from openmm_diffusion.sampling.noise_grid import PACE, NoiseGrid
from openmm_diffusion.training.se3_data import EpochSampler
from openmm_diffusion.workflows.prepare_se3 import PreparedSE3
from openmm_diffusion.workflows.se3_presets import preset, training_preset
from openmm_diffusion.workflows.settings import command_line
from openmm_diffusion.workflows.train_se3 import TrainSE3Settings, configurations, data_sets

PHI, PSI = (0, 5), (1, 0)  # places of the dipeptide's soft torsions among the links [2, 6]
TINY = {
    "node_embed_size": 16,
    "edge_embed_size": 8,
    "embed": {"index_embed_size": 8},
    "ipa": {"num_blocks": 1, "c_hidden": 4, "c_skip": 16},
}


@pytest.fixture(scope="module")
def dipeptide(tmp_path_factory: pytest.TempPathFactory) -> PreparedSE3:
    """100 frames with weights 1, 2, ..., 100."""
    return prepared_dipeptide(tmp_path_factory.mktemp("ala"), frame_weights=np.arange(1.0, 101.0))


def dataset(data: PreparedSE3, mode: str = "train", **more: Any) -> MDGenDataset:
    folder = next(iter(data.files)).parent
    options = {"data_dir": folder, "atlas_csv": data.atlas_csv, "train_split": data.train_split}
    return MDGenDataset(options | {"auxiliary_width": 0.15} | more, SE3Diffuser(preset("acceptance")[1]), mode)


def clean(data: MDGenDataset, items: Any) -> tuple[Tensor, dict[str, Any]]:
    """Clean frames (Angstrom, float64) and the batch of some items."""
    batch = collate(data.__getitems__(items))
    rigids = batch["rigids_0"].double()
    rigids[..., 4:] /= data.coord_scale
    return rigids, batch


def wrapped(x: Any) -> Any:
    return (x + math.pi) % (2 * math.pi) - math.pi


def test_soft_torsions_are_the_trajectory_s(dipeptide: PreparedSE3) -> None:
    """phi and psi of a sample's frames are those of the atoms of the frame in the trajectory, to the files' rounding,
    whatever order the file has; the control: those of the frame after."""
    data = dataset(dipeptide)
    rigids, batch = clean(data, range(len(data)))
    links = data._frames.stiff["ACE", "ALA", "NME"].links(rigids).numpy()  # type: ignore[union-attr]
    measured = np.stack([links[(slice(None), *place)] for place in (PHI, PSI)], -1)
    order = np.load(next(iter(dipeptide.files)).with_name("ala_R1_weights.npy")).astype(int) - 1
    tau = torsions(100)
    error = np.abs(wrapped(measured - tau[order[batch["frame_indices"]]]))
    assert error.max() < 2e-3
    assert np.abs(wrapped(measured - tau[order[batch["frame_indices"]] - 1])).max() > 0.1


def test_stiff_links_are_drawn_afresh_in_training_and_fixed_in_validation(dipeptide: PreparedSE3) -> None:
    """Stiff links have the mean and width of a(s) and differ between epochs; in validation an item has always the same,
    in any batch."""
    train, validation = dataset(dipeptide), dataset(dipeptide, "val")
    stiff = StiffLinks.of(("ACE", "ALA", "NME"), width=0.15)
    drawn = []
    for epoch in range(30):
        train.set_epoch(epoch)
        drawn.append(stiff.links(clean(train, range(len(train)))[0]))
    assert not torch.allclose(drawn[0], drawn[1], atol=1e-3)
    sample = torch.cat(drawn)
    for row, column in ((0, 2), (1, 1), (0, 3), (1, 5)):
        z = wrapped((sample[:, row, column] - stiff.centres[row, column]).numpy()) / 0.15
        assert stats.kstest(z, "norm").pvalue > 1e-3 and stats.kstest(z / 1.25, "norm").pvalue < 1e-3
    once, again = clean(validation, range(20))[0], clean(validation, [7, 3])[0]
    assert torch.equal(once[[7, 3]], again) and torch.equal(clean(dataset(dipeptide, "val"), range(20))[0], once)


def test_samples_are_what_the_density_reads(dipeptide: PreparedSE3, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch shows the network the types and indices that the path's kernel shows it, of centred frames with N, CA and
    C on them."""
    from openmm_diffusion.sampling.path import SE3Path

    data = dataset(dipeptide)
    rigids, batch = clean(data, range(10))
    network = ScoreNetwork(preset("acceptance")[0], data.diffuser)
    seen: list[Mapping[str, Tensor]] = []
    denoise = network.denoise
    monkeypatch.setattr(network, "denoise", lambda noised, batch: seen.append(batch) or denoise(noised, batch))
    stiff = data._frames.stiff["ACE", "ALA", "NME"]  # type: ignore[union-attr]
    path = SE3Path(network, stiff, n_steps=3, aatype=torch.tensor([20, 0, 20]))
    path.score(rigids, torch.Generator().manual_seed(0))
    for key in ("seq_idx", "aatype", "res_mask", "fixed_mask"):
        assert torch.equal(batch[key][:1].float(), seen[0][key][:1].float()), key
    assert batch["rigids_0"][..., 4:].mean(1).abs().max() < 1e-5
    assert torch.equal(batch["atom14_pos"].any(-1)[0].sum(-1), torch.tensor([3, 3, 3]))
    assert not batch["torsion_angles_mask"].any()


def test_the_scale_is_that_of_auxiliary_frames(dipeptide: PreparedSE3) -> None:
    """coord_scale is one over the spread of the frames as drawn, by weight, for training and validation alike."""
    data = dataset(dipeptide)
    spread = []
    for epoch in range(20):
        data.set_epoch(epoch)
        spread.append(clean(data, data.order(epoch).tolist())[0][..., 4:].square().mean())
    assert data.std == pytest.approx(float(torch.stack(spread).mean().sqrt()), rel=0.02)
    assert dataset(dipeptide, "val").std == data.std
    assert dataset(dipeptide, auxiliary_width=None).std != pytest.approx(data.std, rel=1e-4)


def test_frames_are_drawn_by_weight(dipeptide: PreparedSE3) -> None:
    """An epoch and the validation items hold each frame in proportion to its weight, up to one; the control: a
    permutation does not. Every process takes its share."""
    data, validation = dataset(dipeptide), dataset(dipeptide, "val")
    weights = data.weights
    assert weights is not None and len(weights) == 60
    counts = np.bincount(list(EpochSampler(data, 0)), minlength=60)
    expected = 60 * weights / weights.sum()
    assert np.abs(counts - expected).max() < 1 and np.abs(1 - expected).max() > 0.5
    assert list(EpochSampler(data, 0)) != list(EpochSampler(data, 1))
    shares = [list(EpochSampler(data, 0, rank, 2)) for rank in range(2)]
    assert sorted([*shares[0], *shares[1]]) == sorted(EpochSampler(data, 0))
    file = np.load(next(iter(dipeptide.files)).with_name("ala_R1_weights.npy"))
    frames = clean(validation, range(20))[1]["frame_indices"].numpy() - 60
    expected = 20 * file[60:80] / file[60:80].sum()
    assert np.abs(np.bincount(frames, minlength=20) - expected).max() < 1


def test_flattening_is_the_torsion_data_set_s(dipeptide: PreparedSE3) -> None:
    """Weights are divided by the density of phi and psi as `TorsionDataset.flattened` does; the rare basin gains."""
    plain, flat = dataset(dipeptide), dataset(dipeptide, flatten=0.4)
    tau = torch.stack([plain._frames._torsions[0][(slice(None), *p)] for p in (PHI, PSI)], -1).numpy()  # type: ignore[union-attr]
    assert plain.weights is not None and flat.weights is not None
    molecule = MoleculeDescription((("ACE", "ALA", "NME"),), ("phi:ALA2", "psi:ALA2"))
    expected = TorsionDataset(tau, plain.weights, molecule).flattened(0.4).weights
    assert np.allclose(flat.weights / flat.weights.sum(), expected, rtol=1e-9)
    rare = tau[:, 0] > 0
    share = [w[rare].sum() / w.sum() for w in (plain.weights, flat.weights)]
    assert share[1] > 1.3 * share[0]
    assert np.allclose(flattened(tau, plain.weights, 0.0), plain.weights)


def test_draws_by_weight_are_unbiased() -> None:
    """Over many draws each row comes in proportion to its weight, rows of weight zero never."""
    weights = np.array([0.0, 1.0, 0.3, 0.0, 2.7])
    counts = sum(np.bincount(draw_by_weight(weights, 3, np.random.default_rng(k)), minlength=5) for k in range(4000))
    assert np.abs(counts / 12_000 - weights / 4.0).max() < 6 * 0.5 / np.sqrt(12_000)
    assert counts[0] == counts[3] == 0


def test_times_are_uniform_in_the_noise(dipeptide: PreparedSE3) -> None:
    """The mean log noise of a batch's times is one number in each of its strata between min_t and max_t, as the levels
    of a path; the control: uniform times are not."""
    conf = SE3Diffuser(preset("acceptance")[1]).with_auto_scaling(1.0)

    def level(t: Tensor) -> np.ndarray:
        rot, trans = conf.sigma(t.double())
        return (0.5 * (torch.log(rot) + torch.log(trans))).numpy()

    low, high = level(torch.tensor([0.005, 0.4]))
    for grid, stratified in (("noise", True), ("uniform", False)):
        t = clean(dataset(dipeptide, time_grid=grid, max_t=0.4), range(60))[1]["t"]
        assert t.min() > 0.005 - 1e-6 and t.max() < 0.4 + 1e-6
        share = np.sort((level(t) - low) / (high - low))
        assert ((60 * share).astype(int).tolist() == list(range(60))) == stratified
    steps = NoiseGrid.geometric(conf, 11, 0.005, 0.4).t.numpy()
    assert np.allclose(NoiseTimes(conf, 0.4)(np.linspace(0, 1, 11) ** PACE), steps, rtol=1e-4)
    with pytest.raises(SettingError, match=r"max_t is 0.001; expected above min_t, 0.005"):
        NoiseTimes(conf, 0.001)


def test_what_does_not_go_together_is_refused(dipeptide: PreparedSE3, tmp_path: Path) -> None:
    """Crops of auxiliary frames, flattening without them, weights for some of the trajectories: one sentence each."""
    with pytest.raises(SettingError, match="expected whole chains"):
        dataset(dipeptide, crop_ratio=0.5)
    with pytest.raises(SettingError, match="give an auxiliary_width too"):
        dataset(dipeptide, auxiliary_width=None, flatten=0.4)
    data = prepared_dipeptide(tmp_path)
    prepared_dipeptide(tmp_path, weights=None, replica=2)
    with pytest.raises(TrajectoryError, match="ala_R2 has no weights beside it"):
        dataset(data)
    np.save(tmp_path / "data" / "ala_R1_weights.npy", np.ones(7))
    with pytest.raises(TrajectoryError, match=r"has the shape \(7,\); expected \(100,\)"):
        dataset(data)


def test_proteins_without_caps_train_too(tmp_path: Path) -> None:
    """Villin has no caps: auxiliary frames of its 35 residues, all phi and psi soft, and no weights."""
    data = prepared(tmp_path, 40)
    frames = dataset(data)
    rigids, _ = clean(frames, range(4))
    assert rigids.shape == (4, 35, 7) and frames.weights is None
    assert frames.trajectories[0].residues[:3] == ("LEU", "SER", "ASP")


def test_caps_train_without_auxiliary_frames_too(dipeptide: PreparedSE3) -> None:
    """Caps are residues of type X with frames of their own atoms and no psi."""
    batch = collate(dataset(dipeptide, auxiliary_width=None).__getitems__(range(5)))
    assert batch["aatype"][0].tolist() == [20, 0, 20]
    assert batch["torsion_angles_mask"][0, :, 2].tolist() == [0, 1, 0]


def test_mixed_chains_come_in_one_batch(dipeptide: PreparedSE3, tmp_path: Path) -> None:
    """Chains of different length share a batch, each with its own links, padded by absent residues."""
    prepared_dipeptide(tmp_path, weights=None)
    prepared(tmp_path, 40)
    data = tmp_path / "data"
    both = MDGenDataset(
        {"data_dir": data, "atlas_csv": data / "atlas.csv", "auxiliary_width": 0.15, "time_grid": "noise"},
        SE3Diffuser(preset("acceptance")[1]),
        "train",
    )
    batch = collate(both.__getitems__([0, 100, 1]))
    assert batch["res_mask"].sum(1).tolist() == [3, 35, 3]
    assert batch["name"] == ["ala_R1", "villin_R1", "ala_R1"]


def settings(dipeptide: PreparedSE3, folder: Path, **more: Any) -> TrainSE3Settings:
    conf = folder / "tiny.yaml"
    conf.write_text(yaml.safe_dump(TINY))
    values = {
        "data_dir": next(iter(dipeptide.files)).parent,
        "save_dir": folder / "out",
        "preset": "acceptance",
        "model_conf": conf,
        "batch_size": 30,
        "epochs": 2,
        "validate_every": 1,
        "accelerator": "cpu",
        "threads": 1,
    }
    return TrainSE3Settings.build(values | more)


def test_the_preset_fills_in_what_is_not_given(tmp_path: Path) -> None:
    """The preset's settings of training stand in the settings, given ones go before, also such as equal the defaults of
    other presets; files and commands of the resolved settings give the same again."""
    base = {"data_dir": Path("data"), "preset": "acceptance"}
    chosen = TrainSE3Settings.build(base | {"psi_loss_weight": 1.0, "lr": 1e-3})
    implied = training_preset("acceptance")
    assert implied["auxiliary_width"] == 0.15 and implied["self_conditioning"] == 0
    for key, value in (implied | {"psi_loss_weight": 1.0, "lr": 1e-3}).items():
        assert getattr(chosen, key) == value
    chosen.write(tmp_path / "settings.yaml")
    assert TrainSE3Settings.build({}, tmp_path / "settings.yaml") == chosen
    line = "openmm-diffusion train se3 --data-dir data --lr 0.001 --preset acceptance --psi-loss-weight 1.0"
    assert command_line("train se3", chosen) == line
    assert TrainSE3Settings.build({"data_dir": Path("data")}).batch_size == 8
    network = ScoreNetwork(preset("acceptance")[0], SE3Diffuser(preset("acceptance")[1]))
    assert 150_000 < sum(p.numel() for p in network.parameters()) < 500_000


def test_the_chain_of_commands_in_one_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """prepare and train as a model card has them, from one folder: the model is of the residues with caps, and its card
    has the simulation's command, both of these, and what the proposal needs."""
    prepared_dipeptide(tmp_path, 200)
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    monkeypatch.chdir(tmp_path)
    prepare = (
        "prepare se3 --trajectory md/trajectory.dcd --topology md/topology.pdb --output new --name ala3 --caps "
        "--weights md/weights.npz"
    )
    train = (
        "train se3 --data-dir new --batch-size 60 --epochs 2 --save-dir model --preset acceptance --model-conf "
        "tiny.yaml --accelerator cpu --threads 1"
    )
    for words in (prepare, train):
        result = CliRunner().invoke(app, [*words.split(), "--quiet"])
        assert result.exit_code == 0, result.output
    model = models.load(tmp_path / "model")
    assert model.molecule.sequences == (("ACE", "ALA", "NME"),) and model.sequence == "XAX"
    expected = {"width": 0.15, "soft": ["phi", "psi"], "max_t": 0.4, "flatten": 0.4}
    assert {key: model.card["acceptance"][key] for key in expected} == expected
    assert model.card["commands"] == [SIMULATE, f"openmm-diffusion {prepare}", f"openmm-diffusion {train}"]
    assert model.card["training_data"]["simulations"] == [{"frames": 200}]
    assert np.isfinite(model.card["metrics"]["val_log_q"]) and model.card["metrics"]["val_log_q_std"] > 0
    stored = yaml.safe_load((tmp_path / "model" / "settings.yaml").read_text())
    assert (stored["auxiliary_width"], stored["time_grid"], stored["max_minutes"]) == (0.15, "noise", 30.0)


def test_the_probe_sees_the_averaged_weights(
    dipeptide: PreparedSE3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the probe says of the averaged network is logged as val_...: the last one is asked about the saved weights;
    the weights that training goes on with are others."""
    from openmm_diffusion.workflows import se3_acceptance, train_se3

    asked: list[tuple[float, float]] = []
    trained: list[float] = []

    def first(network: nn.Module) -> float:
        return float(next(network.parameters()).detach().double().norm())

    class Watch(lightning.Callback):
        def on_train_batch_end(self, trainer: Any, module: Any, *_: Any) -> None:
            trained.append(first(module.network))

    def probe(network: nn.Module) -> dict[str, float]:
        asked.append((first(network), len(asked)))
        return {"number": asked[-1][1]}

    trainer = lightning.Trainer
    monkeypatch.setattr(lightning, "Trainer", lambda **o: trainer(**{**o, "callbacks": [*o["callbacks"], Watch()]}))
    monkeypatch.setattr(train_se3, "acceptance_probe", lambda *_: probe)
    model = train_se3.train_se3(settings(dipeptide, tmp_path, lr=1e-2), progress=False)
    assert model is not None and asked[-1][0] == pytest.approx(first(model.network))
    assert len(trained) == 4 and len(asked) == 3
    assert asked[0][0] != pytest.approx(trained[1], rel=1e-6) and asked[1][0] != pytest.approx(trained[3], rel=1e-6)
    assert model.card["metrics"]["val_number"] == 2
    with open(tmp_path / "out" / "metrics.csv", newline="") as file:
        assert [float(row["val_number"]) for row in csv.DictReader(file) if row.get("val_number")] == [0, 1, 2]
    plain = TrainSE3Settings.build({"data_dir": tmp_path})
    assert se3_acceptance.acceptance_probe(plain, dataset(dipeptide, "val")) is None


def test_the_probe_is_better_for_a_better_network(dipeptide: PreparedSE3, tmp_path: Path) -> None:
    """The same number every time; a network of random weights has a lower one than the untrained one, which predicts no
    change at all."""
    from openmm_diffusion.workflows.se3_acceptance import acceptance_probe

    chosen = settings(dipeptide, tmp_path)
    train, validation = data_sets(chosen)
    probe = acceptance_probe(chosen, validation)
    assert probe is not None
    conf = configurations(chosen)[0]
    values = [probe(ScoreNetwork(conf, train.diffuser, zero_init=zero)) for zero in (True, True, False)]
    assert values[0] == values[1] and values[2]["log_q"] < values[0]["log_q"]


def test_training_raises_log_q(dipeptide: PreparedSE3, tmp_path: Path) -> None:
    """Sixty steps raise the probe's log q of held-out frames above that of the untrained network."""
    from openmm_diffusion.workflows.se3_acceptance import acceptance_probe
    from openmm_diffusion.workflows.train_se3 import train_se3

    chosen = settings(dipeptide, tmp_path, epochs=30, validate_every=30, warmup_steps=5, ema_decay=0.9, lr=1e-2)
    model = train_se3(chosen, progress=False)
    train, validation = data_sets(chosen)
    probe = acceptance_probe(chosen, validation)
    assert model is not None and probe is not None and isinstance(model.network, ScoreNetwork)
    untrained = probe(ScoreNetwork(model.network.config, train.diffuser))["log_q"]
    assert probe(model.network)["log_q"] == pytest.approx(model.card["metrics"]["val_log_q"], abs=1e-3)
    assert model.card["metrics"]["val_log_q"] > untrained + 0.5
