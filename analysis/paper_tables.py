"""The ablation table for a paper: LaTeX (booktabs), Markdown, or CSV with every digit."""

import csv
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from analysis.units import Unit

Json = Mapping[str, Any]
Format = Literal["latex", "markdown", "csv"]
ROLES = {"student": "alone", "needs_teachers": "with teachers", "reference": "teachers alone"}
FORMATS: tuple[Format, ...] = ("latex", "markdown", "csv")
_LATEX = {
    **{c: f"\\{c}" for c in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
}


@dataclass(frozen=True)
class PaperTable:
    """Plain text, escaped where it is written. align: one of l and r for each column."""

    caption: str
    align: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def ablation(result: Json, form: Format) -> str:
    """The table of `compare(run)`: an arm a row, published, as published and tuned, with intervals and verdicts."""
    return csv_of([result]) if form == "csv" else write(ablation_table(result), form)


def write(table: PaperTable, form: Literal["latex", "markdown"]) -> str:
    return latex(table) if form == "latex" else markdown(table)


def ablation_table(result: Json) -> PaperTable:
    """As printed in a paper: rounded, in percent or AUC. Columns that no arm fills are left out."""
    unit = Unit.of(result["metric"])
    published = any(arm["published"] is not None for arm in result["arms"])
    several = len({arm["role"] for arm in result["arms"]}) > 1
    rows = []
    for arm in result["arms"]:
        given, tuned, delta = arm["as_published"] or {}, measured(arm), arm["delta_vs_baseline"] or {}
        cells = [arm["arm"], *([ROLES[arm["role"]]] if several else [])]
        if published:
            cells += [unit.value(arm["published"]), with_interval(unit, given.get("mean"), given.get("ci95"))]
        cells += [
            with_interval(unit, tuned.get("mean"), tuned.get("ci95")),
            str(tuned.get("n") or "-"),
            gain(unit, delta),
            p_value(delta.get("p_adjusted")),
            "baseline" if arm["arm"] == result["baseline"] else arm["verdict"] or "-",
        ]
        rows.append(tuple(cells))
    words = ("Arm", "Runs") if several else ("Arm",)
    numbers = (*(("Published", "As published") if published else ()), "Tuned", "n", "Difference", "p")
    caption = (
        f"{result['study']}: {result['metric']} in {unit.values}, 95 % intervals over seeds and test rows; differences "
        f"in {unit.points} to tuned {result['baseline']}, intervals and p corrected by Holm"
        + ("." if result["complete"] else "; the sweep is not complete.")
    )
    align = "l" * len(words) + "r" * len(numbers) + "l"
    return PaperTable(caption, align, (*words, *numbers, "Verdict"), tuple(rows))


def measured(arm: Json) -> Json:
    """The arm under its tuned configuration, or the one that a fixed arm has; empty before it is confirmed."""
    found: Json = arm["tuned"] or arm.get("fixed") or {}
    return found


def latex(table: PaperTable) -> str:
    """A table environment that needs `\\usepackage{booktabs}`."""
    lines = [
        r"% \usepackage{booktabs}",
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{escape_latex(table.caption)}}}",
        rf"\begin{{tabular}}{{{table.align}}}",
        r"\toprule",
        _latex_row(table.headings),
        r"\midrule",
        *(_latex_row(cells) for cells in table.rows),
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def markdown(table: PaperTable) -> str:
    """A table of GitHub's Markdown, its caption below it."""
    rule = "| " + " | ".join("---" if side == "l" else "---:" for side in table.align) + " |"
    rows = ["| " + " | ".join(escape_markdown(c) for c in cells) + " |" for cells in (table.headings, *table.rows)]
    return "\n".join([rows[0], rule, *rows[1:], "", escape_markdown(table.caption)]) + "\n"


def csv_of(results: Sequence[Json]) -> str:
    """Every digit, in the metric's own units (an accuracy of 0.97 is 0.97), with empty cells for what is not there.

    results: of `compare`, one row an arm of each; a column `run` comes first where they have one.
    """
    rows = [
        {**({"run": result["run"]} if "run" in result else {}), **_raw(result, arm)}
        for result in results
        for arm in result["arms"]
    ]
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _cell(value) for name, value in row.items()} for row in rows)
    return out.getvalue()


def _raw(result: Json, arm: Json) -> dict[str, Any]:
    tuned, delta = measured(arm), arm["delta_vs_baseline"] or {}
    return {
        "study": result["study"],
        "metric": result["metric"],
        **{name: arm[name] for name in ("arm", "kind", "role", "verdict", "published")},
        **_numbers("as_published", arm["as_published"] or {}, "ci95"),
        **_numbers("tuned", tuned, "ci95"),
        "n": tuned.get("n"),
        **_numbers("difference", delta, "ci95_family"),
        "p_value": delta.get("p_value"),
        "p_adjusted": delta.get("p_adjusted"),
    }


def escape_latex(text: str) -> str:
    """Every character that TeX would read as a command; a sign before a digit becomes a minus."""
    escaped = "".join(_LATEX.get(c, c) for c in " ".join(text.split()))
    return re.sub(r"(?<![\w.])-(?=\d)", "$-$", escaped)


def escape_markdown(text: str) -> str:
    """Every character that would end a cell, begin markup or open an HTML tag."""
    return re.sub(r"([\\`*_{}\[\]<>|~#])", r"\\\1", " ".join(text.split()))


def _latex_row(cells: Sequence[str]) -> str:
    row = " & ".join(escape_latex(c) for c in cells) + r" \\"
    return "{}" + row if row[0] in "[*" else row  # after a line's end TeX would take these for an argument


def with_interval(unit: Unit, value: float | None, interval: Sequence[float] | None) -> str:
    return f"{unit.value(value)} {unit.interval(interval)}".strip()


def gain(unit: Unit, delta: Json) -> str:
    return f"{unit.difference(delta.get('mean'))} {unit.interval(delta.get('ci95_family'), sign=True)}".strip()


def p_value(p: float | None) -> str:
    return "-" if p is None else ("<0.001" if p < 0.001 else f"{p:.3f}")


def _numbers(name: str, found: Json, interval: str) -> dict[str, float | None]:
    low, high = found.get(interval) or (None, None)
    return {name: found.get("mean"), f"{name}_{interval}_low": low, f"{name}_{interval}_high": high}


def _cell(value: Any) -> Any:
    """Text that a spreadsheet takes for text: what begins like a formula is quoted."""
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@") else value
