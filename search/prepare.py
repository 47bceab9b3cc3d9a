"""Before the search: data, teachers and payloads, each made once, by a task in the cluster.

The driver holds references, not data. What a trial of the search is given (`Payload`) has no test rows in it.
"""

from dataclasses import asdict, dataclass
from typing import Any

import ray

from search import families
from search.cluster import placement
from search.payload import Payload, build_teacher, label, load_trainable, payload_of, trial_config
from search.seeds import SEARCH
from search.shortage import another_node_may_have_room
from spaces import Study
from trainables.cache import cache_folder
from trainables.datasets import Dataset, Rows, load
from trainables.teachers.cached import TeacherViews


@dataclass(frozen=True)
class Prepared:
    """References to what the phases share: each a payload, and after it the parcels that its nodes must have.

    search: of the search and its re-evaluation, with one teacher set. by_fit: of the confirmation, on `train` or on
    `train+validation`; replicate r learns from the teacher set r mod their number.
    """

    dataset: Any
    search: list[Any]
    by_fit: dict[str, list[Any]]


@dataclass(frozen=True)
class TeacherBuilt:
    """For the ledger: one teacher set, what it was fitted on, and what it cost when it was trained.

    folders: of the cache, that whoever learns from it reads.
    """

    fit: str
    teacher_set: int
    artefact: str
    seconds: float
    parameters: int
    notes: tuple[str, ...]
    folders: tuple[str, ...]


@ray.remote
def load_dataset(study: Study) -> Dataset:
    return load(asdict(study.data))


@another_node_may_have_room()
def label_rows(
    study: Study, seed: int, dataset: Dataset, fit: str, teacher_set: int, code: placement.Code | None
) -> tuple[Any, TeacherBuilt, placement.Files]:
    """Teacher set number `teacher_set` on the rows `fit`, from the cache or trained now; refused if it saw others.

    code: the user's own files, on a cluster. What other nodes need of this one's cache then comes with the outputs.
    """
    if code is not None:
        placement.place([code])
    teacher = build_teacher(study, seed, dataset, fit, teacher_set)
    family, artefact = families.of(study), teacher.artefact
    outputs = label(study, teacher, dataset, fit)
    about = family.notes(study, teacher, outputs, dataset.fit_rows(fit))
    seconds, notes = artefact.about["seconds"], (*dataset.notes, *about)
    root = cache_folder()
    folders = [path for path in root.glob(f"*/{artefact.key}") if path.is_dir()]
    if isinstance(outputs, TeacherViews):
        folders.append(outputs.folder)
    names = tuple(path.relative_to(root).as_posix() for path in folders)
    built = TeacherBuilt(fit, teacher_set, artefact.key, seconds, teacher.parameters, notes, names)
    return outputs, built, {} if code is None else placement.packed(names)


@ray.remote
def make_payload(study: Study, seed: int, dataset: Dataset, fit: str, *teachers: Any) -> Payload:
    return payload_of(study, seed, dataset, fit, teachers)


@another_node_may_have_room()
def audit_first_step(payload: Payload, parcels: list[placement.Parcel | placement.Code]) -> None:
    """Every arm's loss at its default, before anything is spent. Raises DeadTerm as a trial would."""
    placement.place(parcels)
    for name, arm in payload.study.arms.items():
        config = trial_config(payload.study, name, arm.default, (SEARCH,), epochs=0)
        next(iter(load_trainable(payload.study)(config, payload.context())), None)


@another_node_may_have_room()
def open_test(
    study: Study, seed: int, dataset: Dataset, fit: str, parcels: list[placement.Parcel | placement.Code]
) -> tuple[dict[str, Rows], dict[str, Any]]:
    """The rows to judge on by split, as students read them, and of each its true classes and segments."""
    placement.place(parcels)
    rows = families.of(study).judged(study, seed, dataset, fit)
    return rows, {split: (r.y, dict(r.segments)) for split, r in rows.items()}


@another_node_may_have_room()
def judge_teacher(
    study: Study,
    seed: int,
    dataset: Dataset,
    fit: str,
    teacher_set: int,
    parcels: list[placement.Parcel | placement.Code],
) -> tuple[dict[tuple[int, str], Any], dict[int, dict[str, Any]]]:
    """What a teacher set predicts of the test rows by (member, split), -1 the whole, and facts of each member."""
    placement.place(parcels)
    teacher = build_teacher(study, seed, dataset, fit, teacher_set)
    splits = {"test": dataset.test} | ({"population": dataset.population} if dataset.population else {})
    predicted: dict[tuple[int, str], Any] = {}
    facts: dict[int, dict[str, Any]] = {}
    for split, rows in splits.items():
        found, about = families.of(study).judge_teacher(study, teacher, rows, split)
        predicted |= {(member, split): p for member, p in found.items()}
        facts |= about
    return predicted, facts
