"""Before the search: data, teachers and payloads, each made once, by a task in the cluster.

The driver holds references, not data. What a trial of the search is given (`Payload`) has no test rows in it.
"""

from dataclasses import asdict, dataclass
from typing import Any

import ray

from search.families import label, teacher_notes
from search.ledger import Classes
from search.payload import TRAIN, Payload, build_teacher, load_trainable, trial_config
from spaces import Study
from trainables.datasets import Dataset, Rows, load
from trainables.streams import SEARCH


@dataclass(frozen=True)
class Prepared:
    """References to what the phases share. by_fit: the payload to train on `train`, or on `train+validation`."""

    dataset: Any
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
    outputs = label(study, teacher, dataset.fit_rows(fit), dataset.classes)
    artefact = teacher.artefact
    seconds, notes = artefact.about["seconds"], teacher_notes(study, teacher, outputs)
    return outputs, TeacherBuilt(fit, teacher_set, artefact.key, seconds, teacher.parameters, notes)


@ray.remote
def make_payload(study: Study, seed: int, dataset: Dataset, fit: str, *teachers: Any) -> Payload:
    """What to train on; without validation rows where they are trained on."""
    shown = dataset.without_test()
    validation = shown.validation if fit == TRAIN else None
    return Payload(study, seed, shown.fit_rows(fit), validation, shown.classes, teachers)


@ray.remote
def audit_first_step(payload: Payload) -> None:
    """Every arm's loss at its default, before anything is spent. Raises DeadTerm as a trial would."""
    for name, arm in payload.study.arms.items():
        config = trial_config(payload.study, name, arm.default, (SEARCH,), epochs=0)
        next(iter(load_trainable(payload.study)(config, payload.context())), None)


@ray.remote
def judge_teacher(
    study: Study, seed: int, dataset: Dataset, fit: str, teacher_set: int
) -> dict[tuple[int, str], Classes]:
    """Predicted classes on the test rows, by (member, split); member -1 is the ensemble. Confirmation only."""
    teacher = build_teacher(study, seed, dataset, fit, teacher_set)
    predicted = {}
    for split, rows in judged_rows(dataset).items():
        members = teacher.member_logits(rows.x)
        predicted[-1, split] = members.mean(dim=0).argmax(dim=-1).numpy()
        if split == "test" and len(members) > 1:
            predicted |= {(m, split): logits.argmax(dim=-1).numpy() for m, logits in enumerate(members)}
    return predicted


@ray.remote
def judged_labels(dataset: Dataset) -> dict[str, Classes]:
    """True classes of the splits that the confirmation reads."""
    return {split: rows.y for split, rows in judged_rows(dataset).items()}


def judged_rows(dataset: Dataset) -> dict[str, Rows]:
    assert dataset.test is not None
    return {"test": dataset.test} | ({"population": dataset.population} if dataset.population else {})
