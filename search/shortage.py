"""What a machine has too little of, disk or memory: it is no fault of what was being done, which is done again."""

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path

from ray._private import serialization
from ray.exceptions import OutOfMemoryError, RayActorError, RayTaskError

FULL = (errno.ENOSPC, errno.EDQUOT)


class NodeFull(OSError):
    """The disk of the node that this ran on is full; another node may have room."""


@contextlib.contextmanager
def another_node_may_have_room() -> Iterator[None]:
    """Decorates a task: raises NodeFull for a full disk, at which Ray tries the task again."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise NodeFull(error.errno, error.strerror, error.filename) from error


def what_is_full(error: BaseException | None, run: Path) -> str | None:
    """One sentence where `error`, or what a worker met, is a full disk or a used up quota; None where it is not."""
    cause = error.cause if isinstance(error, RayTaskError) else error
    if not isinstance(cause, OSError) or cause.errno not in FULL:
        return None
    place = cause.filename or f"a file of {run} or of the cache"
    return f"{place} cannot be written ({cause.strerror}): free some space, and try again; what is finished is kept"


class NodeOutOfMemory(OutOfMemoryError, RayActorError):  # type: ignore[misc] # Ray's decorators hide their types
    """Ray has killed an actor, since its node's memory was nearly used up. message: its first line is kept."""

    def __init__(self, message: str) -> None:
        RayActorError.__init__(self, None, message.partition("\n")[0])
        OutOfMemoryError.__init__(self, self.error_msg)


@contextlib.contextmanager
def one_killed_for_memory_is_one_lost() -> Iterator[None]:
    """Makes Ray say that an actor is lost where it killed it for memory: at the error that it has for that Tune ends.

    Seen in Ray 2.60: its OutOfMemoryError is no RayActorError, which is all that Ray Tune expects of an actor.
    """
    serialization.OutOfMemoryError = NodeOutOfMemory
    try:
        yield
    finally:
        serialization.OutOfMemoryError = OutOfMemoryError


def is_out_of_memory(message: str) -> bool:
    """Whether this is how torch says that a GPU's memory was not enough."""
    return "OutOfMemoryError" in message or "out of memory" in message
