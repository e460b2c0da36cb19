"""Storage from elsewhere that carries code is refused before anything of it runs."""

import os
from pathlib import Path

import netCDF4
import numpy as np
import openmm
import pytest
import yaml
from openmm import unit
from openmmtools import cache, mcmc, multistate, states, testsystems

from openmm_diffusion.errors import InputFileError
from openmm_diffusion.workflows.storage_check import refuse_code
from openmm_diffusion.workflows.tempering import restored


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    """What openmmtools writes for two states of an oscillator."""
    system = testsystems.HarmonicOscillator()
    move = mcmc.SequenceMove([mcmc.MCDisplacementMove(atom_subset=[0]), mcmc.LangevinDynamicsMove(n_steps=1)])
    sampler = multistate.ReplicaExchangeSampler(mcmc_moves=move, online_analysis_interval=None)
    kelvin = [300.0 * unit.kelvin, 310.0 * unit.kelvin]
    reporter = multistate.MultiStateReporter(str(tmp_path / "run.nc"), checkpoint_interval=1)
    sampler.create(
        [states.ThermodynamicState(system.system, value) for value in kelvin],
        states.SamplerState(system.positions),
        reporter,
    )
    platform = openmm.Platform.getPlatformByName("Reference")
    sampler.sampler_context_cache = sampler.energy_context_cache = cache.ContextCache(platform=platform)
    sampler.run(1)
    reporter.close()
    return tmp_path / "run.nc"


def poisoned(storage: Path, group: str, text: str) -> None:
    """Put a YAML text into a group, as openmmtools would: as one string, or letter by letter."""
    with netCDF4.Dataset(storage, "a") as file:
        name, variable = next(iter(file.groups[group].variables.items()))
        if variable.dtype is str:
            variable[0] = text
        else:
            n = variable.shape[0]
            variable[:] = np.array(list(text.ljust(n)[:n]), dtype="S1")
            assert len(text) <= n, name


@pytest.mark.parametrize("group", ["thermodynamic_states", "mcmc_moves"])
def test_storage_with_code_is_refused_and_never_run(group: str, storage: Path, tmp_path: Path) -> None:
    """A call hidden in states or moves is found; the file as it was is restored. The host itself would run it."""
    sampler = restored(multistate.ReplicaExchangeSampler, storage)
    assert sampler.iteration == 1
    sampler._reporter.close()
    refuse_code(storage)
    trap = tmp_path / "trap"
    text = f"a: !!python/object/apply:os.mkdir ['{trap}']\n"
    poisoned(storage, group, text)
    with pytest.raises(InputFileError, match=r"would run code.*python/object/apply:os.mkdir"):
        restored(multistate.ReplicaExchangeSampler, storage)
    assert not trap.exists()
    yaml.load(text, yaml.Loader)
    assert trap.exists(), "the control: a loader like the host's runs it"
    os.rmdir(trap)


def test_what_cannot_be_read_is_not_taken_for_harmless(tmp_path: Path) -> None:
    """A file that is no NetCDF file is an error here already."""
    (tmp_path / "a.nc").write_bytes(b"no storage")
    with pytest.raises(OSError, match="Unknown file format"):
        refuse_code(tmp_path / "a.nc")
