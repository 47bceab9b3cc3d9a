"""The W&B run of the whole sweep: the ablation table with its verdicts, budgets, study.yaml, code and packages.

It is made, with the workspace and the report, in a process that goes again: the comparison needs scipy, and wandb's
tables need pandas.
"""

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from analysis.tracking.contents import STUDY, Content, Contents, Files, Row
from analysis.tracking.folders import Folders
from search.ledger import Ledger
from search.weights import as_published, to_deploy
from spaces import BadInput, load_study

Json = dict[str, Any]
JUDGED = ["delta", "delta_low", "delta_high", "p_adjusted", "verdict"]
ABLATION = ["arm", "kind", "published", *("as_published" + part for part in ("", "_low", "_high", "_n"))]
SIZES = ["arm", "size", "measured", "tuned", "low", "high", "on_front", "behind_teacher", "behind_low", "behind_high"]
ABLATION += [*("tuned" + part for part in ("", "_low", "_high", "_n")), *JUDGED]


def of_sweep(contents: Contents, ledger: Ledger, run: Path, result: Json, words: list[str]) -> Content:
    """The sweep as `compare` judges it now. result: what `distune compare --json` prints; words: its conclusions."""
    study, meta = contents.study, ledger.meta
    revisions = ledger.revisions()
    code: Mapping[str, str] = revisions[-1].code if revisions else {}
    packages = {name: version for name, version in code.items() if "/" not in name and not name.startswith("the ")}
    budget = study.budget
    config = {
        "study": study.name,
        "seed": meta["seed"],
        "arms": list(study.arms),
        "metric": result["metric"],
        "seed_epochs_per_arm": budget.seed_epochs_per_arm,
        "seeds_per_trial": budget.seeds_per_trial,
        "confirm_seeds": budget.confirm_seeds,
        "max_epochs": budget.max_epochs,
        "rungs": list(budget.rungs),
        "subsearches": budget.subsearches,
        "options": meta.get("options", {}),
        "packages": packages,
        "code": {name: digest for name, digest in code.items() if name not in packages},
    }
    spent = [[arm, b["seed_epochs"], b["trials"], b["seconds"]] for arm, b in result["budget"].items()]
    again = [
        [r.arm, r.subsearch, r.trial, r.replicate, r.metrics.get(study.val_metric)] for r in ledger.runs("reevaluation")
    ]
    claims = [
        [c["claim"], c["published"], c["measured"], *(c["ci95"] or (None, None)), c["verdict"]]
        for c in result["published_claims"]
    ]
    tables = {
        "ablation": (ABLATION, [_ablation(arm) for arm in result["arms"]]),
        "published_claims": (["claim", "published", "measured", "low", "high", "verdict"], claims),
        "budget": (["arm", "seed_epochs", "trials", "seconds"], spent),
        "reevaluation": (["arm", "subsearch", "trial", "seed", study.val_metric], again),
        "verdicts": (["sentence"], [[line] for line in [*words, *result["notes"]]]),
    }
    if result["front"]:
        tables["sizes"] = (SIZES, [_size(point) for point in result["front"]["points"]])
    files = {"study.yaml": run / "study.yaml"}
    return Content(
        id=contents.id(STUDY),
        name=study.name,
        group=STUDY,
        job_type=STUDY,
        tags=contents.tags(STUDY),
        config=config,
        rows=[],
        summary={"sweep_id": contents.sweep, **_summary(result)},
        final=bool(result["complete"]),
        notes=" ".join(words),
        files=(Files(f"study-{contents.sweep}", "study", files, ("latest",)), *_students(contents, ledger, run)),
        tables={name: table for name, table in tables.items() if table[1]},
        charts={"tuned_arms": ("ablation", "arm", "tuned"), "seed_epochs": ("budget", "arm", "seed_epochs")},
    )


def _students(contents: Contents, ledger: Ledger, run: Path) -> Iterator[Files]:
    """The confirmed student of each arm: the pack with the median seed, as it lies in `RUN/models`."""
    for arm in contents.study.arms:
        for alias, which in (("best", to_deploy), ("as-published", as_published)):
            try:
                found = which(run, contents.study, arm, ledger)
            except BadInput:  # not confirmed, no student, or its weights are gone
                continue
            about = {
                "config": found.record.config,
                "metrics": found.record.metrics,
                "seed": found.record.replicate,
                "place_in_pack": found.place,
                "median_of": found.seeds,
                "ready_to_deploy": f"distune export RUN --arm {arm} --to DIR",
            }
            paths = {"pack.safetensors": found.path}
            yield Files(f"student-{contents.sweep}-{arm}", "model", paths, (alias,), about)


def main() -> None:
    """Write it, of the run folder, project and entity in `sys.argv`; prints the comparison and its conclusions."""
    from analysis.comparison import compare
    from analysis.tables import conclusions
    from analysis.tracking import views
    from analysis.tracking.writer import write

    run, project, entity = Path(sys.argv[1]), sys.argv[2], sys.argv[3] or None
    result = compare(run)
    words, folders = conclusions(result), Folders(run)
    with Ledger.open(run) as ledger:
        contents = Contents(load_study(run / "study.yaml"), ledger)
        content = of_sweep(contents, ledger, run, result, words)
        if folders.differs(content.id, content.digest):
            write(content, folders, project, entity)
    views.make(run, project, result, words)
    json.dump([result, words], sys.stdout)


def _ablation(arm: Json) -> list[Any]:
    published, tuned, delta = (_interval(arm.get(k) or {}) for k in ("as_published", "tuned", "delta_vs_baseline"))
    about = [arm["arm"], arm["kind"], arm["published"]]
    return [*about, *published, *tuned, *delta, arm.get("verdict")]


def _size(point: Json) -> list[Any]:
    behind = point["behind_teacher"] or {}
    about = [point["arm"], point["size"], point["measured"], point["mean"], *(point["ci95"] or (None, None))]
    return [*about, point["on_front"], behind.get("mean"), *(behind.get("ci95") or (None, None))]


def _interval(told: Json) -> list[Any]:
    """[mean, low, high, n or the adjusted p]."""
    return [told.get("mean"), *(told.get("ci95") or (None, None)), told.get("n", told.get("p_adjusted"))]


def _summary(result: Json) -> Row:
    summary: Row = {"complete": result["complete"], "budget_used": result["budget_used"], "metric": result["metric"]}
    for arm in result["arms"]:
        told = arm.get("tuned") or arm.get("fixed") or arm.get("as_published")
        if told:
            summary[f"{arm['arm']}/{result['metric']}"] = told["mean"]
        if arm.get("verdict"):
            summary[f"{arm['arm']}/verdict"] = arm["verdict"]
    return summary
