"""The student that a run would deploy, as it was confirmed."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor, nn

from search import families
from search.ledger import Ledger, RunRecord
from search.weights import to_deploy
from spaces import BadInput, Study, load_study, nearest

# In the state of every student of a family, by which it is known from one of a user's own trainable.
OF_FAMILY = {"mlp": "scaling.mean", "vision": "normalise.mean", "tabular": "encoder.about"}


@dataclass(frozen=True)
class Confirmed:
    """The weights that an arm goes out with.

    record: of the seed with the median test metric; seeds: how many it is the median of. state: of the pack that it was
    trained in, at `place`; path: the file.
    """

    study: Study
    arm: str
    record: RunRecord
    seeds: int
    state: Mapping[str, Tensor]
    place: int
    path: Path


def load_student(run: Path, arm: str) -> nn.Module:
    """The arm's deployed configuration under the confirmation seed with the median test accuracy.

    Raises BadInput for an arm that the study does not have, that has not been confirmed, or that trains no student.
    """
    found = find(run, arm)
    student: nn.Module = families.of(found.study).student(found.study, arm, found.state, found.place)
    return student


def find(run: Path, arm: str) -> Confirmed:
    """What `load_student` reads, of an arm that needs its teachers too; errors likewise."""
    study = load_study(run / "study.yaml")
    with_student = [name for name, one in study.arms.items() if one.role != "reference"]
    if arm not in study.arms:
        raise BadInput(f"unknown arm '{arm}'{nearest(arm, study.arms)}: the run has {', '.join(study.arms)}")
    if arm not in with_student:
        raise BadInput(
            f"{arm} is its teachers alone, which train no student; those with one are {', '.join(with_student)}"
        )
    with Ledger.open(run) as ledger:
        weights = to_deploy(run, study, arm, ledger)
    state = load_file(weights.path)
    if study.trainable is not None and OF_FAMILY[study.family] not in state:
        raise BadInput(
            f"the student of {arm} is one of the study's own trainable, which only that can rebuild: its weights lie "
            f"in {weights.path}, under the names that {study.trainable} gave them"
        )
    return Confirmed(study, arm, weights.record, weights.seeds, state, weights.place, weights.path)
