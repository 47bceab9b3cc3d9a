"""Searching on recorded curves: what is recorded comes back, and a whole search runs on it as it would on workers."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from search.ledger import Ledger
from search.selection import search_spend
from search.tabulated import Curves, Nearest, Table, TabulatedSweep, from_ledger
from spaces import BadInput, Choice, Range, adjust, load_study
from tests.benchmarks import search_quality
from tests.made_ledgers import asked, new_run, row, small_study

STUDY = adjust(load_study("mlp-ensemble"), arms=("kd",))
SPACE = {"rate": Range(1e-3, 1e-1, log=True), "batch": Choice((32, 64))}


def made_curves(configs=3, seeds=4, epochs=5):
    shape = (configs, seeds, epochs)
    score = np.arange(np.prod(shape), dtype=np.float32).reshape(shape) / 100
    hp = [{"rate": 10.0 ** (-3 + c), "batch": (32, 64)[c % 2]} for c in range(configs)]
    last = score[:, :, -1].astype(float)
    return Curves(hp, score, 1 - score, last, last + 0.5)


@pytest.fixture(scope="module")
def tables():
    """The recorded curves of `mlp-ensemble`, for the arms of a sweep of it."""
    search_quality.share(
        STUDY, {a: Curves.read(search_quality.CURVES / f"{a}.parquet") for a in ("kd", "hard_labels")}, {}
    )
    return search_quality.SHARED["tables"]


def one_second(arm, config, seeds):
    return 1.0


def swept(folder, tables, study=STUDY, seed=0):
    """(sweep, ledger) of a search and re-evaluation on the curves; the ledger is open."""
    ledger = Ledger.create(folder, {"study": study.name, "seed": seed})
    sweep = TabulatedSweep(study, ledger, tables, seed, one_second)
    sweep.run()
    return sweep, ledger


def test_what_is_written_comes_back(tmp_path):
    curves = made_curves()
    curves.write(tmp_path / "a.parquet")
    again = Curves.read(tmp_path / "a.parquet")
    assert again.configs == curves.configs
    for name in ("score", "test", "population"):
        np.testing.assert_array_equal(getattr(again, name), getattr(curves, name))
    np.testing.assert_allclose(again.nll, curves.nll, atol=1e-4)


def test_the_nearest_configuration_has_the_same_choice_and_the_nearest_logarithm():
    nearest = Nearest(SPACE, made_curves().configs)  # rates 0.001, 0.01, 0.1 with batches 32, 64, 32
    assert [nearest({"rate": rate, "batch": 32}) for rate in (0.002, 0.005, 0.02)] == [0, 0, 2]
    assert nearest({"rate": 0.001, "batch": 64}) == 1


def test_a_pack_reports_means_over_its_seeds_and_ends_where_it_diverges():
    curves = made_curves()
    curves.score[1, 2, 3] = np.nan
    table = Table(curves, Nearest(SPACE, curves.configs), "val_accuracy")
    rows, diverged = table.rows(1, np.array([0, 2]), range(2, 6))
    assert diverged
    assert [r["epoch"] for r in rows] == [2, 3, 4]
    assert rows[0]["score"] == pytest.approx((curves.score[1, 0, 1] + curves.score[1, 2, 1]) / 2)
    assert rows[-1]["score"] is None
    assert not table.rows(1, np.array([0, 1]), range(2, 6))[1]


def test_the_recorded_curves_are_whole(tables):
    for name, fewest in (("kd", 500), ("hard_labels", 100)):
        curves = tables[name].curves
        assert len(curves.configs) >= fewest
        assert curves.score.shape[1:] == (24, STUDY.budget.max_epochs)
        assert curves.configs[0] == STUDY.arms[name].default
        for config in curves.configs:
            assert all(d.contains(config[n]) for n, d in STUDY.arms[name].space.items())
    published = tables["kd"].curves.population[0].mean() - tables["hard_labels"].curves.population[0].mean()
    assert 0.004 < published < 0.008  # METHOD has +0.62 +/- 0.10 points for it


def test_a_search_on_curves_spends_every_budget_and_re_evaluates_under_other_seeds(tmp_path, tables):
    sweep, ledger = swept(tmp_path, tables)
    with ledger:
        spent = search_spend(STUDY, ledger.trials(), ledger.epochs())
        assert all(s >= STUDY.budget.search_seed_epochs for s in spent.values())
        assert {t.trial for t in ledger.trials()} == set(ledger.ends())
        top, fresh = STUDY.budget.reevaluation
        assert len(ledger.runs("reevaluation")) == len(STUDY.searched) * STUDY.budget.subsearches * top * fresh
        assert not set(sweep._of_search("kd", 1)) & set(sweep._fresh("kd", 1))
        assert 0 <= search_quality.regret(tables["kd"].curves, sweep.chosen("kd")) < 1


def test_the_same_seed_searches_alike_and_another_does_not(tmp_path, tables):
    searches = []
    for number, seed in enumerate((0, 0, 1)):
        folder = tmp_path / str(number)
        folder.mkdir()
        _, ledger = swept(folder, tables, seed=seed)
        with ledger:
            searches.append([(t.trial, t.config) for t in ledger.trials()])
    assert searches[0] == searches[1] != searches[2]


def test_a_search_of_hundreds_of_trials_is_simulated_at_once(tmp_path, tables):
    budget = dataclasses.replace(STUDY.budget, seed_epochs_per_arm=40_000, seeds_per_trial=2)
    _, ledger = swept(tmp_path, tables, dataclasses.replace(STUDY, budget=budget))
    with ledger:
        assert len(ledger.trials()) > 300


def test_a_better_configuration_survives_more_rungs(tmp_path, tables):
    """The scheduler stops the worse ones: those that came to the end are better, by the truth that it does not see."""
    _, ledger = swept(tmp_path, tables)
    table = tables["kd"]
    truth = table.curves.truth.mean(axis=1)
    with ledger:
        ends = ledger.ends()
        worth = {"finished": [], "stopped": []}
        for trial in ledger.trials():
            if trial.arm == "kd" and ends[trial.trial].how in worth:
                worth[ends[trial.trial].how].append(truth[table.nearest(trial.config)])
    assert np.mean(worth["finished"]) > np.mean(worth["stopped"])


def test_every_side_of_the_benchmark_ends_within_what_it_is_given(tables):
    study, table = STUDY, tables["kd"]
    paid = []

    def cost(config):
        paid.append(1)
        return 1.0

    number = search_quality.plain_side(study, "kd", table, 0, 300.0, cost)
    assert 0 <= number < len(table.curves.configs)
    assert len(paid) > 10  # trials
    assert 0 <= search_quality.random_side(study, "kd", table, 0, 300.0, lambda config: 1.0) < len(table.curves.configs)


# One's own ledger.


def finished_trials(run: Path, count: int, seeds: int = 4):
    study = small_study(seeds_per_trial=seeds)
    last = study.budget.max_epochs
    with new_run(run, study) as ledger:
        for number in range(count):
            name = f"hard_labels-{number:05d}"
            ledger.ask(asked(name, "hard_labels"))
            scores = [[0.5 + 0.01 * number + 0.001 * s + 0.0001 * e for s in range(seeds)] for e in range(1, last + 1)]
            rows = [row(e, float(np.mean(s)), seeds=seeds) for e, s in enumerate(scores, 1)]
            for one, values in zip(rows, scores, strict=True):
                one["metrics"] = {"val_accuracy": values, "val_nll": values}
            ledger.report(name, rows)
            ledger.end(name, "finished" if number else "stopped", last)
    return study


def test_half_of_the_seeds_of_ones_own_trials_are_the_truth(tmp_path):
    study = finished_trials(tmp_path, 12)
    curves = from_ledger(tmp_path, "hard_labels")
    assert curves.score.shape == (11, 2, study.budget.max_epochs)
    assert curves.score[0, :, 0] == pytest.approx([0.5101, 0.5111])
    assert curves.truth[0] == pytest.approx([0.5129, 0.5139])


@pytest.mark.parametrize(("count", "seeds"), [(5, 4), (20, 1)])
def test_a_ledger_with_too_little_to_search_over_is_refused(tmp_path, count, seeds):
    finished_trials(tmp_path, count, seeds)
    with pytest.raises(BadInput, match=f"finished trials of hard_labels under {seeds} seeds"):
        from_ledger(tmp_path, "hard_labels")
