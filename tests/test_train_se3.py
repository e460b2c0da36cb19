"""`openmm-diffusion train se3`: it learns, goes on where it stopped, runs in two processes, and refuses bad input."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from tiny_network import TINY as NETWORK
from typer.testing import CliRunner, Result
from villin_data import prepared

from openmm_diffusion import models
from openmm_diffusion.cli.main import app
from openmm_diffusion.errors import OpenMMDiffusionError, SettingError, TrajectoryError
from openmm_diffusion.training.se3_fit import SE3FitOptions, fit_se3
from openmm_diffusion.training.se3_module import SE3Module
from openmm_diffusion.workflows.se3_presets import PRESETS, merged, preset
from openmm_diffusion.workflows.train_se3 import TrainSE3Settings, configurations, data_sets, train_se3

TINY = {**NETWORK, "embed": {**NETWORK["embed"], "relative_frames": True}}
SEED_NAMES = {f"{p}_{t}loss" for p in ("train", "val") for t in ("", "rot_", "trans_", "psi_")}


@pytest.fixture(scope="module")
def villin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with prepared villin data and the configuration of a tiny network."""
    folder = tmp_path_factory.mktemp("villin")
    prepared(folder, 100)
    (folder / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    return folder


def settings(villin: Path, save_dir: Path, **more: Any) -> TrainSE3Settings:
    values = {
        "data_dir": villin / "data",
        "save_dir": save_dir,
        "model_conf": villin / "tiny.yaml",
        "batch_size": 15,
        "epochs": 2,
        "accelerator": "cpu",
        "threads": 1,
        "ema_decay": 0.9,
        "lr": 1e-3,
        "validate_every": 1,
    }
    return TrainSE3Settings.build(values | more)


def rows(folder: Path) -> list[dict[str, str]]:
    with open(folder / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def column(folder: Path, name: str) -> list[float]:
    return [float(row[name]) for row in rows(folder) if row.get(name)]


@pytest.fixture(scope="module")
def trained(villin: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four epochs without interruption."""
    folder = tmp_path_factory.mktemp("trained") / "out"
    train_se3(settings(villin, folder, epochs=4), progress=False)
    return folder


def command(villin: Path, save_dir: Path, *words: str) -> Result:
    """The first seed's command, in its own spelling."""
    data = villin / "data"
    seed = ["--data_dir", data, "--atlas_csv", data / "atlas.csv", "--train_split", data / "frame_splits.csv"]
    seed += ["--suffix", "", "--batch_size", "15", "--epochs", "1", "--lr", "1e-4", "--save_dir", save_dir]
    more = ["--model_conf", villin / "tiny.yaml", "--accelerator", "cpu", "--quiet"]
    return CliRunner().invoke(app, ["train", "se3", *map(str, [*seed, *more, *words])])


def test_command_of_the_seed(villin: Path, tmp_path: Path) -> None:
    """Every flag of the first seed's command is taken, with underscores and with dashes; the tree is printed."""
    result = command(villin, tmp_path / "out", "--num-workers", "0", "--crop_ratio", "0.8")
    assert result.exit_code == 0, result.output
    assert "validation loss" in result.stdout and "model.safetensors" in result.stdout
    found = sorted(path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.*"))
    files = "checkpoints/last.ckpt loss_curve.png metrics.csv model.json model.safetensors settings.yaml"
    assert found == files.split()
    assert set(rows(tmp_path / "out")[0]) >= SEED_NAMES
    stored = yaml.safe_load((tmp_path / "out" / "settings.yaml").read_text())
    assert stored["crop_ratio"] == 0.8 and stored["lr"] == 1e-4


def test_config_files_are_taken(villin: Path, tmp_path: Path) -> None:
    """The settings of a run are a file for --config; an option goes before the file."""
    command(villin, tmp_path / "first")
    config = tmp_path / "first" / "settings.yaml"
    words = ["train", "se3", "--config", str(config), "--save_dir", str(tmp_path / "second"), "--quiet"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    weights = [load_file(tmp_path / name / "model.safetensors") for name in ("first", "second")]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    printed = CliRunner().invoke(app, ["config", "train", "se3"]).stdout
    assert yaml.safe_load(printed)["self_conditioning"] == 0.5


@pytest.fixture(scope="module")
def longer(villin: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty epochs of a tiny network that is shown villin."""
    folder = tmp_path_factory.mktemp("longer") / "out"
    options = {"epochs": 40, "validate_every": 10, "lr": 5e-3, "warmup_steps": 10, "cosine_decay": True}
    train_se3(settings(villin, folder, trans_weighting="balanced", **options), progress=False)
    return folder


def test_training_lowers_the_validation_loss(longer: Path, villin: Path, tmp_path: Path) -> None:
    """160 steps on villin bring every loss below that of the untrained network on the same frames and noise."""
    train_se3(settings(villin, tmp_path / "out", epochs=1, lr=1e-12), progress=False)
    untrained, learned = (
        {name: column(folder, f"val_{name}_loss")[-1] for name in ("rot", "trans", "psi")}
        for folder in (tmp_path / "out", longer)
    )
    assert untrained["rot"] == pytest.approx(3.0, abs=0.3) and untrained["psi"] > 1.4
    assert learned["rot"] < untrained["rot"] - 0.2
    assert learned["trans"] < 0.7 * untrained["trans"] and learned["psi"] < 0.6 * untrained["psi"]
    assert column(longer, "val_loss")[-1] == pytest.approx(sum(learned.values()), rel=1e-4)
    assert column(longer, "val_t1_trans_loss")[-1] < 0.01


def test_card_and_files(longer: Path, villin: Path) -> None:
    """The model loads from its folder, with sequence, scale, configurations, metrics and the command in its card."""
    model = models.load(longer)
    card = model.card
    assert card["sequence"] == "LSDEDFKAVFGMTRSAFANLPLWKQQHLKKEKGLF" and model.sequence == card["sequence"]
    train, _ = data_sets(settings(villin, longer))
    assert card["network"]["coord_scale"] == pytest.approx(train.coord_scale, rel=1e-6)
    assert model.network.diffuser.coord_scale == card["network"]["coord_scale"]  # type: ignore[union-attr]
    assert card["network"]["model_conf"]["ipa"]["num_blocks"] == 1 and card["steps"] == 160
    assert card["metrics"]["val_loss"] == pytest.approx(column(longer, "val_loss")[-1], rel=1e-4)
    assert card["commands"][0].startswith("openmm-diffusion train se3")
    json.dumps(card)


def test_averaged_weights_are_saved(trained: Path) -> None:
    """The model file holds the moving average that the checkpoint keeps, not the last weights."""
    checkpoint = torch.load(trained / "checkpoints" / "last.ckpt", weights_only=False)
    saved = load_file(trained / "model.safetensors")
    difference = 0.0
    for name, value in saved.items():
        assert torch.equal(checkpoint["state_dict"][f"network.{name}"], value)
        difference += float((checkpoint["current_model_state"][f"network.{name}"] - value).abs().sum())
    assert difference > 0.0


def test_resumed_training_equals_the_uninterrupted_one(villin: Path, trained: Path, tmp_path: Path) -> None:
    """Two epochs and two more give the weights of four, to the last bit; the control: another seed does not."""
    folder = tmp_path / "out"
    train_se3(settings(villin, folder), progress=False)
    half = load_file(folder / "model.safetensors")
    train_se3(settings(villin, folder, epochs=4), resume=True, progress=False)
    whole, resumed = load_file(trained / "model.safetensors"), load_file(folder / "model.safetensors")
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)
    assert any(not torch.equal(half[key], resumed[key]) for key in whole)
    assert column(folder, "train_loss") == pytest.approx(column(trained, "train_loss"), rel=1e-6)
    other = tmp_path / "other"
    train_se3(settings(villin, other, epochs=4, seed=1), progress=False)
    assert any(not torch.equal(whole[key], value) for key, value in load_file(other / "model.safetensors").items())


def test_B11_gradients_are_clipped_and_weights_averaged(
    villin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No step sees a gradient longer than the limit; the average is that of the formula, not the last weights."""
    norms: list[float] = []
    path: list[torch.Tensor] = []
    step = torch.optim.Adam.step

    def watched(self: torch.optim.Adam, closure: Any = None) -> Any:
        result = step(self, closure)
        parameters = [p for group in self.param_groups for p in group["params"]]
        norms.append(float(torch.cat([p.grad.flatten() for p in parameters if p.grad is not None]).norm()))
        path.append(parameters[0].detach().clone())
        return result

    monkeypatch.setattr(torch.optim.Adam, "step", watched)
    model = train_se3(settings(villin, tmp_path / "out", gradient_clip=0.05, ema_decay=0.4), progress=False)
    assert model is not None and len(norms) == 8
    assert max(norms) <= 0.05 * (1 + 1e-4) and min(norms) > 0.049
    average = path[0]
    for n, weights in enumerate(path[1:], 1):
        decay = min(0.4, (1 + n) / (10 + n))
        average = decay * average + (1 - decay) * weights
    first = next(model.network.parameters())
    assert torch.allclose(first, average, atol=1e-6) and not torch.allclose(first, path[-1], atol=1e-6)


def test_time_ends_a_training(villin: Path, tmp_path: Path) -> None:
    """A budget of wall time stops long before the epochs are over; resuming does not start the clock anew."""
    chosen = settings(villin, tmp_path / "out", epochs=10_000, max_minutes=0.02, cosine_decay=True)
    model = train_se3(chosen, progress=False)
    assert model is not None and 0 < model.card["steps"] < 1000
    again = train_se3(chosen, resume=True, progress=False)
    assert again is not None and again.card["steps"] - model.card["steps"] <= 4


def test_existing_results_are_kept(villin: Path, trained: Path) -> None:
    """A second run without a switch, with other settings on --resume, and bad data leave the folder as it is."""
    before = {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()}
    with pytest.raises(OpenMMDiffusionError, match="--overwrite"):
        train_se3(settings(villin, trained), progress=False)
    with pytest.raises(OpenMMDiffusionError, match="lr"):
        train_se3(settings(villin, trained, lr=5e-4), resume=True, progress=False)
    with pytest.raises(OpenMMDiffusionError, match="batch_size is 1000"):
        train_se3(settings(villin, trained, batch_size=1000), overwrite=True, progress=False)
    assert {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()} == before


def test_checkpoint_of_another_configuration(villin: Path, trained: Path, tmp_path: Path) -> None:
    """One sentence where the configuration's file has changed under the same name; so for a damaged checkpoint."""
    checkpoint = tmp_path / "out" / "checkpoints" / "last.ckpt"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.write_bytes((trained / "checkpoints" / "last.ckpt").read_bytes())
    wider = tmp_path / "wider.yaml"
    wider.write_text(yaml.safe_dump({**TINY, "node_embed_size": 24}))
    with pytest.raises(OpenMMDiffusionError, match="node_embed_size = 16, expected 24"):
        train_se3(settings(villin, tmp_path / "out", model_conf=wider), resume=True, progress=False)
    checkpoint.write_bytes(checkpoint.read_bytes()[:5000])
    wider.write_text(yaml.safe_dump(TINY))
    with pytest.raises(OpenMMDiffusionError, match="cannot go on"):
        train_se3(settings(villin, tmp_path / "out", model_conf=wider), resume=True, progress=False)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--data_dir", "nowhere"), "nowhere"),
        (("--atlas_csv", "no.csv"), "no.csv"),
        (("--train_split", "no.csv"), "no.csv"),
        (("--suffix", "_i9"), "_i9"),
        (("--batch_size", "0"), "batch_size is 0"),
        (("--batch_size", "61"), "batch_size is 61"),
        (("--preset", "huge"), "huge"),
        (("--strategy", "magic"), "magic"),
        (("--se3_conf", "no.yaml"), "no.yaml"),
        (("--crop_tolerance", "0"), "crop_tolerance is 0"),
    ],
)
def test_bad_input_ends_in_one_sentence(villin: Path, tmp_path: Path, words: tuple[str, ...], expected: str) -> None:
    """Each is named, the status is not zero, and nothing is written."""
    result = command(villin, tmp_path / "out", *words)
    assert result.exit_code != 0 and expected in result.output + result.stderr
    assert "Traceback" not in result.output + result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("flag", "text", "sentence"),
    [
        ("--se3_conf", "so3: {min_sigma: a}", "so3.min_sigma is 'a': input should be a valid number"),
        ("--se3_conf", "r3: {coordinate_scaling: a}", "r3.coordinate_scaling is 'a'"),
        ("--se3_conf", "so3: {sigma: 1}", "unknown key 'so3.sigma'; expected one of schedule, min_sigma, max_sigma"),
        ("--se3_conf", "min_t: 2", "min_t is 2: input should be less than 1; correct it"),
        ("--model_conf", "ipa: {num_heads: 2}", "unknown key 'ipa.num_heads'; expected one of num_blocks, no_heads"),
        ("--model_conf", "embed: {num_bins: a}", "embed.num_bins is 'a': input should be a valid integer"),
        ("--model_conf", "embed: {max_bin: 1.0e-9}", "embed.max_bin is 1e-09; expected above"),
    ],
)
def test_wrong_configurations_name_file_and_key(
    villin: Path, tmp_path: Path, flag: str, text: str, sentence: str
) -> None:
    """The YAML's path, the key with those that it is in, the value or the keys there are; nothing is written."""
    file = tmp_path / "conf.yaml"
    file.write_text(text)
    result = command(villin, tmp_path / "out", flag, str(file))
    message = " ".join((result.output + result.stderr).split())
    assert result.exit_code != 0 and f"{file}: {sentence}" in message, message
    assert not (tmp_path / "out").exists()


def test_validation_frames_are_no_training_frames(villin: Path, tmp_path: Path) -> None:
    """A table without val_end, and none at all, are refused with the remedy, the warning before naming the mode; the
    control: the two columns that are needed, and nothing else, serve."""
    data = tmp_path / "data"
    data.mkdir()
    for name in ("villin_R1.npy", "atlas.csv"):
        (data / name).write_bytes((villin / "data" / name).read_bytes())
    table = data / "frame_splits.csv"
    for text in (None, "name,train_end\nvillin_R1,60\n", "name,train_end,val_end,val_start\nvillin_R1,60,80,50\n"):
        if text:
            table.write_text(text)
        with pytest.raises(TrajectoryError, match=r"among the training frames .* give a --train-split"):
            train_se3(settings(villin, tmp_path / "out", data_dir=data), progress=False)
    assert not (tmp_path / "out").exists()
    table.write_text("name,train_end,val_end\nvillin_R1,60,80\n")
    train, validation = data_sets(settings(villin, tmp_path / "out", data_dir=data))
    assert (len(train), len(validation)) == (60, 20)


def test_memory_and_tolerance_reach_the_data(villin: Path, tmp_path: Path) -> None:
    """cache_mb and crop_tolerance, which the error of a crop names, are flags; without a cache frames are read anew."""
    result = command(villin, tmp_path / "out", "--cache_mb", "0", "--crop_tolerance", "0.02", "--crop-ratio", "0.8")
    assert result.exit_code == 0, result.output
    stored = yaml.safe_load((tmp_path / "out" / "settings.yaml").read_text())
    assert (stored["cache_mb"], stored["crop_tolerance"]) == (0.0, 0.02)
    train, _ = data_sets(settings(villin, tmp_path, cache_mb=0.0, crop_tolerance=0.02))
    assert (train.options.cache_mb, train.options.crop_tolerance) == (0.0, 0.02)


def test_presets_build_networks(villin: Path, tmp_path: Path) -> None:
    """Every preset is a valid configuration; the reduced ones are small; acceptance has no self-conditioning."""
    sizes = {}
    for name in PRESETS:
        module = SE3Module(*preset(name))
        sizes[name] = sum(p.numel() for p in module.parameters())
        assert module.self_conditioning == (0.0 if name == "acceptance" else 0.5)
        assert module.model_conf.embed.relative_frames == (name != "seed")
    assert sizes["small"] < 1_000_000 < sizes["seed"]
    over = tmp_path / "se3.yaml"
    over.write_text("so3: {max_sigma: 2.0}\n")
    chosen = TrainSE3Settings.build({"data_dir": villin, "preset": "small", "se3_conf": over})
    assert configurations(chosen)[1]["so3"] == {"min_sigma": 0.02, "max_sigma": 2.0}
    assert merged({"a": {"b": 1}, "c": 2}, {"a": {"d": 3}}) == {"a": {"b": 1, "d": 3}, "c": 2}


def test_help_is_light() -> None:
    """`train se3 --help` loads neither torch nor OpenMM, and shows the options."""
    code = (
        "import sys; from openmm_diffusion.cli import main\nsys.argv = ['x', 'train', 'se3', '--help']\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "assert not {'torch', 'openmm', 'lightning'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "COLUMNS": "120"}
    )
    assert done.returncode == 0, done.stderr
    assert "--data-dir" in done.stdout and "underscores" in done.stdout


TWO_PROCESSES = """
import os, sys
from pathlib import Path
import torch
from openmm_diffusion.training.se3_module import SE3Module
from openmm_diffusion.workflows.train_se3 import TrainSE3Settings, train_se3

step = SE3Module.training_step
def watched(self, batch, index):
    path = Path(sys.argv[2]) / f"rank{self.global_rank}.pt"
    seen = torch.load(path) if path.exists() else []
    torch.save([*seen, (batch["frame_indices"], batch["t"])], path)
    return step(self, batch, index)
SE3Module.training_step = watched
options = {"strategy": "ddp", "devices": "2", "save_dir": Path(sys.argv[2]) / "out"}
settings = TrainSE3Settings.build(options, sys.argv[1])
model = train_se3(settings, progress=False)
assert (model is None) == (int(os.environ.get("LOCAL_RANK", 0)) != 0)
"""


def test_two_processes_train_together(villin: Path, trained: Path, tmp_path: Path) -> None:
    """Two processes on a CPU see different frames and noise, end with one model, and write one set of files."""
    (tmp_path / "script.py").write_text(TWO_PROCESSES)
    words = [sys.executable, tmp_path / "script.py", trained / "settings.yaml", tmp_path]
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (torch.load(tmp_path / f"rank{rank}.pt") for rank in (0, 1))
    assert len(first) == len(second) == 4 * (60 // 2 // 15)
    for (frames, t), (other_frames, other_t) in zip(first, second, strict=True):
        assert not set(frames.tolist()) & set(other_frames.tolist())
        assert not torch.equal(t, other_t)
    model = models.load(tmp_path / "out")
    assert model.card["steps"] == len(first) and np.isfinite(model.card["metrics"]["val_loss"])


def test_impossible_lightning_options_are_refused(villin: Path, tmp_path: Path) -> None:
    """What Lightning refuses comes back as one sentence with its options."""
    train, validation = data_sets(settings(villin, tmp_path))
    from openmm_diffusion.training.se3_data import SE3DataModule

    data = SE3DataModule(train, validation, 15)
    with pytest.raises(SettingError, match="precision 7-mixed"):
        fit_se3(SE3Module(TINY, {}), data, tmp_path, SE3FitOptions(accelerator="cpu", precision="7-mixed"))
