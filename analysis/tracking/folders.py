"""Which W&B runs a run folder holds. `RUN/wandb/offline-run-*` are whole: each is written elsewhere and moved there.

A W&B run may lie in several folders: what was uploaded stays as it is, and what came after goes into a new one, which
`wandb sync` appends. Of what was not uploaded there is one folder, written anew when there is more to say.
"""

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

FOLDER, PARTIAL, STAGING, NOTE = "wandb", ".partial", "staging", "distune.json"
PATTERN = "offline-run-*"
WORKSPACE, REPORT, SAVED_VIEWS = "workspace.json", "report.json", "saved_views.json"


@dataclass(frozen=True)
class Part:
    """One folder of a W&B run: rows `first` to `end` of its history. size: bytes of its .wandb file.

    final: whether nothing comes after it. home: where the run folder was, for a part that names files in it.
    """

    folder: Path
    id: str
    first: int
    end: int
    final: bool
    digest: str
    size: int
    home: str | None = None

    @property
    def file(self) -> Path:
        return self.folder / f"run-{self.id}.wandb"

    @property
    def uploaded(self) -> bool:
        return self._synced.exists()

    @property
    def interrupted(self) -> bool:
        """Whether an upload began and was not finished, so that nobody here knows how much of it has arrived."""
        return not self.uploaded and self._begun.exists()

    def doubt(self) -> None:
        """What was marked as sent has not arrived whole: it counts as interrupted."""
        self._begun.touch()
        self._synced.unlink()

    @property
    def _synced(self) -> Path:
        return self.file.with_name(f"{self.file.name}.synced")

    @property
    def _begun(self) -> Path:
        return self.file.with_name(f"{self.file.name}.syncstate")


class Folders:
    """The parts under RUN/wandb, by id. What is damaged or left half written is deleted: the ledger has it."""

    def __init__(self, run: Path) -> None:
        self.path, self.home = run / FOLDER, str(run.resolve())
        self.partial = self.path / PARTIAL
        self.parts: dict[str, list[Part]] = {}
        shutil.rmtree(self.partial, ignore_errors=True)
        for part in sorted(self._read(), key=lambda p: (p.first, p.end)):
            self._add(part)

    def _read(self) -> Iterator[Part]:
        for folder in self.path.glob(PATTERN):
            try:
                part = Part(folder, **json.loads((folder / NOTE).read_text(encoding="utf-8")))
                fit = part.uploaded or part.file.stat().st_size == part.size
            except (OSError, ValueError, TypeError):
                fit = False
            if not fit or (not part.uploaded and part.home not in (None, self.home)):
                shutil.rmtree(folder, ignore_errors=True)
            else:
                yield part

    def _add(self, part: Part) -> None:
        """The newest of what was not uploaded replaces the others: a crash may have left the one before it too."""
        known = self.parts.setdefault(part.id, [])
        for other in [p for p in known if not p.uploaded]:
            known.remove(other)
            shutil.rmtree(other.folder, ignore_errors=True)
        known.append(part)

    def rows_uploaded(self, id: str) -> int:
        return max((p.end for p in self.parts.get(id, ()) if p.uploaded), default=0)

    def last(self, id: str) -> Part | None:
        known = self.parts.get(id)
        return known[-1] if known else None

    def holds(self, id: str) -> bool:
        """Whether all of a run is there that will never change."""
        last = self.last(id)
        return last is not None and last.final

    def differs(self, id: str, digest: str) -> bool:
        """Whether what was written last of a run is not this."""
        last = self.last(id)
        return last is None or last.digest != digest

    def keep(self, written: Path, part: Part) -> None:
        """Move a run that was written whole to its place; what it replaces goes after it has come."""
        self._note(written, part)
        os.rename(written, part.folder)
        self._add(part)

    def waiting(self) -> list[Part]:
        """What has not been uploaded."""
        return [p for parts in self.parts.values() for p in parts if not p.uploaded]

    def cut(self, part: Part, end: int) -> None:
        """Of a part whose upload was broken off, the rows before `end` have arrived, and the rest is to be written.

        What is left of it counts as uploaded and not as final; its file, which nobody may send again, goes.
        """
        left = replace(part, end=max(part.first, end), final=False, size=0)
        self._note(part.folder, left)
        left.file.write_bytes(b"")
        left._synced.touch()
        self.parts[part.id].remove(part)
        self.parts[part.id].append(left)

    def _note(self, folder: Path, part: Part) -> None:
        note = {k: v for k, v in asdict(part).items() if k != "folder"}
        (folder / NOTE).write_text(json.dumps(note), encoding="utf-8")
