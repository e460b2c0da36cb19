"""The doctor tells an exact move from a wrong one, and the list of models from a list of altered files."""

import json
import shutil
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from openmm_diffusion import models
from openmm_diffusion.cli.main import app
from openmm_diffusion.errors import ModelFileError, SettingError
from openmm_diffusion.models import store
from openmm_diffusion.molecule import BackboneTorsions
from openmm_diffusion.proposals import Candidates, TorsionProposal
from openmm_diffusion.workflows import doctor as doctor_module
from openmm_diffusion.workflows import self_check
from openmm_diffusion.workflows.doctor import devices, versions
from openmm_diffusion.workflows.exact_starts import annealed
from openmm_diffusion.workflows.list_models import list_models
from openmm_diffusion.workflows.self_check import CheckResult, check_exactness, mean_zero_p
from openmm_diffusion.workflows.systems import MolecularSystem, alanine_dipeptide

TRAINED = "alanine-dipeptide-torsion-vacuum"
CENTRE, WIDTH = -2.3, 0.3  # beside phi of the minimised structure, about as wide


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Small networks: threads cost more than they give."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@cache
def molecule() -> MolecularSystem:
    return alanine_dipeptide("vacuum")


class Normals:
    """Wrapped normal draws of torsions about CENTRE; `tampered` has log q with the wrong sign."""

    def __init__(self, kinds: tuple[str, ...], tampered: bool = False) -> None:
        self.torsions, self.tampered = BackboneTorsions(molecule().topology, kinds), tampered

    def propose(self, positions: np.ndarray, n: int, rng: np.random.Generator) -> Candidates:
        tau = CENTRE + WIDTH * rng.standard_normal((n, len(self.torsions)))
        now = self.torsions.get(positions)
        candidates = self.torsions.set(positions, tau)
        return Candidates(candidates, self._log_q(tau), np.full(n, self._log_q(now)), np.zeros(n, bool))

    def _log_q(self, tau: np.ndarray) -> np.ndarray:
        images = (tau - CENTRE)[..., None] + 2 * np.pi * np.arange(-3, 4)
        return (-1.0 if self.tampered else 1.0) * np.log(np.exp(-0.5 * (images / WIDTH) ** 2).sum(-1)).sum(-1)


class Untold(TorsionProposal):
    """Control: a torsion proposal that leaves its density out."""

    def propose(self, positions: np.ndarray, n: int, rng: np.random.Generator) -> Candidates:
        drawn = super().propose(positions, n, rng)
        return Candidates(drawn.positions, np.zeros(n), np.zeros(n), drawn.invalid, drawn.reversible)


def check(proposal: object, monkeypatch: pytest.MonkeyPatch, n_chains: int, **options: int) -> CheckResult:
    """The check with a fixed number of chains and four moves each, whatever the speed of this machine."""
    monkeypatch.setattr(self_check, "_plan", lambda *_: (n_chains, 4))
    rng = np.random.default_rng(5)
    return check_exactness(proposal, molecule(), "Reference", seconds=1e4, rng=rng, **options)  # type: ignore[arg-type]


def test_a_trained_model_is_exact_and_a_tampered_one_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """The shipped model passes on exact draws from a grid; without its density the verdict is NOT exact, twice."""
    shipped = models.load(TRAINED)
    proposal = TorsionProposal(shipped, molecule().topology, pool_size=256, device="cpu")
    good = check(proposal, monkeypatch, 120, n_candidates=2)
    assert good.is_exact and str(good).startswith("exact within noise: p = ")
    assert "grid" in good.starts and good.n_moves == 480 and good.n_accepted > 200
    wrong = Untold(shipped, molecule().topology, pool_size=256, device="cpu")
    bad = check(wrong, monkeypatch, 120, n_candidates=2)
    assert bad.is_exact is False and bad.first_p is not None and bad.first_p < 1e-3
    assert str(bad).startswith("NOT exact: p = ") and "repeated" in str(bad)


def test_other_torsions_start_from_annealed_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the move sets phi alone, the same verdicts come from annealed starts."""
    monkeypatch.setattr("openmm_diffusion.workflows.exact_starts._N_ANNEALED", 1e6)  # fewer levels
    good = check(Normals(("phi",)), monkeypatch, 200)
    assert "annealed" in good.starts and good.is_exact, good
    assert check(Normals(("phi",), tampered=True), monkeypatch, 200).is_exact is False


def test_annealed_draws_have_the_right_averages() -> None:
    """Weighted averages of a bimodal target agree with quadrature within 5 errors; unweighted ones do not."""

    def u(tau: np.ndarray) -> np.ndarray:
        return -np.logaddexp(6.0 * np.cos(tau[:, 0] - 1.0), 4.0 * np.cos(tau[:, 0] + 2.0)) - np.cos(tau).sum(-1)

    x = -np.pi + (np.arange(400) + 0.5) * 2 * np.pi / 400
    grid = np.stack(np.meshgrid(x, x, indexing="ij"), -1).reshape(-1, 2)
    p = np.exp(-u(grid))
    exact = (p @ np.sin(grid[:, 0])) / p.sum()
    tau, w = annealed(u, 2, 6000, np.random.default_rng(0), 3)
    shares = w / w.sum()
    for weights, right in ((shares, True), (np.full(6000, 1 / 6000), False)):
        values = np.sin(tau[:, 0])
        mean = weights @ values
        error = np.sqrt((weights**2) @ (values - mean) ** 2)
        assert (abs(mean - exact) < 5 * error) == right


def test_p_values_are_uniform_without_an_effect() -> None:
    """Hotelling's p is uniform under the null, also for correlated and constant columns; a shift of 0.5 sd is seen."""
    rng = np.random.default_rng(1)

    def sample(shift: float) -> float:
        x = rng.standard_normal((80, 3))
        columns = np.column_stack([x + shift, x[:, 0] - 2 * x[:, 1] + shift * -1.0, np.zeros(80)])
        return mean_zero_p(columns, np.ones(80))

    below = np.mean([sample(0.0) < 0.1 for _ in range(1000)])
    assert 0.06 < below < 0.14
    assert sample(0.5) < 1e-3


def test_no_verdict_where_nothing_was_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """A move that is never accepted, and too little time, are not called exact."""

    class Never(Normals):
        def propose(self, positions: np.ndarray, n: int, rng: np.random.Generator) -> Candidates:
            drawn = super().propose(positions, n, rng)
            return Candidates(drawn.positions, drawn.log_q, drawn.log_q_present, np.ones(n, bool))

    never = check(Never(("phi", "psi")), monkeypatch, 100)
    assert never.is_exact is None and "0 chains accepted" in str(never)
    monkeypatch.undo()
    hurried = check_exactness(
        Normals(("phi", "psi")), molecule(), "Reference", seconds=1e-3, rng=np.random.default_rng(0)
    )
    assert hurried.is_exact is None and "--seconds" in str(hurried)
    with pytest.raises(SettingError, match="turns no torsions"):
        check_exactness(object(), molecule(), "Reference", rng=np.random.default_rng(0))  # type: ignore[arg-type]


def test_versions_and_devices() -> None:
    """Every package has a version or is said to be missing; the device in use is named."""
    found = versions()
    assert found["openmm"].startswith("8.") and found["torch"] == torch.__version__
    assert {"openmmtools", "numpy", "mdtraj", "pdbfixer", "ParmEd"} <= {k for k, v in found.items() if v[0].isdigit()}
    assert devices("cpu")["used"].startswith("cpu")


@pytest.mark.parametrize(("p", "status"), [(0.4, 0), (1e-9, 1), (None, 3)])
def test_command_reports_and_exits_by_the_verdict(
    p: float | None, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The report has its four parts and the verdict; the exit status is 0 exact, 1 not exact, 3 not decided."""
    result = CheckResult(p, "exact draws", 100, 100.0, 400, 200, 90, 0, 1.0, reason="" if p else "too slow")
    monkeypatch.setattr(doctor_module, "check_exactness", lambda *_, **__: result)
    monkeypatch.setattr(doctor_module, "platforms", lambda: {"Reference": "1 steps/s"})
    words = ["doctor", "--system", "alanine-dipeptide-vacuum", "--model", TRAINED, "--platform", "Reference"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == status, done.output
    for part in ("versions", "OpenMM platforms", "torch devices", "exactness", "phi:ALA2, psi:ALA2", str(result)):
        assert part in done.stdout


def test_platforms_have_speeds() -> None:
    """Reference is there, in double precision, with a speed."""
    told = doctor_module.platforms(n_steps=20)
    assert "steps/s, double precision" in told["Reference"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--model", "no-such-model"), "no-such-model"),
        (("--system", "no.pdb"), "no.pdb"),
        (("--seconds", "0"), "seconds is 0"),
        (("--platform", "Abacus"), "Abacus"),
    ],
)
def test_bad_settings_of_the_doctor(words: tuple[str, ...], expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each ends with one sentence and status 1."""
    monkeypatch.setattr(doctor_module, "platforms", lambda: {"Reference": "1 steps/s"})
    done = CliRunner().invoke(app, ["doctor", *words])
    assert done.exit_code == 1 and expected in done.stderr and "Traceback" not in done.output
    assert done.stderr.count("Error: ") == 1


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of what is shipped, to be altered."""
    for path in store.PRETRAINED.glob(f"{TRAINED}*"):
        shutil.copy(path, tmp_path)
    for suffix in (".json", ".safetensors"):
        shutil.copy(store.PRETRAINED / f"alanine-dipeptide-torsion{suffix}", tmp_path)
    monkeypatch.setattr(store, "PRETRAINED", tmp_path)
    return tmp_path


def test_models_are_described(shelf: Path) -> None:
    """Name, kind, molecule, size, data, metrics and sha256 of both models."""
    done = CliRunner().invoke(app, ["models"])
    assert done.exit_code == 0, done.output
    assert done.stdout.count("verified") == 2
    for word in (
        TRAINED,
        "torsion: phi:ALA2, psi:ALA2",
        "ACE-ALA-NME",
        "23,362",
        "79,812 frames, alanine-dipeptide-vacuum, 300 to 900 K",
        "held_out_nll 1.338",
        models.load(TRAINED).sha256()[:12],
    ):
        assert word in done.stdout


def alter_weights(shelf: Path) -> None:
    path = shelf / f"{TRAINED}.safetensors"
    raw = bytearray(path.read_bytes())
    raw[-5] ^= 1
    path.write_bytes(bytes(raw))


def alter_card(shelf: Path) -> None:
    path = shelf / f"{TRAINED}.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "sha256": "0" * 64}))


@pytest.mark.parametrize("damage", ["weights", "sha256", "no card", "no weights"])
def test_altered_models_are_found(shelf: Path, damage: str) -> None:
    """One changed bit of the weights, another sha256, a missing card or missing weights: one sentence, status 1."""
    {
        "weights": alter_weights,
        "sha256": alter_card,
        "no card": lambda folder: (folder / f"{TRAINED}.json").unlink(),
        "no weights": lambda folder: (folder / f"{TRAINED}.safetensors").unlink(),
    }[damage](shelf)
    told: list[str] = []
    with pytest.raises(ModelFileError, match=f"1 of the shipped models cannot be used; {TRAINED}: "):
        list_models(told.append)
    assert sum("FAILED" in text for text in told) == 1
    assert sum("verified" in text for text in told) == 1  # the other is listed all the same
    done = CliRunner().invoke(app, ["models"])
    assert done.exit_code == 1 and done.stderr.count("Error: ") == 1 and "Traceback" not in done.output
