"""What lies on one node, brought to the others: a teacher's files once a node, however many trials run there."""

import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
from filelock import FileLock
from numpy.typing import NDArray

from search.shortage import FULL
from spaces import Study
from trainables import by_path
from trainables.cache import cache_folder

ROOM_S = 20.0  # for somebody to make room on a full disk
Files = Mapping[str, NDArray[np.uint8]]  # {path in the cache: content}


@dataclass(frozen=True)
class Parcel:
    """Folders of the cache, by their paths in it, and a reference to their `Files`, which is read where one lacks."""

    folders: tuple[str, ...]
    files: Any


@dataclass(frozen=True)
class Code:
    """The user's own files that a study names, {path: text} as they are on the driver's machine."""

    files: Mapping[str, str]

    @staticmethod
    def of(study: Study) -> "Code":
        paths = {text.rpartition(":")[0] for text in _texts(asdict(study))}
        files = [path for path in paths if path.endswith(".py") and Path(path).is_file()]
        return Code({path: Path(path).read_text(encoding="utf-8") for path in sorted(files)})


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _texts(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _texts(part)


def packed(folders: Sequence[str]) -> Files:
    """All files of these folders of this node's cache."""
    root = cache_folder()
    paths = [path for folder in folders for path in sorted((root / folder).rglob("*")) if path.is_file()]
    return {path.relative_to(root).as_posix(): np.fromfile(path, dtype=np.uint8) for path in paths}


def place(parcels: Sequence[Parcel | Code]) -> None:
    """Bring to this node what it lacks of them. Whoever comes second waits for the first."""
    root = cache_folder()
    for parcel in parcels:
        if isinstance(parcel, Code):
            by_path.bring(parcel.files)
            continue
        if all((root / folder).is_dir() for folder in parcel.folders):
            continue
        _with_patience(parcel, root)


def _with_patience(parcel: Parcel, root: Path) -> None:
    """Unpack what is missing. A full disk is waited for, or its node would be free at once for the next trial."""
    until = time.monotonic() + ROOM_S
    while True:
        try:
            root.mkdir(parents=True, exist_ok=True)
            with FileLock(root / "placing.lock"):
                missing = [folder for folder in parcel.folders if not (root / folder).is_dir()]
                if missing:
                    _unpack(ray.get(parcel.files), missing, root)
            return
        except OSError as error:
            if error.errno not in FULL or time.monotonic() > until:
                raise
        time.sleep(ROOM_S / 12)


def _unpack(files: Files, folders: Sequence[str], root: Path) -> None:
    for folder in folders:
        target = root / folder
        target.parent.mkdir(parents=True, exist_ok=True)
        new = Path(tempfile.mkdtemp(prefix=target.name, dir=target.parent))
        try:
            for name, content in files.items():
                if name.startswith(f"{folder}/"):
                    path = new / name.removeprefix(f"{folder}/")
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(content.data)  # numpy's tofile does not say that a disk is full
            os.rename(new, target)
        except BaseException:
            shutil.rmtree(new, ignore_errors=True)
            raise
