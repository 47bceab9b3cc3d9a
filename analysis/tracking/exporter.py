"""The process that exports a run folder to W&B: it follows the ledger, and ends with the process that began it.

It reads one word from its standard input: `export` means that no more is to come, its end that the parent has died.
What somebody should know goes to standard output, one JSON string a line; all else to RUN/wandb/exporter.log.
"""

import contextlib
import json
import os
import select
import shutil
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

import filelock

from analysis.tracking import project_of
from analysis.tracking.contents import TEACHER, Content, Contents, Files
from analysis.tracking.folders import FOLDER, SAVED_VIEWS, STAGING, Folders
from search.ledger import FILE, Ledger
from spaces import load_study
from trainables.cache import cache_folder

FOLLOW_S = 2.0  # between two looks at the ledger
LIVE_S = 60.0  # between two exports of a trial that is running
UPLOAD_S = 20.0  # between two uploads while the sweep goes on
ATTEMPTS = 6  # to write what could not be, with a new process of wandb's each, before it is left to `distune wandb`
FULL = 16 * 1024  # bytes left on a disk on which nothing can be written
LOCK, LOG = "exporter.lock", "exporter.log"
# What this process tells itself where it begins again: how often it has in vain, what it has been told and has said.
TRIES, ENDED, OFFLINE, SAID = (f"DISTUNE_WANDB_{name}" for name in ("TRIES", "ENDED", "OFFLINE", "SAID"))


class Exporter:
    """One run folder's export. Raises whatever wandb raises; `main` begins again then."""

    def __init__(self, run: Path, mode: str) -> None:
        from analysis.tracking import upload, writer

        self.run, self.online = run, mode == "online"
        self.ledger = Ledger.open(run)
        self.study = load_study(run / "study.yaml")
        self.contents = Contents(self.study, self.ledger)
        self.folders = Folders(run)
        self.project, self.entity = project_of(self.study.name), os.environ.get("WANDB_ENTITY") or None
        self._write, self._upload = writer.write, upload.upload
        self._ends, self._seed = 0, 0  # how much of the ledger is exported
        self._lived: dict[str, float] = {}  # when a running trial was last exported
        self._uploaded = time.monotonic()
        self._revisions = len(self.ledger.revisions())
        self._judgement = ""

    def update(self, last: bool) -> Iterator[None]:
        """Export what is new; comes back after every run. last: also what is not at its end, and the sweep's run."""
        self._see_revision()
        for content in self._due(last):
            self._write(content, self.folders, self.project, self.entity)
            yield
        if last:
            self._judgement = _in_a_process(
                "study_run import main; main", str(self.run), self.project, self.entity or ""
            )
            self.folders = Folders(self.run)
        if self.online and (last or time.monotonic() > self._uploaded + UPLOAD_S):
            cut = self._send()
            if cut and last:
                yield from self.update(last)
                return
        if self.online and last:
            self._save_views()

    def _see_revision(self) -> None:
        """`distune extend` may have changed the study since."""
        revisions = len(self.ledger.revisions())
        if revisions != self._revisions:
            self._revisions = revisions
            self.study = load_study(self.run / "study.yaml")
            self.contents = Contents(self.study, self.ledger)

    def _due(self, last: bool) -> Iterator[Content]:
        """What is to be written; each counts as done once the next is asked for."""
        yield from self._ended_trials()
        yield from self._running_trials(last)
        for run in self.ledger.runs(after=self._seed):
            if run.purpose != "reevaluation" and not self.folders.holds(self.contents.id_of_seed(run)):
                yield self.contents.of_seed(run)
            self._seed = run.row
        yield from (content for content in self.contents.published() if not self.folders.holds(content.id))
        if last or self.ledger.labels("test") is not None:  # what a teacher says of the test rows is known then
            for teacher in self.ledger.teachers():
                if not self.folders.holds(self.contents.id(TEACHER, teacher["fit"], teacher["teacher_set"])):
                    yield self.contents.of_teacher(teacher, _files_of_teacher(teacher["artefact"]))

    def _ended_trials(self) -> Iterator[Content]:
        ends = self.ledger.ends(self._ends)
        asked = {t.trial: t for t in self.ledger.trials()} if ends else {}
        for name, end in ends.items():
            if not self.folders.holds(self.contents.id(name)):
                yield self.contents.of_trial(asked[name], end)
            self._lived.pop(name, None)
            self._ends += 1

    def _running_trials(self, last: bool) -> Iterator[Content]:
        ended = self.ledger.ends()
        for trial in self.ledger.trials():
            if trial.trial in ended:
                continue
            since = self._lived.setdefault(trial.trial, time.monotonic())
            if last or time.monotonic() > since + LIVE_S:
                self._lived[trial.trial] = time.monotonic()
                content = self.contents.of_trial(trial, None)
                if content.rows and self.folders.differs(content.id, content.digest):
                    yield content

    def _save_views(self) -> None:
        """The workspace and the report on the server. The runs are there without them."""
        given = (str(self.run), self.project, self.entity or "")
        try:
            _in_a_process("views import save; save", *given, given=self._judgement)
        except RuntimeError as error:
            with contextlib.suppress(OSError):
                traceback.print_exc()
            why = str(error).strip().splitlines()[-1]
            _say(f"the workspace and the report could not be saved: {why}")
            return
        saved = json.loads((self.run / FOLDER / SAVED_VIEWS).read_text(encoding="utf-8"))
        _say("workspace {}, report {}".format(*saved["urls"]))

    def _send(self) -> bool:
        """Upload what is written; whether some of it had been broken off, the rest of which is due again."""
        broken_off = any(part.interrupted for part in self.folders.waiting())
        self._upload(self.folders, self.project, self.entity, self.run / FOLDER / LOG)
        self._uploaded = time.monotonic()
        if broken_off:
            self._ends = self._seed = 0
        return broken_off

    @property
    def counted(self) -> str:
        runs = len(self.folders.parts)
        left = len(self.folders.waiting())
        where = f"{runs} runs in {self.run / FOLDER}"
        if not self.online:
            return f"{where} (offline); upload them with: distune wandb {self.run} --online"
        return (
            f"{where}, all uploaded" if not left else f"{where}, {left} not uploaded; again: distune wandb {self.run}"
        )


def _files_of_teacher(artefact: str) -> Files | None:
    """The teacher's weights, if the cache of this machine has them."""
    paths = {p.name: p for p in sorted(cache_folder().glob(f"*/{artefact}/*")) if p.is_file()}
    return Files(f"teacher-{artefact}", "model", paths, ("as-published",)) if paths else None


def _in_a_process(what: str, *arguments: str, given: str = "") -> str:
    """What a function of this package prints, in a process that goes again: this one shall stay small."""
    command = [sys.executable, "-P", "-c", f"from analysis.tracking.{what}()", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, input=given)
    if done.returncode:
        raise RuntimeError(f"{what} failed: {done.stderr[-2000:]}")
    return done.stdout


class _Parent:
    """The process that began this one: whether it lives, and whether it has said that no more is to come.

    What it said is remembered where this process begins again.
    """

    ended, dead = False, False

    def __init__(self) -> None:
        self.ended = bool(os.environ.get(ENDED))

    def listen(self, seconds: float) -> None:
        """Wait for news from it, or for so many seconds."""
        if self.dead or (self.ended and seconds == 0):
            time.sleep(seconds)
        elif select.select([0], [], [], seconds)[0]:
            word = os.read(0, 64)
            self.ended = self.ended or bool(word)
            self.dead = not word
            if self.ended:
                os.environ[ENDED] = "1"


def main() -> None:
    """Follow the run folder `sys.argv[1]` in the mode `sys.argv[2]`."""
    run, mode = Path(sys.argv[1]), sys.argv[2]
    parent = _Parent()
    _give_way()
    while not (run / FILE).exists():
        parent.listen(FOLLOW_S / 4)
        if parent.dead or parent.ended:
            return
    (run / FOLDER).mkdir(exist_ok=True)
    _set_up_wandb(run / FOLDER / STAGING)
    with (run / FOLDER / LOG).open("a", encoding="utf-8") as log, filelock.FileLock(run / FOLDER / LOCK):
        os.dup2(log.fileno(), 2)
        try:
            exporter = Exporter(run, _mode(mode))
            _follow(exporter, parent)
        except Exception as error:
            with contextlib.suppress(OSError):  # the log may lie on the disk that is full
                traceback.print_exc()
                sys.stderr.flush()
            _begin_again(run / FOLDER, error, parent)
            sys.exit(1)


def _give_way() -> None:
    """Run, with all that is begun from here, on what the sweep leaves idle.

    Linux shares the processor between sessions first, and this one has a session of its own.
    """
    os.nice(19)
    with contextlib.suppress(OSError):
        Path("/proc/self/autogroup").write_text("19")
    if hasattr(os, "SCHED_IDLE"):
        with contextlib.suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


def _set_up_wandb(staging: Path) -> None:
    """What wandb keeps beside its runs comes into the run folder; what is of a single run is not for hundreds."""
    for name in ("RUN_ID", "NAME", "RUN_GROUP", "JOB_TYPE", "NOTES", "RESUME", "SWEEP_ID", "MODE"):
        os.environ.pop(f"WANDB_{name}", None)
    os.environ["WANDB_SILENT"] = "true"
    for name in ("DIR", "DATA_DIR", "CACHE_DIR"):
        os.environ[f"WANDB_{name}"] = str(staging)
    staging.mkdir(exist_ok=True)


def _follow(exporter: Exporter, parent: _Parent) -> None:
    while True:
        last = parent.ended
        for _ in exporter.update(last):
            os.environ.pop(TRIES, None)  # it gets on
            parent.listen(0)
            if parent.dead:
                return
        if last:
            _say(exporter.counted)
            return
        parent.listen(FOLLOW_S)
        if parent.dead:
            return


def _mode(asked: str) -> str:
    """`online` only where something can be uploaded; where it cannot, that is said once."""
    if asked != "online" or os.environ.get(OFFLINE):
        return "offline"
    from analysis.tracking.upload import refusal

    why = refusal()
    if why is None:
        return "online"
    _say(f"{why}: this export is offline; upload it later with `distune wandb RUN --online`")
    os.environ[OFFLINE] = "1"
    return "offline"


def _begin_again(run: Path, error: Exception, parent: _Parent) -> None:
    """After a wait, with wandb's processes new. Comes back where that has been in vain and nothing more is to come."""
    tries = int(os.environ.get(TRIES, "0")) + 1
    if not os.environ.get(SAID):
        os.environ[SAID] = "1"
        text = (str(error).strip().splitlines() or [type(error).__name__])[-1][:300]
        if shutil.disk_usage(run).free < FULL:
            text = f"no room is left on the disk of {run}"
        _say(f"{text}; the sweep is not touched by this, and the export is tried again (see {FOLDER}/{LOG})")
    if parent.ended and tries >= ATTEMPTS:
        _say("the export could not be finished; try again with `distune wandb RUN`")
        return
    until = time.monotonic() + min(2.0**tries, 60.0)
    while time.monotonic() < until and not parent.dead and not (parent.ended and tries > 1):
        parent.listen(max(0.0, min(1.0, until - time.monotonic())))
    if parent.dead:
        return
    closing = threading.Thread(target=_close_wandb, daemon=True)
    closing.start()
    closing.join(5)
    os.environ[TRIES] = str(tries)
    os.execv(sys.executable, sys.orig_argv)


def _close_wandb() -> None:
    import wandb

    wandb.teardown(exit_code=1)


def _say(text: str) -> None:
    with contextlib.suppress(BrokenPipeError):  # nobody listens any more
        os.write(1, f"{json.dumps(text)}\n".encode())
