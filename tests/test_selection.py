"""search/selection.py on ledgers made by hand: which trial an arm is confirmed with, and by which reports.

Unless a test says otherwise, every other arm has spent so much that B* is what `kd` has spent.
"""

import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search.ledger import EpochRecord, TrialRecord
from search.selection import Candidate, Winner, deployed, fair_limit, search_spend, select, within
from tests.made_ledgers import add_trial, asked, new_run, row, small_study, spend

STUDY = small_study(seed_epochs_per_arm=10_000)
OTHERS = [arm for arm in STUDY.searched if arm != "kd"]
KD = ("kd", 0)


@pytest.fixture
def ledger(tmp_path):
    with new_run(tmp_path, STUDY) as ledger:
        yield ledger


def let_others_spend(ledger, seed_epochs=5_000):
    for arm in OTHERS:
        spend(ledger, arm, seed_epochs)


def chosen(ledger, key=KD):
    return select(STUDY, ledger)[key].candidate.trial


def reevaluate(ledger, trial, accuracies, nll=0.5, subsearch=0, best_epochs=()):
    for replicate, accuracy in enumerate(accuracies):
        best = {"best_epoch": float(best_epochs[replicate])} if best_epochs else {}
        ledger.finish_run(
            "reevaluation",
            "kd",
            subsearch,
            "train",
            1_000_000 + replicate,
            trial=trial,
            config={},
            epochs=9,
            seconds=0.1,
            metrics={"val_accuracy": accuracy, "val_nll": nll, **best},
            predictions={},
        )


# Only what was reported by B*.


@pytest.mark.parametrize(
    ("poorest", "winner"),
    [
        pytest.param(6, "third", id="the better trial came after B*"),
        pytest.param(7, "third", id="its report would have gone past B*"),
        pytest.param(8, "late", id="its report ended at B*"),
    ],
)
def test_a_better_report_just_past_the_poorest_arms_spend_is_ignored(ledger, poorest, winner):
    for trial, score in (("first", 0.7), ("second", 0.6), ("third", 0.8), ("late", 0.99)):
        add_trial(ledger, trial, "kd", {1: score})
    let_others_spend(ledger, poorest)
    assert chosen(ledger) == winner


def test_the_poorest_arm_sets_the_limit(ledger):
    for trial, score in (("first", 0.7), ("late", 0.99)):
        add_trial(ledger, trial, "kd", {1: score})
    let_others_spend(ledger)
    assert fair_limit(STUDY, search_spend(STUDY, ledger.trials(), ledger.epochs())) == 4
    spend(ledger, "kd", 5_000)
    assert fair_limit(STUDY, search_spend(STUDY, ledger.trials(), ledger.epochs())) == 5_000


def test_the_limit_is_never_more_than_an_arms_budget():
    assert fair_limit(small_study(seed_epochs_per_arm=72), {"hard_labels": 90, "kd": 500}) == 72


def test_an_arm_that_has_spent_nothing_leaves_nothing_to_select_by(ledger):
    add_trial(ledger, "only", "kd", {1: 0.9})
    assert select(STUDY, ledger) == {}


def test_a_rung_reached_past_the_limit_does_not_decide(ledger):
    for trial, score in (("a", 0.7), ("b", 0.6), ("c", 0.8)):
        add_trial(ledger, trial, "kd", {1: score})
    let_others_spend(ledger, 6)
    for trial, later in (("a", 0.99), ("b", 0.6), ("c", 0.8)):
        ledger.report(trial, [row(2), row(3, later)])
    assert select(STUDY, ledger)[KD].candidate.epoch == 1
    assert chosen(ledger) == "c"


@given(spends=st.lists(st.tuples(st.sampled_from("ab"), st.integers(1, 8)), max_size=30), limit=st.integers(0, 60))
def test_every_arm_keeps_its_longest_beginning_that_fits_the_limit(spends, limit):
    trials = [TrialRecord(arm, arm, 0, "", {}, 0.0) for arm in "ab"]
    epochs = [EpochRecord(n, arm, n, cost, 0.0, 0.5, 0.0, 0.5, {}) for n, (arm, cost) in enumerate(spends)]
    kept, past = within(limit, trials, epochs)
    for arm in "ab":
        own, used = [r for r in epochs if r.trial == arm], [r for r in kept if r.trial == arm]
        cost = sum(r.seeds for r in used)
        assert used == own[: len(used)]
        assert cost <= limit
        assert cost + past.get(arm, 0) == sum(r.seeds for r in own)
        assert used == own or cost + own[len(used)].seeds > limit


# The rung that decides.


@pytest.mark.parametrize(
    ("trials", "winner"),
    [
        pytest.param([{1: 0.5, 3: 0.6}, {1: 0.5, 3: 0.7}, {1: 0.9, 3: 0.5}], "1", id="three reached it"),
        pytest.param([{1: 0.5, 3: 0.6}, {1: 0.8}, {1: 0.9}], "2", id="three at 1 decide, one at 3 does not"),
        pytest.param([{1: 0.9}, {1: 0.5, 3: 0.4}], "1", id="nowhere three: the highest reached"),
    ],
)
def test_the_highest_rung_that_three_trials_reached_decides(ledger, trials, winner):
    for name, rungs in enumerate(trials):
        add_trial(ledger, str(name), "kd", rungs)
    let_others_spend(ledger)
    assert chosen(ledger) == winner


def test_three_trials_count_within_one_sub_search(ledger):
    for name, (subsearch, rungs) in enumerate(
        [(0, {1: 0.5, 3: 0.6}), (0, {1: 0.6}), (0, {1: 0.7}), (1, {1: 0.5, 3: 0.6}), (1, {1: 0.6, 3: 0.5})]
    ):
        add_trial(ledger, str(name), "kd", rungs, subsearch=subsearch)
    let_others_spend(ledger)
    assert chosen(ledger) == "2"
    assert chosen(ledger, ("kd", 1)) == "3"


def test_epochs_between_rungs_do_not_decide(ledger):
    for name, score in (("a", 0.7), ("b", 0.8), ("c", 0.6)):
        add_trial(ledger, name, "kd", {1: score, 2: 1 - score})
    let_others_spend(ledger)
    assert chosen(ledger) == "b"


def test_a_tie_goes_to_the_earlier_trial_also_if_it_reported_later(ledger):
    for name in "abc":
        add_trial(ledger, name, "kd", {1: 0.5})
    for name in "cba":
        ledger.report(name, [row(2), row(3, 0.9)])
    let_others_spend(ledger)
    assert chosen(ledger) == "a"


@pytest.mark.parametrize(("se", "winner"), [(0.02, "sure"), (0.005, "best")])
def test_within_one_standard_error_of_the_best_the_lower_nll_wins(ledger, se, winner):
    add_trial(ledger, "best", "kd", {1: 0.80}, se=se, nll=0.5)
    add_trial(ledger, "sure", "kd", {1: 0.79}, se=0.0, nll=0.4)
    add_trial(ledger, "poor", "kd", {1: 0.50}, se=0.5, nll=0.1)
    let_others_spend(ledger)
    assert chosen(ledger) == winner


def test_trials_of_one_seed_have_a_winner_too(ledger):
    add_trial(ledger, "a", "kd", {1: 0.9}, seeds=1, se=None)
    let_others_spend(ledger)
    assert chosen(ledger) == "a"


# What never wins.


@pytest.mark.parametrize("how", ["diverged", "crashed"])
def test_a_lost_trial_never_wins_and_does_not_count(ledger, how):
    add_trial(ledger, "lost", "kd", {1: 0.99, 3: 0.99}, how=how)
    for name, rungs in (("a", {1: 0.5, 3: 0.6}), ("b", {1: 0.5, 3: 0.6}), ("c", {1: 0.9}), ("d", {1: 0.8})):
        add_trial(ledger, name, "kd", rungs, how="stopped")
    let_others_spend(ledger)
    assert chosen(ledger) == "c"  # three at rung 1 decide: with the lost one there would be three at rung 3


@pytest.mark.parametrize("how", ["finished", "stopped", "budget", ""])
def test_however_else_a_trial_ended_it_may_win(ledger, how):
    add_trial(ledger, "a", "kd", {1: 0.9}, how=how)
    add_trial(ledger, "b", "kd", {1: 0.8})
    let_others_spend(ledger)
    assert chosen(ledger) == "a"


def test_a_score_that_is_no_number_never_wins(ledger):
    add_trial(ledger, "nan", "kd", {1: math.nan})
    add_trial(ledger, "number", "kd", {1: 0.1})
    let_others_spend(ledger)
    assert chosen(ledger) == "number"


# Re-evaluations under fresh seeds.


def test_below_the_last_epoch_the_fresh_seeds_alone_decide(ledger):
    for name, score in (("lucky", 0.9), ("good", 0.8), ("unasked", 0.99)):
        add_trial(ledger, name, "kd", {1: score})
    let_others_spend(ledger)
    reevaluate(ledger, "lucky", [0.70, 0.72])
    reevaluate(ledger, "good", [0.80, 0.82])
    winner = select(STUDY, ledger)[KD]
    assert winner.candidate.trial == "good"
    assert (winner.candidate.score, winner.fresh_score, winner.value) == pytest.approx((0.8, 0.81, 0.81))


def test_at_the_last_epoch_the_seeds_of_the_search_and_the_fresh_ones_count_alike(ledger):
    last = STUDY.budget.max_epochs
    for name, score, fresh in (("lucky", 0.90, [0.70, 0.72]), ("good", 0.80, [0.86, 0.88])):
        add_trial(ledger, name, "kd", {last: score}, se=0.01)
        reevaluate(ledger, name, fresh)
    let_others_spend(ledger)
    winner = select(STUDY, ledger)[KD]
    assert winner.candidate.trial == "good"
    assert (winner.value, winner.fresh_score) == pytest.approx(((2 * 0.80 + 0.86 + 0.88) / 4, 0.87))
    seeds = [0.79, 0.81, 0.86, 0.88]  # two seeds of mean 0.80 with a standard error of 0.01, and the fresh ones
    assert winner.se == pytest.approx(statistics.stdev(seeds) / 2)


@pytest.mark.parametrize(("second", "winner"), [(0.801, "sure"), (0.799, "best")])
def test_within_one_fresh_standard_error_the_lower_fresh_nll_wins(ledger, second, winner):
    """The best scored 0.80 and 0.82: 0.81 with a standard error of 0.01."""
    for name in ("best", "sure"):
        add_trial(ledger, name, "kd", {1: 0.9}, nll=0.1 if name == "best" else 0.9, se=0.5)
    let_others_spend(ledger)
    reevaluate(ledger, "best", [0.80, 0.82], nll=0.5)
    reevaluate(ledger, "sure", [second, second], nll=0.4)
    assert chosen(ledger) == winner


@pytest.mark.parametrize("other", [[0.8, 0.8], []], ids=["the other held", "the other was not re-evaluated yet"])
def test_a_trial_that_diverges_under_a_fresh_seed_never_wins(ledger, other):
    add_trial(ledger, "a", "kd", {1: 0.9})
    add_trial(ledger, "b", "kd", {1: 0.8})
    let_others_spend(ledger)
    reevaluate(ledger, "b", other)
    reevaluate(ledger, "a", [0.9])
    diverged = {"parameters": 3490.0, "diverged": 1.0}  # what confirm.train_to_end records of it
    ledger.finish_run(
        "reevaluation",
        "kd",
        0,
        "train",
        1_000_001,
        trial="a",
        config={},
        epochs=9,
        seconds=0.1,
        metrics=diverged,
        predictions={},
    )
    assert chosen(ledger) == "b"


def test_sub_searches_choose_for_themselves(ledger):
    for subsearch in (0, 1):
        for name, score in (("a", 0.8), ("b", 0.7)):
            add_trial(ledger, f"{name}{subsearch}", "kd", {1: score}, subsearch=subsearch)
    let_others_spend(ledger)
    reevaluate(ledger, "a0", [0.6, 0.6])
    reevaluate(ledger, "b0", [0.7, 0.7])
    assert chosen(ledger) == "b0"
    assert chosen(ledger, ("kd", 1)) == "a1"


# The one to deploy.


def winner(trial, subsearch, score, fresh):
    return Winner(Candidate(trial, "kd", subsearch, {}, 9, score, 0.0, 0.5), fresh, 0.0, 0.5)


def test_the_winner_with_the_best_re_evaluation_is_deployed():
    chosen = {
        ("kd", 0): winner("a", 0, 0.99, 0.7),
        ("kd", 1): winner("b", 1, 0.7, 0.9),
        ("aa", 0): winner("c", 0, 1, 1),
    }
    assert deployed(chosen, "kd").candidate.trial == "b"


def test_a_tie_for_deployment_goes_to_the_first_sub_search():
    chosen = {("kd", 1): winner("b", 1, 0.9, 0.8), ("kd", 0): winner("a", 0, 0.7, 0.8)}
    assert deployed(chosen, "kd").candidate.trial == "a"


# How far a winner is trained, of trials that stop early.


def add_patient_trial(ledger, trial, last, best_epoch, score=0.8):
    """A trial that reported up to the rung `last`, and with every epoch where its seed-mean curve was best so far."""
    ledger.ask(asked(trial, "kd"))
    best = {"best_epoch": [float(best_epoch)] * 2}
    ledger.report(trial, [{**row(e, score if e in (1, 3, 9) else None), "metrics": best} for e in range(1, last + 1)])


@pytest.mark.parametrize(("last", "epochs"), [(9, 2), (3, None), (1, None)])
def test_only_a_trial_that_came_to_the_end_says_how_far_to_train(ledger, last, epochs):
    """Before it, the best epoch is only the best so far."""
    add_patient_trial(ledger, "a", last, best_epoch=min(2, last))
    let_others_spend(ledger)
    winner = select(STUDY, ledger)[KD]
    assert (winner.candidate.epoch, winner.candidate.best_epoch, winner.epochs) == (last, epochs, epochs)


def test_a_trial_that_never_stops_early_is_trained_to_the_end(ledger):
    add_trial(ledger, "a", "kd", {9: 0.8})
    let_others_spend(ledger)
    assert select(STUDY, ledger)[KD].epochs is None


@pytest.mark.parametrize(
    ("fresh", "epochs"), [([4, 4, 4], 4), ([3, 9, 4], 4), ([3, 3, 9, 9], 6), ([1, 9], 5), ([7], 7)], ids=str
)
@pytest.mark.parametrize("last", [9, 3])
def test_the_median_of_the_fresh_seeds_best_epochs_replaces_the_searchs(ledger, last, fresh, epochs):
    add_patient_trial(ledger, "a", last, best_epoch=2)
    let_others_spend(ledger)
    reevaluate(ledger, "a", [0.8] * len(fresh), best_epochs=fresh)
    winner = select(STUDY, ledger)[KD]
    assert winner.epochs == epochs
    assert isinstance(winner.epochs, int)


def test_every_candidate_keeps_its_own_best_epochs(ledger):
    for trial, best, score in (("a", 5, 0.8), ("b", 7, 0.7)):
        add_patient_trial(ledger, trial, 9, best, score)
    let_others_spend(ledger)
    assert select(STUDY, ledger)[KD].epochs == 5
    reevaluate(ledger, "a", [0.6, 0.6], best_epochs=[4, 4])
    reevaluate(ledger, "b", [0.9, 0.9], best_epochs=[8, 8])
    winner = select(STUDY, ledger)[KD]
    assert (winner.candidate.trial, winner.epochs) == ("b", 8)


def test_a_winner_is_confirmed_after_as_many_epochs_as_were_chosen(ledger):
    """And published and fixed configurations with the patience that their source had, which `None` stands for."""
    from search.confirm import confirmation_jobs

    add_patient_trial(ledger, "a", 9, best_epoch=2)
    add_trial(ledger, "plain", "label_smoothing", {9: 0.8})
    let_others_spend(ledger)
    epochs = {(job.purpose, job.arm): job.epochs for job in confirmation_jobs(STUDY, ledger)}
    assert epochs["tuned", "kd"] == 2
    assert epochs["tuned", "label_smoothing"] == STUDY.budget.max_epochs
    assert epochs["as_published", "kd"] is None
