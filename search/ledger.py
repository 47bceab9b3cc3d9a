"""The ledger: the append-only record of a sweep, one SQLite file on the driver's local disk.

Rows are only ever inserted, under keys that make a repeat harmless: a report that arrives twice overwrites nothing and
costs once. Everything else (budgets, Optuna's studies, rungs, the comparison) is computed from it.
"""

import contextlib
import json
import math
import sqlite3
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Classes = NDArray[np.integer[Any]]  # (rows,) numbers of classes
Predictions = NDArray[Any]  # (rows,) numbers of classes, or float32 logits of class 1
FORMAT = 1
FILE = "ledger.sqlite"
_TABLES = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE trials (trial TEXT PRIMARY KEY, arm TEXT, subsearch INTEGER, origin TEXT, config TEXT, asked REAL);
CREATE TABLE attempts (attempt TEXT PRIMARY KEY, trial TEXT, started REAL);
CREATE TABLE epochs (seq INTEGER PRIMARY KEY, trial TEXT, epoch INTEGER, seeds INTEGER, seconds REAL, score REAL,
                     se REAL, nll REAL, metrics TEXT, UNIQUE (trial, epoch));
CREATE TABLE audits (trial TEXT, epoch INTEGER, term TEXT, weight REAL, norm REAL, share REAL, cosine REAL,
                     PRIMARY KEY (trial, epoch, term));
CREATE TABLE ends (trial TEXT PRIMARY KEY, how TEXT, epoch INTEGER, message TEXT, ended REAL);
CREATE TABLE runs (purpose TEXT, arm TEXT, subsearch INTEGER, fit TEXT, replicate INTEGER, trial TEXT, config TEXT,
                   epochs INTEGER, seconds REAL, metrics TEXT, finished REAL,
                   PRIMARY KEY (purpose, arm, subsearch, fit, replicate, trial));
CREATE TABLE predictions (run INTEGER, split TEXT, classes BLOB, PRIMARY KEY (run, split));
CREATE TABLE labels (split TEXT PRIMARY KEY, classes BLOB);
CREATE TABLE looks (look INTEGER PRIMARY KEY, split TEXT, rows INTEGER, purpose TEXT, at REAL);
CREATE TABLE teachers (fit TEXT, teacher_set INTEGER, artefact TEXT, seconds REAL, parameters INTEGER,
                       PRIMARY KEY (fit, teacher_set));
CREATE TABLE teacher_predictions (fit TEXT, teacher_set INTEGER, member INTEGER, split TEXT, classes BLOB,
                                  PRIMARY KEY (fit, teacher_set, member, split));
CREATE TABLE clock (phase TEXT, event TEXT, at REAL);
"""
# Apart: ledgers of earlier versions have none of these.
_LATER = (
    "CREATE TABLE IF NOT EXISTS notes (note TEXT PRIMARY KEY)",
    "CREATE TABLE IF NOT EXISTS segments (split TEXT, name TEXT, mask BLOB, PRIMARY KEY (split, name))",
    "CREATE TABLE IF NOT EXISTS teacher_facts (fit TEXT, teacher_set INTEGER, member INTEGER, facts TEXT, "
    "PRIMARY KEY (fit, teacher_set, member))",
)
ENSEMBLE = -1  # the member number under which the whole ensemble's predictions are stored


class NotALedger(ValueError):
    """The path holds no ledger that this version can read; the message says what it is instead."""


@dataclass(frozen=True)
class TrialRecord:
    """What was asked: one configuration of one arm, for one of its sub-searches. number: its place in the arm."""

    trial: str
    arm: str
    subsearch: int
    origin: str
    config: dict[str, Any]
    asked: float


@dataclass(frozen=True)
class EpochRecord:
    """What one epoch of a pack reported: seed means, and everything per seed in `metrics`."""

    seq: int
    trial: str
    epoch: int
    seeds: int
    seconds: float
    score: float
    se: float
    nll: float
    metrics: dict[str, Any]


@dataclass(frozen=True)
class EndRecord:
    """How a trial ended: finished | stopped | budget | diverged | crashed."""

    trial: str
    how: str
    epoch: int
    message: str


@dataclass(frozen=True)
class RunRecord:
    """One seed of a re-evaluation (`reevaluation`) or of the confirmation (`tuned`, `as_published`, `fixed`).

    metrics: `val_accuracy`, `val_nll`, `test_accuracy`, ... as far as they were measured. row: its key in the ledger.
    """

    row: int
    purpose: str
    arm: str
    subsearch: int
    fit: str
    replicate: int
    trial: str
    config: dict[str, Any]
    epochs: int
    seconds: float
    metrics: dict[str, float]


class Ledger:
    """An open ledger. Reads return frozen records; writes append, each call one transaction."""

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        self._db, self.path = connection, path

    @staticmethod
    def create(run: Path, meta: Mapping[str, Any]) -> "Ledger":
        """A new ledger in the folder `run`, which must have none. meta: JSON values that never change."""
        path = run / FILE
        if path.exists():
            raise FileExistsError(f"{path} exists")
        new = path.with_suffix(".new")
        new.unlink(missing_ok=True)
        with contextlib.closing(sqlite3.connect(new)) as db, db:
            db.executescript(f"BEGIN;{_TABLES}COMMIT;")
            values = {**meta, "format": FORMAT, "created": time.time()}
            db.executemany("INSERT INTO meta VALUES (?, ?)", [(k, json.dumps(v)) for k, v in values.items()])
        new.rename(path)
        return Ledger.open(run)

    @staticmethod
    def open(run: Path) -> "Ledger":
        """The ledger of the run folder. Raises NotALedger where there is none, or one of a newer version."""
        path = run / FILE
        if not path.is_file():
            what = "has no ledger.sqlite" if run.is_dir() else "is a file" if run.exists() else "does not exist"
            raise NotALedger(f"{run} is not a run folder: it {what}. `distune runs` lists run folders")
        db = sqlite3.connect(path, timeout=30.0, isolation_level=None, check_same_thread=False)
        try:
            db.execute("PRAGMA journal_mode=WAL")
            db.execute("PRAGMA synchronous=NORMAL")
            for statement in _LATER:
                db.execute(statement)
            found = json.loads(db.execute("SELECT value FROM meta WHERE key='format'").fetchone()[0])
        except (sqlite3.DatabaseError, TypeError, ValueError) as error:
            db.close()
            raise NotALedger(f"{path} is not a ledger of distune: {error}") from None
        if found > FORMAT:
            db.close()
            raise NotALedger(f"{path} was written by a newer distune (format {found}, this one reads up to {FORMAT})")
        return Ledger(db, path)

    def close(self) -> None:
        self._db.close()

    def __enter__(self) -> "Ledger":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # What the search appends.

    def ask(self, record: TrialRecord) -> None:
        row = (record.trial, record.arm, record.subsearch, record.origin, json.dumps(record.config), record.asked)
        self._db.execute("INSERT INTO trials VALUES (?, ?, ?, ?, ?, ?)", row)

    def attempt(self, attempt: str, trial: str) -> None:
        self._db.execute("INSERT OR IGNORE INTO attempts VALUES (?, ?, ?)", (attempt, trial, time.time()))

    def report(self, trial: str, rows: Iterable[Mapping[str, Any]]) -> int:
        """Append epoch rows (`epoch, seeds, seconds, score, se, nll, metrics, audits`); returns the new seed-epochs."""
        cost = 0
        with self._transaction():
            for row in rows:
                values = (trial, row["epoch"], row["seeds"], row["seconds"], row["score"], row["se"], row["nll"])
                added = self._db.execute(
                    "INSERT OR IGNORE INTO epochs (trial, epoch, seeds, seconds, score, se, nll, metrics) "
                    "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                    (*values, json.dumps(row["metrics"])),
                ).rowcount
                cost += added * row["seeds"]
                for a in row.get("audits", ()):
                    audited = (trial, a["epoch"], a["term"], a["weight"], a["norm"], a["share"], a["cosine"])
                    self._db.execute("INSERT OR IGNORE INTO audits VALUES (?, ?, ?, ?, ?, ?, ?)", audited)
        return cost

    def end(self, trial: str, how: str, epoch: int, message: str = "") -> bool:
        """Record how a trial ended; False if that was known already."""
        row = (trial, how, epoch, message, time.time())
        return self._db.execute("INSERT OR IGNORE INTO ends VALUES (?, ?, ?, ?, ?)", row).rowcount == 1

    def finish_run(
        self,
        purpose: str,
        arm: str,
        subsearch: int,
        fit: str,
        replicate: int,
        *,
        trial: str,
        config: Mapping[str, Any],
        epochs: int,
        seconds: float,
        metrics: Mapping[str, float],
        predictions: Mapping[str, Predictions],
    ) -> None:
        """Append one seed of a re-evaluation or of the confirmation, with what it predicts of every row."""
        key = (purpose, arm, subsearch, fit, replicate, trial)
        rest = (json.dumps(dict(config)), epochs, seconds, json.dumps(dict(metrics)), time.time())
        with self._transaction():
            cursor = self._db.execute(f"INSERT OR IGNORE INTO runs VALUES ({', '.join('?' * 11)})", (*key, *rest))
            if cursor.rowcount:
                for split, classes in predictions.items():
                    row = (cursor.lastrowid, split, _packed(classes))
                    self._db.execute("INSERT INTO predictions VALUES (?, ?, ?)", row)

    def look(
        self, split: str, labels: Classes, purpose: str, segments: Mapping[str, NDArray[np.bool_]] | None = None
    ) -> None:
        """Record that a split was opened, before it is read, and its labels. segments: {name: mask (rows,)}."""
        with self._transaction():
            row = (split, len(labels), purpose, time.time())
            self._db.execute("INSERT INTO looks (split, rows, purpose, at) VALUES (?, ?, ?, ?)", row)
            self._db.execute("INSERT OR IGNORE INTO labels VALUES (?, ?)", (split, _packed(labels)))
            masks = [(split, name, _packed(mask.astype(np.uint8))) for name, mask in (segments or {}).items()]
            self._db.executemany("INSERT OR IGNORE INTO segments VALUES (?, ?, ?)", masks)

    def teacher(self, fit: str, teacher_set: int, artefact: str, seconds: float, parameters: int) -> None:
        row = (fit, teacher_set, artefact, seconds, parameters)
        self._db.execute("INSERT OR IGNORE INTO teachers VALUES (?, ?, ?, ?, ?)", row)

    def teacher_predicts(
        self,
        fit: str,
        teacher_set: int,
        predicted: Mapping[tuple[int, str], Predictions],
        facts: Mapping[int, Mapping[str, Any]] | None = None,
    ) -> None:
        """Append what one teacher set predicts, {(member, split): (rows,)}, all of it or nothing.

        facts: what else is known of each member, such as its name and its speed.
        """
        rows = [(fit, teacher_set, member, split, _packed(c)) for (member, split), c in predicted.items()]
        with self._transaction():
            self._db.executemany("INSERT OR IGNORE INTO teacher_predictions VALUES (?, ?, ?, ?, ?)", rows)
            known = [(fit, teacher_set, member, json.dumps(dict(about))) for member, about in (facts or {}).items()]
            self._db.executemany("INSERT OR IGNORE INTO teacher_facts VALUES (?, ?, ?, ?)", known)

    def note(self, note: str) -> None:
        """Keep one sentence that everybody who reads the result must know, such as what could not be downloaded."""
        self._db.execute("INSERT OR IGNORE INTO notes VALUES (?)", (note,))

    def clock(self, phase: str, event: str) -> None:
        """Note that a phase of the sweep began or ended."""
        self._db.execute("INSERT INTO clock VALUES (?, ?, ?)", (phase, event, time.time()))

    # What everybody reads.

    @property
    def meta(self) -> dict[str, Any]:
        return {k: json.loads(v) for k, v in self._db.execute("SELECT key, value FROM meta")}

    def trials(self) -> list[TrialRecord]:
        rows = self._db.execute("SELECT trial, arm, subsearch, origin, config, asked FROM trials ORDER BY rowid")
        return [TrialRecord(t, a, s, o, json.loads(c), at) for t, a, s, o, c, at in rows]

    def epochs(self) -> list[EpochRecord]:
        """In the order in which they were reported, which is the order in which they were paid for."""
        rows = self._db.execute(
            "SELECT seq, trial, epoch, seeds, seconds, score, se, nll, metrics FROM epochs ORDER BY seq"
        )
        return [
            EpochRecord(seq, trial, epoch, seeds, seconds, _nan(score), _nan(se), _nan(nll), json.loads(metrics))
            for seq, trial, epoch, seeds, seconds, score, se, nll, metrics in rows
        ]

    def ends(self) -> dict[str, EndRecord]:
        return {r[0]: EndRecord(*r) for r in self._db.execute("SELECT trial, how, epoch, message FROM ends")}

    def runs(self, purpose: str | None = None) -> list[RunRecord]:
        sql = "SELECT rowid, purpose, arm, subsearch, fit, replicate, trial, config, epochs, seconds, metrics FROM runs"
        rows = self._db.execute(f"{sql} WHERE ?1 IS NULL OR purpose = ?1 ORDER BY rowid", (purpose,))
        return [
            RunRecord(
                row, purpose, arm, g, fit, replicate, trial, json.loads(config), epochs, seconds, json.loads(metrics)
            )
            for row, purpose, arm, g, fit, replicate, trial, config, epochs, seconds, metrics in rows
        ]

    def predictions(self, runs: Sequence[RunRecord], split: str) -> Predictions:
        """(runs, rows) predicted classes, or logits of class 1."""
        return np.stack([self._blob("predictions WHERE run = ? AND split = ?", (r.row, split)) for r in runs])

    def labels(self, split: str) -> Classes | None:
        """(rows,) true classes of a split that has been opened, else None."""
        try:
            return self._blob("labels WHERE split = ?", (split,))
        except KeyError:
            return None

    def looks(self) -> list[dict[str, Any]]:
        rows = self._db.execute("SELECT split, rows, purpose, at FROM looks ORDER BY look")
        return [{"split": s, "rows": n, "purpose": p, "at": at} for s, n, p, at in rows]

    def teachers(self) -> list[dict[str, Any]]:
        rows = self._db.execute("SELECT fit, teacher_set, artefact, seconds, parameters FROM teachers")
        return [
            dict(zip(("fit", "teacher_set", "artefact", "seconds", "parameters"), row, strict=True)) for row in rows
        ]

    def teacher_predictions(self, fit: str, split: str) -> dict[tuple[int, int], Predictions]:
        """{(teacher set, member): (rows,) predictions}; member ENSEMBLE is the whole."""
        sql = "SELECT teacher_set, member, classes FROM teacher_predictions WHERE fit = ? AND split = ? ORDER BY 1, 2"
        return {(k, m): _unpacked(blob) for k, m, blob in self._db.execute(sql, (fit, split))}

    def teacher_facts(self, fit: str) -> dict[tuple[int, int], dict[str, Any]]:
        """{(teacher set, member): facts}; member ENSEMBLE is the whole."""
        sql = "SELECT teacher_set, member, facts FROM teacher_facts WHERE fit = ? ORDER BY 1, 2"
        return {(k, m): json.loads(facts) for k, m, facts in self._db.execute(sql, (fit,))}

    def segments(self, split: str) -> dict[str, NDArray[np.bool_]]:
        """{name: mask (rows,)}: parts of a split's rows by which results are broken down."""
        rows = self._db.execute("SELECT name, mask FROM segments WHERE split = ? ORDER BY rowid", (split,))
        return {name: _unpacked(mask).astype(bool) for name, mask in rows}

    def audits(self) -> list[dict[str, Any]]:
        names = ("trial", "epoch", "term", "weight", "norm", "share", "cosine")
        rows = self._db.execute(f"SELECT {', '.join(names)} FROM audits ORDER BY rowid")
        return [dict(zip(names, row, strict=True)) for row in rows]

    def notes(self) -> list[str]:
        return [note for (note,) in self._db.execute("SELECT note FROM notes ORDER BY rowid")]

    def phases(self) -> list[tuple[str, str, float]]:
        return [(p, e, at) for p, e, at in self._db.execute("SELECT phase, event, at FROM clock ORDER BY rowid")]

    def _blob(self, where: str, key: Sequence[Any]) -> Predictions:
        row = self._db.execute(f"SELECT classes FROM {where}", key).fetchone()
        if row is None:
            raise KeyError(f"no {where} for {key}")
        return _unpacked(row[0])

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")


WIDE, REAL = b"H", b"F"  # before a blob of 16-bit classes, of float32; zlib's own streams never begin with these


def _packed(values: Predictions) -> bytes:
    """Compressed float32, 8-bit classes, or 16-bit ones where a class is above 255."""
    if values.dtype.kind == "f":
        return REAL + zlib.compress(np.ascontiguousarray(values, dtype="<f4").tobytes(), 1)
    if len(values) and values.max() > 255:
        return WIDE + zlib.compress(np.ascontiguousarray(values, dtype="<u2").tobytes(), 1)
    return zlib.compress(np.ascontiguousarray(values, dtype=np.uint8).tobytes(), 1)


def _unpacked(blob: bytes) -> Predictions:
    dtype = {WIDE: "<u2", REAL: "<f4"}.get(blob[:1])
    return np.frombuffer(zlib.decompress(blob[1:] if dtype else blob), dtype=dtype or np.uint8)


def _nan(value: float | None) -> float:
    """SQLite stores NaN as NULL."""
    return math.nan if value is None else value
