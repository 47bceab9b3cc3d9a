"""What one sees at the terminal: help with examples that are true, completion, colours, and how a sweep ends."""

import json
import os
import re
import shlex
import subprocess
import sys
import threading

import pytest
from filelock import FileLock
from rich.console import Console

import distune
from analysis import answer, watching
from analysis.comparison import compare
from search.lock import LOCK
from spaces.families import OF_VARIANT
from spaces.formulas import FORMULAS
from tests.doc_blocks import COMMANDS
from tests.doc_blocks import parse as parse_words
from tests.made_ledgers import add_trial, new_run, small_study
from tests.made_reports import finished_run
from tests.test_cli import distune as cli

COLOUR = re.compile(r"\x1b\[(?:\d+;)*(?:3[0-7]|9[0-7]|38)")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return finished_run(tmp_path_factory.mktemp("terminal") / "run")


def parse(line):
    """Parse a `distune …` line as the command line would, without running it."""
    words = shlex.split(line, comments=True)
    assert words[0] == "distune"
    parse_words(words[1:])


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_the_help_of_every_command_has_examples_that_parse(name):
    examples = re.findall(rf"^\s*(distune {name}\b.*)$", COMMANDS[name].help, re.MULTILINE)
    assert examples
    for example in examples:
        parse(example)


def test_help_is_read_without_cut_sentences():
    assert "..." not in cli("--help").stdout.replace("[ARGS]...", "")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("swep",), "'sweep'"),
        (("sweep", "mlp-ensemble", "--confirm-seed", "8"), "--confirm-seeds"),
        (("watch", "nowhere"), "is not a run folder"),
    ],
)
def test_a_misspelt_name_is_answered_with_the_nearest(arguments, says):
    done = cli(*arguments)
    assert done.returncode == 2
    assert says in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(("typed", "offered"), [("distune sw", ["sweep"]), ("distune sweep ml", ["mlp-ensemble"])])
def test_bash_completes_commands_and_studies(typed, offered):
    asked = {"_DISTUNE_COMPLETE": "complete_bash", "COMP_WORDS": typed, "COMP_CWORD": str(typed.count(" "))}
    done = subprocess.run(
        [sys.executable, "-m", "distune"], env={**os.environ, **asked}, capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == offered, done.stderr


def test_bash_is_given_a_script_that_it_accepts():
    asked = {**os.environ, "_DISTUNE_COMPLETE": "source_bash"}
    script = subprocess.run(
        [sys.executable, "-m", "distune"], env=asked, capture_output=True, text=True, check=False
    ).stdout
    assert "complete" in script
    assert "distune" in script
    assert subprocess.run(["bash", "-n"], input=script, text=True, check=False).returncode == 0


def test_colours_are_left_out_where_no_color_is_set(run):
    shown = {}
    for name, given in {"colour": {}, "none": {"NO_COLOR": "1"}}.items():
        kept = {k: v for k, v in os.environ.items() if k != "NO_COLOR"}
        asked = {**kept, "FORCE_COLOR": "1", "TERM": "xterm-256color", "COLUMNS": "170", **given}
        command = [sys.executable, "-m", "distune", "compare", str(run)]
        done = subprocess.run(command, env=asked, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        shown[name] = bool(COLOUR.search(done.stdout))
    assert shown == {"colour": True, "none": False}


def test_every_variant_has_a_formula_that_names_its_hyperparameters():
    assert set(FORMULAS) == set(OF_VARIANT)
    chosen_elsewhere = {"layers", "mask", "mask_percentile", "mask_edge", "teacher"}  # which maps, not what weight
    for variant, names in OF_VARIANT.items():
        for name in set(names) - chosen_elsewhere:
            assert ("T" if name == "temperature" else name) in FORMULAS[variant], (variant, name)


def test_a_study_is_explained_with_formulas():
    assert "T² KL(softmax(t/T) || softmax(s/T))" in " ".join(cli("studies", "mlp-ensemble").stdout.split())


def test_a_finished_sweep_ends_with_two_sentences_and_commands_that_parse(run, capsys):
    distune._finish(distune.open_run(run), as_json=False)
    said, _, then = capsys.readouterr().out.rstrip().partition("\nnext:\n")
    first, second = said.splitlines()[-2:]
    report, *commands = then.splitlines()
    result = compare(run)
    assert [first, second] == answer.answer(result)
    assert str(run / "report.html") in report
    best = max((a for a in result["arms"] if not a["arm"].endswith("_again")), key=lambda a: a["tuned"]["mean"])
    assert f"{best['arm']} is highest: {100 * best['tuned']['mean']:.2f}" in second
    assert any(f"--arm {best['arm']}" in command for command in commands)
    for command in commands:
        parse(command)


def test_as_json_the_end_of_a_sweep_is_one_object(run, capsys):
    distune._finish(distune.open_run(run), as_json=True)
    assert json.loads(capsys.readouterr().out)["study"] == "mlp-ensemble"


@pytest.mark.parametrize(
    ("verdict", "settles", "extends"), [("indistinguishable", 27, "--confirm-seeds 28"), ("better", None, None)]
)
def test_more_seeds_are_advised_where_they_would_settle_an_arm(run, verdict, settles, extends):
    result = compare(run)
    result["arms"] = [{**a, "verdict": a["verdict"] and verdict, "seeds_to_settle": settles} for a in result["arms"]]
    commands = [command for command, _ in answer.next_commands(result, run)]
    assert [c for c in commands if "extend" in c] == ([f"distune extend {run} {extends}"] if extends else [])


def test_a_fixed_arm_that_more_seeds_would_settle_is_advised_too(run):
    result = compare(run)
    first, *rest = result["arms"]
    fixed = {**rest[-1], "kind": "fixed", "tuned": None, "verdict": "indistinguishable", "seeds_to_settle": 27}
    result["arms"] = [first, *({**a, "verdict": None} for a in rest[:-1]), fixed]
    commands = [command for command, _ in answer.next_commands(result, run)]
    assert any("--confirm-seeds 28" in command for command in commands)


def unfinished(folder):
    with new_run(folder, small_study(("hard_labels",))) as ledger:
        ledger.clock("search", "begin")
        add_trial(ledger, "hard_labels-00000", "hard_labels", {1: 0.5, 3: 0.75}, how="stopped")
        add_trial(ledger, "hard_labels-00001", "hard_labels", {1: 0.25})
    return folder


def test_watch_says_where_an_unfinished_sweep_stands(tmp_path):
    run = unfinished(tmp_path / "run")
    now = watching.standing(run)
    arm = now["arms"]["hard_labels"]
    assert (now["phase"], now["driven"], now["finished"]) == ("search", False, False)
    assert arm == {"trials": 2, "running": 0, "seed_epochs": 8, "of": 72, "best": 0.75}
    shown = cli("watch", run)
    assert shown.returncode == 0, shown.stderr
    assert "8 of 72" in shown.stdout
    assert f"distune resume {run}" in " ".join(shown.stdout.split())
    assert json.loads(cli("watch", run, "--json").stdout)["arms"]["hard_labels"] == arm


def test_watch_knows_a_run_that_is_worked_on_and_writes_nothing(tmp_path):
    run = unfinished(tmp_path / "run")
    before = {p.name: p.read_bytes() for p in run.iterdir()}
    with FileLock(run / LOCK):
        found = {}
        other = threading.Thread(target=lambda: found.update(watching.standing(run)))  # a lock of its own
        other.start()
        other.join()
    assert found["driven"]
    assert found["arms"]["hard_labels"]["running"] == 1
    assert {p.name: p.read_bytes() for p in run.iterdir() if p.name != LOCK} == before


def test_watch_follows_a_sweep_to_its_end(run, tmp_path, monkeypatch):
    folder, waits = unfinished(tmp_path / "run"), []
    monkeypatch.setattr(watching, "wide_console", lambda: Console(force_terminal=True, width=120, file=sys.stderr))
    monkeypatch.setattr(watching, "is_driven", lambda _: True)

    def wait(seconds):
        waits.append(seconds)
        if len(waits) == 2:
            monkeypatch.setattr(watching, "standing", lambda _: {**now, "finished": True, "phase": "finished"})

    now = watching.standing(folder)
    watching.watch(folder, wait=wait)
    assert len(waits) == 2


def test_watch_shows_the_answer_of_a_finished_run(run):
    shown = " ".join(cli("watch", run).stdout.split())
    assert f"distune compare {run}" in shown
    assert "seeds confirmed" in shown
