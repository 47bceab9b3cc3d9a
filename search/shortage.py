"""What a machine has too little of, disk or GPU memory: it is no fault of what was being done, which is done again."""

import errno
from pathlib import Path

from ray.exceptions import RayTaskError

FULL = (errno.ENOSPC, errno.EDQUOT)


def what_is_full(error: BaseException | None, run: Path) -> str | None:
    """One sentence where `error`, or what a worker met, is a full disk or a used up quota; None where it is not."""
    cause = error.cause if isinstance(error, RayTaskError) else error
    if not isinstance(cause, OSError) or cause.errno not in FULL:
        return None
    place = cause.filename or f"a file of {run}"
    return f"{place} cannot be written ({cause.strerror}): free some space, and try again; what is finished is kept"


def is_out_of_memory(message: str) -> bool:
    """Whether this is how torch says that a GPU's memory was not enough."""
    return "OutOfMemoryError" in message or "out of memory" in message
