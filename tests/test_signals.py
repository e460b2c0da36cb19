"""What MPI's helpers look for may be set by a batch queue; a lone process must still end when it is told to."""

import os
import subprocess
import sys

SCRIPT = """
import os, signal, sys
handlers = {number: (lambda *_, number=number: print("told", number)) for number in (signal.SIGTERM, signal.SIGINT)}
for number, handler in handlers.items():
    signal.signal(number, handler)
hook = sys.excepthook
if sys.argv[1] == "ours":
    from openmm_diffusion.mcmc import streams
    print(streams.n_ranks(), streams.rank())
else:
    import mpiplus
    print(mpiplus.get_mpicomm().size, 0)
print(sys.excepthook is hook, [signal.getsignal(number) is handlers[number] for number in handlers])
"""


def told(how: str) -> list[str]:
    environment = {**os.environ, "SLURM_PROCID": "0"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, how], capture_output=True, text=True, env=environment, timeout=300, check=True
    )
    return done.stdout.splitlines()[-2:]


def test_handlers_of_signals_are_kept_in_a_batch_job() -> None:
    """One rank in a Slurm job: handlers and the hook of exceptions stay; mpiplus alone (control) takes them."""
    assert told("ours") == ["1 0", "True [True, True]"]
    assert told("mpiplus")[1] != "True [True, True]"
