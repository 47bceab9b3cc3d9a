"""What each W&B run is to hold: a projection of the ledger, row for row.

Config is what was searched, flat and named as in the study, and nothing else. A row of history is an epoch: seed means,
each with its standard error as `<metric>_se`, and at audited epochs `gradient/<term>/norm`, `share` and `cosine`.
"""

import hashlib
import json
import math
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from search.ledger import EndRecord, EpochRecord, Ledger, RunRecord, TrialRecord
from search.selection import NEVER_WINS
from spaces import Study

SEARCH, CONFIRM, PUBLISHED, TEACHER, STUDY = "search", "confirm", "published", "teacher", "study"
TAG_LENGTH = 64  # what W&B takes
Row = dict[str, Any]


@dataclass(frozen=True)
class Files:
    """An artefact. paths: {name in it: file}."""

    name: str
    type: str
    paths: Mapping[str, Path]
    aliases: tuple[str, ...]
    about: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Content:
    """What one W&B run is to hold.

    rows: history in its order, each with its step under `epoch`. final: whether nothing comes after them.
    tables: {name: (columns, rows)}; charts: {name: (table, label, value)}, bars over one of them.
    """

    id: str
    name: str
    group: str
    job_type: str
    tags: tuple[str, ...]
    config: Mapping[str, Any]
    rows: Sequence[Row]
    summary: Mapping[str, Any]
    exit_code: int = 0
    final: bool = True
    notes: str = ""
    files: tuple[Files, ...] = ()
    tables: Mapping[str, tuple[list[str], list[list[Any]]]] = field(default_factory=dict)
    charts: Mapping[str, tuple[str, str, str]] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """What tells this content from another of the same id."""
        told = [
            self.config,
            self.rows,
            self.summary,
            self.tables,
            self.final,
            [(f.name, f.aliases) for f in self.files],
        ]
        return hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()[:16]


class Contents:
    """The W&B runs of one sweep, each made when it is asked for, so that a large ledger needs little memory."""

    def __init__(self, study: Study, ledger: Ledger) -> None:
        self.study, self._ledger = study, ledger
        meta = ledger.meta
        self.sweep = hashlib.sha256(f"{meta['created']!r} {meta['study']} {meta['seed']}".encode()).hexdigest()[:8]
        size = "quick" if study.budget == study.quick else "full"
        self._tags = (study.name[:TAG_LENGTH], size)

    def id(self, *parts: object) -> str:
        """W&B's id of a run: the same whenever it is exported, and of no other sweep."""
        return re.sub(r"[^\w-]+", "_", "-".join([self.sweep, *map(str, parts)]))

    def tags(self, *more: str) -> tuple[str, ...]:
        return (*[tag[:TAG_LENGTH] for tag in more], *self._tags)

    def of_trial(self, trial: TrialRecord, end: EndRecord | None) -> Content:
        """A trial, with the epochs that it has reported; `end` is None while it runs."""
        epochs = self._ledger.epochs(trial=trial.trial)
        audits: dict[int, Row] = {}
        first_step: Row = {}
        for a in self._ledger.audits(trial.trial):
            told = {what: a[what] for what in ("norm", "share", "cosine")}
            if a["epoch"] == 0:
                first_step |= {f"first_step/{a['term']}/{what}": value for what, value in told.items()}
            else:
                audits.setdefault(a["epoch"], {}).update({f"gradient/{a['term']}/{w}": v for w, v in told.items()})
        rows = [_row(e, audits.get(e.epoch, {})) for e in epochs]
        last = next((e for e in reversed(epochs) if end is None or e.epoch <= end.epoch), None)
        rungs = [e.epoch for e in epochs if e.epoch in self.study.budget.rungs]
        summary: Row = {
            "sweep_id": self.sweep,
            "arm": trial.arm,
            "subsearch": trial.subsearch,
            "origin": trial.origin,
            "ended": end.how if end else "running",
            "message": end.message if end else "",
            "rung": max(rungs, default=0),
            "seed_epochs": sum(e.seeds for e in epochs),
            "total_seconds": sum(e.seconds for e in epochs),
            "selected_by": self.study.val_metric,
            **_numbers(first_step),
        }
        if last is not None:
            summary |= _numbers({"score": last.score, "score_se": last.se})
        return Content(
            id=self.id(trial.trial),
            name=trial.trial,
            group=trial.arm,
            job_type=SEARCH,
            tags=self.tags(trial.arm),
            config=trial.config,
            rows=rows,
            summary=summary,
            exit_code=int(end is not None and end.how in NEVER_WINS),
            final=end is not None,
        )

    def of_seed(self, run: RunRecord) -> Content:
        """A confirmed seed: one row, at the epoch to which it was trained."""
        metrics = _numbers(run.metrics)
        about: Row = {
            "sweep_id": self.sweep,
            "arm": run.arm,
            "purpose": run.purpose,
            "fit": run.fit,
            "replicate": run.replicate,
        }
        about |= {"subsearch": run.subsearch if run.subsearch >= 0 else "all", "trial": run.trial}
        name = f"{run.arm} {run.purpose} seed {run.replicate}" + ("" if run.fit == "train" else f" on {run.fit}")
        return Content(
            id=self.id_of_seed(run),
            name=name,
            group=run.arm,
            job_type=CONFIRM,
            tags=self.tags(run.arm, run.purpose, run.fit),
            config=run.config,
            rows=[{"epoch": run.epochs, **metrics}],
            summary={**about, "total_seconds": run.seconds, "epochs": run.epochs},
            exit_code=int(bool(run.metrics.get("diverged"))),
        )

    def id_of_seed(self, run: RunRecord) -> str:
        place = "all" if run.subsearch < 0 else run.subsearch
        return self.id(run.purpose, run.arm, place, run.fit, run.replicate, *filter(None, [run.trial.split("-")[-1]]))

    def published(self) -> list[Content]:
        """What the source reports of each arm, as a level: the same at the first and at the last epoch."""
        study = self.study
        found = []
        for arm, definition in study.arms.items():
            if definition.published is None:
                continue
            claims = [c for c in study.claims if arm in (c.better, c.worse)]
            said = [study.source, *(c.source for c in claims), *(c.not_comparable for c in claims)]
            said += [f"reported as: {definition.published.statistic}", *(c.notes for c in claims), *study.notes]
            found.append(self._level(arm, definition.published.value, definition.published.config, said))
        if study.published_teacher is not None:
            found.append(self._level("teacher", study.published_teacher, {}, [study.source]))
        return found

    def _level(self, arm: str, value: float, config: Mapping[str, Any], said: Iterable[str | None]) -> Content:
        test, val = f"test_{self.study.metric}", self.study.val_metric
        level = {test: value, val: value}
        notes = list(dict.fromkeys(filter(None, said)))
        shown = f"a value of the test split, shown as a level under {val} too, so that learning curves meet it"
        text = "; ".join([*notes, shown])  # for a list or None wandb would import pandas
        return Content(
            id=self.id(PUBLISHED, arm),
            name=f"{arm} published",
            group=arm,
            job_type=PUBLISHED,
            tags=self.tags(arm, PUBLISHED),
            config=config,
            rows=[{"epoch": epoch, **level} for epoch in sorted({1, self.study.budget.max_epochs})],
            summary={"sweep_id": self.sweep, "arm": arm, "published": value, "notes": text},
            notes=text,
        )

    def of_teacher(self, teacher: Mapping[str, Any], files: Files | None) -> Content:
        """A teacher set: what it predicts by itself, its cost, and its weights as an artefact."""
        fit, number = teacher["fit"], teacher["teacher_set"]
        labels = self._ledger.labels("test")
        row: Row = {"epoch": 0}
        for (k, member), facts in self._ledger.teacher_facts(fit).items():
            if k == number:
                of = "" if member < 0 else f"{facts.get('name', member)}/"
                row |= {f"{of}{name}": value for name, value in _numbers(facts).items()}
        for (k, member), predicted in self._ledger.teacher_predictions(fit, "test").items():
            if k == number and labels is not None and predicted.dtype.kind != "f":
                of = "" if member < 0 else f"{member}/"
                row[f"{of}test_accuracy"] = float(np.mean(predicted == labels))
        return Content(
            id=self.id(TEACHER, fit, number),
            name=f"teacher {number} on {fit}",
            group=TEACHER,
            job_type=TEACHER,
            tags=self.tags(TEACHER, fit),
            config={},
            rows=[row],
            summary={"sweep_id": self.sweep, **teacher},
            files=(files,) if files else (),
        )


def _row(epoch: EpochRecord, audits: Row) -> Row:
    row: Row = {"epoch": epoch.epoch, "seeds": epoch.seeds, "seconds": epoch.seconds}
    for name, values in epoch.metrics.items():
        finite = [v for v in values if v is not None]
        if finite and len(finite) == len(values):
            row[name] = mean = statistics.fmean(finite)
            if len(finite) > 1:
                spread = math.fsum((v - mean) ** 2 for v in finite)
                row[f"{name}_se"] = math.sqrt(spread / (len(finite) - 1) / len(finite))
    return _numbers(row) | _numbers(audits)


def _numbers(values: Mapping[str, Any]) -> Row:
    """What W&B can draw: numbers that are finite; words stay words."""
    return {k: v for k, v in values.items() if not isinstance(v, float | None) or (v is not None and math.isfinite(v))}
