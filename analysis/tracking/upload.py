"""Send what a run folder holds to a W&B server, with `wandb sync`, each row once.

`wandb sync` marks what it has sent, and appends a file to what the server has of its run. So a file whose upload was
broken off is not sent again: the server is asked how many rows it has, and the rest is written anew.
"""

import os
import subprocess
import sys
from pathlib import Path

import wandb

from analysis.tracking.folders import Folders, Part

ANSWER_S = 10  # to answer one request
BATCH = 200  # runs of one `wandb sync`
SYNC_S = 900.0  # for one batch: wandb tries again by itself for hours where the network is gone


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

    Raises NotUploaded where something is left that could be sent.
    """
    for part in [p for p in folders.waiting() if p.interrupted]:
        folders.cut(part, min(part.end, _rows_arrived(part, project, entity)))
    parts = sorted(folders.waiting(), key=lambda p: p.folder.name)
    for at in range(0, len(parts), BATCH):
        _sync(parts[at : at + BATCH], project, entity, log)
    left = len([p for p in folders.waiting() if not p.interrupted])
    if left:
        raise NotUploaded(f"{left} runs were not uploaded; what `wandb sync` said is in {log}")


def _sync(parts: list[Part], project: str, entity: str | None, log: Path) -> None:
    command = [sys.executable, "-P", "-m", "wandb", "sync", "--yes", "--project", project]
    command += ["--entity", entity] if entity else []
    with log.open("a", encoding="utf-8") as said:
        try:
            subprocess.run(
                [*command, *(str(p.folder) for p in parts)], stdout=said, stderr=said, timeout=SYNC_S, check=False
            )
        except subprocess.TimeoutExpired:
            raise NotUploaded(f"`wandb sync` did not end within {SYNC_S:.0f} s") from None


def _rows_arrived(part: Part, project: str, entity: str | None) -> int:
    """How many rows of the part's W&B run the server has."""
    try:
        api = wandb.Api(timeout=ANSWER_S)
        return int(api.run(f"{entity or api.default_entity}/{project}/{part.id}")._attrs["historyLineCount"] or 0)
    except (ValueError, LookupError):
        return 0  # no such run: nothing has arrived
    except wandb.errors.Error as error:
        raise NotUploaded(f"W&B cannot be asked what it has: {error}") from None
