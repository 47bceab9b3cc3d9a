"""The ledger: the append-only record of a sweep, one SQLite file on the driver's local disk.

Rows are only ever inserted, under keys that make a repeat harmless: a report that arrives twice overwrites nothing and
costs once. Everything else (budgets, Optuna's studies, rungs, the comparison) is computed from it.
"""

import contextlib
import functools
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
FORMAT = 2
DIVERGED = "a loss, a parameter or the score is not a finite number"
OUT_OF_TIME = "out of time"  # how a search ended that its time budget ended
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
# Apart: ledgers of format 1 have none of these.
_LATER = (
    "CREATE TABLE IF NOT EXISTS revisions (revision INTEGER PRIMARY KEY, study TEXT, code TEXT, why TEXT, "
    "round INTEGER, at REAL)",
    "CREATE TABLE IF NOT EXISTS notes (note TEXT PRIMARY KEY)",
    "CREATE TABLE IF NOT EXISTS segments (split TEXT, name TEXT, mask BLOB, PRIMARY KEY (split, name))",
    "CREATE TABLE IF NOT EXISTS teacher_facts (fit TEXT, teacher_set INTEGER, member INTEGER, facts TEXT, "
    "PRIMARY KEY (fit, teacher_set, member))",
)
_LOOKS_LATER = {"seeds": "INTEGER", "about": "TEXT"}  # columns of the table of looks
LOCKED_S = 10.0  # how long another program's lock is waited for
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
    metrics: Mapping[str, Any]


class _Unread(Mapping[str, Any]):
    """JSON that is parsed when it is first looked into: of an epoch's metrics most readers want none."""

    def __init__(self, text: str) -> None:
        self._text = text

    @functools.cached_property
    def _values(self) -> dict[str, Any]:
        values: dict[str, Any] = json.loads(self._text)
        return values

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


@dataclass(frozen=True)
class EndRecord:
    """How a trial ended: finished | stopped | budget | diverged | crashed; at: seconds since 1970."""

    trial: str
    how: str
    epoch: int
    message: str
    at: float = 0.0


@dataclass(frozen=True)
class Revision:
    """What the sweep is from a moment on: its study as YAML, the code that trains, and why it is not what it was.

    code: {file or package: fingerprint or version}. round: confirmation seeds begin anew with each.
    """

    study: str
    code: dict[str, str]
    why: str
    round: int
    at: float = 0.0


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
        self._opened = max(time.time(), self._newest()), time.monotonic()

    def _newest(self) -> float:
        """The last moment that anything was written at, as far as it matters to what came before what."""
        (newest,) = self._db.execute(
            "SELECT max(coalesce((SELECT max(at) FROM clock), 0), coalesce((SELECT max(at) FROM looks), 0), "
            "coalesce((SELECT max(at) FROM revisions), 0), coalesce((SELECT max(ended) FROM ends), 0))"
        ).fetchone()
        return float(newest)

    def now(self) -> float:
        """Seconds since 1970, except that it never runs backwards, whatever is done to the machine's clock."""
        at, then = self._opened
        return at + time.monotonic() - then

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
    def open(run: Path, check: bool = False) -> "Ledger":
        """The ledger of the run folder. check: read all of it first, so that nothing is built on a damaged one.

        Raises NotALedger where there is none, one of a newer version, or one that is damaged or locked.
        """
        path = run / FILE
        if not path.is_file():
            what = "has no ledger.sqlite" if run.is_dir() else "is a file" if run.exists() else "does not exist"
            raise NotALedger(f"{run} is not a run folder: it {what}. `distune runs` lists run folders")
        db = sqlite3.connect(path, timeout=LOCKED_S, isolation_level=None, check_same_thread=False)
        try:
            found = json.loads(db.execute("SELECT value FROM meta WHERE key='format'").fetchone()[0])
            if found > FORMAT:
                raise NotALedger(
                    f"{path} was written by a newer distune (format {found}, this one reads up to {FORMAT}): "
                    "update distune to go on with it"
                )
            if check and (wrong := db.execute("PRAGMA quick_check(1)").fetchone()[0]) != "ok":
                raise sqlite3.DatabaseError(f"malformed: {wrong.removeprefix('*** in database main *** ')}")
            db.execute("PRAGMA journal_mode=WAL")
            db.execute("PRAGMA synchronous=NORMAL")
            _upgrade(db)
            return Ledger(db, path)
        except (sqlite3.Error, TypeError, ValueError) as error:
            db.close()
            raise error if isinstance(error, NotALedger) else NotALedger(unusable(path, error)) from None

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
        self._db.execute("INSERT OR IGNORE INTO attempts VALUES (?, ?, ?)", (attempt, trial, self.now()))

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
        row = (trial, how, epoch, message, self.now())
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
        rest = (json.dumps(dict(config)), epochs, seconds, json.dumps(dict(metrics)), self.now())
        with self._transaction():
            cursor = self._db.execute(f"INSERT OR IGNORE INTO runs VALUES ({', '.join('?' * 11)})", (*key, *rest))
            if cursor.rowcount:
                for split, classes in predictions.items():
                    row = (cursor.lastrowid, split, _packed(classes))
                    self._db.execute("INSERT INTO predictions VALUES (?, ?, ?)", row)

    def look(
        self,
        split: str,
        labels: Classes,
        purpose: str,
        segments: Mapping[str, NDArray[np.bool_]] | None = None,
        *,
        seeds: int | None = None,
        about: Mapping[str, Any] | None = None,
    ) -> None:
        """Record that a split was opened, before it is read, and its labels.

        segments: {name: mask (rows,)}. seeds: confirmation seeds that any arm has had, with those of this look. about:
        what tells this look from another.
        """
        with self._transaction():
            row = (split, len(labels), purpose, self.now(), seeds, json.dumps(about))
            self._db.execute(
                "INSERT INTO looks (split, rows, purpose, at, seeds, about) VALUES (?, ?, ?, ?, ?, ?)", row
            )
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
        self._db.execute("INSERT INTO clock VALUES (?, ?, ?)", (phase, event, self.now()))

    def revise(self, revision: Revision) -> None:
        """From now on the sweep is this. What is finished stays; a finished sweep has more to do."""
        row = (revision.study, json.dumps(revision.code), revision.why, revision.round, self.now())
        self._db.execute("INSERT INTO revisions (study, code, why, round, at) VALUES (?, ?, ?, ?, ?)", row)

    # What everybody reads.

    @property
    def meta(self) -> dict[str, Any]:
        return {k: json.loads(v) for k, v in self._db.execute("SELECT key, value FROM meta")}

    def trials(self, after: int = 0) -> list[TrialRecord]:
        """In the order in which they were asked. after: leave out so many of the first."""
        sql = "SELECT trial, arm, subsearch, origin, config, asked FROM trials WHERE rowid > ? ORDER BY rowid"
        rows = self._db.execute(sql, (after,))
        return [TrialRecord(t, a, s, o, json.loads(c), at) for t, a, s, o, c, at in rows]

    def epochs(self, after: int = 0, trial: str | None = None) -> list[EpochRecord]:
        """In the order in which they were reported, which is the order in which they were paid for.

        after: the `seq` of the last one that is known. trial: only its epochs, in their own order.
        """
        sql = "SELECT seq, trial, epoch, seeds, seconds, score, se, nll, metrics FROM epochs WHERE seq > ?"
        if trial is None:
            rows = self._db.execute(f"{sql} ORDER BY seq", (after,))
        else:
            rows = self._db.execute(f"{sql} AND trial = ? ORDER BY epoch", (after, trial))
        return [
            EpochRecord(seq, trial, epoch, seeds, seconds, _nan(score), _nan(se), _nan(nll), _Unread(metrics))
            for seq, trial, epoch, seeds, seconds, score, se, nll, metrics in rows
        ]

    def ends(self, after: int = 0) -> dict[str, EndRecord]:
        """In the order in which they ended. after: leave out so many of the first."""
        sql = "SELECT trial, how, epoch, message, ended FROM ends WHERE rowid > ? ORDER BY rowid"
        return {row[0]: EndRecord(*row) for row in self._db.execute(sql, (after,))}

    def runs(self, purpose: str | None = None, after: int = 0) -> list[RunRecord]:
        """In the order in which they ended. after: the `row` of the last one that is known."""
        sql = "SELECT rowid, purpose, arm, subsearch, fit, replicate, trial, config, epochs, seconds, metrics FROM runs"
        where = "rowid > ?2 AND (?1 IS NULL OR purpose = ?1)"
        rows = self._db.execute(f"{sql} WHERE {where} ORDER BY rowid", (purpose, after))
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
        rows = self._db.execute("SELECT split, rows, purpose, at, seeds, about FROM looks ORDER BY look")
        return [
            {"split": split, "rows": n, "purpose": p, "at": at, "seeds": seeds, "about": json.loads(about or "null")}
            for split, n, p, at, seeds, about in rows
        ]

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

    def audits(self, trial: str | None = None) -> list[dict[str, Any]]:
        names = ("trial", "epoch", "term", "weight", "norm", "share", "cosine")
        sql = f"SELECT {', '.join(names)} FROM audits"
        if trial is None:
            rows = self._db.execute(f"{sql} ORDER BY rowid")
        else:
            rows = self._db.execute(f"{sql} WHERE trial = ? ORDER BY epoch, rowid", (trial,))
        return [dict(zip(names, row, strict=True)) for row in rows]

    def notes(self) -> list[str]:
        return [note for (note,) in self._db.execute("SELECT note FROM notes ORDER BY rowid")]

    def phases(self) -> list[tuple[str, str, float]]:
        return [(p, e, at) for p, e, at in self._db.execute("SELECT phase, event, at FROM clock ORDER BY rowid")]

    def revisions(self) -> list[Revision]:
        """Oldest first; none in a ledger of format 1."""
        rows = self._db.execute("SELECT study, code, why, round, at FROM revisions ORDER BY revision")
        return [Revision(study, json.loads(code), why, number, at) for study, code, why, number, at in rows]

    @property
    def finished(self) -> bool:
        """Whether the confirmation has ended since the sweep was last revised."""
        ends = [at for phase, event, at in self.phases() if (phase, event) == ("confirmation", "end")]
        return bool(ends) and all(ends[-1] >= r.at for r in self.revisions())

    @property
    def out_of_time(self) -> bool:
        """Whether the search was ended by a limit on its time, since the sweep was last revised."""
        ends = [at for phase, event, at in self.phases() if (phase, event) == ("search", OUT_OF_TIME)]
        return bool(ends) and all(ends[-1] >= r.at for r in self.revisions())

    @property
    def round(self) -> int:
        """Which confirmation seeds are in use: 0 for the first."""
        return max((r.round for r in self.revisions()), default=0)

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
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:  # what a full disk has cut off, SQLite has rolled back by itself
                self._db.execute("ROLLBACK")
            raise


def unusable(path: Path, error: Exception) -> str:
    """One sentence on why a ledger cannot be read or written, and what to do."""
    text = str(error)
    if "locked" in text:
        return f"{path} is locked by another program: close it, and try again"
    if "full" in text or "disk I/O" in text:
        return f"{path} cannot be written ({text}): free some space, and try again; what it holds is kept"
    if "malformed" in text or "page" in text or "Tree" in text:
        return f"{path} is damaged ({text}): restore a copy, or salvage it with `sqlite3 {path} .recover`"
    return f"{path} is not a ledger of distune: {text}"


def _upgrade(db: sqlite3.Connection) -> None:
    """Tables and columns that ledgers of earlier formats do not have."""
    for statement in _LATER:
        db.execute(statement)
    have = {row[1] for row in db.execute("PRAGMA table_info(looks)")}
    for column, kind in _LOOKS_LATER.items():
        if column not in have:
            with contextlib.suppress(sqlite3.OperationalError):  # somebody else has just added it
                db.execute(f"ALTER TABLE looks ADD COLUMN {column} {kind}")


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
