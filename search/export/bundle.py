"""`distune export`: the student that was confirmed as files that run without distune, checked before they are left.

The folder is written whole or not at all. What is exported has to say on every test row what the ledger holds of it.
"""

import hashlib
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save
from torch import Tensor, nn

from search.export import graphs, scripts, teachers
from search.export.modules import CONFIG, FACTORY, WEIGHTS, blend_of, encoder_of, module_of
from search.ledger import Ledger
from search.payload import build_teacher
from search.students import Confirmed, find
from spaces import BadInput
from spaces.outside import FactoryStudent
from trainables.binary import auc
from trainables.datasets import BadData, Column, Dataset, Rows, load
from trainables.datasets.images import class_names
from trainables.teachers.table_models import TableModels

FORMATS = ("safetensors", "onnx")
MADE_BY = "distune export"
GRAPH, EXAMPLE, CARD, SCRIPT = "student.onnx", "example.npz", "README.md", "run.py"
EXAMPLES = 16  # test rows
CHUNK = {"mlp": 8192, "tabular": 8192, "vision": 256}  # rows at once
FAR = 0.01  # an exported student whose metric differs by more is not the confirmed one
TRIED, SAME = 1000, 1e-3  # rows by which teachers are told, and by how much their logits may differ
REPEATS = 9
Say = Callable[[str], None]
Predict = Callable[[NDArray[Any]], NDArray[np.float32]]


@dataclass(frozen=True)
class Student:
    """What is exported. module: takes the rows (n, ...) as `Rows.x` has them, and its teachers' logits if it has some.

    columns: of a table, else empty.
    """

    module: nn.Module
    architecture: dict[str, Any]
    columns: tuple[Column, ...]
    teachers: TableModels | None


def export(
    run: Path,
    arm: str,
    to: Path,
    formats: tuple[str, ...],
    with_teachers: bool,
    card: Callable[[Mapping[str, Any]], str],
    say: Say,
) -> dict[str, Any]:
    """Write the arm's deployed student to the folder `to`; returns what `config.json` there says.

    card: from that to the text of `README.md`. Raises BadInput, and then leaves `to` as it was.
    """
    for name in formats:
        if name not in FORMATS:
            raise BadInput(f"--format {name}: allowed are {' and '.join(FORMATS)}")
    _refuse_occupied(to)
    found = find(run, arm)
    _refuse_role(found, with_teachers)
    if "onnx" in formats:
        graphs.refuse_uninstalled()
    try:
        dataset = load(asdict(found.study.data), say)
    except BadData as error:
        raise BadInput(f"an export is checked on the test rows, which cannot be read: {error}") from None
    assert dataset.test is not None
    to.parent.mkdir(parents=True, exist_ok=True)
    new = Path(tempfile.mkdtemp(prefix=f".{to.name}.", dir=to.parent))
    try:
        new.chmod(0o755)
        facts = _write(new, found, dataset, dataset.test, run, formats, say)
        facts["command"] = _command(run, arm, to, formats, with_teachers)
        facts["files"] = dict.fromkeys(_files(new) | {CARD}, "")
        (new / CARD).write_text(card(facts), encoding="utf-8")
        facts["files"] = {name: hashlib.sha256((new / name).read_bytes()).hexdigest() for name in sorted(_files(new))}
        (new / CONFIG).write_text(json.dumps(facts, indent=1, ensure_ascii=False), encoding="utf-8")
        _refuse_occupied(to)
        _put(new, to)
    finally:
        shutil.rmtree(new, ignore_errors=True)
    return facts


def _refuse_occupied(to: Path) -> None:
    if not to.exists():
        return
    if not to.is_dir():
        raise BadInput(f"{to} is a file: give --to a folder")
    there = _files(to)
    if not there:
        return
    try:
        config = json.loads((to / CONFIG).read_text(encoding="utf-8"))
        own = {CONFIG, *config["files"]} if config["made_by"] == MADE_BY else set()
    except (OSError, ValueError, KeyError, TypeError):
        own = set()
    if not own:
        raise BadInput(f"{to} is not empty and no earlier export of distune: give --to another folder, or empty this")
    if foreign := sorted(there - own):
        raise BadInput(f"{to} is an earlier export with other files in it ({', '.join(foreign[:3])}): move them first")


def _files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def _refuse_role(found: Confirmed, with_teachers: bool) -> None:
    needs = found.study.arms[found.arm].role == "needs_teachers"
    alone = [name for name, arm in found.study.arms.items() if arm.role == "student"]
    if needs and found.study.teacher_fitted_on is not None:
        raise BadInput(
            f"{found.arm} needs its teacher at inference, and of that there is a table of what it said of known rows: "
            f"take one that runs alone: {', '.join(alone)}"
        )
    if needs and not with_teachers:
        raise BadInput(
            f"{found.arm} needs its teachers at inference: give --with-teachers to export them too, or take one that "
            f"runs alone: {', '.join(alone)}"
        )
    if with_teachers and not needs:
        raise BadInput(f"{found.arm} runs without its teachers: leave --with-teachers out")


def _put(new: Path, to: Path) -> None:
    """The new folder in the place of the old one."""
    if not to.exists():
        new.rename(to)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{to.name}.old.", dir=to.parent))
    to.rename(old / "was")
    new.rename(to)
    shutil.rmtree(old)


def _write(
    new: Path, found: Confirmed, dataset: Dataset, test: Rows, run: Path, formats: tuple[str, ...], say: Say
) -> dict[str, Any]:
    study, record = found.study, found.record
    with Ledger.open(run) as ledger:
        labels, stored = ledger.labels("test"), ledger.predictions([record], "test")[0]
        meta, revisions = ledger.meta, ledger.revisions()
    if labels is None or not np.array_equal(labels, test.y):
        raise BadInput(f"the test rows of {study.name} are not those of the confirmation: its data have changed")
    student = _student(found, dataset, test, stored, meta["seed"], say)
    say(f"checking {len(test)} test rows")
    expected = _in_chunks(_torch_of(student), test.x, study.family)
    checks = {"torch": _check(study.metric, expected, None, stored, test.y, record.metrics)}
    latency = {}
    if "safetensors" in formats:
        (new / WEIGHTS).write_bytes(save({k: v.contiguous() for k, v in student.module.state_dict().items()}))
        if isinstance(study.student, FactoryStudent):
            (new / FACTORY).write_bytes(Path(study.student.function.rpartition(":")[0]).read_bytes())
        for name, blob in teachers.files(student.teachers).items() if student.teachers else ():
            (new / "teachers").mkdir(exist_ok=True)
            (new / "teachers" / name).write_bytes(blob)
    if "onnx" in formats:
        blob = _graph(student, test.x[: max(2, EXAMPLES)])
        (new / GRAPH).write_bytes(blob)
        session = _session(blob)
        said = _in_chunks(_onnx_of(session, student.columns), test.x, study.family)
        checks["onnxruntime"] = _check(study.metric, said, expected, stored, test.y, record.metrics)
        latency = _latency(session, student.columns, test.x)
        example = {**_inputs(student.columns, test.x[:EXAMPLES]), "expected": expected[:EXAMPLES]}
        np.savez(new / EXAMPLE, allow_pickle=False, **example)
        source = Path(scripts.__file__).with_name("table.py" if student.columns else "array.py")
        (new / SCRIPT).write_text(source.read_text(encoding="utf-8"), encoding="utf-8")
    for runtime, check in checks.items():
        if abs(check[study.metric] - check["confirmed"]) > FAR:
            raise BadInput(
                f"{found.arm} in {runtime} has a test {study.metric} of {check[study.metric]:.4f}, but was confirmed "
                f"with {check['confirmed']:.4f}: the data or the libraries are not those of the sweep"
            )
    newest = [revisions[-1].study, revisions[-1].code] if revisions else [(run / "study.yaml").read_text("utf-8"), {}]
    identity = json.dumps([*newest, meta["seed"]], sort_keys=True).encode()
    return {
        "made_by": MADE_BY,
        "distune": version("distune"),
        "study": study.name,
        "family": study.family,
        "arm": found.arm,
        "role": study.arms[found.arm].role,
        "variant": study.arms[found.arm].variant,
        "architecture": student.architecture,
        "parameters": int(record.metrics["parameters"]),
        "classes": _classes(found, dataset),
        "inputs": _described(student.columns, test),
        "output": graphs.LOGIT if student.columns else graphs.LOGITS,
        "teachers": list(student.teachers.names) if student.teachers else [],
        "hyperparameters": record.config,
        "data": {
            k: Path(v).name if k in ("path", "root") else v for k, v in asdict(study.data).items() if v is not None
        },
        "fit": {"rows_of": record.fit, "rows": len(dataset.fit_rows(record.fit)), "epochs": record.epochs},
        "run": {
            "fingerprint": hashlib.sha256(identity).hexdigest()[:16],
            "seed": meta["seed"],
            "trial": record.trial or None,
            "confirmation_seed": record.replicate,
            "median_of_seeds": found.seeds,
            "weights": found.path.name,
        },
        "confirmed": {k: v for k, v in record.metrics.items() if v is not None},
        "check": {"rows": len(test), **checks},
        "ms_per_sample": latency,
    }


def _student(found: Confirmed, dataset: Dataset, test: Rows, stored: NDArray[Any], seed: int, say: Say) -> Student:
    study, record = found.study, found.record
    columns = encoder_of(found.state).columns if study.family == "tabular" else ()
    if study.arms[found.arm].role == "student":
        module, about = module_of(found)
        return Student(module, about, columns, None)
    say("teachers: from the cache or fitted now")
    own = record.replicate % study.confirm_teachers
    apart = {}
    for teacher_set in dict.fromkeys((own, *range(study.confirm_teachers))):  # a run may have trained all on the first
        fitted = build_teacher(study, seed, dataset, record.fit, teacher_set)
        blend, about = blend_of(found, torch.from_numpy(fitted.platt))
        student = Student(blend, about, columns, fitted)
        apart[teacher_set] = float(np.abs(_torch_of(student)(test.x[:TRIED]) - stored[:TRIED]).max())
        if apart[teacher_set] < SAME:
            return student
    raise BadInput(
        f"no set of teachers gives {found.arm} the predictions that it was confirmed with (the nearest is "
        f"{min(apart.values()):.1e} off): the libraries that fit them are not those of the sweep"
    )


def _graph(student: Student, rows: NDArray[Any]) -> bytes:
    example = torch.from_numpy(np.array(rows))
    if student.teachers is not None:
        encoder = encoder_of(student.teachers.artefact.tensors)
        said, count = teachers.graph(student.teachers), len(student.teachers.names)
        model = graphs.blend_graph(student.module, student.columns, example, encoder, said, count)
    elif student.columns:
        model = graphs.table_graph(student.module, student.columns, example)
    else:
        model = graphs.graph_of(student.module, example)
    return bytes(model.SerializeToString())


# What is exported against what was confirmed


def _torch_of(student: Student) -> Predict:
    """The confirmed student in torch; what teachers say comes from their own libraries."""

    @torch.no_grad()
    def predict(rows: NDArray[Any]) -> NDArray[np.float32]:
        given: list[Tensor] = [torch.from_numpy(np.array(rows))]
        if student.teachers is not None:
            calibrated = student.teachers.logits(rows).astype(np.float64)
            slope, intercept = student.teachers.platt.astype(np.float64).T
            given.append(torch.from_numpy((calibrated - intercept) / slope))
        return np.asarray(student.module(*given).numpy(), dtype=np.float32)

    return predict


def _onnx_of(session: Any, columns: tuple[Column, ...]) -> Predict:
    """The exported graph in onnxruntime."""

    def predict(rows: NDArray[Any]) -> NDArray[np.float32]:
        return np.asarray(session.run(None, _inputs(columns, rows))[0], dtype=np.float32)

    return predict


def _in_chunks(predict: Predict, x: NDArray[Any], family: str) -> NDArray[np.float32]:
    size = CHUNK[family]
    return np.concatenate([predict(x[start : start + size]) for start in range(0, len(x), size)])


def _check(
    metric: str,
    logits: NDArray[np.float32],
    reference: NDArray[np.float32] | None,
    stored: NDArray[Any],
    labels: NDArray[np.int64],
    recorded: Mapping[str, float],
) -> dict[str, Any]:
    """logits: (n, classes), or (n,) of class 1; stored: (n,) predicted classes, or logits, as in the ledger."""
    if logits.ndim == 2:
        same, value = int((logits.argmax(axis=1) == stored).sum()), float((logits.argmax(axis=1) == labels).mean())
    else:
        same, value = int(((logits > 0) == (stored > 0)).sum()), float(auc(logits[None].astype(np.float64), labels)[0])
    found: dict[str, Any] = {metric: value, "confirmed": recorded[f"test_{metric}"], "same_class": same}
    if logits.ndim == 1:
        found["from_stored_logits"] = float(np.abs(logits - stored).max())
    if reference is not None:
        found["from_torch_logits"] = float(np.abs(logits - reference).max())
    return found


def _session(blob: bytes) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    return onnxruntime.InferenceSession(blob, options)


def _latency(session: Any, columns: tuple[Column, ...], x: NDArray[Any]) -> dict[str, float]:
    """Milliseconds per sample in batches of 1 and of 128: medians of `REPEATS` calls after one to warm up."""
    found = {}
    for batch in (1, 128):
        given, times = _inputs(columns, np.resize(x, (batch, *x.shape[1:]))), []
        for _ in range(REPEATS + 1):
            began = time.perf_counter()
            session.run(None, given)
            times.append(time.perf_counter() - began)
        found[f"batch_{batch}"] = 1000 * statistics.median(times[1:]) / batch
    return found


# What goes in and out


def _inputs(columns: tuple[Column, ...], x: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """The graph's inputs for rows as `Rows.x` has them."""
    if not columns:
        return {"x": np.ascontiguousarray(x)}
    found = {}
    for i, column in enumerate(columns):
        values = np.ascontiguousarray(x[:, i])
        if column.categories:
            texts = np.array([*column.categories, graphs.missing_text(column)])
            values = texts[np.where(np.isnan(values), len(column.categories), values).astype(np.int64)]
        found[graphs.input_name(column)] = values
    return found


def _described(columns: tuple[Column, ...], test: Rows) -> list[dict[str, Any]]:
    if not columns:
        return [{"input": "x", "dtype": str(test.x.dtype), "shape": ["batch", *test.x.shape[1:]]}]
    return [
        {
            "input": graphs.input_name(c),
            "column": c.name,
            "dtype": "string" if c.categories else "float64",
            "categories": list(c.categories),
            "missing_text": graphs.missing_text(c) if c.categories else None,
        }
        for c in columns
    ]


def _classes(found: Confirmed, dataset: Dataset) -> list[str]:
    """The classes' names in the order of the logits; a table's one logit is of the second."""
    spec = asdict(found.study.data)
    if found.study.family == "vision":
        return class_names(spec)
    if spec.get("positive") is not None:
        return [f"not {spec['positive']}", str(spec["positive"])]
    return [str(label) for label in range(dataset.classes)]


def _command(run: Path, arm: str, to: Path, formats: tuple[str, ...], with_teachers: bool) -> str:
    flags = ["--format", formats[0]] if len(formats) == 1 else []
    return " ".join([*("distune export", str(run), "--arm", arm, "--to", str(to)), *flags]) + (
        " --with-teachers" if with_teachers else ""
    )
