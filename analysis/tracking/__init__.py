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
BEGUN_AGAIN = 20  # times that an exporter that was killed is begun again, of one sweep
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
def following(run: Path, mode: Mode, say: Callable[[str], None]) -> Iterator[Callable[[], None]]:
    """Export the run while the sweep goes on, in a process of its own, and what is left at its end.

    Call what comes back when no more is to come, if there is something else to do until the export has ended. Nothing
    that happens to that process can stop the sweep: what goes wrong is said once, and `distune wandb` goes on. Raises
    BadInput, before anything starts, for a project that W&B would refuse.
    """
    if mode == "off":
        yield lambda: None
        return
    project_of(run.name)
    exporter = _Exporter(run, mode, say)
    try:
        yield exporter.no_more_comes
    except BadInput:  # nothing was begun, and what may lie there is another's
        exporter.leave()
        raise
    except BaseException:
        exporter.finish(LEAVE_AFTER_S)
        raise
    exporter.finish(None)


def export(run: Path, mode: Mode, say: Callable[[str], None]) -> bool:
    """Export all of the run that has not been yet, and wait for it; False if some of it could not be."""
    project_of(run.name)
    return _Exporter(run, mode, say).finish(None)


class _Exporter:
    """The process, begun again where it was killed, and what it says, one JSON string a line."""

    def __init__(self, run: Path, mode: Mode, say: Callable[[str], None]) -> None:
        self._run, self._mode, self._say = run, mode, say
        self._no_more = self._killed = False
        self._process = self._start()
        self._watching = threading.Thread(target=self._watch, daemon=True)
        self._watching.start()

    def finish(self, seconds: float | None) -> bool:
        """Let it export what is left; False if that could not be done, or not in so many seconds."""
        self.no_more_comes()
        with contextlib.suppress(KeyboardInterrupt):
            self._watching.join(seconds)
        if self._watching.is_alive():
            self._say(f"W&B: the export has not ended; go on with it: distune wandb {self._run}")
        return self.leave() == 0

    def leave(self) -> int:
        """End it where it is; its exit status."""
        self._no_more, self._killed = True, True
        self._process.terminate()
        self._watching.join(5)
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):
                pipe.close()  # type: ignore[union-attr]
        return self._process.wait()

    def _start(self) -> "subprocess.Popen[str]":
        root = str(Path(__file__).resolve().parents[2])
        path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
        command = "from analysis.tracking.exporter import main; main()"
        return subprocess.Popen(
            [sys.executable, "-P", "-c", command, str(self._run.absolute()), self._mode],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": path},
            start_new_session=True,  # Ctrl-C is for the sweep
        )

    def no_more_comes(self) -> None:
        """Let it make what comes last: the sweep's own run, the workspace and the report."""
        self._no_more = True
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):  # it has gone
            print("export", file=self._process.stdin, flush=True)

    def _watch(self) -> None:
        for again in range(BEGUN_AGAIN + 1):
            assert self._process.stdout is not None
            for line in self._process.stdout:
                with contextlib.suppress(ValueError):
                    self._say(f"W&B: {json.loads(line)}")
            if self._process.wait() >= 0 or self._killed or again == BEGUN_AGAIN:
                return
            if not again:
                self._say("W&B: the exporter was killed; another goes on from where it stood")
            self._process = self._start()
            if self._no_more:
                self.no_more_comes()
