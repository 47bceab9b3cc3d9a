"""analysis/side_by_side.py and `distune compare RUN RUN2`: the same arms in several sweeps, or one clear refusal."""

import csv
import dataclasses
import io
import json
import re

import pytest
from rich.console import Console
from typer.testing import CliRunner

import distune
from analysis.comparison import compare
from analysis.side_by_side import compare_runs, paper, render
from spaces import BASELINE, BadInput, Range, load_study
from tests.made_ledgers import SMALL, new_run, small_study
from tests.test_comparison import STUDY, World, accuracies, confirmed


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two finished sweeps: kd better in both; the second has one arm less, and its trials had another margin."""
    folder, world = tmp_path_factory.mktemp("runs"), World()
    confirmed(folder / "one", world, accuracies(world, kd=0.9))
    other = dataclasses.replace(small_study(("kd", "label_smoothing")), margin=0.004)
    confirmed(folder / "two", World(1), accuracies(World(1), kd=0.95), other)
    return [folder / "one", folder / "two"]


def changed(folder, name, study):
    new_run(folder / name, study).close()
    return folder / name


def with_arm(name, **changes):
    return dataclasses.replace(STUDY, arms={**STUDY.arms, name: dataclasses.replace(STUDY.arms[name], **changes)})


def test_every_runs_part_is_what_its_own_comparison_says(runs):
    result = compare_runs(runs)
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert [r["run"] for r in result["runs"]] == [str(run) for run in runs]
    for shown, run in zip(result["runs"], runs, strict=True):
        assert {k: v for k, v in shown.items() if k != "run"} == compare(run)
    assert [a["arm"] for a in result["arms"]] == list(STUDY.arms)
    for arm in result["arms"]:
        for place, run in enumerate(result["runs"]):
            own = next((a for a in run["arms"] if a["arm"] == arm["arm"]), None)
            assert arm["in_runs"][place] == (None if own is None else {"run": run["run"], **own})
    assert next(a for a in result["arms"] if a["arm"] == "kd_shuffled")["in_runs"][1] is None


def test_what_differs_is_listed_and_what_does_not_is_not(runs):
    assert compare_runs(runs)["differs"] == {"margin": [0.002, 0.004]}


def test_of_data_of_another_kind_only_the_kind_is_listed(tmp_path):
    digits = load_study("digits-attention-transfer")
    cifar = dataclasses.replace(digits, data=load_study("cifar10-attention-transfer").data)
    one, two = changed(tmp_path, "digits", digits), changed(tmp_path, "cifar", cifar)
    assert compare_runs([one, two])["differs"] == {"data.kind": ["digits", "cifar10"]}


def test_the_table_shows_the_numbers_of_both_runs(runs):
    result = compare_runs(runs)
    console = Console(width=250, file=io.StringIO(), record=True)
    console.print(render(result))
    text = console.export_text()
    (line,) = [line for line in text.splitlines() if line.startswith(" kd ") or line.startswith("kd ")]
    for run in result["runs"]:
        kd = run["arms"][-1]
        assert f"{100 * kd['tuned']['mean']:.2f}" in line
        assert f"{100 * kd['delta_vs_baseline']['mean']:+.2f}" in line
    assert line.count("better") == 2
    assert re.search(r"kd_shuffled .* not in it", text)
    assert f"[2] {runs[1]}: mlp-ensemble" in text
    assert "margin: 0.002 | 0.004" in text


def test_papers_get_the_same(runs):
    result = compare_runs(runs)
    rows = list(csv.DictReader(io.StringIO(paper(result, "csv"))))
    assert [(r["run"], r["arm"]) for r in rows] == [
        (run["run"], arm["arm"]) for run in result["runs"] for arm in run["arms"]
    ]
    assert r"\begin{tabular}{lrrlrrl}" in paper(result, "latex")
    heading, *rows = [line for line in paper(result, "markdown").splitlines() if line.startswith("|")]
    assert heading.count("Verdict") == 2
    assert len(rows) == 1 + len(STUDY.arms)


@pytest.mark.parametrize(
    ("other", "why"),
    [
        (load_study("promo-attention"), "one measures accuracy, the other auc"),
        (small_study(("label_smoothing",)), "no arm in common but the baseline"),
        (with_arm("kd_shuffled", teacher_rows="own"), "kd_shuffled has teacher_rows shuffled_within_class in"),
        (
            with_arm("kd", space={k: v for k, v in STUDY.arms["kd"].space.items() if k != "temperature"}),
            r"kd searches temperature over 1 to 20 \(log\) in .*one and not at all in",
        ),
        (
            with_arm("label_smoothing", space={**STUDY.arms["label_smoothing"].space, "smoothing": Range(0.01, 0.2)}),
            r"label_smoothing searches smoothing over 0.02 to 0.5 \(log\) in .*one and over 0.01 to 0.2 in",
        ),
        (with_arm("kd", space={}), "kd has kind searched in .* and fixed in"),
    ],
)
def test_what_is_not_comparable_is_refused_with_the_reason(tmp_path, other, why):
    one = changed(tmp_path, "one", small_study(("kd",)) if "no arm" in why else STUDY)
    with pytest.raises(BadInput, match=why):
        compare_runs([one, changed(tmp_path, "two", other)])


def test_fixed_arms_must_be_fixed_at_the_same_settings(tmp_path):
    fixed = [
        with_arm("kd", space={}),
        with_arm("kd", space={}, default={**STUDY.arms["kd"].default, "temperature": 9.0}),
    ]
    one, two = (changed(tmp_path, str(i), study) for i, study in enumerate(fixed))
    with pytest.raises(BadInput, match=r"kd is fixed at temperature=\S+ in .*0 and temperature=9.0 in .*1"):
        compare_runs([one, two])


def test_a_run_given_twice_is_refused(tmp_path):
    one = changed(tmp_path, "one", STUDY)
    with pytest.raises(BadInput, match="given twice"):
        compare_runs([one, tmp_path / "one" / ".." / "one"])


def test_sweeps_that_have_just_begun_are_shown_as_far_as_they_are(tmp_path):
    budget = small_study(**{**SMALL, "seed_epochs_per_arm": 144})
    result = compare_runs([changed(tmp_path, "one", STUDY), changed(tmp_path, "two", budget)])
    assert [run["complete"] for run in result["runs"]] == [False, False]
    assert result["differs"] == {"budget.seed_epochs_per_arm": [72, 144]}
    assert "not complete" in paper(result, "markdown")


def command(*arguments):
    return CliRunner().invoke(distune.app, ["compare", *map(str, arguments)])


def test_the_command_prints_one_run_as_before_and_several_as_runs_and_arms(runs):
    assert json.loads(command(runs[0], "--json").stdout) == compare(runs[0])
    assert json.loads(command(*runs, "--json").stdout) == compare_runs(runs)
    assert command(*runs).stdout.count(BASELINE) > 1
    assert command(runs[0], "--format", "latex").stdout.startswith("% \\usepackage{booktabs}")
    assert command(*runs, "--format", "csv").stdout.startswith("run,study,")


@pytest.mark.parametrize(
    ("flags", "says"),
    [(["--format", "tex"], "--format tex: give"), (["--json", "--format", "csv"], "--json and --format")],
)
def test_the_command_refuses_a_format_that_there_is_not(runs, flags, says):
    done = command(runs[0], *flags)
    assert isinstance(done.exception, BadInput)
    assert says in str(done.exception)
    assert "latex, markdown, csv" in str(done.exception)
