"""Send what a run folder holds to a W&B server, with `wandb sync`, each row once.

`wandb sync` marks what it has sent, and appends a file to what the server has of its run. So a file whose upload was
broken off is not sent again: the server is asked how many rows it has, and the rest is written anew. It is asked that
of every file, since on a machine without a moment to spare files were marked of which no row had arrived.
"""

import os
import subprocess
import sys
import time
from collections.abc import Collection
from pathlib import Path

import wandb

from analysis.tracking.folders import STAGING, Folders, Part

ANSWER_S = 10  # to answer one request
BATCH = 200  # runs of one `wandb sync`
SYNC_S = 900.0  # for one batch: wandb tries again by itself for hours where the network is gone
ARRIVAL_S = 15.0  # for the server to count what it was sent


class NotUploaded(RuntimeError):
    """W&B cannot be reached, or did not take what it was sent."""


def refusal() -> str | None:
    """Why nothing can be uploaded now: no key, one that is refused, no network; else None."""
    try:
        wandb.Api(timeout=ANSWER_S)
    except wandb.errors.UsageError:
        return "there is no API key (set WANDB_API_KEY, or run `wandb login`)"
    except wandb.errors.Error as error:
        server = os.environ.get("WANDB_BASE_URL", "the W&B server")
        if "not logged in" in str(error) or "401" in str(error) or "403" in str(error):
            return f"{server} refuses the API key (check WANDB_API_KEY, or run `wandb login --relogin`)"
        return f"{server} cannot be reached"
    return None


def upload(folders: Folders, project: str, entity: str | None, log: Path) -> None:
    """Upload what has not been. What was broken off is cut to what has arrived, for the caller to write the rest of it.

    Raises NotUploaded where something is left.
    """
    interrupted = [p for p in folders.waiting() if p.interrupted]
    arrived = _rows_arrived({p.id for p in interrupted}, project, entity)
    for part in interrupted:
        folders.cut(part, min(part.end, arrived.get(part.id, 0)))
    parts = sorted(folders.waiting(), key=lambda p: p.folder.name)
    for at in range(0, len(parts), BATCH):
        batch = parts[at : at + BATCH]
        _sync(batch, project, entity, log)
        for part in _missing([p for p in batch if p.uploaded], project, entity):
            part.doubt()
    left = len(folders.waiting())
    if left:
        raise NotUploaded(f"{left} runs have not arrived whole; what `wandb sync` said is in {log}")


def _sync(parts: list[Part], project: str, entity: str | None, log: Path) -> None:
    command = [sys.executable, "-P", "-m", "wandb", "sync", "--yes", "--project", project]
    command += ["--entity", entity] if entity else []
    command += [str(p.folder) for p in parts]
    # With WANDB_DIR it would look there for the runs' files; without it, it makes a folder where it is called.
    environment = {name: value for name, value in os.environ.items() if name != "WANDB_DIR"}
    place = log.parent / STAGING
    with log.open("a", encoding="utf-8") as said:
        try:
            subprocess.run(command, cwd=place, env=environment, stdout=said, stderr=said, timeout=SYNC_S, check=False)
        except subprocess.TimeoutExpired:
            raise NotUploaded(f"`wandb sync` did not end within {SYNC_S:.0f} s") from None


def _missing(parts: list[Part], project: str, entity: str | None) -> list[Part]:
    """Those of which the server lacks rows, also after a while."""
    until = time.monotonic() + ARRIVAL_S
    while True:
        arrived = _rows_arrived({p.id for p in parts}, project, entity)
        parts = [p for p in parts if arrived.get(p.id, 0) < p.end]
        if not parts or time.monotonic() > until:
            return parts
        time.sleep(1)


def _rows_arrived(ids: Collection[str], project: str, entity: str | None) -> dict[str, int]:
    """{id: how many rows the server has of that run}, of those runs that it has."""
    arrived: dict[str, int] = {}
    try:
        api = wandb.Api(timeout=ANSWER_S)
        asked = sorted(ids)
        for at in range(0, len(asked), BATCH):
            named = {"name": {"$in": asked[at : at + BATCH]}}
            for run in api.runs(f"{entity or api.default_entity}/{project}", named, per_page=BATCH):
                arrived[run.id] = int(run._attrs["historyLineCount"] or 0)
    except (ValueError, LookupError):
        pass  # no such project: nothing has arrived
    except wandb.errors.Error as error:
        raise NotUploaded(f"W&B cannot be asked what it has: {error}") from None
    return arrived
