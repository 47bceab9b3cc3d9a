"""Before the search: data, teachers and payloads, each made once, by a task in the cluster.

The driver holds references, not data. What a trial of the search is given (`Payload`) has no test rows in it.
"""

from dataclasses import asdict, dataclass
from typing import Any

import ray

from search import families
from search.payload import Payload, build_teacher, label, load_trainable, payload_of, trial_config
from search.seeds import SEARCH
from spaces import Study
from trainables.datasets import Dataset, Rows, load


@dataclass(frozen=True)
class Prepared:
    """References to what the phases share.

    search: the payload of the search and its re-evaluation, with one teacher set. by_fit: those of the confirmation, on
    `train` or on `train+validation`; replicate r learns from the teacher set r mod their number.
    """

    dataset: Any
    search: Any
    by_fit: dict[str, Any]


@dataclass(frozen=True)
class TeacherBuilt:
    """For the ledger: one teacher set, what it was fitted on, and what it cost when it was trained."""

    fit: str
    teacher_set: int
    artefact: str
    seconds: float
    parameters: int
    notes: tuple[str, ...]


@ray.remote
def load_dataset(study: Study) -> Dataset:
    return load(asdict(study.data))


@ray.remote(num_returns=2)
def label_rows(study: Study, seed: int, dataset: Dataset, fit: str, teacher_set: int) -> tuple[Any, TeacherBuilt]:
    """Teacher set number `teacher_set` on the rows `fit`, from the cache or trained now; refused if it saw others."""
    teacher = build_teacher(study, seed, dataset, fit, teacher_set)
    family, artefact = families.of(study), teacher.artefact
    outputs = label(study, teacher, dataset, fit)
    about = family.notes(study, teacher, outputs, dataset.fit_rows(fit))
    seconds, notes = artefact.about["seconds"], (*dataset.notes, *about)
    return outputs, TeacherBuilt(fit, teacher_set, artefact.key, seconds, teacher.parameters, notes)


@ray.remote
def make_payload(study: Study, seed: int, dataset: Dataset, fit: str, *teachers: Any) -> Payload:
    return payload_of(study, seed, dataset, fit, teachers)


@ray.remote
def audit_first_step(payload: Payload) -> None:
    """Every arm's loss at its default, before anything is spent. Raises DeadTerm as a trial would."""
    for name, arm in payload.study.arms.items():
        config = trial_config(payload.study, name, arm.default, (SEARCH,), epochs=0)
        next(iter(load_trainable(payload.study)(config, payload.context())), None)


@ray.remote(num_returns=2)
def open_test(study: Study, seed: int, dataset: Dataset, fit: str) -> tuple[dict[str, Rows], dict[str, Any]]:
    """The rows to judge on by split, as students read them, and of each its true classes and segments."""
    rows = families.of(study).judged(study, seed, dataset, fit)
    return rows, {split: (r.y, dict(r.segments)) for split, r in rows.items()}


@ray.remote
def judge_teacher(
    study: Study, seed: int, dataset: Dataset, fit: str, teacher_set: int
) -> tuple[dict[tuple[int, str], Any], dict[int, dict[str, Any]]]:
    """What a teacher set predicts of the test rows by (member, split), -1 the whole, and facts of each member."""
    teacher = build_teacher(study, seed, dataset, fit, teacher_set)
    splits = {"test": dataset.test} | ({"population": dataset.population} if dataset.population else {})
    predicted: dict[tuple[int, str], Any] = {}
    facts: dict[int, dict[str, Any]] = {}
    for split, rows in splits.items():
        found, about = families.of(study).judge_teacher(study, teacher, rows, split)
        predicted |= {(member, split): p for member, p in found.items()}
        facts |= about
    return predicted, facts
