"""A function in a user's file, named as `path/to/file.py:function` and loaded by path, so that no two names meet."""

import hashlib
import importlib.util
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainables.cache import cache_folder
from trainables.names import nearest

_brought: dict[str, str] = {}  # the text of files that lie on another machine, by their paths there


class Unloadable(ValueError):
    """The file or the function in it cannot be used; the message is one line."""


def load(source: str) -> Any:
    """The function `path/to/file.py:function`; its file is run anew.

    Raises Unloadable for a file that does not exist or cannot be run, with the line at fault, and for a function that
    it does not define.
    """
    path, _, name = source.rpartition(":")
    names = namespace(path)
    found = names.get(name)
    if not callable(found):
        known = [n for n, v in names.items() if callable(v) and getattr(v, "__module__", "") == names["__name__"]]
        raise Unloadable(f"{path} has no function {name}{nearest(name, known)}: it has {', '.join(known) or 'none'}")
    return found


def bring(files: Mapping[str, str]) -> None:
    """From now on these paths are of these files, {path: text}, whatever lies there on this machine."""
    _brought.update(files)


def namespace(path: str) -> dict[str, Any]:
    """Every name that the file defines. Raises Unloadable as `load` does."""
    path = str(located(path))
    if not Path(path).is_file():
        raise Unloadable(f"{path}: no such file")
    name = "distune_own_" + hashlib.blake2b(path.encode(), digest_size=6).hexdigest()
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise Unloadable(f"{place(error, path)}: {described(error)}") from error
    return vars(module)


def located(path: str) -> Path:
    """Where the file lies on this machine: at its path, or where it was brought to."""
    return _written_here(path) if path in _brought and not _is_here(path) else Path(path)


def _is_here(path: str) -> bool:
    """Whether the file lies here, too, as it is there; then what lies beside it may be read."""
    try:
        return Path(path).read_text(encoding="utf-8") == _brought[path]
    except OSError:
        return False


def _written_here(path: str) -> Path:
    text = _brought[path]
    key = hashlib.blake2b(f"{path}\n{text}".encode(), digest_size=10).hexdigest()
    file = cache_folder() / "code" / key / Path(path).name
    if not file.is_file():
        from trainables.artefacts import write_atomically  # which needs torch, and a user's file mostly does

        write_atomically(file, text.encode())
    return file


def place(error: BaseException, path: str) -> str:
    """`file:line` where the error arose in this file, as deep as it goes, or the file alone."""
    if isinstance(error, SyntaxError) and error.filename == path:
        return f"{path}:{error.lineno}"
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if Path(f.filename) == Path(path)]
    return f"{path}:{lines[-1]}" if lines else path


def described(error: BaseException) -> str:
    """The kind and the first line of an error's message."""
    text = next(iter(str(error).strip().splitlines()), "")
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
