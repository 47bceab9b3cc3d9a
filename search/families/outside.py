"""What families share of teachers that were fitted elsewhere."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spaces import Study
from spaces.outside import LOGITS_ONLY, FactoryStudent, FactoryTeacher
from trainables.artefacts import Artefact
from trainables.datasets import Dataset, Rows
from trainables.teachers import outside


def artefact_of(study: Study, dataset: Dataset, fit: Rows) -> Artefact:
    """The teacher that the study names, as an artefact; the same whatever rows `fit` it labels. Raises Unusable."""
    seen = _declared(study, dataset)
    return outside.stored(asdict(study.teacher), asdict(study.data), fit, dataset.classes, seen)


def notes(study: Study, said: NDArray[Any], labels: NDArray[np.int64]) -> tuple[str, ...]:
    """What a reader must know of a teacher that was fitted elsewhere. said: (n, classes) of the rows with `labels`."""
    if study.teacher_fitted_on is None:
        return ()
    right, fitted_on = float((said.argmax(axis=1) == labels).mean()), study.teacher_fitted_on
    found = [f"the teacher from outside (fitted_on: {fitted_on}) is right on {right:.1%} of {len(labels):,} rows"]
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


def says_logits_only(study: Study) -> bool:
    return study.teacher.kind in LOGITS_ONLY


def _declared(study: Study, dataset: Dataset) -> NDArray[np.int64]:
    """Fingerprints of the rows that the teacher may have seen: with `unknown`, all that are not for the test."""
    if study.teacher_fitted_on == "train" or study.has_unseen_validation:
        return dataset.train.fingerprints()
    return dataset.train.joined(dataset.validation).fingerprints()
