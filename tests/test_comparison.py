"""analysis/comparison.py and tables.py on finished ledgers whose predictions are made here, so the answer is known."""

import dataclasses
import io
import itertools
import json
import math

import numpy as np
import pytest
from rich.console import Console

from analysis.comparison import compare
from analysis.statistics import holm
from analysis.tables import conclusions, render
from search.ledger import ENSEMBLE, Ledger
from spaces import A_A_CONTROL, BASELINE
from tests.made_ledgers import add_trial, new_run, small_study, spend

STUDY = small_study()
ONE_WINNER = small_study(subsearches=1, seed_epochs_per_arm=18)
CANDIDATES = STUDY.candidates
ROWS = 300
CONFIRMATION, A_A_OFFSET, PER_SUBSEARCH = 2_000_000, 500_000, 1_000


class World:
    """Test rows of differing difficulty, and students who get a row right if it is easy enough for them."""

    def __init__(self, seed=0, rows=ROWS, noise=0.05):
        self.rng, self.noise = np.random.default_rng(seed), noise
        self.labels = self.rng.integers(0, 2, rows).astype(np.uint8)
        self.difficulty = self.rng.random(rows)

    def student(self, accuracy):
        """(rows,) bool: which rows one student of about this accuracy gets right."""
        return self.difficulty + self.noise * self.rng.normal(size=self.difficulty.size) < accuracy


def searched(run, study=STUDY, curve=((1, 0.5), (3, 0.6), (9, 0.7))):
    """A run whose search is over: every arm's sub-searches have trained one trial each, and so spent the budget."""
    ledger = new_run(run, study)
    for arm in study.searched:
        for g in range(study.budget.subsearches):
            add_trial(ledger, f"{arm}-{g}", arm, dict(curve), subsearch=g, how="finished")
    return ledger


def confirmed(run, world, correct, study=STUDY, seeds=None):
    """A whole run. correct(purpose, arm) gives one student's right rows; seeds: of each winner, if not its share."""
    with searched(run, study) as ledger:
        ledger.look("test", world.labels, "confirmation")
        share = study.budget.confirm_seeds // study.budget.subsearches if seeds is None else seeds
        for arm, definition in study.arms.items():
            first = CONFIRMATION + (A_A_OFFSET if arm == A_A_CONTROL else 0)
            for g in range(study.budget.subsearches):
                for r in range(share):
                    student = correct("tuned", arm)
                    add_seed(ledger, world, "tuned", arm, g, first + g * PER_SUBSEARCH + r, f"{arm}-{g}", student)
            if definition.published:
                for r in range(study.budget.confirm_seeds if seeds is None else seeds):
                    add_seed(ledger, world, "as_published", arm, -1, first + r, "", correct("as_published", arm))
        ledger.clock("confirmation", "end")
    return compare(run)


def add_seed(ledger, world, purpose, arm, subsearch, replicate, trial, right):
    ledger.finish_run(
        purpose,
        arm,
        subsearch,
        "train+validation",
        replicate,
        trial=trial,
        config={},
        epochs=9,
        seconds=0.1,
        metrics={"test_accuracy": float(right.mean()), "parameters": 3490.0},
        predictions={"test": np.where(right, world.labels, 1 - world.labels).astype(np.uint8)},
    )


def accuracies(world, **of_arms):
    """Students of 0.8, but for the arms named here; the same whether tuned or as published."""
    return lambda purpose, arm: world.student(of_arms.get(arm, 0.8))


def gains(**of_arms):
    """Students of 1,000 right rows and so many more, the same under every seed."""
    return lambda purpose, arm: np.arange(2000) < 1000 + of_arms.get(arm, 0)


def arm(result, name):
    return next(a for a in result["arms"] if a["arm"] == name)


@pytest.fixture(scope="module")
def kd_better(tmp_path_factory):
    world = World()
    return confirmed(tmp_path_factory.mktemp("better") / "run", world, accuracies(world, kd=0.9))


# What comes out of predictions whose answer is known.


def test_an_arm_that_is_clearly_better_is_called_better_and_its_claim_replicates(kd_better):
    kd, (claim,) = arm(kd_better, "kd"), kd_better["published_claims"]
    assert kd["verdict"] == "better"
    assert 0 < kd["delta_vs_baseline"]["ci95"][0] < 0.1 < kd["delta_vs_baseline"]["ci95"][1]
    assert claim["verdict"] == "replicates"
    assert claim["ci95"][0] >= claim["published"] / 2 == 0.0035
    assert {arm(kd_better, name)["verdict"] for name in CANDIDATES if name != "kd"} & {"better", "worse"} == set()
    assert {c["contrast"]: c["answer"] for c in kd_better["contrasts"]} == dict.fromkeys(
        ("kd - hard_labels", "kd - label_smoothing", "kd - kd_shuffled"), "better"
    )
    assert kd_better["complete"] is True


def test_an_arm_that_is_clearly_worse_is_called_worse_and_its_claim_reversed(tmp_path):
    world = World()
    result = confirmed(tmp_path, world, accuracies(world, kd=0.7))
    assert arm(result, "kd")["verdict"] == "worse"
    assert result["published_claims"][0]["verdict"] == "reversed"


def test_means_and_deltas_are_those_of_the_predictions(tmp_path):
    """One row in four wrong under every seed of the baseline, none under any of kd."""
    world = World(rows=100)
    wrong = np.arange(100) % 4 == 0
    result = confirmed(tmp_path, world, lambda _, name: ~wrong if name != "kd" else np.ones(100, dtype=bool))
    baseline, kd = arm(result, BASELINE), arm(result, "kd")
    assert [baseline["tuned"][k] for k in ("mean", "n")] == [0.75, 16]
    assert [kd["tuned"]["mean"], kd["as_published"]["mean"], kd["as_published"]["n"]] == [1.0, 1.0, 16]
    assert kd["delta_vs_baseline"]["mean"] == result["published_claims"][0]["measured"] == 0.25
    assert baseline["delta_vs_baseline"] is None
    assert baseline["verdict"] is None


def test_equal_arms_are_no_different_and_neither_is_the_a_a_control(tmp_path):
    """Students differ from seed to seed, in every arm alike."""
    world = World()
    students = [world.student(0.8) for _ in range(STUDY.budget.confirm_seeds)]
    turn = {(purpose, name): itertools.cycle(students) for purpose in ("tuned", "as_published") for name in STUDY.arms}
    result = confirmed(tmp_path, world, lambda purpose, name: next(turn[purpose, name]))
    for name in (A_A_CONTROL, *CANDIDATES):
        delta = arm(result, name)["delta_vs_baseline"]
        assert delta["mean"] == 0
        assert delta["ci95"][0] < 0 < delta["ci95"][1]
        assert delta["p_value"] == delta["p_adjusted"] == 1
        assert arm(result, name)["verdict"] in ("equivalent", "indistinguishable")
    assert result["margin"] == STUDY.margin
    (claim,) = result["published_claims"]
    assert claim["measured"] == 0
    assert claim["verdict"] in ("not distinguishable from noise", "inconclusive")


def test_without_any_variance_the_interval_is_a_point(tmp_path):
    """Every student of an arm predicts the same, and kd is right on every row where the baseline is wrong on all."""
    world = World()
    result = confirmed(tmp_path, world, lambda _, name: np.full(ROWS, name == "kd"))
    kd, smoothing = arm(result, "kd")["delta_vs_baseline"], arm(result, "label_smoothing")["delta_vs_baseline"]
    assert (kd["mean"], kd["ci95"], kd["ci95_seeds"], kd["ci95_family"]) == (1, [1, 1], [1, 1], [1, 1])
    assert (kd["p_value"], arm(result, "kd")["verdict"]) == (0, "better")
    assert (smoothing["mean"], smoothing["ci95"], smoothing["p_value"]) == (0, [0, 0], 1)
    assert arm(result, "label_smoothing")["verdict"] == "equivalent"
    assert result["published_claims"][0]["ci95"] == [1, 1]


def test_the_same_students_under_all_seeds_leave_the_noise_of_the_rows(tmp_path):
    world = World()
    right = {name: world.student(0.8) for name in STUDY.arms}
    tuned = arm(confirmed(tmp_path, world, lambda _, name: right[name]), "kd")["tuned"]
    assert tuned["ci95_seeds"] == [tuned["mean"]] * 2
    binomial = 1.96 * math.sqrt(tuned["mean"] * (1 - tuned["mean"]) / ROWS)
    assert tuned["ci95"][1] - tuned["mean"] == pytest.approx(binomial, rel=0.02)


def test_one_seed_of_one_winner_has_a_mean_and_no_interval(tmp_path):
    world = World()
    result = confirmed(tmp_path, world, accuracies(world), ONE_WINNER, seeds=1)
    for name in ONE_WINNER.arms:
        tuned = arm(result, name)["tuned"]
        assert 0.7 < tuned["mean"] < 0.9
        assert (tuned["ci95"], tuned["ci95_seeds"], tuned["n"]) == (None, None, 1)
    delta = arm(result, "kd")["delta_vs_baseline"]
    assert [delta[k] for k in ("ci95", "ci95_seeds", "ci95_family", "p_value", "p_adjusted")] == [None] * 5
    assert arm(result, "kd")["verdict"] is None
    assert any("one search an arm" in note for note in result["notes"])
    assert result["published_claims"][0]["ci95"] is None
    assert result["published_claims"][0]["verdict"] == "inconclusive"


def test_configurations_are_paired_by_seed_in_whatever_order_the_seeds_came(tmp_path):
    """Students differ much from seed to seed, but kd's is right on six rows more under each: the pairing shows it."""
    world = World()
    with searched(tmp_path, ONE_WINNER) as ledger:
        ledger.look("test", world.labels, "confirmation")
        students = {CONFIRMATION + s: world.student(0.7 + 0.02 * s) for s in range(8)}
        for r, right in students.items():
            add_seed(ledger, world, "as_published", BASELINE, -1, r, "", right)
            add_seed(ledger, world, "tuned", BASELINE, 0, r, f"{BASELINE}-0", right)
        for r, right in reversed(students.items()):
            better = right | (np.cumsum(~right) <= 6)
            add_seed(ledger, world, "as_published", "kd", -1, r, "", better)
            add_seed(ledger, world, "tuned", "kd", 0, r, "kd-0", better)
    result = compare(tmp_path)
    low, high = arm(result, BASELINE)["tuned"]["ci95_seeds"]
    assert high - low > 0.05
    for delta in (arm(result, "kd")["delta_vs_baseline"], result["published_claims"][0]):
        assert delta["ci95_seeds"] == pytest.approx([6 / ROWS] * 2)


def test_with_several_winners_it_is_their_spread_and_not_the_seeds_that_counts(tmp_path):
    """Winners agree in the mean while their seeds differ wildly, or the other way round: only the second is noise."""
    world, share = World(rows=100), STUDY.budget.confirm_seeds // STUDY.budget.subsearches

    def kd_of(winner_and_seed):
        turn = itertools.count()

        def correct(_, name):
            if name != "kd":
                return np.arange(100) < 50
            g, s = divmod(next(turn) % STUDY.budget.confirm_seeds, share)
            return np.arange(100) < 50 + winner_and_seed(g, s)

        return correct

    def of_seeds(result):
        low, high = arm(result, "kd")["delta_vs_baseline"]["ci95_seeds"]
        return high - low

    by_seed = confirmed(tmp_path / "a", world, kd_of(lambda g, s: 20 * (s % 2) - 10))
    by_winner = confirmed(tmp_path / "b", world, kd_of(lambda g, s: 20 * (g % 2) - 10))
    assert of_seeds(by_seed) == 0
    assert of_seeds(by_winner) > 0.2


@pytest.mark.parametrize("seed", range(12))
def test_interval_and_verdict_never_disagree(tmp_path, seed):
    """The adjusted p is below 0.05 exactly where the interval of the family excludes 0."""
    world = World(seed, rows=120, noise=0.1)
    level = {name: 0.8 + world.rng.normal(0, 0.03) for name in STUDY.arms}
    result = confirmed(tmp_path, world, lambda _, name: world.student(level[name]))
    deltas = [arm(result, name)["delta_vs_baseline"] for name in CANDIDATES]
    assert [d["p_adjusted"] for d in deltas] == holm([d["p_value"] for d in deltas])
    for name in CANDIDATES:
        delta, verdict = arm(result, name)["delta_vs_baseline"], arm(result, name)["verdict"]
        low, high = delta["ci95_family"]
        assert (delta["p_adjusted"] < 0.05) == (not low <= 0 <= high)
        assert low <= delta["ci95"][0] <= delta["mean"] <= delta["ci95"][1] <= high
        assert verdict not in ("better", "worse") or (delta["p_adjusted"] < 0.05 and abs(delta["mean"]) > STUDY.margin)
        assert verdict != "better" or low > 0
        assert verdict != "worse" or high < 0
    control = arm(result, A_A_CONTROL)["delta_vs_baseline"]
    assert control["p_adjusted"] == control["p_value"]  # it is in no family
    (claim,) = result["published_claims"]
    assert (claim["p_adjusted"] < 0.05) == (not claim["ci95"][0] <= 0 <= claim["ci95"][1])
    for contrast in result["contrasts"]:
        assert contrast["answer"] not in ("better", "worse") or contrast["p_adjusted"] < 0.05


def test_a_difference_between_two_searches_of_the_baseline_widens_the_margin(tmp_path):
    """label_smoothing gains 2 points, surely; but searching the baseline again gained 4."""
    result = confirmed(tmp_path / "wide", World(rows=2000), gains(label_smoothing=40, hard_labels_again=80))
    assert result["margin"] == pytest.approx(0.04)
    assert arm(result, "label_smoothing")["delta_vs_baseline"]["mean"] == pytest.approx(0.02)
    assert arm(result, "label_smoothing")["verdict"] == "indistinguishable"  # a noisy search makes nothing equal
    assert arm(result, "label_smoothing")["seeds_to_settle"] is None
    assert arm(result, A_A_CONTROL)["verdict"] == "better"  # the control itself is shown as it is
    usual = confirmed(tmp_path / "usual", World(rows=2000), gains(label_smoothing=40))
    assert usual["margin"] == STUDY.margin == 0.002
    assert arm(usual, "label_smoothing")["verdict"] == "better"


def test_a_contrast_is_judged_by_the_margin_that_the_a_a_control_widened(tmp_path):
    """kd gains 2 points over the baseline; but searching the baseline again gained 4."""
    result = confirmed(tmp_path, World(rows=2000), gains(kd=40, hard_labels_again=80))
    (helps,) = (c for c in result["contrasts"] if c["contrast"] == "kd - hard_labels")
    assert result["margin"] > helps["mean"]
    assert helps["answer"] == arm(result, "kd")["verdict"] != "better"


# The contract.

CONTRACT = {
    "": "study metric baseline complete budget_used notes budget arms published_claims",
    "budget": "seed_epochs trials seconds",
    "arms": "arm published kind as_published tuned delta_vs_baseline verdict",
    "as_published": "mean ci95 ci95_seeds n config",
    "tuned": "mean ci95 ci95_seeds n config val_mean optimism",
    "delta_vs_baseline": "mean ci95 p_value p_adjusted",
    "published_claims": "claim published measured ci95 verdict",
}


def has(part, level):
    missing = set(CONTRACT[level].split()) - part.keys()
    assert not missing, f"{level} lacks {missing}"


def assert_keeps_the_contract(result):
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    has(result, "")
    for budget in result["budget"].values():
        has(budget, "budget")
    for a in result["arms"]:
        has(a, "arms")
        for part in ("as_published", "tuned", "delta_vs_baseline"):
            if a[part] is not None:
                has(a[part], part)
    for claim in result["published_claims"]:
        has(claim, "published_claims")


def test_a_complete_result_keeps_the_contract(kd_better):
    assert_keeps_the_contract(kd_better)
    assert (kd_better["study"], kd_better["metric"]) == ("mlp-ensemble", "test_accuracy")
    assert [a["arm"] for a in kd_better["arms"]] == list(STUDY.arms)
    assert {a["kind"] for a in kd_better["arms"]} == {"searched"}
    assert [a["published"] for a in kd_better["arms"]] == [0.965, None, None, None, 0.972]
    assert kd_better["budget"].keys() == set(STUDY.searched)
    spent = {arm: (b["seed_epochs"], b["trials"]) for arm, b in kd_better["budget"].items()}
    assert spent == dict.fromkeys(STUDY.searched, (72, 4))
    assert kd_better["budget_used"] == 5 * 72
    unpublished = "hard_labels_again, label_smoothing, kd_shuffled"
    assert f"as_published is null where the source reports no number: {unpublished}" in kd_better["notes"]


def test_every_look_at_the_test_split_is_shown(kd_better):
    assert [(look["split"], look["rows"]) for look in kd_better["looks_at_test"]] == [("test", ROWS)]


@pytest.mark.parametrize("stage", ["nothing", "one arm searched", "search", "re-evaluation", "opened", "one seed"])
def test_the_contract_holds_at_every_stage_of_a_sweep(tmp_path, stage):
    world = World()
    if stage in ("nothing", "one arm searched"):
        with new_run(tmp_path, STUDY) as ledger:
            if stage == "one arm searched":
                add_trial(ledger, "kd-0", "kd", {1: 0.5})
    else:
        with searched(tmp_path) as ledger:
            if stage == "re-evaluation":
                add_seed(ledger, world, "reevaluation", "kd", 0, 1_000_000, "other", world.student(0.8))
            if stage in ("opened", "one seed"):
                ledger.look("test", world.labels, "confirmation")
            if stage == "one seed":
                add_seed(ledger, world, "tuned", BASELINE, 0, CONFIRMATION, f"{BASELINE}-0", world.student(0.8))
    result = compare(tmp_path)
    assert_keeps_the_contract(result)
    assert result["complete"] is False
    assert any(note.startswith("not complete") for note in result["notes"])
    assert "budget: not complete" in text(result)


def test_before_the_confirmation_an_arm_has_its_configuration_and_says_what_is_missing(tmp_path):
    searched(tmp_path).close()
    result = compare(tmp_path)
    kd = arm(result, "kd")
    assert kd["tuned"]["config"] == STUDY.arms["kd"].default
    assert (kd["tuned"]["mean"], kd["tuned"]["ci95"], kd["tuned"]["n"]) == (None, None, 0)
    assert (kd["delta_vs_baseline"], kd["verdict"]) == (None, None)
    assert result["complete"] is False
    assert "kd: not confirmed yet, so it has no difference and no verdict" in result["notes"]
    assert any("the confirmation has not finished" in note for note in result["notes"])


def test_an_arm_without_a_rung_is_null_with_the_reason(tmp_path):
    with new_run(tmp_path, STUDY) as ledger:
        for name in STUDY.searched:
            spend(ledger, name, 8)
    result = compare(tmp_path)
    assert arm(result, "kd")["tuned"] is None
    assert "kd: no trial has reached a rung within the fair budget, so tuned is null" in result["notes"]


def test_a_sweep_is_not_complete_before_its_smallest_arm_has_its_budget(tmp_path):
    with new_run(tmp_path, STUDY) as ledger:
        for name in STUDY.searched:
            spend(ledger, name, 71 if name == "kd" else 72)
        ledger.clock("confirmation", "end")
    assert compare(tmp_path)["complete"] is False
    with Ledger.open(tmp_path) as ledger:
        spend(ledger, "kd", 1)
    assert compare(tmp_path)["complete"] is True


def test_an_unfinished_sweep_is_compared_by_nothing_past_the_poorest_arms_spend(tmp_path):
    with new_run(tmp_path, STUDY) as ledger:
        add_trial(ledger, "kd-early", "kd", {1: 0.6, 3: 0.7})  # 6 seed-epochs
        add_trial(ledger, "kd-late", "kd", {1: 0.9, 3: 0.95, 9: 0.99})  # 18 more
        for name in STUDY.searched:
            if name != "kd":
                add_trial(ledger, f"{name}-0", name, {1: 0.5, 3: 0.5})
    result = compare(tmp_path)
    assert arm(result, "kd")["tuned"]["trial"] == "kd-early"
    assert arm(result, "kd")["tuned"]["search_value"] == 0.7
    assert result["fair_budget"] == {"limit": 6, "per_arm": 72, "spent_past_limit": {"kd": 18}}
    assert result["budget"]["kd"]["seed_epochs"] == 24


def test_seeds_of_a_trial_that_is_no_longer_chosen_are_left_out(tmp_path):
    """The budget was extended, a better trial came, and what confirmed the old one is still in the ledger."""
    world = World()
    confirmed(tmp_path, world, accuracies(world))
    with Ledger.open(tmp_path) as ledger:
        for r in range(4):
            add_seed(ledger, world, "tuned", "kd", 0, CONFIRMATION + 100 + r, "kd-old", world.student(0.1))
    assert arm(compare(tmp_path), "kd")["tuned"]["mean"] > 0.7
    assert arm(compare(tmp_path), "kd")["tuned"]["n"] == STUDY.budget.confirm_seeds


def test_an_interrupted_confirmation_of_one_winner_an_arm_is_paired_over_the_seeds_that_both_have(tmp_path):
    world = World()
    students = {CONFIRMATION + r: world.student(0.7 + 0.05 * r) for r in range(4)}
    with searched(tmp_path, ONE_WINNER) as ledger:
        ledger.look("test", world.labels, "confirmation")
        for r, right in students.items():
            if r != CONFIRMATION + 1:
                add_seed(ledger, world, "tuned", BASELINE, 0, r, f"{BASELINE}-0", right)
            if r != CONFIRMATION:
                add_seed(ledger, world, "tuned", "kd", 0, r, "kd-0", right | (np.cumsum(~right) <= 6))
        add_seed(ledger, world, "tuned", A_A_CONTROL, 0, CONFIRMATION + A_A_OFFSET, f"{A_A_CONTROL}-0", right)
    result = compare(tmp_path)
    assert_keeps_the_contract(result)
    assert arm(result, "kd")["delta_vs_baseline"]["ci95_seeds"] == pytest.approx([6 / ROWS] * 2)
    assert arm(result, A_A_CONTROL)["delta_vs_baseline"]["ci95"] is None


def test_an_arm_of_which_some_winners_are_confirmed_has_no_verdict_yet(tmp_path):
    world = World()
    confirmed(tmp_path, world, accuracies(world))
    with Ledger.open(tmp_path) as ledger:
        ledger._db.execute("DELETE FROM runs WHERE purpose = 'tuned' AND arm = 'kd' AND subsearch > 0")
    assert arm(compare(tmp_path), "kd")["delta_vs_baseline"] is None
    assert arm(compare(tmp_path), "kd")["verdict"] is None


@pytest.mark.parametrize("stopped_early", [False, True])
def test_optimism_is_the_searchs_value_minus_that_under_fresh_seeds(tmp_path, stopped_early):
    world = World()
    with searched(tmp_path, curve=((1, 0.5), (3, 0.7)) if stopped_early else ((3, 0.6), (9, 0.7))) as ledger:
        ledger.look("test", world.labels, "confirmation")
        for g in range(STUDY.budget.subsearches):
            for fit, accuracy in (("train", 0.8), ("train+validation", 0.9)):
                ledger.finish_run(
                    "tuned",
                    "kd",
                    g,
                    fit,
                    CONFIRMATION + g,
                    trial=f"kd-{g}",
                    config={},
                    epochs=9,
                    seconds=0.1,
                    metrics={"val_accuracy": 0.66} if fit == "train" else {},
                    predictions={"test": np.where(np.arange(ROWS) < accuracy * ROWS, world.labels, 1 - world.labels)},
                )
    result = compare(tmp_path)
    tuned = arm(result, "kd")["tuned"]
    assert tuned["mean"] == pytest.approx(0.9)
    assert (tuned["val_mean"], tuned["refit_gain"]) == pytest.approx((0.66, 0.1))
    if stopped_early:  # chosen at epoch 3 and confirmed at 9: the two values are not of one epoch
        assert tuned["optimism"] is None
        assert any(note.startswith("kd: optimism is null") for note in result["notes"])
    else:
        assert tuned["optimism"] == pytest.approx(0.7 - 0.66)


def test_an_arm_without_a_space_is_judged_by_its_default(tmp_path):
    fixed = dataclasses.replace(STUDY.arms["kd_shuffled"], space={})
    study = dataclasses.replace(STUDY, arms={**STUDY.arms, "kd_shuffled": fixed})
    world = World()
    with searched(tmp_path, study) as ledger:
        ledger.look("test", world.labels, "confirmation")
        for s in range(16):
            add_seed(ledger, world, "fixed", "kd_shuffled", -1, CONFIRMATION + s, "", world.student(0.9))
            g, first = s % 4, CONFIRMATION + 1000 * (s % 4)
            add_seed(ledger, world, "tuned", BASELINE, g, first + s // 4, f"{BASELINE}-{g}", world.student(0.8))
    result = compare(tmp_path)
    shuffled = arm(result, "kd_shuffled")
    assert (shuffled["kind"], shuffled["tuned"], shuffled["verdict"]) == ("fixed", None, "better")
    assert shuffled["fixed"]["n"] == 16
    assert "kd_shuffled" not in result["budget"]
    assert_keeps_the_contract(result)


def test_a_claim_that_is_not_comparable_carries_its_reason_as_the_verdict(tmp_path):
    claim = dataclasses.replace(STUDY.claims[0], not_comparable="other data")
    world = World()
    result = confirmed(tmp_path, world, accuracies(world), dataclasses.replace(STUDY, claims=(claim,)))
    assert result["published_claims"][0]["verdict"] == "not comparable (other data)"
    assert result["published_claims"][0]["measured"] is not None


# Teachers.


def add_teacher(ledger, world, teacher_set, ensemble, members):
    def predicts(member, accuracy):
        right = np.arange(ROWS) < accuracy * ROWS
        classes = np.where(right, world.labels, 1 - world.labels)
        ledger.teacher_predicts("train+validation", teacher_set, {(member, "test"): classes})

    predicts(ENSEMBLE, ensemble)
    for member, accuracy in enumerate(members):
        predicts(member, accuracy)


def test_the_share_of_the_teachers_edge_that_kd_recovers(tmp_path):
    """Even seeds learn from an ensemble of 0.9, odd ones from one of 0.8: kd gains half of what each is above 0.5."""
    world, published = World(), itertools.cycle((0.7, 0.65))

    def correct(purpose, name):
        accuracy = next(published) if (purpose, name) == ("as_published", "kd") else 0.5
        return np.arange(ROWS) < accuracy * ROWS

    confirmed(tmp_path, world, correct, dataclasses.replace(STUDY, confirm_teachers=2))
    with Ledger.open(tmp_path) as ledger:
        ledger.teacher("train+validation", 0, "key", 1.0, 34_900)
        add_teacher(ledger, world, 0, 0.9, (0.8, 0.85))
        add_teacher(ledger, world, 1, 0.8, (0.7, 0.75))
    teacher = compare(tmp_path)["teacher"]
    assert (teacher["ensemble"]["mean"], teacher["ensemble"]["n"]) == (pytest.approx(0.85), 2)
    assert teacher["members"] == {"mean": pytest.approx(0.775), "min": 0.7, "max": 0.85, "n": 4}
    assert (teacher["teacher_parameters"], teacher["student_parameters"], teacher["compression"]) == (34_900, 3490, 10)
    edge = teacher["edge_recovered"]
    assert edge["measured"] == pytest.approx(0.5)
    assert edge["ci95_seeds"] == pytest.approx([0.5, 0.5])
    assert edge["published"] == pytest.approx((0.972 - 0.965) / (0.978 - 0.965))


def test_before_every_teacher_is_judged_there_is_no_share_of_their_edge(tmp_path):
    world = World()
    confirmed(tmp_path, world, accuracies(world), dataclasses.replace(STUDY, confirm_teachers=2))
    with Ledger.open(tmp_path) as ledger:
        add_teacher(ledger, world, 0, 0.9, (0.8,))
    teacher = compare(tmp_path)["teacher"]
    assert teacher["ensemble"]["mean"] == pytest.approx(0.9)
    assert teacher["edge_recovered"] is None


def test_the_share_of_no_edge_is_null_with_the_reason(tmp_path):
    world = World()
    study = dataclasses.replace(STUDY, confirm_teachers=1)
    confirmed(tmp_path, world, lambda purpose, name: np.arange(ROWS) < 0.9 * ROWS, study)
    with Ledger.open(tmp_path) as ledger:
        add_teacher(ledger, world, 0, 0.8, (0.8,))
    edge = compare(tmp_path)["teacher"]["edge_recovered"]
    assert (edge["measured"], edge["ci95_seeds"]) == (None, None)
    assert edge["reason"] == "the mean of the denominator is not positive"


def test_an_interrupted_judging_of_the_teachers_can_be_compared(tmp_path):
    world = World()
    with searched(tmp_path) as ledger:
        ledger.look("test", world.labels, "confirmation")
        add_teacher(ledger, world, 0, 0.9, ())
    assert_keeps_the_contract(compare(tmp_path))


# For a person.


def text(result):
    """What is printed, with single spaces, so that it does not matter where lines break."""
    file = io.StringIO()
    Console(file=file, width=250).print(render(result))
    return " ".join(file.getvalue().split())


def test_the_table_shows_every_arm_and_the_words_of_every_verdict(kd_better):
    shown = text(kd_better).split()
    for a in kd_better["arms"]:
        assert a["arm"] in shown
    for verdict in ("better", "worse", "equivalent", "indistinguishable"):
        table = text({**kd_better, "contrasts": [], "arms": [{**a, "verdict": verdict} for a in kd_better["arms"]]})
        assert table.count(f" {verdict} ") >= len(CANDIDATES)
    claims = (
        "replicates",
        "smaller",
        "not distinguishable from noise",
        "reversed",
        "inconclusive",
        "not comparable (x)",
    )
    for verdict in claims:
        claim = {**kd_better["published_claims"][0], "verdict": verdict}
        assert f"points: {verdict}" in text({**kd_better, "published_claims": [claim]})


def test_the_numbers_of_the_table_are_those_of_the_result(kd_better):
    shown, kd = text(kd_better), arm(kd_better, "kd")
    assert f"{100 * kd['tuned']['mean']:.2f} [{100 * kd['tuned']['ci95'][0]:.2f}" in shown
    assert f"{100 * kd['delta_vs_baseline']['mean']:+.2f} [" in shown
    assert "97.20" in shown  # as published
    for note in kd_better["notes"]:
        assert f"note: {note}" in shown


@pytest.mark.parametrize("smoothing", ["better", "worse", "equivalent", "indistinguishable", None])
@pytest.mark.parametrize("labels", ["better", "worse", "equivalent", "indistinguishable", None])
def test_distillation_helps_only_where_kd_beats_both_labels_and_smoothing(kd_better, labels, smoothing):
    answers = {"kd - hard_labels": labels, "kd - label_smoothing": smoothing}
    contrasts = [{**c, "answer": answers.get(c["contrast"], "better")} for c in kd_better["contrasts"]]
    said = " ".join(conclusions({**kd_better, "contrasts": contrasts}))
    assert ("Distillation helps" in said) == (labels == smoothing == "better")
    assert ("label smoothing, which needs no teacher, is not beaten" in said) == (
        labels == "better" and smoothing not in ("better", None)
    )
    assert (said == "") == (labels is None or smoothing is None)
