"""One job at a time in a folder: a lock file with the process and the host that hold it.

The file is held with flock, which the system lets go when the process ends in whatever way, and on file systems that
know flock across machines this is all there is to it. Where another machine may hold it unseen, the file's age tells:
its owner touches it every `HEARTBEAT` seconds, and a lock that nobody touched for `STALE` seconds is left over.
"""

import errno
import json
import logging
import os
import socket
import threading
import time
from pathlib import Path
from typing import Any, Self

from ..errors import OutputError

logger = logging.getLogger(__name__)
NAME = "running.lock"
HEARTBEAT = 20.0
STALE = 120.0


class FolderLock:
    """A context in which this process owns a folder; the folder is made where there is none.

    Parameters
    ----------
    folder
        The folder.
    wait
        Seconds to wait for a process that is about to end.

    Raises
    ------
    OutputError
        Another job runs there, or the folder cannot be made or written.
    """

    def __init__(self, folder: Path, wait: float = 0.0) -> None:
        self.folder, self.path, self._wait = folder, folder / NAME, wait
        self._descriptor: int | None = None
        self._released = threading.Event()

    def __enter__(self) -> Self:
        deadline = time.monotonic() + self._wait
        while (owner := self._try()) is not None:
            if time.monotonic() > deadline:
                who = f"process {owner.get('pid', 'unknown')} on {owner.get('host', 'this machine')}"
                raise OutputError(
                    f"{self.folder} is in use by {who}; wait for that job, or give another folder (a job that was "
                    f"killed on another machine counts as gone after {STALE:.0f} seconds)"
                )
            time.sleep(0.1)
        threading.Thread(target=self._beat, daemon=True, name="folder lock").start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._released.set()
        if self._descriptor is not None:
            try:
                self.path.unlink(missing_ok=True)  # before it is let go: whoever opened it meanwhile looks again
            except OSError as error:
                logger.warning("the lock file %s stays (%s); it does no harm", self.path, error.strerror)
            os.close(self._descriptor)
            self._descriptor = None

    def _try(self) -> dict[str, Any] | None:
        """Take the lock, or tell who has it."""
        while True:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
            except OSError as error:
                raise OutputError(
                    f"the folder {self.folder} cannot be made or written ({error.strerror}); choose another place"
                ) from error
            try:
                held, owner = _flock(descriptor), _read(descriptor)
                if held is False:
                    return owner
                if not self._is_mine(descriptor):
                    continue  # its owner removed it between our opening and locking it
                young = time.time() - os.fstat(descriptor).st_mtime < STALE
                if owner and young and (held is None or owner.get("host") != socket.gethostname()):
                    return owner
                if owner:
                    logger.info("the lock of process %s, which has ended, is taken over", owner.get("pid"))
                self._sign(descriptor)
                self._descriptor, descriptor = descriptor, -1
                return None
            finally:
                if descriptor >= 0:
                    os.close(descriptor)

    def _is_mine(self, descriptor: int) -> bool:
        try:
            return os.path.samestat(os.fstat(descriptor), os.stat(self.path))
        except FileNotFoundError:
            return False

    def _sign(self, descriptor: int) -> None:
        text = json.dumps(
            {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
        )
        try:
            os.ftruncate(descriptor, 0)
            os.lseek(descriptor, 0, os.SEEK_SET)
            os.write(descriptor, text.encode())
        except OSError as error:
            raise OutputError(
                f"{self.path} cannot be written ({error.strerror}); make room, or choose another place"
            ) from error

    def _beat(self) -> None:
        while not self._released.wait(HEARTBEAT):
            try:
                os.utime(self.path)
            except OSError as error:
                logger.debug("the lock file %s was not touched: %s", self.path, error)


def _flock(descriptor: int) -> bool | None:
    """Whether the file is ours now; None where the system or the file system does not know flock."""
    try:
        import fcntl
    except ImportError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return False if error.errno in (errno.EWOULDBLOCK, errno.EACCES) else None
    return True


def _read(descriptor: int) -> dict[str, Any]:
    try:
        os.lseek(descriptor, 0, os.SEEK_SET)
        owner = json.loads(os.read(descriptor, 4096))
    except ValueError:
        return {}
    return owner if isinstance(owner, dict) else {}
