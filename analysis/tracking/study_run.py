"""The W&B run of the whole sweep: the ablation table with its verdicts, budgets, study.yaml, code and packages."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from analysis.tracking.contents import STUDY, Content, Contents, Files, Row
from search.ledger import Ledger

Json = dict[str, Any]
ABLATION = [
    "arm",
    "kind",
    "published",
    "as_published",
    "as_published_low",
    "as_published_high",
    "as_published_n",
    "tuned",
    "tuned_low",
    "tuned_high",
    "tuned_n",
    "delta",
    "delta_low",
    "delta_high",
    "p_adjusted",
    "verdict",
]


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
        "options": meta["options"],
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
    files = {"study.yaml": run / "study.yaml"} | ({"report.html": r} if (r := run / "report.html").is_file() else {})
    return Content(
        id=contents.id(STUDY),
        name=study.name,
        group=STUDY,
        job_type=STUDY,
        tags=contents.tags(STUDY),
        config=config,
        rows=[],
        summary=_summary(result),
        final=bool(result["complete"]),
        notes=" ".join(words),
        files=(Files(f"study-{contents.sweep}", "study", files, ("latest",)),),
        tables={name: table for name, table in tables.items() if table[1]},
        charts={"tuned arms": ("ablation", "arm", "tuned"), "seed-epochs": ("budget", "arm", "seed_epochs")},
    )


def _ablation(arm: Json) -> list[Any]:
    published, tuned, delta = (_interval(arm.get(k) or {}) for k in ("as_published", "tuned", "delta_vs_baseline"))
    about = [arm["arm"], arm["kind"], arm["published"]]
    return [*about, *published, *tuned, *delta, arm.get("verdict")]


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
