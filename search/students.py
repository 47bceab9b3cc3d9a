"""The student that a run would deploy, as it was confirmed."""

from pathlib import Path

from safetensors.torch import load_file
from torch import nn

from search import families, seeds
from search.confirm import pack_name
from search.ledger import Ledger, RunRecord
from search.selection import deployed, select
from spaces import BadInput, load_study, nearest


def load_student(run: Path, arm: str) -> nn.Module:
    """The arm's deployed configuration under the confirmation seed with the median test accuracy.

    Raises BadInput for an arm that the study does not have or that has not been confirmed.
    """
    study = load_study(run / "study.yaml")
    if arm not in study.searched:
        raise BadInput(f"unknown arm '{arm}'{nearest(arm, study.searched)}: the run has {', '.join(study.searched)}")
    with Ledger.open(run) as ledger:
        confirmed = [r for r in ledger.runs("tuned") if r.arm == arm and r.fit == study.confirm_on]
        if not confirmed:
            raise BadInput(f"{arm} has not been confirmed in {run} yet: finish it with `distune resume {run}`")
        chosen, number = select(study, ledger), ledger.round
    own: list[RunRecord] = []
    if any(key[0] == arm for key in chosen):  # none is while an arm that was added has spent nothing
        winner = deployed(chosen, arm).candidate
        used = seeds.of_confirmation(study, arm, winner.subsearch, number)
        own = [r for r in confirmed if r.trial == winner.trial and r.replicate in used]
    if not own:
        raise BadInput(f"{arm} has not been confirmed again in {run} yet: finish it with `distune resume {run}`")
    ranked = sorted(own, key=lambda r: (r.metrics[f"test_{study.metric}"], r.replicate))
    median = ranked[(len(ranked) - 1) // 2]
    for first in range(median.replicate, min(r.replicate for r in own) - 1, -1):
        path = run / "models" / f"{pack_name(median, first)}.safetensors"
        if path.is_file():
            state, place = load_file(path), median.replicate - first
            student: nn.Module = families.of(study).student(study, arm, state, place)
            return student
    raise BadInput(f"the weights of {arm} are not in {run / 'models'}")
