"""Which confirmed weights an arm goes out with, and where they lie: of the ledger and file names, without torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from search import seeds
from search.ledger import Ledger, RunRecord
from search.selection import deployed, select
from spaces import BadInput, Study


@dataclass(frozen=True)
class Weights:
    """A seed's weights, the one with the median test metric of `seeds`; place: which of the pack in the file `path`."""

    record: RunRecord
    seeds: int
    place: int
    path: Path


def pack_name(job: Any, first_replicate: int) -> str:
    """The file name under `models/` of a pack's weights; `job` may be a Job or a RunRecord."""
    return f"{job.purpose}-{job.arm}-{job.subsearch}-{job.fit}-{first_replicate}"


def to_deploy(run: Path, study: Study, arm: str, ledger: Ledger) -> Weights:
    """Of the arm's configuration to deploy, tuned or, in a fixed arm, its own. Raises BadInput where there is none."""
    return _median(run, study, arm, _confirmed(run, study, arm, ledger))


def as_published(run: Path, study: Study, arm: str, ledger: Ledger) -> Weights:
    """Of the arm's published configuration. Raises BadInput where there is none."""
    runs = [r for r in ledger.runs("as_published") if r.arm == arm and r.fit == study.confirm_on]
    return _median(run, study, arm, _usable(study, arm, runs))


def _median(run: Path, study: Study, arm: str, own: list[RunRecord]) -> Weights:
    ranked = sorted(own, key=lambda r: (r.metrics[f"test_{study.metric}"], r.replicate))
    median = ranked[(len(ranked) - 1) // 2]
    for first in range(median.replicate, min(r.replicate for r in own) - 1, -1):
        path = run / "models" / f"{pack_name(median, first)}.safetensors"
        if path.is_file():
            return Weights(median, len(own), median.replicate - first, path)
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
    return _usable(study, arm, own)


def _usable(study: Study, arm: str, own: list[RunRecord]) -> list[RunRecord]:
    usable = [r for r in own if r.metrics.get(f"test_{study.metric}") is not None]
    if not usable:
        raise BadInput(f"every confirmed seed of {arm} has diverged: there is no student to deploy")
    return usable
