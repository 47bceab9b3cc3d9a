"""The command line: help at once, and one clear line for bad input before anything is written."""

import subprocess
import sys

import pytest


def distune(*arguments, cwd=None):
    return subprocess.run(
        [sys.executable, "-m", "distune", *map(str, arguments)], capture_output=True, text=True, cwd=cwd, check=False
    )


def test_help_waits_for_no_heavy_import():
    code = (
        "import sys, runpy\nsys.argv = ['distune', '--help']\n"
        "try: runpy.run_module('distune', run_name='__main__')\n"
        "except SystemExit as e: assert not e.code\n"
        "heavy = {'torch', 'ray', 'optuna', 'pandas', 'scipy', 'sklearn', 'pydantic', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "sweep" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("sweep", "mlp-ensembel"), "did you mean 'mlp-ensemble'"),
        (("sweep", "nowhere.yaml"), "cannot read the study file"),
        (("sweep", "mlp-ensemble", "--arms", "kdd"), "did you mean 'kd'"),
        (("sweep", "mlp-ensemble", "--set", "budget.confirm_seed=8"), "did you mean 'confirm_seeds'"),
        (("sweep", "mlp-ensemble", "--set", "confirm_seeds"), "key=value"),
        (("sweep", "mlp-ensemble", "--set", "space.learning_rate.low=1"), "low must be less than high"),
        (("sweep", "mlp-ensemble", "--set", "budget.max_epochs=many"), "valid integer"),
        (("sweep", "mlp-ensemble", "--set", "trainable=none.py:train"), "existing file"),
        (("sweep", "mlp-ensemble", "--seed-epochs", "100"), "too small"),
        (("sweep", "mlp-ensemble", "--confirm-seeds", "4"), "cannot decide"),
        (("sweep", "mlp-ensemble", "--trials", "3", "--seed-epochs", "9000"), "not both"),
        (("sweep", "mlp-ensemble", "--trials", "0"), "must be 1 or more, got 0"),
        (("sweep", "mlp-ensemble", "--frobnicate"), "--frobnicate"),
        (("sweep",), "STUDY"),
        (("sweep", "mlp-ensemble", "--quick", "--gpus-per-trial", "64"), "64 GPU"),
        (("sweep", "mlp-ensemble", "--quick", "--address", "127.0.0.1:1"), "no Ray cluster"),
        (("compare", "."), "is not a run folder"),
        (("resume", "nowhere"), "is not a run folder"),
        (("audit", "nothing"), "unknown study"),
        (("studies", "nothing"), "unknown study"),
    ],
)
def test_bad_input_is_one_line_exit_2_and_nothing_written(tmp_path, arguments, says):
    done = distune(*arguments, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("distune: ")
    assert says in lines[0]
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_a_run_folder_that_exists_is_refused_and_left_alone(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("words")
    done = distune("sweep", "mlp-ensemble", "--quick", "--out", tmp_path / "mine")
    assert done.returncode == 2
    assert "exists already" in done.stderr
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "words"


def test_studies_explains_arms_spaces_and_published_numbers():
    done = distune("studies", "mlp-ensemble")
    assert done.returncode == 0
    for words in ("kd_shuffled", "temperature: 1 to 20 (log)", "97.20", "kd - label_smoothing"):
        assert words in done.stdout


def test_runs_says_so_where_there_are_none(tmp_path):
    done = distune("runs", tmp_path)
    assert done.returncode == 0
    assert "no run folders" in done.stdout
