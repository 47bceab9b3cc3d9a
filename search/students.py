"""The student that a run would deploy, as it was confirmed."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor, nn

from search import families, seeds
from search.confirm import pack_name
from search.ledger import Ledger, RunRecord
from search.selection import deployed, select
from spaces import BadInput, Study, load_study, nearest


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
        own = _confirmed(run, study, arm, ledger)
    ranked = sorted(own, key=lambda r: (r.metrics[f"test_{study.metric}"], r.replicate))
    median = ranked[(len(ranked) - 1) // 2]
    for first in range(median.replicate, min(r.replicate for r in own) - 1, -1):
        path = run / "models" / f"{pack_name(median, first)}.safetensors"
        if path.is_file():
            return Confirmed(study, arm, median, len(own), load_file(path), median.replicate - first, path)
    raise BadInput(
        f"the weights of {arm} are not in {run / 'models'}: the confirmed students have been cleaned away, or the run "
        "was copied without them. Copy the folder from where the sweep ran, or repeat the sweep"
    )


def _confirmed(run: Path, study: Study, arm: str, ledger: Ledger) -> list[RunRecord]:
    """The confirmed seeds of the arm's one configuration to deploy that have not diverged."""
    hint = f"finish it with `distune resume {run}`"
    if study.arms[arm].kind == "fixed":
        alike = [r for r in ledger.runs() if r.arm == arm and r.config == study.arms[arm].default]
        own = [r for r in alike if r.purpose in ("fixed", "as_published") and r.fit == study.confirm_on]
    else:
        confirmed = [r for r in ledger.runs("tuned") if r.arm == arm and r.fit == study.confirm_on]
        if not confirmed:
            raise BadInput(f"{arm} has not been confirmed in {run} yet: {hint}")
        chosen = select(study, ledger)
        own = []
        if any(key[0] == arm for key in chosen):  # none is while an arm that was added has spent nothing
            winner = deployed(chosen, arm).candidate
            used = seeds.of_confirmation(study, arm, winner.subsearch, ledger.round)
            own = [r for r in confirmed if r.trial == winner.trial and r.replicate in used]
    if not own:
        again = " again" if study.arms[arm].kind == "searched" else ""
        raise BadInput(f"{arm} has not been confirmed{again} in {run} yet: {hint}")
    usable = [r for r in own if r.metrics.get(f"test_{study.metric}") is not None]
    if not usable:
        raise BadInput(f"every confirmed seed of {arm} has diverged: there is no student to deploy")
    return usable
