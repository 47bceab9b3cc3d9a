"""Run folders with students that were really trained and confirmed, in this process: a sweep without its search."""

from dataclasses import asdict

import pytest
import yaml

from search import confirm, families
from search.confirm import Keeping, confirmation_jobs, train_to_end
from search.ledger import TrialRecord
from search.payload import TRAIN, build_teacher, payload_of
from search.storage import Storage
from spaces import adjust, load_study
from tests.made_ledgers import new_run, row
from trainables.datasets import load

BUDGET = {
    **{"seed_epochs_per_arm": 12, "seeds_per_trial": 2, "confirm_seeds": 10, "max_epochs": 6, "subsearches": 1},
    **{"reevaluate_share": 0.0},
}


def confirmed_run(folder, changes, arms, confirmed=None):
    """The run `folder / "run"` of a study with these arms, each confirmed at its default, or those named alone."""
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump({"budget": BUDGET, **changes}))
    study, run = adjust(load_study(path), arms=arms), folder / "run"
    dataset, family = load(asdict(study.data)), families.of(study)
    rows = dataset.fit_rows(study.confirm_on)
    sets = []
    if any(study.arms[arm].teacher_rows != "none" for arm in confirmed or arms):
        for k in range(study.confirm_teachers):
            teacher = build_teacher(study, 0, dataset, study.confirm_on, k)
            sets.append(
                family.label(study, teacher, rows, dataset, dataset.validation if study.confirm_on == TRAIN else None)
            )
    payload = payload_of(study, 0, dataset, study.confirm_on, sets)
    judged = family.judged(study, 0, dataset, study.confirm_on)
    with new_run(run, study) as ledger, pytest.MonkeyPatch.context() as patch:
        patch.setattr(confirm, "threads", lambda: 1)
        for arm in study.searched:
            ledger.ask(TrialRecord(f"{arm}-00000", arm, 0, "sobol", dict(study.arms[arm].default), 0.0))
            ledger.report(f"{arm}-00000", [row(e, 0.5) for e in range(1, study.budget.max_epochs + 1)])
            ledger.end(f"{arm}-00000", "finished", study.budget.max_epochs)
        for split, of_split in judged.items():
            ledger.look(split, of_split.y, "confirmation", dict(of_split.segments))
        keeping = Keeping(Storage(run), None, 60.0)
        for job in confirmation_jobs(study, ledger):
            if job.arm in (confirmed or arms) and job.fit == study.confirm_on:
                for done in train_to_end(job, payload, [], judged, keeping):
                    ledger.finish_run(**job.key, **done)
    return run
