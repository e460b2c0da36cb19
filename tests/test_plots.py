"""Figures: what is drawn is what was given, legible, without a display, and written whole or not at all."""

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from openmm_diffusion.analysis import (
    autocorrelation,
    autocorrelation_plot,
    energy_histograms,
    free_energy_surface,
    log_alpha_terms,
    loss_curve,
    ramachandran,
    read_metrics,
    save,
    trace,
)
from openmm_diffusion.errors import InputFileError, OutputError, SettingError, TrajectoryError


def torsions(n: int = 4000) -> tuple[np.ndarray, np.ndarray]:
    """phi and psi (rad) of two basins."""
    rng = np.random.default_rng(1)
    rare = rng.random(n) < 0.05
    phi = np.where(rare, rng.normal(1.0, 0.2, n), rng.normal(-1.4, 0.4, n))
    return phi, np.where(rare, rng.normal(0.6, 0.4, n), rng.normal(2.4, 0.7, n))


METRICS = "epoch,step,train_loss,val_loss\n0,49,1.5,\n0,49,,1.4\n1,99,1.1,\n1,99,,1.2\n30,1999,0.8,\n30,1999,,0.9\n"


def drawings(folder: Path) -> dict[str, Axes]:
    """One example of every figure."""
    phi, psi = torsions()
    rng = np.random.default_rng(2)
    (folder / "metrics.csv").write_text(METRICS)
    return {
        "ramachandran": ramachandran(phi, psi, title="hybrid", borders=True),
        "energies": energy_histograms({"MD": rng.normal(-40, 4, 3000), "hybrid": rng.normal(-40, 4, 3000)}),
        "loss": loss_curve(folder / "metrics.csv"),
        "log alpha": log_alpha_terms({"-Δu": rng.normal(-2, 3, 500), "log q(τ) - log q(τ')": rng.normal(1, 2, 500)}),
        "autocorrelation": autocorrelation_plot({"MD": autocorrelation(phi, 40), "hybrid": autocorrelation(psi, 40)}),
        "trace": trace(phi, title="hybrid"),
    }


def misplaced_texts(figure: Figure) -> list[str]:
    """The visible texts of a drawn figure that overlap another one or leave the figure."""
    figure.canvas.draw()
    hidden = {
        id(label)
        for axes in figure.axes
        for axis, limits in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim()))
        for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks())
        for label in (tick.label1, tick.label2)
        if not min(limits) - 1e-9 <= tick.get_loc() <= max(limits) + 1e-9
    }
    texts = [t for t in figure.findobj(Text) if t.get_text().strip() and t.get_visible() and id(t) not in hidden]
    boxes = [text.get_window_extent() for text in texts]
    assert len(boxes) >= 3
    return [
        text.get_text()
        for i, (text, box) in enumerate(zip(texts, boxes, strict=True))
        if any(box.overlaps(other) for other in boxes[:i])
        or min(box.x0, box.y0) < -1
        or box.x1 > figure.bbox.x1 + 1
        or box.y1 > figure.bbox.y1 + 1
    ]


@pytest.mark.parametrize("name", ["ramachandran", "energies", "loss", "log alpha", "autocorrelation", "trace"])
def test_texts_are_there_and_do_not_overlap(name: str, tmp_path: Path) -> None:
    """Both axes say what they show, and no two visible texts of a figure overlap or leave it; negative control: a
    text put on the label of an axis is found."""
    ax = drawings(tmp_path)[name]
    assert ax.get_xlabel()
    assert ax.get_ylabel() or name == "log alpha"  # there the tick labels are the terms' names
    assert misplaced_texts(ax.figure) == []
    x, y = ax.xaxis.label.get_window_extent().get_points().mean(axis=0)
    ax.figure.text(*ax.figure.transFigure.inverted().transform((x, y)), "on top")
    assert misplaced_texts(ax.figure) == ["on top"]


def test_figures_of_their_own_use_no_pyplot() -> None:
    """Drawing without `ax` needs neither a display nor pyplot, and importing the package loads no matplotlib."""
    code = (
        "import sys\nimport openmm_diffusion.analysis as a\nassert 'matplotlib' not in sys.modules\n"
        "ax = a.trace([0.1, 0.2])\nassert 'matplotlib.pyplot' not in sys.modules\n"
        "print(type(ax.figure.canvas).__name__)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.stdout.strip() == "FigureCanvasAgg", result.stderr


def test_an_axes_given_is_the_one_drawn_on(tmp_path: Path) -> None:
    """Reference beside sample: both functions draw on the axes of one figure and return them."""
    figure = Figure()
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    phi, psi = torsions()
    assert ramachandran(phi, psi, ax=left) is left
    assert trace(phi, ax=right) is right
    assert save(left, tmp_path / "pair.png").stat().st_size > 1000


def test_ramachandran_shows_the_surface_in_degrees() -> None:
    """The mesh is the free energy with phi across and psi up, empty bins masked, and weights change it."""
    phi, psi = torsions()
    weights = np.where(phi > 0, 10.0, 1.0)
    for w in (None, weights):
        mesh = ramachandran(phi, psi, weights=w, bins=24).collections[0]
        edges, surface = free_energy_surface(phi, psi, 24, w)
        shown = mesh.get_array()
        np.testing.assert_array_equal(np.ma.getmaskarray(shown), np.isinf(surface.T))
        np.testing.assert_allclose(shown.filled(np.inf), surface.T)
        np.testing.assert_allclose(mesh.get_coordinates()[0, :, 0], np.degrees(edges))
        assert mesh.get_clim() == (0.0, 8.0)


def test_energies_are_densities_and_bad_ones_are_counted() -> None:
    """Each curve integrates to 1 with an outlier present; NaN and infinities appear as a number in the legend."""
    energies = np.random.default_rng(3).normal(0, 1, 1000)
    energies[:2], energies[2] = math.nan, 1e9
    ax = energy_histograms({"a": energies, "none": [math.nan, math.inf]})
    values, edges, _ = ax.patches[1].get_data()
    assert np.sum(values * np.diff(edges)) == pytest.approx(1.0)
    assert edges[-1] < 10
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels == ["a (0.2 % not finite)", "none (none finite)"]
    assert energy_histograms({"constant": [1.0, 1.0]}).patches
    with pytest.raises(TrajectoryError, match="no energy is finite"):
        energy_histograms({"a": [math.nan]})
    with pytest.raises(TrajectoryError, match="is empty"):
        energy_histograms({})


def test_loss_curve_reads_lightning(tmp_path: Path) -> None:
    """Blank cells are skipped, each curve keeps its rows, steps spanning a factor of 20 are logarithmic."""
    (tmp_path / "metrics.csv").write_text(METRICS)
    columns = read_metrics(tmp_path / "metrics.csv")
    assert list(columns) == ["epoch", "step", "train_loss", "val_loss"]
    for source in (tmp_path / "metrics.csv", str(tmp_path / "metrics.csv"), columns):
        ax = loss_curve(source)
        training, validation = ax.get_lines()
        np.testing.assert_allclose(training.get_xydata(), [[50, 1.5], [100, 1.1], [2000, 0.8]])
        np.testing.assert_allclose(validation.get_ydata(), [1.4, 1.2, 0.9])
        assert ax.get_xscale() == "log"
    short = loss_curve({"epoch": [0, 1, 2], "val_loss": [3.0, 2.0, 1.0]})
    assert short.get_xscale() == "linear" and short.get_xlabel() == "epoch"


def test_metrics_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    """A missing file, text in a cell, ragged rows, an empty file and missing columns raise one sentence each."""
    with pytest.raises(InputFileError, match="cannot read the metrics"):
        loss_curve(tmp_path / "absent.csv")
    for content in ("step,val_loss\n1,high\n", "step,val_loss\n1\n", ""):
        (tmp_path / "bad.csv").write_text(content)
        with pytest.raises(TrajectoryError, match="no table of numbers"):
            loss_curve(tmp_path / "bad.csv")
    with pytest.raises(TrajectoryError, match="columns lr"):
        loss_curve({"lr": [1.0]})


def test_log_alpha_terms_are_quantiles() -> None:
    """The line in each box is the median of the finite values; what is not finite is counted in the label."""
    values = np.arange(101.0)
    ax = log_alpha_terms({"a": values, "b": [-1.0, -math.inf]})
    assert 50.0 in [line.get_xdata()[0] for line in ax.get_lines()]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["a", "b (50 % not finite)"]


def test_autocorrelation_takes_an_array_or_labels() -> None:
    """A bare array is one curve without a legend; the spacing scales the lags."""
    ax = autocorrelation_plot([1.0, 0.5, 0.2], spacing=2.0, xlabel="lag (ps)")
    np.testing.assert_allclose(ax.get_lines()[0].get_xydata(), [[0, 1.0], [2, 0.5], [4, 0.2]])
    assert ax.get_legend() is None
    with pytest.raises(SettingError, match="spacing"):
        autocorrelation_plot([1.0], spacing=0.0)


def test_trace_is_wrapped_degrees() -> None:
    """Angles appear between -180 and 180 degrees, one point a draw; NaN raises."""
    points = trace([0.5, 0.5 + 2 * math.pi, math.pi + 0.1]).collections[0].get_offsets()
    np.testing.assert_allclose(points[:, 1], np.degrees([0.5, 0.5, 0.1 - math.pi]))
    with pytest.raises(TrajectoryError, match="NaN"):
        trace([math.nan])


def test_save_is_whole_or_not_at_all(tmp_path: Path) -> None:
    """A folder is made, the file replaced, nothing else left; a suffix that no writer knows keeps the old file."""
    from matplotlib import pyplot

    target = tmp_path / "new" / "figure.png"
    assert save(trace([0.1, 0.2]), target) == target
    before = target.read_bytes()
    save(trace([0.1, 2.0, 3.0]).figure, target)
    assert target.read_bytes() != before
    with pytest.raises(OutputError, match=r"figure\.nonsense"):
        save(trace([0.1]), tmp_path / "new" / "figure.nonsense")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["figure.png"]
    with pytest.raises(OutputError, match="cannot write"):
        save(trace([0.1]), target / "below_a_file.png")
    pyplot.switch_backend("agg")
    figure, axes = pyplot.subplots()
    save(trace([0.1], ax=axes), target)
    assert not pyplot.fignum_exists(figure.number)


def test_a_failed_write_leaves_the_old_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A writer that stops half-way (a full disk) leaves the picture of before and no other file."""
    target = save(trace([0.1, 0.2]), tmp_path / "figure.png")
    before = target.read_bytes()

    def half_written(path: Path, **_: object) -> None:
        path.write_bytes(before[:100])
        raise OSError("No space left on device")

    ax = trace([0.3])
    monkeypatch.setattr(ax.figure, "savefig", half_written)
    with pytest.raises(OutputError, match="No space left"):
        save(ax, target)
    assert target.read_bytes() == before
    assert list(tmp_path.iterdir()) == [target]
