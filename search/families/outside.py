"""What families share of teachers that were fitted elsewhere."""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from spaces import Study
from spaces.outside import LOGITS_ONLY, FactoryStudent, FactoryTeacher
from trainables.artefacts import Artefact
from trainables.datasets import Dataset, Rows
from trainables.models.networks import described, made, refuse_untrainable
from trainables.models.stacked import stacked_of
from trainables.teachers import outside


def artefact_of(study: Study, dataset: Dataset, fit: Rows) -> Artefact:
    """The teacher that the study names, as an artefact; the same whatever rows `fit` it labels. Raises Unusable."""
    seen = _declared(study, dataset)
    return outside.stored(asdict(study.teacher), asdict(study.data), fit, dataset.classes, seen)


def right(said: NDArray[Any], labels: NDArray[np.int64]) -> str:
    """How good logits (n, classes) are, in words."""
    return f"is right on {float((said.argmax(axis=1) == labels).mean()):.1%} of {len(labels):,} rows"


def notes(study: Study, how_good: str) -> tuple[str, ...]:
    """What a reader must know of a teacher that was fitted elsewhere. how_good: what it says, in words."""
    if study.teacher_fitted_on is None:
        return ()
    found = [f"the teacher from outside (fitted_on: {study.teacher_fitted_on}) {how_good}"]
    if study.teacher_fitted_on == "unknown":
        found.append("it is unknown what the teacher was fitted on: it may have seen the test rows too")
    if study.contaminated is not None:
        found.append(study.contaminated)
    return tuple(found)


def code_files(study: Study) -> Mapping[str, str]:
    """{what: file} of the user's code that makes the student and the teacher."""
    parts = {"student": study.student, "teacher": study.teacher}
    return {
        f"the {what}'s function": one.function.rpartition(":")[0]
        for what, one in parts.items()
        if isinstance(one, FactoryStudent | FactoryTeacher)
    }


def refuse_unusable_students(study: Study, rows: Tensor, classes: int, say: Callable[[str], None]) -> None:
    """Raise Unusable for a table's module that cannot be trained on rows (n, features); says how its seeds train."""
    for spec in study.students:
        if spec["kind"] != "factory":
            continue
        what, features = f"the student {described(spec)}", rows.shape[1]
        sizes = {"classes": classes, "features": features}
        refuse_untrainable(what, made(spec["function"], sizes, spec["options"]), rows, classes)
        why = stacked_of(spec, features, classes, 2).why_alone
        say(f"{what}: seeds train {f'one after another, since {why}' if why else 'together in one program'}")


def says_logits_only(study: Study) -> bool:
    return study.teacher.kind in LOGITS_ONLY


def _declared(study: Study, dataset: Dataset) -> NDArray[np.int64]:
    """Fingerprints of the rows that the teacher may have seen: with `unknown`, all that are not for the test."""
    if study.teacher_fitted_on == "train" or study.has_unseen_validation:
        return dataset.train.fingerprints()
    return dataset.train.joined(dataset.validation).fingerprints()
