"""What a run of parallel tempering left in its storage."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from openmm import unit

from ..molecule import BackboneTorsions
from .systems import MolecularSystem
from .tempering import CHECKPOINT, STORAGE


@dataclass(frozen=True)
class TemperingSeries:
    """What a storage holds.

    Attributes
    ----------
    kelvin
        [states].
    phi
        [iterations, states] rad, at the end of each iteration.
    state_of
        [iterations, replicas] number of the state that a replica was in.
    n_proposed, n_accepted
        [states] moves, of all iterations.
    """

    kelvin: NDArray[np.float64]
    phi: NDArray[np.float64]
    state_of: NDArray[np.int64]
    n_proposed: NDArray[np.int64]
    n_accepted: NDArray[np.int64]


def read_series(folder: Path, molecule: MolecularSystem, n_discarded: int = 0) -> TemperingSeries:
    """Read a run's storage, without its first iterations; nothing may have it open for writing."""
    import netCDF4
    from openmmtools import multistate

    reporter = multistate.MultiStateReporter(str(folder / STORAGE), open_mode="r", checkpoint_storage=CHECKPOINT)
    try:
        # Iteration 0 is the start.
        rows = slice(1 + n_discarded, 1 + int(reporter.read_last_iteration(last_checkpoint=False)))
        state_of = np.asarray(reporter.read_replica_thermodynamic_states())[rows].astype(np.int64)
        kelvin = [state.temperature.value_in_unit(unit.kelvin) for state in reporter.read_thermodynamic_states()[0]]
        moves = [move.move_list[0] for move in reporter.read_mcmc_moves()]
    finally:
        reporter.close()
    with netCDF4.Dataset(folder / CHECKPOINT) as file:
        positions = np.asarray(file["positions"][rows], dtype=np.float64)
    torsions = BackboneTorsions(molecule.topology, ("phi",))
    of_replica = torsions.get(positions.reshape(-1, *positions.shape[2:]))[:, 0].reshape(state_of.shape)
    phi = np.empty_like(of_replica)
    np.put_along_axis(phi, state_of, of_replica, axis=1)
    counts = [np.array([getattr(move, name) for move in moves]) for name in ("n_proposed", "n_accepted")]
    return TemperingSeries(np.array(kelvin), phi, state_of, *counts)
