"""Write one W&B run with wandb's own client, offline, and move it to its place once it is whole."""

import os
import shutil
import time
from pathlib import Path
from typing import Any

import wandb

from analysis.tracking.contents import Content, Files
from analysis.tracking.folders import PATTERN, Folders, Part
from analysis.tracking.wandb_file import count

# About 20 ms a run; saving the requirements of the process alone would take 140 more.
SETTINGS: dict[str, Any] = {
    "x_save_requirements": False,
    "x_disable_meta": True,
    "x_disable_stats": True,
    "x_disable_machine_info": True,
    "console": "off",
    "disable_git": True,
    "disable_code": True,
    "silent": True,
    "quiet": True,
}
CLOSED_S = 10.0  # for wandb-core to write what it was given
# Of a single run, and not for the hundreds of a sweep.
_OF_ONE_RUN = ("RUN_ID", "NAME", "RUN_GROUP", "JOB_TYPE", "NOTES", "RESUME", "SWEEP_ID", "DIR", "MODE")


class NotWritten(RuntimeError):
    """wandb lost what it was given: its process died, or the disk is full."""


def set_up(folders: Folders) -> None:
    """Before the first run: what wandb keeps beside its runs comes into the run folder, the user's is left alone."""
    for name in _OF_ONE_RUN:
        os.environ.pop(f"WANDB_{name}", None)
    os.environ |= {"WANDB_DATA_DIR": str(folders.path / "staging"), "WANDB_SILENT": "true"}
    os.environ["WANDB_CACHE_DIR"] = str(folders.path / "staging" / "cache")


def write(content: Content, folders: Folders, project: str, entity: str | None) -> None:
    """Write what of a run has not been uploaded. Raises NotWritten, or what wandb raises, with nothing left behind."""
    first = min(folders.rows_uploaded(content.id), len(content.rows))
    folders.partial.mkdir(parents=True, exist_ok=True)
    try:
        _write(content, first, folders, project, entity)
        (written,) = (folders.partial / "wandb").glob(PATTERN)
        file = written / f"run-{content.id}.wandb"
        expected = len(content.rows) - first + bool(content.tables), content.exit_code
        _wait_until(file, expected)
        part = Part(
            folder=folders.path / written.name,
            id=content.id,
            first=first,
            end=len(content.rows),
            final=content.final,
            digest=content.digest,
            size=file.stat().st_size,
            home=folders.home if content.files or content.tables else None,
        )
        folders.keep(written, part)
    finally:
        shutil.rmtree(folders.partial, ignore_errors=True)


def _wait_until(file: Path, expected: tuple[int, int]) -> None:
    """wandb-core closes the file a moment after the run has been finished."""
    until = time.monotonic() + CLOSED_S
    while True:
        try:
            found = count(file)
        except ValueError as error:
            why = str(error)
        else:
            if found == expected:
                return
            why = f"{file.name} holds {found[0]} rows and the exit code {found[1]}, not {expected}"
        if time.monotonic() > until:
            raise NotWritten(why)
        time.sleep(0.002)


def _write(content: Content, first: int, folders: Folders, project: str, entity: str | None) -> None:
    run = wandb.init(
        id=content.id,
        name=content.name,
        group=content.group,
        job_type=content.job_type,
        project=project,
        entity=entity,
        tags=content.tags,
        notes=content.notes or None,
        config=dict(content.config),
        dir=folders.partial,
        mode="offline",
        reinit="create_new",
        settings=wandb.Settings(**SETTINGS, x_update_finish_state=content.final),
    )
    run.define_metric("epoch")
    run.define_metric("*", step_metric="epoch")
    for row in content.rows[first:]:
        run.log(dict(row), step=int(row["epoch"]), commit=True)
    if content.tables:
        _log_tables(run, content)
    for files in content.files:
        run.log_artifact(_artifact(files), aliases=list(files.aliases))
    run.summary.update(dict(content.summary))
    run.finish(exit_code=content.exit_code)


def _log_tables(run: "wandb.Run", content: Content) -> None:
    logged: dict[str, Any] = {name: _table(*table) for name, table in content.tables.items()}
    for name, (table, label, value) in content.charts.items():
        if table in content.tables:
            logged[name] = wandb.plot.bar(_table(*content.tables[table]), label, value, title=name)
    run.log(logged, commit=True)


def _table(columns: list[str], rows: list[list[Any]]) -> "wandb.Table":
    return wandb.Table(columns=list(columns), data=rows, allow_mixed_types=True)


def _artifact(files: Files) -> "wandb.Artifact":
    artifact = wandb.Artifact(files.name, type=files.type, metadata=dict(files.about))
    for name, path in files.paths.items():
        artifact.add_file(str(path), name=name)
    return artifact


def staged(run: Path) -> Path:
    """Where files that are made for artefacts wait for them."""
    return run / "wandb" / "staging"
