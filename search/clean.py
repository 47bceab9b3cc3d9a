"""Free what a run folder holds beyond its ledger, its study and its students: all of it can be made again."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from search.ledger import Ledger
from search.lock import driving

PROJECTION = "optuna.*"  # views of the ledger, made again by `distune dashboard`


@dataclass(frozen=True)
class Part:
    """Something to delete: what it is, where, and how large (bytes on the disk)."""

    what: str
    paths: tuple[Path, ...]
    size: int


def clean(run: Path, dry_run: bool = False) -> list[Part]:
    """Delete Ray's folders of trials, checkpoints of trials that have ended, and projections; returns what they were.

    What an unfinished sweep resumes from stays. Raises NotALedger for a folder that is no run, BadInput for one that a
    process works on.
    """
    with Ledger.open(run) as ledger, driving(run):
        ended, finished = ledger.ends(), ledger.finished
        kept = run / "ray" / "checkpoints"
        checkpoints = [p for p in sorted(kept.glob("*")) if finished or p.name in ended or p.is_file()]
        parts = [
            _part("Ray's folders of trials", [run / "ray" / "search"]),
            _part("checkpoints of trials that have ended", [kept] if finished else checkpoints),
            _part("Optuna's view of the sweep", sorted(run.glob(PROJECTION))),
        ]
        found = [part for part in parts if part.paths]
        for path in (path for part in found for path in part.paths if not dry_run):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
    return found


def _part(what: str, paths: list[Path]) -> Part:
    there = tuple(path for path in paths if path.exists())
    return Part(what, there, sum(_size(path) for path in there))


def _size(path: Path) -> int:
    """Bytes on the disk, of a folder with all that is in it."""
    files = [path, *path.rglob("*")] if path.is_dir() else [path]
    return sum(file.lstat().st_blocks * 512 for file in files)
