"""analysis/insights.py on ledgers made by hand, so that every figure is known; and on sweeps at every stage."""

import json
import math

import numpy as np
import pytest

import distune
from analysis.insights import insights
from analysis.performance import gain_of_doubling
from analysis.power import detectable, power
from search.ledger import TrialRecord
from spaces import A_A_CONTROL, BASELINE
from tests.made_ledgers import add_trial, asked, new_run, row, small_study
from tests.test_comparison import CONFIRMATION, ONE_WINNER, World, accuracies, add_seed, confirmed, searched

KEYS = ["power", "optimism", "evp", "anytime", "importance", "interaction", "gradient_share"]
KEYS += ["cost_per_point", "saturated", "notes"]
STUDY = small_study(("kd",))


def end_at_once(ledger, name, arm, score, *, origin="sobol", how="finished", config=None, subsearch=0):
    """A trial that has one report, at the last rung."""
    record = asked(name, arm, subsearch)
    ledger.ask(TrialRecord(name, arm, subsearch, origin, {**record.config, **(config or {})}, 0.0))
    ledger.report(name, [row(9, score)])
    ledger.end(name, how, 9)


def says(found, words):
    return any(words in note for note in found["notes"])


def as_json(found):
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert list(found) == KEYS
    return found


@pytest.mark.parametrize("stage", ["nothing", "running", "search", "opened", "one seed"])
def test_every_stage_of_a_sweep_has_every_part_or_a_reason(tmp_path, stage):
    world = World()
    if stage in ("nothing", "running"):
        with new_run(tmp_path, STUDY) as ledger:
            if stage == "running":
                add_trial(ledger, "kd-0", "kd", {1: 0.5})
    else:
        with searched(tmp_path, STUDY) as ledger:
            if stage != "search":
                ledger.look("test", world.labels, "confirmation")
            if stage == "one seed":
                add_seed(ledger, world, "tuned", BASELINE, 0, CONFIRMATION, f"{BASELINE}-0", world.student(0.8))
    found = as_json(insights(tmp_path))
    assert found["power"] == {}
    assert says(found, "power is empty")
    if stage in ("nothing", "running"):
        assert says(found, "no trial has ended with a score yet")
        assert says(found, "1 trials that have not ended yet are left out") == (stage == "running")
        assert found["evp"] == dict.fromkeys(STUDY.searched)
        assert found["saturated"] == dict.fromkeys(STUDY.searched)
        assert found["importance"]["kd"]["parameters"] == {}
    else:
        assert found["evp"]["kd"]["n"] == 4


def test_a_finished_sweep_states_the_power_of_its_own_intervals(tmp_path):
    world = World()
    result = confirmed(tmp_path / "run", world, accuracies(world, kd=0.82), STUDY)
    found = as_json(insights(tmp_path / "run", result))
    kd = next(a for a in result["arms"] if a["arm"] == "kd")
    delta, shown = kd["delta_vs_baseline"], found["power"]["kd"]
    half = (delta["ci95"][1] - delta["ci95"][0]) / 2
    assert shown["difference"] == delta["mean"]
    assert shown["seeds_to_settle"] == kd["seeds_to_settle"]
    assert shown["seeds"] == kd["tuned"]["n"] == 16
    rule = delta["standard_error"], delta["df"], 0.95, result["margin"]  # one candidate: a family of one
    assert shown["power_now"] == power(delta["mean"], *rule)
    assert shown["detectable"] == detectable(*rule)
    assert half > delta["standard_error"] > 0
    assert found["power"].keys() == {"kd", A_A_CONTROL}


def test_the_power_of_several_arms_is_that_at_bonferronis_level(tmp_path):
    world = World()
    confirmed(tmp_path / "run", world, accuracies(world, kd=0.82), small_study())
    found = insights(tmp_path / "run")["power"]
    assert found["kd"]["level"] == pytest.approx(1 - 0.05 / 3)
    assert found[A_A_CONTROL]["level"] == 0.95


def test_one_seed_has_no_power_and_says_so(tmp_path):
    world = World()
    confirmed(tmp_path / "run", world, accuracies(world), ONE_WINNER, seeds=1)
    found = as_json(insights(tmp_path / "run"))
    assert set(found["power"].values()) == {None}
    assert says(found, "power is null: one seed or one winner has no standard error")


def test_optimism_is_told_for_every_winner(tmp_path):
    with searched(tmp_path, STUDY, ((3, 0.6), (9, 0.7))) as ledger:
        for g, value in ((0, 0.66), (1, 0.74)):
            for r in (0, 1):
                ledger.finish_run(
                    *("tuned", "kd", g, "train", CONFIRMATION + 1000 * g + r),
                    trial=f"kd-{g}",
                    config={},
                    epochs=9,
                    seconds=0.1,
                    metrics={"val_accuracy": value + 0.01 * r},
                    predictions={},
                )
        for fit, replicate in (("train+validation", CONFIRMATION), ("train", CONFIRMATION + 20_000)):
            ledger.finish_run(  # neither of the one fit that is compared, nor of the seeds that are in use
                *("tuned", "kd", 0, fit, replicate),
                trial="kd-0",
                config={},
                epochs=9,
                seconds=0.1,
                metrics={"val_accuracy": 0.1},
                predictions={},
            )
    found = as_json(insights(tmp_path))
    told = [(o["subsearch"], o["search"], o["fresh"], o["optimism"]) for o in found["optimism"]["kd"]]
    assert told[:2] == [
        (0, 0.7, pytest.approx(0.665), pytest.approx(0.035)),
        (1, 0.7, *map(pytest.approx, (0.745, -0.045))),
    ]
    assert [o[2:] for o in told[2:]] == [(None, None)] * 2
    assert says(found, "kd: the winner of sub-search 3 has no finite value under fresh seeds yet")


def test_a_winner_that_was_chosen_before_the_end_has_no_optimism(tmp_path):
    with searched(tmp_path, STUDY, ((1, 0.5), (3, 0.7))) as ledger:
        ledger.finish_run(
            *("tuned", "kd", 0, "train", CONFIRMATION),
            trial="kd-0",
            config={},
            epochs=9,
            seconds=0.1,
            metrics={"val_accuracy": 0.75},
            predictions={},
        )
    found = as_json(insights(tmp_path))
    first = found["optimism"]["kd"][0]
    assert (first["search"], first["fresh"], first["optimism"]) == (0.7, 0.75, None)
    assert says(found, "kd: the winner of sub-search 0 was chosen before the last epoch: no optimism")


def test_the_a_a_control_is_judged_by_the_studys_margin_and_widens_that_of_the_others(tmp_path):
    world = World()
    result = confirmed(tmp_path / "run", world, accuracies(world, hard_labels_again=0.85), STUDY)
    shown = insights(tmp_path / "run", result)["power"]
    assert shown[A_A_CONTROL]["margin"] == STUDY.margin < 0.01 < result["margin"] == shown["kd"]["margin"]


def test_expected_performance_is_of_random_trials_alone(tmp_path):
    with new_run(tmp_path, STUDY) as ledger:
        for i, score in enumerate((0.2, 0.4, 0.1)):
            end_at_once(ledger, f"kd-{i}", "kd", score)
        end_at_once(ledger, "kd-default", "kd", 0.9, origin="default")
        end_at_once(ledger, "kd-tpe", "kd", 0.95, origin="tpe")
        end_at_once(ledger, "kd-crash", "kd", 0.9, how="crashed")
        end_at_once(ledger, "kd-lost", "kd", None, how="diverged")
    found = as_json(insights(tmp_path))
    kd = found["evp"]["kd"]
    # of {0.1, 0.1 (diverged), 0.2, 0.4}: the mean; of the six pairs 0.1, 2 x 0.2, 3 x 0.4; of the triples 0.2, 3 x 0.4
    assert kd["mean"] == pytest.approx([0.2, (0.1 + 0.4 + 1.2) / 6, (0.2 + 1.2) / 4, 0.4])
    assert (kd["n"], kd["trials"], kd["seed_epochs"]) == (4, [1, 2, 3, 4], [2.0, 4.0, 6.0, 8.0])
    assert [c is None for c in kd["ci95"]] == [False, True, True, True]
    assert says(found, "kd: 1 of 4 random trials diverged and count as the worst score seen")
    assert says(found, "1 trials that crashed or ended before a rung are left out")
    assert found["saturated"] == {BASELINE: None, A_A_CONTROL: None, "kd": False}


def test_a_search_is_saturated_where_its_second_half_bought_less_than_the_margin(tmp_path):
    with new_run(tmp_path, STUDY) as ledger:
        for i, score in enumerate((0.5, 0.5009, 0.501, 0.4999)):
            end_at_once(ledger, f"kd-{i}", "kd", score)
        for i, score in enumerate((0.5, 0.506, 0.5, 0.5)):  # of all 0.506, of two 0.503
            end_at_once(ledger, f"base-{i}", BASELINE, score)
    saturated = insights(tmp_path)["saturated"]
    assert saturated["kd"] is True
    assert gain_of_doubling([0.5, 0.506, 0.5, 0.5]) == pytest.approx(0.003)
    assert saturated[BASELINE] is False


def test_no_interval_of_expected_performance_ends_above_one(tmp_path):
    with new_run(tmp_path, STUDY) as ledger:
        for i in range(8):
            end_at_once(ledger, f"kd-{i}", "kd", 1.0 - (i == 0) * 0.9)
    first, second, *_ = insights(tmp_path)["evp"]["kd"]["ci95"]
    assert first[1] <= 1.0
    assert 0 <= second[0] < second[1] <= 1.0


def test_the_anytime_curve_pays_for_everything_and_knows_fresh_values(tmp_path):
    world = World()
    with new_run(tmp_path, STUDY) as ledger:
        add_trial(ledger, "kd-0", "kd", {1: 0.5, 2: 0.8, 3: 0.6}, how="stopped")  # 2 is no rung
        end_at_once(ledger, "kd-lost", "kd", 0.99, how="diverged")
        add_trial(ledger, "kd-1", "kd", {1: 0.55, 3: 0.7}, how="budget")
        ledger.finish_run(
            *("reevaluation", "kd", 0, "train", 1_000_000),
            trial="kd-1",
            config={},
            epochs=9,
            seconds=0.1,
            metrics={"val_accuracy": 0.65},
            predictions={"test": world.labels},
        )
    steps = as_json(insights(tmp_path))["anytime"]["kd"]
    assert [(s["seed_epochs"], s["best"], s["trial"], s["fresh"]) for s in steps] == [
        (2, 0.5, "kd-0", None),
        (6, 0.6, "kd-0", None),
        (14, 0.7, "kd-1", 0.65),
    ]
    assert [s["seconds"] for s in steps] == pytest.approx([0.1, 0.3, 0.7])


def test_importance_of_the_whole_sets_the_arm_beside_what_all_arms_share(tmp_path):
    study, rng = small_study(("kd", "label_smoothing")), np.random.default_rng(0)
    with new_run(tmp_path, study) as ledger:
        for arm, bonus in ((BASELINE, 0.0), ("kd", 0.3), ("label_smoothing", 0.0), (A_A_CONTROL, 0.9)):
            space = study.arms[arm].space
            for i in range(40):
                config = {name: d.at(float(rng.random())) for name, d in space.items()}
                score = 0.5 + bonus - 0.02 * abs(math.log(config["learning_rate"] / 3e-3))
                end_at_once(ledger, f"{arm}-{i}", arm, score, config=config)
    found = as_json(insights(tmp_path))["importance"]
    assert set(found) == {"all", *study.searched}
    assert set(found["all"]["parameters"]) == {"arm", "learning_rate", "weight_decay", "batch_size"}
    assert set(list(found["all"]["parameters"])[:2]) == {"arm", "learning_rate"}
    assert found["all"]["parameters"]["arm"] > 0.1
    assert found["all"]["n"] == 120  # the control is the baseline again, not another arm
    assert max(found["kd"]["parameters"], key=found["kd"]["parameters"].get) == "learning_rate"
    assert "temperature" in found["kd"]["parameters"]
    assert "hint" in found["kd"]["caveat"]


def test_trials_outside_the_space_as_it_is_now_have_no_importance(tmp_path):
    with new_run(tmp_path, STUDY) as ledger:
        for i in range(12):
            end_at_once(ledger, f"kd-{i}", "kd", i / 20, config={"learning_rate": 1e-3 * (1 + i), "batch_size": 64})
        end_at_once(ledger, "kd-wide", "kd", 0.9, config={"learning_rate": 0.9})
        end_at_once(ledger, "kd-other", "kd", 0.9, config={"batch_size": 7})
    found = as_json(insights(tmp_path))
    assert found["importance"]["kd"]["n"] == 12
    assert says(found, "kd: importance leaves out trials that lie outside the space")


def test_a_sweep_of_the_baseline_alone_has_no_arms_to_compare(tmp_path):
    study = small_study((BASELINE,))
    with new_run(tmp_path, study) as ledger:
        for i in range(12):
            end_at_once(ledger, f"{i}", BASELINE, i / 20, config={"learning_rate": 1e-3 * (1 + i)})
    found = as_json(insights(tmp_path))
    assert found["importance"]["all"]["parameters"].keys() == {"learning_rate", "weight_decay", "batch_size"}
    assert (found["power"], found["cost_per_point"], found["interaction"]) == ({}, {}, {})


def test_the_interaction_is_of_arms_that_have_both_temperature_and_weight(tmp_path):
    study, rng = small_study(("kd",)), np.random.default_rng(1)
    with new_run(tmp_path, study) as ledger:
        for arm in ("kd", BASELINE):
            for i in range(40):
                u, v = rng.random(2)
                space = study.arms["kd"].space
                config = {"temperature": space["temperature"].at(u), "kd_weight": space["kd_weight"].at(v)}
                score = 0.5 + (u - 0.5) * (v - 0.5) + 0.01 * rng.standard_normal()
                end_at_once(ledger, f"{arm}-{i}", arm, score, config=config if arm == "kd" else None)
    found = as_json(insights(tmp_path))["interaction"]
    assert set(found) == {"kd"}
    assert (found["kd"]["x"], found["kd"]["y"], len(found["kd"]["points"])) == ("temperature", "kd_weight", 40)
    assert found["kd"]["gain"] > 0.5  # in the units of the range's logarithm, in which the score is a product
    assert found["kd"]["ci95"][0] > 0.3


def test_gradient_shares_are_those_of_the_last_audit(tmp_path):
    audit = {"weight": 1.0, "norm": 1.0, "cosine": 0.0}
    with new_run(tmp_path, STUDY) as ledger:
        for name, shares, how in (("kd-0", (0.9, 0.3), "finished"), ("kd-1", (0.8, 0.4), "diverged")):
            ledger.ask(asked(name, "kd"))
            for epoch, share in zip((1, 9), shares, strict=True):
                audits = [{**audit, "epoch": epoch, "term": "kd", "share": share}]
                audits += [{**audit, "epoch": epoch, "term": "ce", "share": None}]
                ledger.report(name, [row(epoch, 0.7) | {"audits": audits}])
            ledger.end(name, how, 9)
    found = as_json(insights(tmp_path))["gradient_share"]
    assert found == {BASELINE: {}, A_A_CONTROL: {}, "kd": {"kd": [[0.3, 0.7, "kd-0"]]}}


def test_cost_per_point_divides_what_the_search_cost_by_what_it_gained(tmp_path):
    world = World()
    result = confirmed(tmp_path / "run", world, accuracies(world, kd=0.9, label_smoothing=0.7), small_study())
    found = as_json(insights(tmp_path / "run", result))
    kd, cost = result["arms"][-1], found["cost_per_point"]["kd"]
    points = 100 * kd["delta_vs_baseline"]["mean"]
    assert cost["gain_points"] == pytest.approx(points)
    assert cost["per_point"] == pytest.approx(72 / points)
    assert cost["seconds_per_point"] == pytest.approx(cost["seconds"] / points)
    assert found["cost_per_point"]["label_smoothing"]["per_point"] is None  # it lost
    assert found["cost_per_point"].keys() == {"label_smoothing", "kd_shuffled", "kd"}
    assert not says(found, "kd: its cost per point rests")


def test_a_comparison_that_is_given_is_used_and_the_face_gives_the_same(tmp_path):
    world, run = World(), tmp_path / "run"
    result = confirmed(run, world, accuracies(world, kd=0.82), STUDY)
    assert insights(run) == insights(run, result) == distune.open_run(run).insights()
    silent = {**result, "arms": [{**a, "delta_vs_baseline": None} for a in result["arms"]]}
    assert insights(run, silent)["power"] == {}
