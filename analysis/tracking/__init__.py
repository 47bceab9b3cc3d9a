"""A sweep in W&B: one exporter process follows the ledger and writes every run that it holds, exactly once.

`contents` says what each W&B run is to hold, `study_run` what that of the whole sweep is, `folders` which of them are
there; `writer` writes one with wandb's own client, `upload` sends them with `wandb sync`, `views` makes the workspace
and the report, and `exporter` is the process. This module is all that the face needs, and imports no wandb.
"""

import contextlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

from spaces import BadInput

Mode = Literal["offline", "online", "off"]
MODES = ("offline", "online", "off")
_OF_WANDB = {"disabled": "off", "dryrun": "offline", "run": "online", "shared": "online"}  # other names of WANDB_MODE
PROJECT_LENGTH = 128
LEAVE_AFTER_S = 20.0  # what is left to export of a sweep that was stopped waits for `distune wandb`


def chosen_mode(given: str | None) -> Mode:
    """What --wandb says, else WANDB_MODE, else `offline`, also where there is a key. Raises BadInput."""
    asked = given if given is not None else os.environ.get("WANDB_MODE") or "offline"
    for mode in MODES:
        if _OF_WANDB.get(asked, asked) == mode:
            return mode  # type: ignore[return-value]
    where = "--wandb" if given is not None else "WANDB_MODE"
    raise BadInput(f"{where} must be one of {', '.join(MODES)}, got {asked}")


def project_of(study: str) -> str:
    """WANDB_PROJECT, else the study's name in signs that W&B takes. Raises BadInput for one that W&B refuses."""
    given = os.environ.get("WANDB_PROJECT")
    if not given:
        return re.sub(r"[/\\#?%:\r\n]", "-", study)[:PROJECT_LENGTH]
    if re.search(r"[/\\#?%:\r\n]", given) or len(given) > PROJECT_LENGTH:
        raise BadInput(
            f"WANDB_PROJECT={given} is no name of a W&B project: at most {PROJECT_LENGTH} signs, without / \\ # ? % :"
        )
    return given


@contextlib.contextmanager
def following(run: Path, mode: Mode, say: Callable[[str], None]) -> Iterator[None]:
    """Export the run while the sweep goes on, in a process of its own, and what is left at its end.

    Nothing that happens to that process can stop the sweep: what goes wrong is said once, and `distune wandb` goes on.
    Raises BadInput, before anything starts, for a project that W&B would refuse.
    """
    if mode == "off":
        yield
        return
    project_of(run.name)
    exporter = _start(run, mode)
    listener = threading.Thread(target=_listen, args=(exporter, say), daemon=True)
    listener.start()
    whole = False
    try:
        yield
        whole = True
    finally:
        _end(exporter, listener, run, whole, say)


def export(run: Path, mode: Mode, say: Callable[[str], None]) -> bool:
    """Export all of the run that has not been yet, and wait for it; False if some of it could not be."""
    project_of(run.name)
    exporter = _start(run, mode)
    _tell(exporter, "export")
    with contextlib.suppress(KeyboardInterrupt):
        _listen(exporter, say)
    return exporter.wait() == 0


def _start(run: Path, mode: Mode) -> "subprocess.Popen[str]":
    root = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    command = "from analysis.tracking.exporter import main; main()"
    return subprocess.Popen(
        [sys.executable, "-P", "-c", command, str(run.absolute()), mode],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": path},
        start_new_session=True,  # Ctrl-C is for the sweep
    )


def _tell(exporter: "subprocess.Popen[str]", word: str) -> None:
    assert exporter.stdin is not None
    with contextlib.suppress(OSError):  # it has gone
        print(word, file=exporter.stdin, flush=True)


def _listen(exporter: "subprocess.Popen[str]", say: Callable[[str], None]) -> None:
    """Say what the exporter says, one JSON string a line."""
    assert exporter.stdout is not None
    for line in exporter.stdout:
        with contextlib.suppress(ValueError):
            say(f"W&B: {json.loads(line)}")


def _end(
    exporter: "subprocess.Popen[str]", listener: threading.Thread, run: Path, whole: bool, say: Callable[[str], None]
) -> None:
    assert exporter.stdin is not None
    _tell(exporter, "export")
    with contextlib.suppress(OSError):
        exporter.stdin.close() if not whole else None
    try:
        exporter.wait(None if whole else LEAVE_AFTER_S)
    except (KeyboardInterrupt, subprocess.TimeoutExpired):
        exporter.terminate()
        say(f"W&B: the export has not ended; go on with it: distune wandb {run}")
    listener.join(timeout=2)
    for pipe in (exporter.stdin, exporter.stdout):
        with contextlib.suppress(OSError):
            pipe.close()  # type: ignore[union-attr]
