"""Worker processes of long jobs. They end when the process that started them is gone, killed for instance.

A worker of `concurrent.futures` does not: it finishes its job, and then waits for another one for ever.
"""

import multiprocessing
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager

_at_work = threading.Lock()


def walker_pool(n: int) -> ProcessPoolExecutor:
    """A pool of n fresh processes that do not outlive this one."""
    return ProcessPoolExecutor(n, mp_context=multiprocessing.get_context("spawn"), initializer=end_with_parent)


def end_with_parent() -> None:
    """Let this process end once its parent is gone, but not in the middle of what stands under `at_work`."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_watch, args=(parent,), daemon=True).start()


@contextmanager
def at_work() -> Iterator[None]:
    """Files are being written: the process must not end now. Long work asks `parent_is_gone` now and then."""
    with _at_work:
        yield


def parent_is_gone() -> bool:
    """Whether the process that started this one has ended; False in a process that the user started."""
    parent = multiprocessing.parent_process()
    return parent is not None and not parent.is_alive()


def _watch(parent: multiprocessing.process.BaseProcess) -> None:
    parent.join()
    with _at_work:
        os._exit(1)
