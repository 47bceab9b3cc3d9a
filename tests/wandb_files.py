"""What the `.wandb` files of a run folder hold, record by record, beside what the ledger says that they should."""

import json
import math
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from analysis.tracking.wandb_file import records
from search.ledger import Ledger
from spaces import load_study

OURS = "_"  # what wandb adds by itself begins with it


@dataclass
class Found:
    """A W&B run, of all of its files. rows: history as (step, values)."""

    files: list[Path] = field(default_factory=list)
    group: str = ""
    job_type: str = ""
    name: str = ""
    tags: tuple[str, ...] = ()
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    rows: list[tuple[int, dict[str, Any]]] = field(default_factory=list)
    artifacts: list[Any] = field(default_factory=list)
    exit_code: int | None = None


def read(run: Path) -> dict[str, Found]:
    """{id: W&B run} of everything under RUN/wandb."""
    found: dict[str, Found] = defaultdict(Found)
    for file in sorted((run / "wandb").glob("offline-run-*/*.wandb")):
        if not file.stat().st_size:
            continue
        id = file.stem.removeprefix("run-")
        told = found[id]
        told.files.append(file)
        for record in records(file):
            _enter(told, record)
    return dict(found)


def _enter(told: Found, record: Any) -> None:
    kind = record.WhichOneof("record_type")
    if kind == "run":
        told.group, told.job_type, told.name = record.run.run_group, record.run.job_type, record.run.display_name
        told.tags = tuple(record.run.tags)
        told.config |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
    elif kind == "config":
        told.config |= {item.key: json.loads(item.value_json) for item in record.config.update}
    elif kind == "summary":
        told.summary |= {_key(item): json.loads(item.value_json) for item in record.summary.update}
    elif kind == "history":
        values = {_key(item): json.loads(item.value_json) for item in record.history.item}
        told.rows.append((record.history.step.num, {k: v for k, v in values.items() if not k.startswith(OURS)}))
    elif kind == "artifact":
        told.artifacts.append(record.artifact)
    elif kind == "exit":
        told.exit_code = record.exit.exit_code


def _key(item: Any) -> str:
    return item.key or "/".join(item.nested_key)


def differences(run: Path, found: dict[str, Found] | None = None) -> list[str]:
    """Where the export of a finished sweep is not what its ledger holds, cell by cell; nothing where it is."""
    found = read(run) if found is None else found
    study = load_study(run / "study.yaml")
    wrong: list[str] = []
    with Ledger.open(run) as ledger:
        trials, ends, audits = ledger.trials(), ledger.ends(), ledger.audits()
        by_name = {f.name: f for f in found.values()}
        search = [f for f in found.values() if f.job_type == "search"]
        if sorted(f.name for f in search) != sorted(t.trial for t in trials):
            wrong.append(f"{len(search)} runs of trials, and {len(trials)} trials")
        for trial in trials:
            told, epochs = by_name.get(trial.trial), ledger.epochs(trial=trial.trial)
            if told is None:
                continue
            if {k: v for k, v in told.config.items() if k != "_wandb"} != trial.config:
                wrong.append(f"{trial.trial}: config {told.config}")
            if (told.group, told.exit_code) != (trial.arm, int(ends[trial.trial].how in ("diverged", "crashed"))):
                wrong.append(f"{trial.trial}: group {told.group}, exit code {told.exit_code}")
            if [step for step, _ in told.rows] != [e.epoch for e in epochs]:
                wrong.append(f"{trial.trial}: rows {[s for s, _ in told.rows]}, epochs {[e.epoch for e in epochs]}")
                continue
            for (_, row), epoch in zip(told.rows, epochs, strict=True):
                own = [a for a in audits if a["trial"] == trial.trial and a["epoch"] == epoch.epoch]
                wrong += [f"{trial.trial} epoch {epoch.epoch}: {w}" for w in _cells(row, epoch, own, study.val_metric)]
        for a in [a for a in audits if a["epoch"] == 0]:
            told = by_name[a["trial"]].summary if a["trial"] in by_name else {}
            for what in ("norm", "share", "cosine"):
                key = f"first_step/{a['term']}/{what}"
                if a[what] is not None and not _same(told.get(key), a[what]):
                    wrong.append(f"{a['trial']}: {key} is {told.get(key)}, not {a[what]}")
        seeds = [r for r in ledger.runs() if r.purpose != "reevaluation"]
        confirmed = [f for f in found.values() if f.job_type == "confirm"]
        if len(confirmed) != len(seeds):
            wrong.append(f"{len(confirmed)} runs of confirmed seeds, and {len(seeds)} seeds")
        held = sorted(_comparable({**f.rows[0][1], **_about(f.summary)}) for f in confirmed if len(f.rows) == 1)
        expected = sorted(
            _comparable(
                {"epoch": r.epochs} | {k: v for k, v in r.metrics.items() if v is not None}
                | {"arm": r.arm, "purpose": r.purpose, "fit": r.fit, "replicate": r.replicate}
            )
            for r in seeds
        )  # fmt: skip
        if held != expected:
            wrong.append("the rows of the confirmed seeds are not the ledger's")
        published = {a: d.published.value for a, d in study.arms.items() if d.published}
        levels = [f for f in found.values() if f.job_type == "published" and f.group != "teacher"]
        told_levels = {f.group: {v for _, row in f.rows for k, v in row.items() if k != "epoch"} for f in levels}
        if told_levels != {a: {v} for a, v in published.items()} or len(levels) != len(published):
            wrong.append(f"published: {told_levels}")
        if len([f for f in found.values() if f.job_type == "teacher"]) != len(ledger.teachers()):
            wrong.append("teachers")
    if len([f for f in found.values() if f.job_type == "study"]) != 1:
        wrong.append("not one run of the sweep")
    return wrong + [f"{id}: {len(f.files)} files" for id, f in found.items() if len(f.files) != 1]


def _cells(row: dict[str, Any], epoch: Any, audits: list[dict[str, Any]], val_metric: str) -> list[str]:
    expected = {"epoch": epoch.epoch, "seeds": epoch.seeds, "seconds": epoch.seconds}
    for name, values in epoch.metrics.items():
        if all(v is not None for v in values):
            expected[name] = math.fsum(values) / len(values)
            if len(values) > 1:
                spread = math.fsum((v - expected[name]) ** 2 for v in values) / (len(values) - 1)
                expected[f"{name}_se"] = math.sqrt(spread / len(values))
    for a in audits:
        for what in ("norm", "share", "cosine"):
            if a[what] is not None:
                expected[f"gradient/{a['term']}/{what}"] = a[what]
    wrong = [f"{k} is {row.get(k)}, not {v}" for k, v in expected.items() if not _same(row.get(k), v)]
    wrong += [f"{k} is too much" for k in row if k not in expected]
    if math.isfinite(epoch.score) and not _same(row.get(val_metric), epoch.score):
        wrong.append(f"{val_metric} is {row.get(val_metric)}, and the ledger's score {epoch.score}")
    return wrong


def _same(a: Any, b: Any) -> bool:
    return a == b or (isinstance(a, float | int) and isinstance(b, float | int) and math.isclose(a, b, rel_tol=1e-12))


def _about(summary: dict[str, Any]) -> dict[str, Any]:
    return {k: summary.get(k) for k in ("arm", "purpose", "fit", "replicate")}


def _comparable(values: dict[str, Any]) -> str:
    return json.dumps({k: float(v) if isinstance(v, int | float) else v for k, v in values.items()}, sort_keys=True)
