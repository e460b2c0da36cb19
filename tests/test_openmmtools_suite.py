"""openmmtools' own acceptance tests, run with our asymmetric move in the place of its symmetric one.

The upstream tests compare the free energies of harmonic oscillators, by MBAR over a whole multistate simulation, with
the analytic ones at 6 standard errors, and know nothing of this package.
"""

import openmm
import pytest
from openmm import unit
from openmmtools import cache, mcmc, testsystems
from openmmtools.tests import test_mcmc, test_sampling
from upstream_moves import GaussianProposal, restored_globals

from openmm_diffusion.mcmc.move import ProposalMove

__all__ = ["restored_globals"]  # a fixture

MULTISTATE = test_sampling.TestHarmonicOscillatorsMultiStateSampler
REPLICA_EXCHANGE = test_sampling.TestHarmonicOscillatorsReplicaExchangeSampler
SAMS = test_sampling.TestHarmonicOscillatorsSAMSSampler
N_ITERATIONS = 300

INDEPENDENT = {"memory": 0.0, "shift": 0.05, "width": 0.2}
DRIFTING = {"memory": 0.5, "shift": 0.04, "width": 0.14}


def run_upstream(suite: type, monkeypatch: pytest.MonkeyPatch, move: ProposalMove, n_iterations: int) -> None:
    """The `run` of an upstream test class, its Monte Carlo move replaced by ours."""
    monkeypatch.setattr(mcmc, "MCDisplacementMove", lambda displacement_sigma: move)
    monkeypatch.setattr(suite, "N_ITERATIONS", n_iterations)
    suite.setup_class()
    try:
        suite().run(include_unsampled_states=True)
    finally:
        suite.teardown_class()


def run_upstream_expectation(monkeypatch: pytest.MonkeyPatch, proposal: GaussianProposal) -> None:
    """Upstream's mean potential energy of a harmonic oscillator over 500 iterations, at 6 standard errors."""
    reference = openmm.Platform.getPlatformByName("Reference")
    monkeypatch.setattr(cache, "global_context_cache", cache.ContextCache(platform=reference))
    # one step of dynamics fills in the kinetic energy that the upstream test asks for
    velocities = mcmc.LangevinDynamicsMove(timestep=1.0 * unit.femtosecond, n_steps=1, reassign_velocities=True)
    move = mcmc.SequenceMove([ProposalMove(proposal, seed=3), velocities])
    test_mcmc.subtest_mcmc_expectation(testsystems.HarmonicOscillator(), move)


CASES = [
    pytest.param(REPLICA_EXCHANGE, INDEPENDENT, 1, N_ITERATIONS, id="replica-exchange-independent"),
    pytest.param(MULTISTATE, DRIFTING, 1, N_ITERATIONS, id="multistate-drifting"),
    pytest.param(MULTISTATE, INDEPENDENT, 4, N_ITERATIONS, id="multistate-four-tries", marks=pytest.mark.slow),
    pytest.param(REPLICA_EXCHANGE, DRIFTING, 1, N_ITERATIONS, id="replica-exchange-drifting", marks=pytest.mark.slow),
    pytest.param(SAMS, INDEPENDENT, 1, 5 * N_ITERATIONS, id="sams-independent", marks=pytest.mark.slow),
    pytest.param(SAMS, DRIFTING, 1, 5 * N_ITERATIONS, id="sams-drifting", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("suite", "parameters", "n_candidates", "n_iterations"), CASES)
def test_free_energies_are_the_analytic_ones(suite, parameters, n_candidates, n_iterations, monkeypatch):
    """Free energies of five oscillators and two unsampled ones agree at 6 sigma under an asymmetric proposal."""
    move = ProposalMove(GaussianProposal(**parameters), n_candidates=n_candidates, seed=1)
    run_upstream(suite, monkeypatch, move, n_iterations)


@pytest.mark.parametrize(("suite", "parameters", "n_candidates", "n_iterations"), CASES)
def test_free_energies_are_wrong_without_the_density(suite, parameters, n_candidates, n_iterations, monkeypatch):
    """Negative control: with log q dropped the same run is caught by the same upstream test."""
    move = ProposalMove(GaussianProposal(**parameters, with_density=False), n_candidates=n_candidates, seed=1)
    with pytest.raises(Exception, match="free energy difference exceeds MAX_SIGMA"):
        run_upstream(suite, monkeypatch, move, n_iterations)


NARROW = {"memory": 0.0, "shift": 0.0, "width": 0.0085}  # the oscillator's own width is 0.0077 nm


def test_mean_energy_is_the_analytic_one(monkeypatch):
    """The mean potential energy under our move in a SequenceMove is 3/2 kT within 6 sigma."""
    run_upstream_expectation(monkeypatch, GaussianProposal(**NARROW))


def test_mean_energy_is_wrong_without_the_density(monkeypatch):
    """Negative control: with log q dropped the mean potential energy is off by more than 6 sigma."""
    with pytest.raises(AssertionError, match="Potential energy expectation"):
        run_upstream_expectation(monkeypatch, GaussianProposal(**NARROW, with_density=False))
