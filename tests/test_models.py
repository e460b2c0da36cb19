"""Models and their files: what goes in comes out, and nothing altered, foreign or executable is ever loaded."""

import dataclasses
import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from openmm_diffusion import models
from openmm_diffusion.errors import ModelFileError, OpenMMDiffusionError, SettingError
from openmm_diffusion.models import Model, store
from openmm_diffusion.peptide import MoleculeDescription

ALANINE = MoleculeDescription((("ACE", "ALA", "NME"),), ("phi:ALA2", "psi:ALA2"))
SIZES = {"hidden_size": 8, "n_layers": 2, "n_harmonics": 2}


def make(seed: int = 0, molecule: MoleculeDescription = ALANINE, **config: Any) -> Model:
    return models.create("torsion", molecule, seed, **{**SIZES, **config})


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """The weights of a small model in a folder of their own; the card lies beside them."""
    model = dataclasses.replace(make(), card={"sampling": {"n_diffusion_steps": 7}, "metrics": {"held_out_nll": 1.5}})
    return models.save(model, tmp_path / "model")


def refused(path: str | Path, error: type[OpenMMDiffusionError] = ModelFileError) -> str:
    """The message with which a file is refused: one sentence, no traceback inside, an exception of the package."""
    with pytest.raises(error) as caught:
        models.load(path)
    message = str(caught.value)
    assert 20 < len(message) < 500 and "\n" not in message and "Traceback" not in message
    return message


def edit_card(weights: Path, **changes: Any) -> None:
    card = json.loads(weights.with_suffix(".json").read_text())
    weights.with_suffix(".json").write_text(json.dumps({**card, **changes}))


def test_round_trip_keeps_everything(saved: Path) -> None:
    """load(save(model)) has the same weights, molecule, card values, step count and fingerprint."""
    model, original = models.load(saved), make()
    for key, value in original.network.state_dict().items():
        assert torch.equal(model.network.state_dict()[key], value)
    assert model.kind == "torsion" and model.molecule == ALANINE
    assert model.sha256() == original.sha256()
    assert model.n_diffusion_steps == 7 and original.n_diffusion_steps > 0
    assert model.card["metrics"] == {"held_out_nll": 1.5}
    assert model.source == {"path": str(saved.resolve())}


def test_a_second_save_writes_the_same_bytes(saved: Path, tmp_path: Path) -> None:
    """Saving what was loaded gives the same two files, byte for byte, and leaves no temporary files."""
    again = models.save(models.load(saved), tmp_path / "again" / "model.safetensors")
    assert again.read_bytes() == saved.read_bytes()
    assert json.loads(again.with_suffix(".json").read_text()) == json.loads(saved.with_suffix(".json").read_text())
    assert sorted(p.name for p in again.parent.iterdir()) == ["model.json", "model.safetensors"]


@pytest.mark.parametrize("form", ["model.safetensors", "model", "."])
def test_every_form_of_path_finds_the_model(saved: Path, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file, its stem, and its folder name the same model, absolute and from the working folder, '.' included."""
    expected = make().sha256()
    assert models.load(saved.parent / form).sha256() == expected
    monkeypatch.chdir(saved.parent)
    assert models.load(form).sha256() == expected


def test_names_with_dots_keep_them(tmp_path: Path) -> None:
    """A dot in a model's name is no suffix: two versions side by side stay two."""
    models.save(make(1), tmp_path / "ala.v1")
    models.save(make(2), tmp_path / "ala.v2")
    assert models.load(tmp_path / "ala.v1").sha256() == make(1).sha256()
    assert models.load(tmp_path / "ala.v2").sha256() == make(2).sha256()


def test_shipped_models_are_named(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names list what is shipped, and each loads by its name."""
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    for suffix in (".safetensors", ".json"):
        shutil.copy(saved.with_suffix(suffix), shelf / f"some-peptide{suffix}")
    monkeypatch.setattr(store, "PRETRAINED", shelf)
    assert models.names() == ["some-peptide"]
    model = models.load("some-peptide")
    assert model.sha256() == make().sha256() and model.source == {"name": "some-peptide"}


def test_every_shipped_model_loads() -> None:
    """Each name that is listed, if its file is shipped, loads and matches its card."""
    files = {path.stem for path in store.PRETRAINED.glob("*.safetensors")}
    if not files:
        pytest.skip("no model is shipped in this checkout")
    for name in models.names():
        model = models.load(name)
        assert model.sha256() == model.card["sha256"]


def test_any_changed_weight_changes_the_fingerprint() -> None:
    """One unit in the last place of any tensor changes sha256; so do molecule and configuration."""
    model = make()
    reference = model.sha256()
    assert make().sha256() == reference
    for tensor in model.network.state_dict().values():
        flat = tensor.view(-1)
        for index in {0, len(flat) - 1}:
            before = flat[index].clone()
            flat[index] = torch.nextafter(before, torch.tensor(torch.inf))
            assert model.sha256() != reference
            flat[index] = before
    assert model.sha256() == reference
    other = MoleculeDescription((("ACE", "ALA", "NME"),), ("psi:ALA2", "phi:ALA2"))
    assert dataclasses.replace(model, molecule=other).sha256() != reference
    assert make(min_sigma=0.06).sha256() != reference


@pytest.mark.parametrize("share", [k / 20 for k in range(20)])
def test_truncated_weights_are_refused(saved: Path, share: float) -> None:
    """A file cut at twenty places, the empty file among them, is refused each time."""
    raw = saved.read_bytes()
    saved.write_bytes(raw[: int(len(raw) * share)])
    assert "model.safetensors" in refused(saved)


def test_flipped_bits_are_refused(saved: Path) -> None:
    """One flipped bit in the weights or in the header is refused."""
    raw = saved.read_bytes()
    for position in (0, 9, 40, len(raw) // 2, len(raw) - 1):
        damaged = bytearray(raw)
        damaged[position] ^= 1 << 2
        saved.write_bytes(damaged)
        refused(saved)


@pytest.mark.parametrize("content", ["", "{", "[]", "null", "3", '"text"', "{}", "\xff\xfe", '{"format": 1}'])
def test_corrupt_cards_are_refused(saved: Path, content: str) -> None:
    """A card that is empty, no JSON, or JSON of another shape is refused."""
    saved.with_suffix(".json").write_text(content, encoding="latin-1")
    refused(saved)


@pytest.mark.parametrize("key", ["format", "kind", "molecule", "network", "sha256"])
@pytest.mark.parametrize("value", ["missing", None, 7, "other", [], {}])
def test_cards_with_a_wrong_field_are_refused(saved: Path, key: str, value: Any) -> None:
    """Each field of the card that is missing or of another type is refused, by an exception of the package."""
    card = json.loads(saved.with_suffix(".json").read_text())
    card[key] = value
    if value == "missing":
        del card[key]
    saved.with_suffix(".json").write_text(json.dumps(card))
    refused(saved, OpenMMDiffusionError)


def test_cards_of_other_models_are_refused(saved: Path, tmp_path: Path) -> None:
    """The card of a model with other weights, another molecule or another size does not fit."""
    right = saved.with_suffix(".json").read_text()
    three = MoleculeDescription((("ACE", "ALA", "NME"),), ("phi:ALA2", "psi:ALA2", "omega:ALA2"))
    for other in (make(1), make(hidden_size=16), make(molecule=three)):
        shutil.copy(models.save(other, tmp_path / "other").with_suffix(".json"), saved.with_suffix(".json"))
        assert "not a usable model" in refused(saved)
    saved.with_suffix(".json").write_text(right)
    assert models.load(saved).sha256() == make().sha256()


def test_unknown_kinds_and_sizes_are_refused(saved: Path) -> None:
    """A card of an unknown kind or with an unknown size is refused with what is known."""
    edit_card(saved, kind="magic")
    assert "magic" in refused(saved, OpenMMDiffusionError)
    edit_card(saved, kind="torsion", network={"n_torsions": 2, "n_heads": 4})
    assert "n_heads" in refused(saved, OpenMMDiffusionError)


def test_missing_or_renamed_tensors_are_refused(saved: Path) -> None:
    """Weights without one tensor, with one more, or with one of another shape do not fit the card."""
    weights = load_file(saved)
    name = next(iter(weights))
    smaller = {key: value for key, value in weights.items() if key != name}
    for changed in (
        smaller,
        {**weights, "extra": torch.zeros(3)},
        {**smaller, name: torch.zeros(3)},
        {**smaller, "renamed": weights[name]},
    ):
        save_file(changed, saved)
        refused(saved)


class Bomb:
    """Unpickling it creates a file: the proof that something was executed."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str, str]]:
        return open, (str(self.path), "w")


@pytest.mark.parametrize("name", ["model.pt", "model.pth", "model.ckpt", "model.pkl", "model.safetensors"])
@pytest.mark.parametrize("writer", ["pickle", "torch"])
def test_pickles_are_never_executed(saved: Path, name: str, writer: str) -> None:
    """Pickles, under their own suffix or renamed to .safetensors, are refused as pickles and never run."""
    path, trap = saved.with_name(name), saved.with_name("executed")
    if writer == "pickle":
        path.write_bytes(pickle.dumps({"weights": Bomb(trap)}))
    else:
        torch.save({"weights": Bomb(trap)}, path)
    assert "pickle" in refused(path)
    assert not trap.exists()
    pickle.loads(pickle.dumps(Bomb(trap)))
    assert trap.exists(), "the control: the pickle does run where it is loaded"


@pytest.mark.parametrize("name", ["", "no-such-model", "folder/none", "../none", "/", ".", ".."])
def test_what_does_not_exist_is_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names and paths that lead nowhere raise ModelFileError, the empty one and the folder itself among them."""
    (tmp_path / "inside").mkdir()
    monkeypatch.chdir(tmp_path / "inside")
    assert "there is no model" in refused(name)


def test_missing_parts_are_refused(saved: Path) -> None:
    """Weights without a card, a card without weights, and a folder in the place of the file are refused."""
    card = saved.with_suffix(".json").read_text()
    saved.with_suffix(".json").unlink()
    assert "card" in refused(saved)
    saved.with_suffix(".json").write_text(card)
    saved.unlink()
    refused(saved)
    saved.mkdir()
    refused(saved)


def test_model_file_errors_are_os_errors_and_setting_errors_value_errors() -> None:
    """Errors are also the built-in ones that a caller expects."""
    with pytest.raises(OSError):
        models.load("no-such-model")
    with pytest.raises(ValueError):
        models.create("magic", ALANINE)


@pytest.mark.parametrize("config", [{"hidden": 8}, {"hidden_size": 0}, {"hidden_size": "8"}, {"min_sigma": -1.0}])
def test_wrong_configurations_are_refused(config: dict[str, Any]) -> None:
    """Unknown, impossible or ill-typed sizes raise SettingError when a model is created."""
    with pytest.raises(SettingError):
        models.create("torsion", ALANINE, **config)


def test_recipes_make_the_same_model_again() -> None:
    """The source of a created model resolves to the same weights in a process that has never seen them."""
    model = make(3)
    code = (
        "import json, sys; from openmm_diffusion.models import store\n"
        "source, sha = json.loads(sys.argv[1]); print(store.resolve(source, sha).sha256())"
    )
    arguments = json.dumps([model.source, model.sha256()])
    done = subprocess.run([sys.executable, "-c", code, arguments], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == model.sha256()


def test_resolving_refuses_what_has_changed(saved: Path) -> None:
    """A file that now holds other weights, and a model of another process's memory, raise ModelFileError."""
    with pytest.raises(ModelFileError, match="has changed"):
        store.resolve({"path": str(saved)}, "0" * 64)
    with pytest.raises(ModelFileError, match="memory"):
        store.resolve({}, "0" * 64)


def test_remembered_models_are_copies() -> None:
    """Training the network on changes neither the remembered model nor the network that moves evaluate."""
    model = make(11)
    kept, sha256 = store.remember(model)
    evaluated = store.evaluation_network(sha256, torch.device("cpu"))
    x, sigma = torch.ones(3, 2, dtype=torch.float64), torch.full((3,), 0.5, dtype=torch.float64)
    before = evaluated(x, sigma)
    with torch.no_grad():
        for parameter in model.network.parameters():
            parameter.add_(1.0)
    assert model.sha256() != sha256 == kept.sha256()
    assert torch.equal(store.evaluation_network(sha256, torch.device("cpu"))(x, sigma), before)
    assert store.remember(model)[1] != sha256


def test_evaluation_networks_are_shared_frozen_and_double() -> None:
    """All moves with the same weights share one float64 network without gradients; other weights have their own."""
    first, second = store.remember(make(12))[1], store.remember(make(12))[1]
    cpu = torch.device("cpu")
    network = store.evaluation_network(first, cpu)
    assert first == second and store.evaluation_network(second, cpu) is network
    assert store.evaluation_network(store.remember(make(13))[1], cpu) is not network
    assert all(p.dtype == torch.float64 and not p.requires_grad for p in network.parameters())
    assert not network.training
    assert all(p.dtype == torch.float32 for p in store.remember(make(12))[0].network.parameters())


def test_models_never_import_openmm(saved: Path) -> None:
    """Importing the models, creating, saving and loading one, imports neither OpenMM nor Lightning nor matplotlib."""
    code = (
        "import sys; from openmm_diffusion import models; models.load(sys.argv[1])\n"
        "found = {'openmm', 'openmmtools', 'lightning', 'matplotlib'} & set(sys.modules); assert not found, found"
    )
    done = subprocess.run([sys.executable, "-c", code, str(saved)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
