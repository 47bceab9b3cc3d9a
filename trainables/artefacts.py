"""Content-addressed artefacts: built once under a lock, checksummed, written atomically, never a pickle.

An artefact's address is a hash of its recipe and of the rows it was fitted on. It lies in `$DISTUNE_CACHE` (default:
the user's cache folder) as `<kind>/<key>/tensors.safetensors` beside `about.json`.
"""

import contextlib
import hashlib
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from trainables.cache import cache_folder

logger = logging.getLogger(__name__)
Build = Callable[[], tuple[dict[str, Tensor], dict[str, Any]]]


@dataclass(frozen=True)
class Artefact:
    """tensors by name; `fitted_on`: (n,) fingerprints of the rows it has seen; `about`: recipe, seconds, extras."""

    key: str
    tensors: dict[str, Tensor]
    fitted_on: NDArray[np.int64]
    about: dict[str, Any]


def build_once(kind: str, recipe: Mapping[str, Any], fitted_on: NDArray[np.int64], build: Build) -> Artefact:
    """The artefact of this recipe and these rows: read if it is there and intact, else built and stored.

    build: returns the tensors and what else to say about them in `about.json`. Whoever comes second waits for the
    first; a file whose checksum does not fit is built again.
    """
    folder = _folder(kind, recipe, fitted_on)
    key = folder.name
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(str(folder) + ".lock"):
        stored = _read(folder, key)
        if stored is not None:
            return stored
        start = time.perf_counter()
        tensors, extras = build()
        about = {"recipe": dict(recipe), "seconds": time.perf_counter() - start, **extras}
        _write(folder, tensors, fitted_on, about)
        return Artefact(key, tensors, fitted_on, about)


def reopen(kind: str, key: str) -> Artefact:
    """An artefact that was built before, by its key. Raises FileNotFoundError where it is not, or is not intact."""
    folder = cache_folder() / kind / key
    stored = _read(folder, key)
    if stored is None:
        raise FileNotFoundError(f"{folder} holds no intact artefact")
    return stored


def is_stored(kind: str, recipe: Mapping[str, Any], fitted_on: NDArray[np.int64]) -> bool:
    """Whether an artefact of this recipe and these rows lies in the cache; its checksum is not looked at."""
    return (_folder(kind, recipe, fitted_on) / "about.json").is_file()


def _folder(kind: str, recipe: Mapping[str, Any], fitted_on: NDArray[np.int64]) -> Path:
    text = json.dumps(recipe, sort_keys=True).encode()
    return cache_folder() / kind / hashlib.sha256(text + np.sort(fitted_on).tobytes()).hexdigest()[:20]


def _read(folder: Path, key: str) -> Artefact | None:
    try:
        about = json.loads((folder / "about.json").read_text())
        blob = (folder / "tensors.safetensors").read_bytes()
    except FileNotFoundError:
        return None
    except ValueError:
        about, blob = None, b""
    if not isinstance(about, dict) or about.get("sha256") != hashlib.sha256(blob).hexdigest():
        logger.warning("artefact %s does not fit its checksum and is built again", folder)
        return None
    tensors = load_tensors(blob)
    return Artefact(key, tensors, tensors.pop("fitted_on").numpy(), about)


def _write(folder: Path, tensors: Mapping[str, Tensor], fitted_on: NDArray[np.int64], about: dict[str, Any]) -> None:
    import torch

    blob = save_tensors({**tensors, "fitted_on": torch.from_numpy(fitted_on.copy())})
    about = {**about, "sha256": hashlib.sha256(blob).hexdigest()}
    new = Path(tempfile.mkdtemp(prefix=folder.name, dir=folder.parent))
    try:
        write_atomically(new / "tensors.safetensors", blob)
        write_atomically(new / "about.json", json.dumps(about, indent=1).encode())
        if folder.exists():
            shutil.rmtree(folder)
        new.rename(folder)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise


def write_atomically(path: Path, blob: bytes) -> None:
    """Write the file so that at any instant it is absent, the old one or the new one, whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=path.name, dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(blob)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
        raise
