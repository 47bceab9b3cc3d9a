"""What a `.wandb` file holds: a LevelDB log (7 bytes of header, blocks of 32 KiB) of wandb's `Record` messages.

wandb-core writes it in a process of its own, and says nothing when the disk is full or it is killed: so each file is
read back before it counts as exported.
"""

from collections.abc import Iterator
from pathlib import Path

from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]  # generated, without types

HEADER, BLOCK, FRAGMENT = 7, 32768, 7  # bytes
FULL, LAST = 1, 4


def records(path: Path) -> Iterator[Record]:
    """The records in their order. Raises ValueError where the file is cut off or no such file."""
    data = path.read_bytes()
    if data[:4] != b":W&B":
        raise ValueError(f"{path} is no .wandb file")
    at, whole = HEADER, b""
    while at < len(data):
        left = BLOCK - at % BLOCK
        if left < FRAGMENT:  # the rest of a block, too small for a fragment, is empty
            at += left
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        fragment = data[at + FRAGMENT : at + FRAGMENT + length]
        if len(fragment) < length or not FULL <= kind <= LAST:
            raise ValueError(f"{path} is cut off at {at} bytes")
        whole += fragment
        at += FRAGMENT + length
        if kind in (FULL, LAST):
            yield Record.FromString(whole)
            whole = b""


def count(path: Path) -> tuple[int, int | None]:
    """(rows of history, exit code or None where the run has not ended). Raises ValueError as `records` does."""
    rows, code = 0, None
    for record in records(path):
        kind = record.WhichOneof("record_type")
        rows += kind == "history"
        if kind == "exit":
            code = record.exit.exit_code
    return rows, code
