"""The model card of an exported student: what it is, how good, how it was found, and what it was not tried on."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

VERDICTS = {
    "better": "better than the baseline",
    "worse": "worse than the baseline",
    "equivalent": "equivalent to the baseline",
    "indistinguishable": "not distinguishable from the baseline with these seeds",
}
RUNTIMES = ("torch", "onnxruntime")


def model_card(comparison: Mapping[str, Any], facts: Mapping[str, Any]) -> str:
    """Markdown. comparison: of the run, as `compare` gives it; facts: `config.json` of the export."""
    arm = next(a for a in comparison["arms"] if a["arm"] == facts["arm"])
    parts = [
        f"# {facts['study']}: {facts['arm']}",
        _what(facts),
        "## How good",
        _quality(comparison, arm, facts),
        "## How to run it",
        _use(facts),
        "## What it is",
        _table(("", ""), _about(arm, facts)),
        "## Check",
        "\n".join(f"- {line}" for line in check_lines(facts)),
        "## Limits",
        "\n".join(f"- {line}" for line in _limits(comparison, facts)),
        "## Where it comes from",
        _table(("", ""), _origin(facts)),
    ]
    return "\n\n".join(parts) + "\n"


def check_lines(facts: Mapping[str, Any]) -> list[str]:
    """One sentence for each runtime: what it says of the test rows beside what the ledger holds of them."""
    lines, rows = [], facts["check"]["rows"]
    for runtime in RUNTIMES:
        if (check := facts["check"].get(runtime)) is None:
            continue
        metric = next(iter(check))
        difference = abs(check[metric] - check["confirmed"])
        equal = "exactly as confirmed" if difference == 0 else f"{difference:.1e} from the confirmed one"
        apart = [
            f"logits within {check[key]:.1e} of {what}"
            for key, what in (("from_torch_logits", "torch"), ("from_stored_logits", "those stored"))
            if key in check
        ]
        same = f"{check['same_class']:,} of {rows:,} test rows in the class that the ledger holds"
        lines.append(f"{runtime}: test {_name(metric)} {check[metric]:.6f}, {equal}; {'; '.join([same, *apart])}")
    return lines


def _what(facts: Mapping[str, Any]) -> str:
    many = facts["run"]["median_of_seeds"]
    median = f"Of {many} confirmed seeds it is the one with the median test result." if many > 1 else "It is one seed."
    teachers = f" It runs with its teachers: {', '.join(facts['teachers'])}." if facts["teachers"] else ""
    return (
        f"A {_family(facts)} of {facts['parameters']:,} parameters, trained by the variant `{facts['variant']}` in the "
        f"study `{facts['study']}`. {median}{teachers}"
    )


def _family(facts: Mapping[str, Any]) -> str:
    form = facts["architecture"]
    if "network" in form:
        return f"network ({form['network']})"
    if facts["family"] == "vision":
        return f"ResNet-{form['depth']}"
    return f"multilayer perceptron ({'-'.join(map(str, facts['architecture']['widths']))})"


def _quality(comparison: Mapping[str, Any], arm: Mapping[str, Any], facts: Mapping[str, Any]) -> str:
    metric = comparison["metric"].removeprefix("test_")
    measured = arm.get("tuned") or arm.get("fixed") or arm["as_published"]
    rows = [
        ("this file, on the test rows", f"{facts['confirmed'][f'test_{metric}']:.4f}"),
        (f"its configuration, mean of {measured['n']} seeds", _interval(measured["mean"], measured["ci95"])),
    ]
    baseline, delta = comparison["baseline"], arm.get("delta_vs_baseline")
    if delta is not None:
        p = "" if delta["p_adjusted"] is None else f", p = {delta['p_adjusted']:.3g} (Holm)"
        rows.append((f"difference from {baseline}", _interval(delta["mean"], delta["ci95"], "+.4f") + p))
    if arm.get("verdict"):
        rows.append(("verdict", VERDICTS.get(arm["verdict"], arm["verdict"])))
    if arm["published"] is not None:
        rows.append(("published", f"{arm['published']:g}"))
    for name, found in (arm.get("evaluation") or {}).items():
        if not name.startswith("ms_per_sample") and name != "parameters":
            rows.append((f"{_name(name)}, mean over seeds", f"{found['mean']:.4f}"))
    note = (
        "Intervals are of 95 %, over seeds and test rows."
        if measured["ci95"]
        else "With one seed there is no interval."
    )
    return _table((f"test {_name(metric)}", ""), rows) + f"\n\n{note}"


def _use(facts: Mapping[str, Any]) -> str:
    parts = []
    if "onnxruntime" in facts["check"]:
        kind = {"tabular": "rows.csv", "mlp": "rows.csv", "vision": "images.npy"}[facts["family"]]
        parts.append(
            "With numpy and onnxruntime alone:\n\n```\npip install numpy onnxruntime\npython run.py           # checks "
            f"itself on example.npz\npython run.py {kind}\n```"
        )
        parts.append(_inputs(facts))
    if "student.safetensors" in facts["files"] and facts["role"] == "student":
        parts.append("With distune, as a torch module: `distune.load_exported(folder)`, from student.safetensors.")
    return "\n\n".join(parts)


def _inputs(facts: Mapping[str, Any]) -> str:
    output = (
        f"`logit` (batch,) of the class {facts['classes'][1]!r}; its probability is 1 / (1 + exp(-logit))"
        if facts["output"] == "logit"
        else f"`logits` (batch, {len(facts['classes'])}): {', '.join(facts['classes'][:10])}"
    )
    if facts["family"] != "tabular":
        shape = " x ".join(map(str, facts["inputs"][0]["shape"]))
        what = "pixels from 0 to 255" if facts["family"] == "vision" else "features as they come, not standardised"
        return f"Input `x`: {facts['inputs'][0]['dtype']}, {shape}, {what}. Output: {output}."
    rows = [
        (f"`{c['input']}`", c["dtype"], ", ".join(c["categories"][:8]) + (" ..." if len(c["categories"]) > 8 else ""))
        for c in facts["inputs"]
    ]
    text = (
        "One input (batch,) for each column, as it stands in the table. A missing number is NaN, a missing category an "
        f"empty text; a category that is not listed counts as none of them. Output: {output}."
    )
    return text + "\n\n" + _table(("input", "type", "categories"), rows)


def _about(arm: Mapping[str, Any], facts: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    yield "arm", f"{facts['arm']} ({arm['kind']}, {facts['role'].replace('_', ' ')})"
    yield from (
        (name, f"{value:g}" if isinstance(value, float) else str(value))
        for name, value in facts["hyperparameters"].items()
    )
    yield "epochs", str(facts["fit"]["epochs"])
    yield "architecture", ", ".join(f"{k} {v}" for k, v in facts["architecture"].items() if v is not None)
    yield "parameters", f"{facts['parameters']:,}"
    for batch, ms in facts["ms_per_sample"].items():
        yield f"onnxruntime, {batch.replace('_', ' of ')}", f"{ms:.4f} ms a sample, on the machine of the export"


def _limits(comparison: Mapping[str, Any], facts: Mapping[str, Any]) -> list[str]:
    limits = [
        "Measured on one test split of one data set; on other data it may do better or worse.",
        "The choice among arms used validation rows, the figures above test rows; whoever picks the best of many arms "
        "by them picks some luck too.",
    ]
    if facts["family"] == "tabular":
        limits.append("Numbers beyond 10 standard deviations of the training rows are cut there.")
    if facts["family"] == "vision":
        limits.append("Images must have the size and the channels given here; nothing is resized or cropped.")
    others = [f"{arm['arm']}: " for arm in comparison["arms"] if arm["arm"] != facts["arm"]]
    of_others = (*others, "as_published is null")
    return [*limits, *(note for note in comparison["notes"] if not note.startswith(of_others))]


def _origin(facts: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    run = facts["run"]
    yield "command", f"`{facts['command']}`"
    yield "run", f"fingerprint {run['fingerprint']}, seed {run['seed']}"
    yield "trial", f"{run['trial'] or 'none: a fixed configuration'}, confirmation seed {run['confirmation_seed']}"
    yield "fitted on", f"{facts['fit']['rows']:,} rows of {facts['fit']['rows_of']}"
    yield "data", ", ".join(f"{name} {value}" for name, value in facts["data"].items())
    yield "distune", facts["distune"]


def _interval(mean: float, ci: Sequence[float] | None, spec: str = ".4f") -> str:
    return f"{mean:{spec}}" + (f" [{ci[0]:{spec}}, {ci[1]:{spec}}]" if ci else "")


def _name(metric: str) -> str:
    return "AUC" if metric == "auc" else metric.replace("_", " ")


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in line) + " |" for line in lines
    )
