"""What must outlive a machine: checkpoints, students and records, in a folder that all nodes see or in a bucket.

Names are relative and use slashes. A write is atomic: whoever reads finds the old content, the new one, or none.
"""

import functools
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from pyarrow import fs

from spaces import BadInput
from trainables.artefacts import write_atomically

logger = logging.getLogger(__name__)
Result = TypeVar("Result")
PATIENCE_S = 60.0  # a store that does not answer is asked again for so long


class Storage:
    """A folder or a bucket by its URI, such as /nfs/sweeps, s3://bucket/sweeps or gs://bucket/sweeps.

    It travels by its URI: credentials come from each node's own environment, as S3's and Google's clients read them.
    Raises BadInput for a URI that names no store. Every other method raises OSError where the store cannot be reached.
    """

    def __init__(self, uri: str | Path) -> None:
        self.uri = str(uri) if is_bucket(uri) else str(Path(uri).absolute())  # workers stand elsewhere
        self._fs, self._root = _opened(self.uri)

    @property
    def folder(self) -> Path | None:
        """Where it is a folder of this machine, or mounted here; None for a bucket."""
        return Path(self._root) if isinstance(self._fs, fs.LocalFileSystem) else None

    def write(self, name: str, content: bytes, patience: float = PATIENCE_S) -> None:
        folder = self.folder
        if folder is not None:
            write_atomically(folder / name, content)
            return

        def put() -> None:
            with self._fs.open_output_stream(f"{self._root}/{name}") as file:
                file.write(content)

        _patiently(put, f"{self.uri}: {name}", patience)

    def read(self, name: str) -> bytes:
        """Raises FileNotFoundError."""

        def get() -> bytes:
            with self._fs.open_input_file(f"{self._root}/{name}") as file:
                content: bytes = file.read()
            return content

        return _patiently(get, f"{self.uri}: {name}")

    def exists(self, name: str) -> bool:
        found: Any = _patiently(lambda: self._fs.get_file_info(f"{self._root}/{name}"), f"{self.uri}: {name}")
        return bool(found.type != fs.FileType.NotFound)

    def names(self, folder: str) -> list[str]:
        """The files in a folder, by their names in it, sorted; none where there is no such folder."""
        chosen = fs.FileSelector(f"{self._root}/{folder}", allow_not_found=True)
        found: Any = _patiently(lambda: self._fs.get_file_info(chosen), f"{self.uri}: {folder}")
        return sorted(info.base_name for info in found if info.type == fs.FileType.File)

    def remove(self, name: str) -> None:
        """Nothing where it is not there."""
        try:
            _patiently(lambda: self._fs.delete_file(f"{self._root}/{name}"), f"{self.uri}: {name}")
        except FileNotFoundError:
            return

    def __reduce__(self) -> Any:
        return Storage, (self.uri,)


def is_bucket(path: str | Path) -> bool:
    """Whether this names a store by a URI, not a folder."""
    return "://" in str(path)


@functools.lru_cache(maxsize=8)
def _opened(uri: str) -> tuple[Any, str]:
    if not is_bucket(uri):
        return fs.LocalFileSystem(), str(Path(uri).absolute())
    try:
        found, root = fs.FileSystem.from_uri(uri)
    except (ValueError, OSError, NotImplementedError) as error:  # pyarrow's own errors are subclasses of these
        raise BadInput(
            f"--storage {uri} names no store ({error}): give a folder that all nodes see, or a bucket as s3://... or "
            "gs://..."
        ) from None
    return found, root.rstrip("/")


def _patiently(what: Callable[[], Result], name: str, patience: float = PATIENCE_S) -> Result:
    """Try again, less and less often, while the store does not answer; what is not there is not waited for."""
    until, wait = time.monotonic() + patience, 0.5
    while True:
        try:
            return what()
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            raise
        except OSError as error:
            if time.monotonic() + wait > until or _is_refused(error):
                raise
            logger.warning("%s: %s; trying again", name, str(error).splitlines()[0])
            time.sleep(wait)
            wait = min(2 * wait, 10.0)


def _is_refused(error: OSError) -> bool:
    """What no patience mends."""
    return any(word in str(error) for word in ("ACCESS_DENIED", "NO_SUCH_BUCKET", "INVALID_ACCESS_KEY", "SIGNATURE"))
