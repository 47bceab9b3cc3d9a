"""analysis/paper_tables.py: the numbers are those of `compare --json`, and no name can break the markup."""

import csv
import io
import re

import pytest

from analysis.paper_tables import PaperTable, ablation, escape_latex, escape_markdown, latex, markdown
from tests.test_comparison import World, accuracies, confirmed

NASTY = r"[50% of A&B] <b>x|y</b> $#_{}~^\end{table} -3"


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    world = World()
    return confirmed(tmp_path_factory.mktemp("paper") / "run", world, accuracies(world, kd=0.9))


def rows_of_markdown(text):
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[c.strip().replace("\\", "") for c in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def test_csv_has_every_digit_of_the_comparison(result):
    rows = list(csv.DictReader(io.StringIO(ablation(result, "csv"))))
    assert [r["arm"] for r in rows] == [a["arm"] for a in result["arms"]]
    kd, arm = rows[-1], result["arms"][-1]
    delta = arm["delta_vs_baseline"]
    assert (kd["study"], kd["metric"], kd["verdict"]) == ("mlp-ensemble", "test_accuracy", arm["verdict"])
    assert [float(kd[f"tuned{k}"]) for k in ("", "_ci95_low", "_ci95_high")] == [
        arm["tuned"]["mean"],
        *arm["tuned"]["ci95"],
    ]
    assert float(kd["as_published"]) == arm["as_published"]["mean"]
    assert float(kd["difference"]) == delta["mean"]
    assert [float(kd[f"difference_ci95_family_{k}"]) for k in ("low", "high")] == delta["ci95_family"]
    assert float(kd["p_adjusted"]) == delta["p_adjusted"]
    assert rows[0]["difference"] == rows[0]["p_value"] == ""  # the baseline


def test_markdown_shows_every_arm_rounded_in_percent(result):
    heading, rule, *rows = rows_of_markdown(ablation(result, "markdown"))
    assert heading == ["Arm", "Published", "As published", "Tuned", "n", "Difference", "p", "Verdict"]
    assert rule == ["---", *["---:"] * 6, "---"]
    kd = result["arms"][-1]
    tuned, delta = kd["tuned"], kd["delta_vs_baseline"]
    assert [r[0] for r in rows] == [a["arm"] for a in result["arms"]]
    assert rows[-1][1] == "97.20"
    assert rows[-1][3] == f"{100 * tuned['mean']:.2f} [{100 * tuned['ci95'][0]:.2f}, {100 * tuned['ci95'][1]:.2f}]"
    assert rows[-1][4] == str(tuned["n"])
    assert rows[-1][5].startswith(f"{100 * delta['mean']:+.2f} [")
    assert rows[-1][7] == "better"
    assert rows[0][7] == "baseline"


def test_latex_is_a_booktabs_table_of_as_many_cells_in_every_row(result):
    text = ablation(result, "latex")
    body = text[text.index(r"\toprule") : text.index(r"\bottomrule")]
    rows = [line for line in body.splitlines() if line.endswith(r"\\")]
    assert len(rows) == 1 + len(result["arms"])
    assert {len(re.split(r"(?<!\\)&", line)) for line in rows} == {8}
    assert r"\begin{tabular}{lrrrrrrl}" in text
    assert r"hard\_labels\_again" in text
    assert text.startswith("% \\usepackage{booktabs}\n")


def test_a_sweep_that_is_not_complete_says_so_in_every_caption(result):
    unfinished = {**result, "complete": False}
    assert all("not complete" in ablation(unfinished, form) for form in ("latex", "markdown"))
    assert all("not complete" not in ablation(result, form) for form in ("latex", "markdown"))


def test_columns_of_published_numbers_are_left_out_where_there_are_none(result):
    silent = {**result, "arms": [{**a, "published": None, "as_published": None} for a in result["arms"]]}
    assert rows_of_markdown(ablation(silent, "markdown"))[0] == ["Arm", "Tuned", "n", "Difference", "p", "Verdict"]


def test_what_takes_teachers_to_run_is_told_from_a_student_where_there_is_such(result):
    first, *rest = result["arms"]
    blended = {**result, "arms": [first, *({**a, "role": "needs_teachers"} for a in rest)]}
    heading, rule, one, *others = rows_of_markdown(ablation(blended, "markdown"))
    assert heading[:2] == ["Arm", "Runs"]
    assert rule == ["---", "---", *["---:"] * 6, "---"]
    assert [one[1], *{o[1] for o in others}] == ["alone", "with teachers"]
    assert len(one) == len(heading)


def test_latex_escapes_each_character_that_is_a_command():
    assert escape_latex(r"a_b & 5% $x #1 {y} \z ~ ^ <p>") == (
        r"a\_b \& 5\% \$x \#1 \{y\} \textbackslash{}z \textasciitilde{} \textasciicircum{} \textless{}p\textgreater{}"
    )
    assert escape_latex("-0.5 [-1, +2] kd-3") == "$-$0.5 [$-$1, +2] kd-3"
    assert escape_latex("two\nlines") == "two lines"


def test_markdown_escapes_what_ends_a_cell_or_opens_a_tag():
    assert escape_markdown("a|b <script> *c* _d_") == r"a\|b \<script\> \*c\* \_d\_"


def test_a_hostile_name_stays_in_its_cell():
    table = PaperTable(NASTY, "lr", (NASTY, "n"), ((NASTY, "1"), ("* kd", "2")))
    lines = latex(table).splitlines()
    assert sum(line.startswith(r"\end{table}") for line in lines) == 1
    assert [line[:3] for line in lines if line.endswith(r" \\")] == ["{}[", "{}[", "{}*"]
    assert [len(row) for row in rows_of_markdown(markdown(table))] == [2, 2, 2, 2]


def test_a_name_that_begins_like_a_formula_is_text_to_a_spreadsheet(result):
    renamed = {**result, "study": "=HYPERLINK(1)"}
    rows = csv.DictReader(io.StringIO(ablation(renamed, "csv")))
    assert {r["study"] for r in rows} == {"'=HYPERLINK(1)"}
