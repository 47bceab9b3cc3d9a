"""One driver a run folder: the second is refused. The lock goes with its process, however that ends."""

import contextlib
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from spaces import BadInput

LOCK, DRIVER = "driver.lock", "driver.txt"


@contextlib.contextmanager
def driving(run: Path) -> Iterator[None]:
    """Hold the run folder. Raises BadInput where another process holds it."""
    lock = FileLock(run / LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise BadInput(
            f"{run} is being worked on by {_driver(run)}: wait until it is done, or stop it with Ctrl-C first"
        ) from None
    with lock:
        started = time.strftime("%Y-%m-%d %H:%M:%S")
        (run / DRIVER).write_text(f"process {os.getpid()} on {socket.gethostname()} since {started}", encoding="utf-8")
        yield


def is_driven(run: Path) -> bool:
    """Whether a process holds the run folder. Asks for the lock and gives it back at once."""
    if not (run / LOCK).exists():
        return False
    try:
        with FileLock(run / LOCK, timeout=0):
            return False
    except Timeout:
        return True


def _driver(run: Path) -> str:
    try:
        return (run / DRIVER).read_text(encoding="utf-8") or "another process"
    except OSError:
        return "another process"
