"""The warm-up of local moves: it chooses by what it measured, changes no frozen setting, and ends before production."""

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from openmm import unit
from openmmtools import cache as contexts
from openmmtools import mcmc, states
from tiny_network import TINY

from openmm_diffusion import models
from openmm_diffusion.diffusion.se3_config import SE3Config
from openmm_diffusion.errors import SettingError
from openmm_diffusion.mcmc import DiffusionMove, StepRecord, tuning
from openmm_diffusion.mcmc.tuning import TuningRow, tune_local
from openmm_diffusion.models import Model
from openmm_diffusion.units import wrap
from openmm_diffusion.workflows.systems import alanine_dipeptide

READING = {"index_embed_size": 8, "embed_self_conditioning": False, "embed_residue_type": True, "relative_frames": True}


@cache
def model() -> Model:
    conf = {**TINY, "embed": READING}
    se3_conf = SE3Config.acceptance(1 / 2.2).model_dump()
    return models.create("se3", alanine_dipeptide("vacuum").topology, seed=1, model_conf=conf, se3_conf=se3_conf)


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make(**options: Any) -> DiffusionMove:
    settings = {"t_star": 0.02, "n_diffusion_steps": 2, "n_candidates": 2, "device": "cpu", "seed": 4, **options}
    return DiffusionMove(model(), alanine_dipeptide("vacuum").topology, **settings)


class Still(mcmc.MCMCMove):
    """MD that does nothing."""

    def apply(self, *arguments: Any) -> None: ...


class Simulated:
    """Stands for a move: larger steps are accepted less often, by a known law, and cost one millisecond."""

    def __init__(self, t_star: float, rng: np.random.Generator) -> None:
        self.t_star, self.rng = t_star, rng
        self.angles = np.zeros(2)
        self.proposal = self
        self.torsions = self
        self.last: StepRecord | None = None

    def get(self, positions: np.ndarray) -> np.ndarray:
        return positions[0, :2]

    def apply(self, _state: Any, sampler_state: Any, _cache: Any) -> None:
        accepted = bool(self.rng.random() < np.exp(-10 * self.t_star))
        if accepted:
            sampler_state.positions = sampler_state.positions + np.array([[self.t_star, -self.t_star, 0.0]])
        self.last = StepRecord(accepted, 0.0, 0.0, 0.0, 0.0, 0.0, 1, 0, True, 8e-4, 2e-4)


class Place:
    """Stands for a sampler state; positions are angles."""

    def __init__(self) -> None:
        self.positions = np.zeros((1, 3))


@pytest.mark.parametrize(("target", "expected"), [(None, 0.2), (0.5, 0.05), (0.99, 0.0125)])
def test_the_best_step_is_found(
    target: float | None, expected: float, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """With acceptance exp(-10 t) and steps t the squared displacement a second, t^2 exp(-10 t), is largest at 0.2.

    With a target acceptance of 0.5 the largest step that reaches it is taken; where none does, the most accepted one.
    """
    rng = np.random.default_rng(0)
    made: list[dict[str, Any]] = []

    def variant(_move: Any, **changes: Any) -> Any:
        made.append(changes)
        return Simulated(changes["t_star"], rng)

    monkeypatch.setattr(tuning, "_with_settings", variant)
    steps = (0.0125, 0.05, 0.2, 0.8)
    result = tune_local(
        make(), None, Place(), t_stars=steps, n_rounds=40, n_moves=10, between=Still(), target_acceptance=target
    )
    assert made[-1] == {"t_star": expected, "window": None}
    for row in result.table:
        p = np.exp(-10 * row.t_star)
        assert row.n_moves == 400
        assert row.fraction_accepted == pytest.approx(p, abs=5 * np.sqrt(p * (1 - p) / 400) + 1e-3)
        assert row.squared_displacement == pytest.approx(2 * row.t_star**2 * row.n_accepted)
        assert row.seconds == pytest.approx(0.4)
        assert row.rate == pytest.approx(row.squared_displacement / 0.4)
    assert ("no setting reached" in caplog.text) == (target == 0.99)


def test_nothing_accepted_takes_the_smallest_step() -> None:
    """Rows without an accepted move do not raise; the smallest t_star is taken."""
    rows = [TuningRow(0.4, None, 5, seconds=1.0), TuningRow(0.02, None, 5, seconds=1.0)]
    assert tuning._best(rows, None).t_star == 0.02
    accepted = replace(rows[0], n_accepted=1, squared_displacement=0.5, displacements=(20.0, 60.0))
    assert tuning._best([accepted, rows[1]], None).t_star == 0.4
    assert accepted.median_displacement == 40.0
    assert "1 of 5 accepted, median 40 degrees, 0.5 rad^2/s" in str(accepted)
    assert np.isnan(rows[0].median_displacement)


@pytest.mark.usefixtures("one_thread")
def test_a_tuned_move_is_frozen_and_new() -> None:
    """The move returned has the chosen settings, counters at zero, and cannot be changed; the old one is as it was."""
    system, move = alanine_dipeptide("vacuum"), make()
    thermodynamic = states.ThermodynamicState(system.system, 300 * unit.kelvin)
    sampler = states.SamplerState(system.positions * unit.nanometer)
    before = move.proposal.torsions.get(system.positions)
    dynamics = mcmc.LangevinDynamicsMove(timestep=2 * unit.femtoseconds, n_steps=5)
    result = tune_local(
        move,
        thermodynamic,
        sampler,
        t_stars=(0.002, 0.3),
        windows=(None, 2),
        n_rounds=2,
        n_moves=2,
        between=dynamics,
        context_cache=contexts.ContextCache(),
    )
    assert [(row.t_star, row.window) for row in result.table] == [(0.002, None), (0.3, None), (0.002, 2), (0.3, 2)]
    assert all(row.n_moves == 4 and row.seconds > 0 for row in result.table)
    chosen = max(result.table, key=lambda row: row.rate)
    tuned = result.move.proposal
    assert (tuned.t_star, tuned.window) == (chosen.t_star, chosen.window)
    assert (tuned.n_diffusion_steps, result.move.n_candidates, result.move.seed) == (2, 2, 4)
    assert result.move.n_proposed == move.n_proposed == 0
    assert (move.proposal.t_star, move.proposal.window) == (0.02, None)
    with pytest.raises(SettingError, match="frozen"):
        tuned.t_star = 0.1
    now = move.proposal.torsions.get(sampler.positions.value_in_unit(unit.nanometer))
    assert np.abs(wrap(now - before)).max() > 0
    result.move.apply(thermodynamic, sampler)
    assert result.move.n_proposed == 1


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"target_acceptance": 1.0}, "target_acceptance is 1.0"),
        ({"t_stars": ()}, "nothing to try"),
        ({"windows": ()}, "nothing to try"),
        ({"n_moves": 0}, "nothing to try"),
        ({"t_stars": (0.1, 2.0)}, "t_star is 2.0"),
        ({"windows": (5,)}, "window is 5"),
    ],
)
def test_bad_requests_are_one_sentence(options: dict[str, Any], sentence: str) -> None:
    """Numbers out of range are refused before anything runs."""
    with pytest.raises(SettingError, match=sentence):
        tune_local(make(), None, None, **options)


def test_independent_moves_have_nothing_to_tune() -> None:
    """A move without a local proposal is refused."""
    with pytest.raises(SettingError, match="BackboneProposal; expected a LocalProposal"):
        tune_local(make(t_star=None, pool_size=2), None, None)
