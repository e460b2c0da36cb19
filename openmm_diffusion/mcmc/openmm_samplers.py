"""OpenMM's own multistate samplers (8.6 and newer) with moves between their dynamics and their exchanges.

The classes are OpenMM's; what is added runs `DiffusionKernel` on the sampler's Context at the thermodynamic state that
the Context is in: at its temperature and its parameters.
"""

from collections.abc import Sequence
from typing import Any

import openmm
from openmm import app, unit

from ..errors import SettingError
from .context_kernel import DiffusionKernel, thermostat_temperature


def replica_exchange_sampler(
    kernel: DiffusionKernel | Sequence[DiffusionKernel],
    states: list[dict[str, Any]],
    simulation: Any,
    steps_per_iteration: int,
    *,
    n_moves: int = 1,
    **options: Any,
) -> Any:
    """An `openmm.app.ReplicaExchangeSampler` whose replicas make moves after their dynamics, before exchanges.

    Parameters
    ----------
    kernel
        Made from this Simulation; one for all states, or one for each.
    states, simulation, steps_per_iteration
        As OpenMM's sampler takes them. States that differ in force groups are refused.
    n_moves
        Moves a replica makes in every iteration.
    options
        Further options of OpenMM's sampler: `reinitializeVelocities`.

    Returns
    -------
    The sampler; use it as OpenMM's. Its `move_statistics` holds the counters of each state, which OpenMM's checkpoints
    do not store.

    Raises
    ------
    SettingError
        OpenMM is older than 8.6, or the kernel belongs to another Context.
    """
    moves = _Moves(kernel, states, simulation, n_moves)
    base = _openmm_class("ReplicaExchangeSampler")

    class DiffusionReplicaExchangeSampler(base):  # type: ignore[misc, valid-type]
        move_statistics = moves.statistics

        def simulateReplica(self, index: int, steps: int | None = None) -> None:
            super().simulateReplica(index, steps)
            if moves.make(self.replicaStateIndex[index]):
                self.replicaConformation[index] = self.simulation.context.getState(
                    positions=True, velocities=True, parameters=True, integratorParameters=True
                )

    return DiffusionReplicaExchangeSampler(states, simulation, steps_per_iteration, **options)


def expanded_ensemble_sampler(
    kernel: DiffusionKernel | Sequence[DiffusionKernel],
    states: list[dict[str, Any]],
    simulation: Any,
    steps_per_iteration: int,
    *,
    n_moves: int = 1,
    **options: Any,
) -> Any:
    """An `openmm.app.ExpandedEnsembleSampler` that makes moves after every change of state, at the new state.

    Reporters of the same step show the configuration before the change, as OpenMM's do; its checkpoint the one after
    the moves. Parameters, result and errors as for `replica_exchange_sampler`; `options` are `weights`, `logFile`, ....
    """
    moves = _Moves(kernel, states, simulation, n_moves)
    base = _openmm_class("ExpandedEnsembleSampler")

    class DiffusionExpandedEnsembleSampler(base):  # type: ignore[misc, valid-type]
        move_statistics = moves.statistics

        def attemptStateChange(self, state: openmm.State) -> Any:
            # Velocities of `state` are rescaled in there, so a move before it would lose those that it drew.
            reduced_energies = super().attemptStateChange(state)
            moves.make(self.currentStateIndex)
            return reduced_energies

    return DiffusionExpandedEnsembleSampler(states, simulation, steps_per_iteration, **options)


class _Moves:
    """The kernels of the states, what they did at each, and the temperature of each."""

    def __init__(
        self,
        kernel: DiffusionKernel | Sequence[DiffusionKernel],
        states: list[dict[str, Any]],
        simulation: Any,
        n_moves: int,
    ) -> None:
        kernels = [kernel] * len(states) if isinstance(kernel, DiffusionKernel) else list(kernel)
        if not states or len(kernels) != len(states):
            raise SettingError(f"{len(kernels)} kernels for {len(states)} states were given; expected one, or one each")
        if any(one.context is not simulation.context for one in kernels):
            raise SettingError("the kernel belongs to another Context; make it from the Simulation of the sampler")
        if any("groups" in state for state in states):
            raise SettingError(
                "the states differ in force groups, which OpenMM's dynamics does not follow; make them differ in a "
                "parameter of the Context that scales the forces"
            )
        if isinstance(n_moves, bool) or not isinstance(n_moves, int) or n_moves < 0:
            raise SettingError(f"n_moves is {n_moves!r}; expected a whole number of at least 0")
        self._kernels, self._n_moves, self._context = kernels, n_moves, simulation.context
        self._temperatures = [state.get("temperature") for state in states]
        self.statistics = [{name: 0 for name in one.statistics} for one in kernels]

    def make(self, state: int) -> bool:
        """Make the moves of a state on the Context, which is in that state; whether one of them was accepted."""
        kernel, temperature = self._kernels[state], self._temperatures[state]
        if temperature is None:
            temperature = thermostat_temperature(self._context) * unit.kelvin  # what the exchanges use, too
        accepted = False
        for _ in range(self._n_moves):
            before = kernel.statistics
            accepted |= kernel.step(temperature=temperature).accepted
            for name, value in kernel.statistics.items():
                self.statistics[state][name] += value - before[name]
        return accepted


def _openmm_class(name: str) -> Any:
    """The class of `openmm.app`; raises SettingError where this OpenMM is too old."""
    if not hasattr(app, name):
        raise SettingError(
            f"OpenMM {openmm.Platform.getOpenMMVersion()} has no {name}, which came with 8.6; update OpenMM, or use "
            "openmmtools' samplers with DiffusionMove"
        )
    return getattr(app, name)
