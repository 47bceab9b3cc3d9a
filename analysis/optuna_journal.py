"""Optuna's journal file for a process that writes much at once: a batch is one write under one lock.

Optuna's own backend opens, locks and syncs the file for every value of every trial. What is written here may be lost
in a power cut, so it is for what can be rebuilt.
"""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from optuna.storages.journal import BaseJournalBackend, JournalFileOpenLock

HEAD = 128  # bytes that tell a journal from its successor: they hold the random name of the process that began it
STALE_S = 5  # after which the lock of a process that was killed while it wrote is taken from it


class BatchedJournal(BaseJournalBackend):
    """The backend of one JournalStorage, which is created and called inside `batch` only. The file must exist."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.pending: list[dict[str, Any]] = []
        self._unread: list[dict[str, Any]] = []
        self._known = 0  # bytes
        self._head = b""

    @contextlib.contextmanager
    def batch(self) -> Iterator[None]:
        """Read what others have written, then write all that is appended inside, or nothing if that fails.

        Raises ValueError where the file is damaged or another one than before, OSError where it cannot be written.
        """
        lock = JournalFileOpenLock(str(self.path), STALE_S)
        lock.acquire()
        try:
            with self.path.open("r+b") as file:
                self._check(file)
                file.seek(self._known)
                text = file.read()
                if not text.endswith(b"\n") and text:
                    raise ValueError(f"the last line of {self.path} is cut")
                self._unread, self.pending = [json.loads(line) for line in text.splitlines()], []
                yield
                file.write(b"".join(json.dumps(log, separators=(",", ":")).encode() + b"\n" for log in self.pending))
                self._known = file.tell()
            self._head = self._head or head(self.path)
        finally:
            lock.release()

    def check(self) -> None:
        """Raises ValueError where the file is another one than before or has lost its end, OSError where it is gone."""
        with self.path.open("rb") as file:
            self._check(file)

    def _check(self, file: BinaryIO) -> None:
        if file.read(len(self._head)) != self._head or file.seek(0, 2) < self._known:
            raise ValueError(f"{self.path} is another file than before")

    # What JournalStorage calls, after each of its operations.

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        self.pending += logs
        self._unread += logs

    def read_logs(self, log_number_from: int) -> list[dict[str, Any]]:
        unread, self._unread = self._unread, []
        return unread


def head(path: Path) -> bytes:
    """The first bytes of a journal, which no two share; none of one that is empty or missing."""
    try:
        with path.open("rb") as file:
            return file.read(HEAD)
    except FileNotFoundError:
        return b""
