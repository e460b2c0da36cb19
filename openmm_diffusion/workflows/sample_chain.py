"""One Markov chain in a folder: a diffusion move, Langevin dynamics, over and over, in blocks between checkpoints.

Rows and frames are written as they come, and a checkpoint knows how long their files were: what is written after it is
cut off and made again, bit for bit, when the chain goes on (see `sample_dynamics`). A run ends without a checkpoint
inside a block, so that a longer run makes the same blocks.
"""

import time
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import openmm
from openmm import app, unit
from tqdm.auto import tqdm

from ..errors import InputFileError, StateError, first_line
from ..mcmc import ProposalMove
from ..molecule import BackboneTorsions
from .chain_files import FORMATS, GrowingFile, Table, Trajectory, read_table, said, sync_folder
from .output import write_json
from .sample_checks import END, fingerprints, read_end, refuse_another, refuse_fewer
from .sample_dynamics import ChainDynamics
from .sample_report import slowest_ess
from .sample_settings import SampleSettings
from .sample_state import FOLDER, Checkpoint, Checkpoints
from .systems import MolecularSystem

RECORDED = ("log_alpha", "u_present", "u_candidate", "log_q_present", "log_q_candidate")
TIMES = ("seconds_network", "seconds_energy", "seconds")


class SampledChain:
    """A chain that writes trajectory, table and checkpoints into a folder, and goes on from what is there.

    Parameters
    ----------
    molecule, move
        What is sampled, and the move; its random stream is set by the chain.
    settings
        Those of the job, with the name of the platform.
    folder
        Of this chain; it must be locked (`FolderLock`).
    walker
        Number of the chain among those of the job, which have random streams of their own.
    """

    def __init__(
        self, molecule: MolecularSystem, move: ProposalMove, settings: SampleSettings, folder: Path, walker: int = 0
    ) -> None:
        self.molecule, self.move, self.settings, self.folder, self.walker = molecule, move, settings, folder, walker
        self.torsions = recorded_torsions(molecule.topology, move)
        self.dynamics = ChainDynamics(molecule, settings, walker)
        self.iteration = 0
        self.checkpoints = Checkpoints(folder / FOLDER)
        self._own = fingerprints(molecule, move)
        self._files: list[GrowingFile] = []
        self._tau = array("d")
        self._ess, self._next_ess = float("nan"), 0.0

    def run(self, *, progress: bool = True) -> None:
        """Begin, or go on from the newest checkpoint, until the chain has n_iterations.

        Raises
        ------
        StateError
            The start or the dynamics has an energy that is not finite.
        OutputError
            The checkpoint is of another molecule, force field or longer chain; a file cannot be written.
        ModelFileError
            The checkpoint was made with another model.
        InputFileError
            No checkpoint can be read, or a file of the chain is missing or too short.
        """
        target = self.settings.n_iterations
        refuse_fewer(self.folder, target)
        if self._is_finished(target):
            return
        try:
            point = self.checkpoints.newest()
            if point is None:
                self._begin()
            else:
                self._go_on(point)
            self._end_file.unlink(missing_ok=True)
            with tqdm(total=target, initial=self.iteration, desc="chain", disable=not progress) as bar:
                while self.iteration < target:
                    block_end = (self.iteration // self._interval + 1) * self._interval
                    self._run_block(min(target, block_end), bar)
            lengths = self._sync()
        finally:
            for file in self._files:
                file.close()
        with said(self._end_file):
            write_json(self._end_file, {"iterations": target, **lengths})

    @property
    def _interval(self) -> int:
        return self.settings.checkpoint_interval

    @property
    def _end_file(self) -> Path:
        return self.folder / END

    @property
    def _trajectory_file(self) -> Path:
        return self.folder / f"trajectory.{self.settings.format}"

    @property
    def _table_file(self) -> Path:
        return self.folder / "chain.csv"

    def _is_finished(self, target: int) -> bool:
        """Whether the chain has been run to its end, and its files are as they were then."""
        end = read_end(self.folder)
        files = {"trajectory_bytes": self._trajectory_file, "table_bytes": self._table_file}
        sizes = {name: path.stat().st_size if path.exists() else 0 for name, path in files.items()}
        return end.get("iterations") == target and all(end.get(name) == size for name, size in sizes.items())

    def _begin(self) -> None:
        self._open_files(None)
        sync_folder(self.folder)
        self._guarded(self.dynamics.equilibrate)
        stream = np.random.SeedSequence(self.settings.seed, spawn_key=(self.walker, 1))
        self.move.import_stream({"generator": np.random.default_rng(stream).bit_generator.state}, {})
        self._save()

    def _go_on(self, point: Checkpoint) -> None:
        self.dynamics.load(point.state)
        refuse_another(point.card, self._own, self.settings, self.dynamics.energy)
        self.iteration = point.iteration
        self.move.statistics = point.card["statistics"]
        self.move.import_stream(point.card["stream"], point.pool)
        self._open_files(point.card)
        rows = read_table(self._table_file)
        if list(rows) != self._columns() or len(rows["iteration"]) != point.iteration:
            raise InputFileError(
                f"{self._table_file} does not hold the {point.iteration} iterations of the checkpoint; bring the file "
                "back, or start again with --overwrite"
            )
        self._tau.extend(np.stack([rows[label] for label in self.torsions.labels], axis=1).ravel())

    def _open_files(self, card: dict[str, Any] | None) -> None:
        settings = self.settings
        picoseconds = 1e-3 * settings.md_steps * settings.timestep
        form = FORMATS[settings.format](self.molecule.topology, settings.report_interval, picoseconds)
        frames, length, table = (
            (0, None, None) if card is None else (card["n_frames"], card["trajectory_bytes"], card["table_bytes"])
        )
        self._trajectory = Trajectory(self._trajectory_file, form, length, frames)
        self._files.append(self._trajectory)
        self._table = Table(self._table_file, self._columns(), table)
        self._files.append(self._table)

    def _columns(self) -> list[str]:
        energies = ("potential_energy", "kinetic_energy")
        return ["iteration", *energies, *self.torsions.labels, "accepted", *RECORDED, "n_invalid", *TIMES]

    def _run_block(self, until: int, bar: Any) -> None:
        self._guarded(lambda: self.dynamics.start_block(self.iteration // self._interval))
        while self.iteration < until:
            self._guarded(self._iterate)
            bar.update()
        if self.iteration % self._interval == 0:
            self._save()
            self._tell(bar)

    def _iterate(self) -> None:
        start = time.perf_counter()
        energies = self.dynamics.iterate(self.move)
        self.iteration += 1
        positions = self.dynamics.positions
        tau = self.torsions.get(positions).tolist()
        self._tau.extend(tau)
        self._write_row([*energies, *tau], time.perf_counter() - start)
        if self.iteration % self.settings.report_interval == 0:
            self._trajectory.add(self.iteration, positions, self.dynamics.box)

    def _write_row(self, observed: list[float], seconds: float) -> None:
        last = self.move.last
        assert last is not None
        record = last.to_dict()
        row = [self.iteration, *observed, int(last.accepted), *(record[name] for name in RECORDED)]
        self._table.add([*row, last.n_invalid, last.seconds_network, last.seconds_energy, seconds])

    def _guarded(self, work: Callable[[], None]) -> None:
        """Turn a failing simulation into one sentence."""
        try:
            work()
        except (openmm.OpenMMException, StateError) as error:
            raise StateError(
                f"the chain of {self.molecule.name} failed after {self.iteration} iterations ({first_line(error)}); "
                "give a smaller --timestep, or better coordinates"
            ) from error

    def _sync(self) -> dict[str, int]:
        return {"trajectory_bytes": self._trajectory.sync(), "table_bytes": self._table.sync()}

    def _save(self) -> None:
        lengths = self._sync()
        energy = self.dynamics.present.potential_energy
        stream, pool = self.move.export_stream()
        card = {
            **self._own,
            **lengths,
            "n_frames": self._trajectory.n_frames,
            "stream": stream,
            "statistics": self.move.statistics,
            "potential_energy": float(energy.value_in_unit(unit.kilojoule_per_mole)),
        }
        self.checkpoints.save(Checkpoint(self.iteration, self.dynamics.state(), card, pool))

    def _tell(self, bar: Any) -> None:
        """Acceptance and effective sample size so far, on the bar; the latter takes a twentieth of the time at most."""
        if bar.disable:
            return
        told = {"accepted": f"{self.move.fraction_accepted:.2f}"}
        start = time.perf_counter()
        if start > self._next_ess:
            self._ess = slowest_ess(np.array(self._tau).reshape(1, -1, len(self.torsions)))
            now = time.perf_counter()
            self._next_ess = now + 20 * (now - start)
        bar.set_postfix(**told, ESS=f"{self._ess:.0f}", refresh=False)


def recorded_torsions(topology: app.Topology, move: ProposalMove) -> BackboneTorsions:
    """All phi and psi of a molecule, and omega where the move sets one."""
    kinds = getattr(getattr(move.proposal, "torsions", None), "kinds", ())
    return BackboneTorsions(topology, ("phi", "psi", "omega") if "omega" in kinds else ("phi", "psi"))
