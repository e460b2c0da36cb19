"""Training: it learns, it goes on where it stopped, it respects weights, and it refuses poisoned data."""

import csv
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from openmm_diffusion.data import TorsionDataset
from openmm_diffusion.data.torsion_dataset import WeightedBatches
from openmm_diffusion.errors import InputFileError, OpenMMDiffusionError, TrajectoryError
from openmm_diffusion.models import TorsionNetwork, TorsionNetworkConfig
from openmm_diffusion.peptide import MoleculeDescription
from openmm_diffusion.training.fit import FitOptions, fit
from openmm_diffusion.training.torsion_module import TorsionModule
from openmm_diffusion.units import wrap

ALANINE = MoleculeDescription((("ACE", "ALA", "NME"),), ("phi:ALA2", "psi:ALA2"))
N_STEPS = 300


def basins(n: int = 4000, seed: int = 0) -> np.ndarray:
    """Two basins like those of a dipeptide, one across the cut at pi."""
    rng = np.random.default_rng(seed)
    centres = np.where(rng.random((n, 1)) < 0.6, [-1.4, 2.9], [-1.3, -0.4])
    return np.asarray(wrap(centres + 0.3 * rng.standard_normal((n, 2))))


def data_set(torsions: np.ndarray, weights: np.ndarray | None = None) -> TorsionDataset:
    return TorsionDataset(torsions, np.ones(len(torsions)) if weights is None else weights, ALANINE, {"made": "here"})


def network(seed: int = 0) -> TorsionNetwork:
    return TorsionNetwork(TorsionNetworkConfig(2, 32, 2, 3), seed)


def train(folder: Path, n_steps: int, resume: bool = False, **options: Any) -> TorsionModule:
    training, validation = data_set(basins()).split(0.2, np.random.default_rng(1))
    module = TorsionModule(network(), lr=3e-3, n_steps=N_STEPS, seed=4)
    fit(
        module,
        WeightedBatches(training, 128, 100, seed=2),
        WeightedBatches(validation, 1024, 1, seed=3, same_every_time=True),
        folder,
        FitOptions(n_steps, 100, ema_decay=0.98, accelerator="cpu", progress=False, resume=resume, **options),
    )
    return module


def losses(folder: Path, column: str = "val_loss") -> dict[int, float]:
    with open(folder / "metrics.csv") as file:
        return {int(row["step"]): float(row[column]) for row in csv.DictReader(file) if row[column]}


def validation_loss(net: TorsionNetwork) -> float:
    """What the module would log for this network on the same validation batch."""
    _, validation = data_set(basins()).split(0.2, np.random.default_rng(1))
    (batch,) = WeightedBatches(validation, 1024, 1, seed=3, same_every_time=True)
    module = TorsionModule(net, n_steps=N_STEPS, seed=4)
    logged: dict[str, float] = {}
    module.log = lambda name, value, **_: logged.update({name: float(value)})  # type: ignore[method-assign]
    with torch.no_grad():
        module.validation_step(batch, 0)
    return logged["val_loss"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TorsionModule]:
    folder = tmp_path_factory.mktemp("trained")
    return folder, train(folder, N_STEPS)


def test_training_lowers_the_validation_loss(trained: tuple[Path, TorsionModule]) -> None:
    """300 steps bring the validation loss well below the untrained network's, and below that of a zero score."""
    folder, module = trained
    untrained, logged = validation_loss(network()), losses(folder)
    assert min(logged.values()) < 0.8 * untrained
    assert list(logged.values())[-1] < 0.9
    assert validation_loss(module.network) == pytest.approx(list(logged.values())[-1], rel=1e-3)


def test_zero_score_has_loss_one() -> None:
    """The loss is normalised: a network that outputs zero has a validation loss of 1 within its noise."""
    net = network()
    with torch.no_grad():
        net.output.weight.zero_()
        net.output.bias.zero_()
    assert validation_loss(net) == pytest.approx(1.0, abs=0.15)


def test_exact_score_has_a_lower_loss_than_any_shift_of_it(trained: tuple[Path, TorsionModule]) -> None:
    """Negative control: shifting the trained score by a constant raises the loss."""
    net = network()
    net.load_state_dict(trained[1].network.state_dict())
    right = validation_loss(net)
    with torch.no_grad():
        net.output.bias.add_(0.5)
    assert validation_loss(net) > right + 0.05


def test_training_is_reproducible(tmp_path: Path, trained: tuple[Path, TorsionModule]) -> None:
    """Equal seeds give equal losses whatever the global generator holds."""
    torch.manual_seed(99)
    train(tmp_path, 100)
    first = losses(trained[0])
    (step, value), *_ = losses(tmp_path).items()
    assert value == pytest.approx(first[step], rel=1e-6)


def test_training_resumes(tmp_path: Path) -> None:
    """A training of 200 steps writes a checkpoint; resumed it makes the 100 steps that are left, and no more."""
    train(tmp_path, 200)
    assert (tmp_path / "checkpoints" / "last.ckpt").is_file()
    before = losses(tmp_path)
    module = train(tmp_path, N_STEPS, resume=True)
    after = losses(tmp_path)
    assert module.trainer.global_step == N_STEPS
    (new,) = (step for step in after if step not in before)
    assert new >= N_STEPS - 1 and after[new] < before[min(before)]


def test_a_killed_training_can_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed in its second epoch, a training has the checkpoint of the first: last weights beside their average."""
    step = TorsionModule.training_step

    def dying(self: TorsionModule, batch: Any, index: int) -> Any:
        if self.trainer.global_step == 150:
            raise RuntimeError("killed")
        return step(self, batch, index)

    monkeypatch.setattr(TorsionModule, "training_step", dying)
    with pytest.raises(RuntimeError, match="killed"):
        train(tmp_path, N_STEPS)
    monkeypatch.undo()
    checkpoint = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=False)
    assert checkpoint["global_step"] == 100
    averaged, last = checkpoint["state_dict"], checkpoint["current_model_state"]
    assert any(not torch.equal(averaged[name], last[name]) for name in averaged)
    assert train(tmp_path, N_STEPS, resume=True).trainer.global_step == N_STEPS


def test_resumed_training_appends_to_its_metrics(tmp_path: Path) -> None:
    """The metrics of the first part are still there after resuming."""
    train(tmp_path, 100)
    before = losses(tmp_path)
    train(tmp_path, 200, resume=True)
    after = losses(tmp_path)
    assert {step: after.get(step) for step in before} == before


def test_resumed_training_draws_new_noise(tmp_path: Path) -> None:
    """The noise generator's state is in the checkpoint, so a resumed training does not repeat its noise."""
    module = TorsionModule(network(), n_steps=N_STEPS, seed=4)
    checkpoint: dict[str, Any] = {}
    torch.rand(10, generator=module._noise)
    module.on_save_checkpoint(checkpoint)
    expected = torch.rand(5, generator=module._noise)
    again = TorsionModule(network(), n_steps=N_STEPS, seed=4)
    again.on_load_checkpoint(checkpoint)
    assert torch.equal(torch.rand(5, generator=again._noise), expected)


def test_nan_loss_stops_the_training(tmp_path: Path) -> None:
    """A network that turns NaN stops the training with an error of the package, as fit() promises."""
    module = TorsionModule(network(), n_steps=20)
    with torch.no_grad():
        module.network.output.weight.fill_(math.nan)
    batches = WeightedBatches(data_set(basins(100)), 16, 10, seed=0)
    with pytest.raises(OpenMMDiffusionError, match="NaN"):
        fit(module, batches, batches, tmp_path, FitOptions(20, 10, accelerator="cpu", progress=False))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_poisoned_torsions_are_refused(value: float) -> None:
    """One NaN or infinite torsion among thousands is refused."""
    torsions = basins()
    torsions[1234, 1] = value
    with pytest.raises(TrajectoryError, match="torsions"):
        data_set(torsions)


def bad_weights() -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    return {
        "nan": lambda w: np.where(np.arange(len(w)) == 3, np.nan, w),
        "infinite": lambda w: np.where(np.arange(len(w)) == 3, np.inf, w),
        "negative": lambda w: np.where(np.arange(len(w)) == 3, -1e-3, w),
        "all zero": lambda w: 0 * w,
        "too few": lambda w: w[:-1],
        "two axes": lambda w: w[:, None],
    }


@pytest.mark.parametrize("kind", bad_weights())
def test_bad_weights_are_refused(kind: str) -> None:
    """Weights that are NaN, infinite, negative, all zero or of another length are refused."""
    with pytest.raises(TrajectoryError, match="weights"):
        data_set(basins(50), bad_weights()[kind](np.ones(50)))


def test_data_of_another_width_or_too_short_are_refused() -> None:
    """Torsions that do not match the molecule, and fewer than ten frames, are refused."""
    with pytest.raises(TrajectoryError, match="3 torsions"):
        data_set(np.zeros((50, 3)))
    with pytest.raises(TrajectoryError, match="9 frames"):
        data_set(np.zeros((9, 2)))


def test_data_set_round_trip(tmp_path: Path) -> None:
    """load(save(data)) has the same numbers, molecule and source; weights sum to one."""
    data = data_set(basins(50), np.arange(50.0))
    assert data.weights.sum() == pytest.approx(1.0, rel=1e-12)
    data.save(tmp_path / "torsions.npz")
    again = TorsionDataset.load(tmp_path / "torsions.npz")
    assert np.array_equal(again.torsions, data.torsions) and np.allclose(again.weights, data.weights, rtol=1e-15)
    assert again.molecule == ALANINE and again.source == {"made": "here"}


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x80\x04N.", b"text"])
def test_files_that_are_no_data_sets_are_refused(tmp_path: Path, content: bytes) -> None:
    """Empty, truncated, pickled or foreign files, and archives of another program, are refused."""
    path = tmp_path / "torsions.npz"
    path.write_bytes(content)
    with pytest.raises(InputFileError):
        TorsionDataset.load(path)
    np.savez(path, other=np.zeros(3))
    with pytest.raises(InputFileError):
        TorsionDataset.load(path)


def test_truncated_data_sets_are_refused(tmp_path: Path) -> None:
    """A data set cut anywhere is refused, never read in part."""
    path = tmp_path / "torsions.npz"
    data_set(basins(50)).save(path)
    raw = path.read_bytes()
    for share in (0.1, 0.5, 0.9, 0.99):
        path.write_bytes(raw[: int(share * len(raw))])
        with pytest.raises(InputFileError):
            TorsionDataset.load(path)


def frequencies(batches: WeightedBatches, n: int) -> np.ndarray:
    """How often each of n frames came up; frame k has its torsions at k / 100."""
    drawn = torch.cat(list(batches))[:, 0]
    return np.bincount((drawn * 100).round().long().numpy(), minlength=n)


def test_batches_respect_weights() -> None:
    """Frames come up in proportion to their weights, never at weight zero; equal weights fail the same test."""
    n = 20
    torsions = np.repeat(np.arange(n)[:, None] / 100, 2, 1)
    weights = np.arange(n, dtype=float)
    weights[[0, 7, n - 1]] = 0.0
    counts = frequencies(WeightedBatches(data_set(torsions, weights), 500, 40, seed=1), n)
    drawn = weights > 0
    assert counts[~drawn].sum() == 0
    expected = weights[drawn] / weights.sum() * counts.sum()
    assert stats.chisquare(counts[drawn], expected).pvalue > 1e-3
    flat = frequencies(WeightedBatches(data_set(torsions, drawn.astype(float)), 500, 40, seed=1), n)
    assert stats.chisquare(flat[drawn], expected).pvalue < 1e-9


def test_epochs_draw_anew_and_validation_repeats() -> None:
    """Training epochs differ from each other; validation batches are the same every time; seeds decide."""
    data = data_set(basins(200))
    batches = WeightedBatches(data, 16, 3, seed=5)
    first, second = torch.cat(list(batches)), torch.cat(list(batches))
    assert not torch.equal(first, second)
    assert torch.equal(torch.cat(list(WeightedBatches(data, 16, 3, seed=5))), first)
    fixed = WeightedBatches(data, 16, 3, seed=5, same_every_time=True)
    assert torch.equal(torch.cat(list(fixed)), torch.cat(list(fixed)))
    assert len(batches) == 3 and first.shape == (48, 2)


def test_splits_are_disjoint_and_complete() -> None:
    """Training and validation frames are disjoint, together all, reproducible, with their own weights."""
    torsions = np.repeat(np.arange(100)[:, None] / 100, 2, 1)
    data = data_set(torsions, np.arange(1.0, 101.0))
    first, second = data.split(0.25, np.random.default_rng(3)), data.split(0.25, np.random.default_rng(3))
    assert [len(part) for part in first] == [75, 25]
    together = np.concatenate([part.torsions[:, 0] for part in first])
    assert np.array_equal(np.sort(together), torsions[:, 0])
    assert np.array_equal(first[0].torsions, second[0].torsions)
    for part in first:
        expected = part.torsions[:, 0] * 100 + 1
        assert np.allclose(part.weights, expected / expected.sum())
