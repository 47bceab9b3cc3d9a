"""What a machine has too little of, disk or memory: it is no fault of what was being done, which is done again."""

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ray.air.execution._internal import RayActorManager
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


class NodeOutOfMemory(RayActorError):  # type: ignore[misc] # Ray's decorators hide its type
    """Ray has killed an actor, since the memory of its node was nearly used up."""


@contextlib.contextmanager
def one_killed_for_memory_is_one_lost() -> Iterator[None]:
    """Ray Tune ends all trials at the OutOfMemoryError of one; in here it takes it for the loss of that one's worker.

    Seen in Ray 2.60: its manager of actors knows two kinds of errors, and raises at others.
    """
    failed = RayActorManager._actor_task_failed

    def taken_for_lost(manager: RayActorManager, tracked_actor_task: Any, exception: Exception) -> None:
        if isinstance(exception, OutOfMemoryError):
            exception = NodeOutOfMemory(None, str(exception).partition("\n")[0])
        failed(manager, tracked_actor_task, exception)

    RayActorManager._actor_task_failed = taken_for_lost
    try:
        yield
    finally:
        RayActorManager._actor_task_failed = failed


def is_out_of_memory(message: str) -> bool:
    """Whether this is how torch says that a GPU's memory was not enough."""
    return "OutOfMemoryError" in message or "out of memory" in message
