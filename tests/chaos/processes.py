"""Processes of one session, from Linux's /proc: a driver with everything that Ray has started for it.

Ray gives its workers process groups of their own, and a process whose parent dies is adopted by another; the session
is what all of them keep.
"""

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

GONE_WITHIN_S = 60.0


@dataclass(frozen=True)
class Process:
    """A process that lives, or is stopped; one that has ended and that nobody has asked about yet is none."""

    pid: int
    name: str


def of_session(session: int) -> list[Process]:
    """Everything that lives in the session, which is called after the process that began it."""
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            about = (folder / "stat").read_text()
        except OSError:  # it has ended since
            continue
        name, _, rest = about.partition("(")[2].rpartition(")")
        state, _, _, of = rest.split()[:4]
        if int(of) == session and state not in "ZX":
            found.append(Process(int(folder.name), name))
    return found


def kill_session(session: int) -> list[Process]:
    """SIGKILL everything in the session, the driver first; returns what lives in spite of it, after a minute.

    Only for a session of which something lives, or whose first process has not been waited for: later its number may
    be given to somebody else.
    """
    deadline = time.monotonic() + GONE_WITHIN_S
    while left := of_session(session):
        for process in sorted(left, key=lambda p: p.pid != session):
            try:
                os.kill(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        if time.monotonic() > deadline:
            return left
        time.sleep(0.02)
    return []
