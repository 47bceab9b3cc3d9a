"""analysis/comparison.py and tables.py on finished ledgers of tables: AUC of logits, teachers alone, gates, claims."""

import dataclasses
import io
import itertools
import json
import re

import numpy as np
import pytest
import yaml
from rich.console import Console
from sklearn.metrics import roc_auc_score

from analysis.comparison import compare
from analysis.tables import ROLES, conclusions, render
from search.ledger import ENSEMBLE, Ledger, TrialRecord
from spaces import A_A_CONTROL, BASELINE, Budget, load_study, to_yaml
from tests.made_ledgers import SMALL, new_run, row

STUDY = dataclasses.replace(load_study("promo-attention"), budget=Budget(**SMALL, patience=4))
SEEDS, GROUPS, SETS = STUDY.budget.confirm_seeds, STUDY.budget.subsearches, STUDY.confirm_teachers
ROWS = 400
MODELS = ("xgboost", "random_forest")
CONFIRMATION, A_A_OFFSET, PER_SUBSEARCH = 2_000_000, 500_000, 1_000
HOLIDAY = np.arange(ROWS) % 4 == 0


class World:
    """Test rows whose label is easy or hard to see, and scores that know more or less of it."""

    def __init__(self, seed=0, noise=0.2):
        self.rng, self.noise = np.random.default_rng(seed), noise
        self.labels = (self.rng.random(ROWS) < 0.35).astype(np.uint8)
        self.rows = self.rng.standard_normal(ROWS)

    def scores(self, strength):
        """(rows,) logits of one seed: rows are hard for all seeds alike, and a little of a seed's own."""
        own = self.noise * self.rng.standard_normal(ROWS)
        return (strength * (2.0 * self.labels - 1) + self.rows + own).astype(np.float32)


def replicates(arm):
    """[(sub-search, replicate)] under which an arm is confirmed; -1 for one that no sub-search chose."""
    definition, first = STUDY.arms[arm], CONFIRMATION + (A_A_OFFSET if arm == A_A_CONTROL else 0)
    if definition.kind == "searched":
        each = range(SEEDS // GROUPS)
        return [(g, first + g * PER_SUBSEARCH + r) for g, r in itertools.product(range(GROUPS), each)]
    return [(-1, first + r) for r in range(SETS if definition.role == "reference" else SEEDS)]


def confirmed(run, world, scores, metrics=None, said=None):
    """A whole run. scores(arm, replicate): one seed's logits; metrics(arm): more that was measured of its seeds.

    said(set, member): what a teacher model says of the test rows.
    """
    with new_run(run, STUDY) as ledger:
        for arm in STUDY.searched:
            for g in range(GROUPS):
                trial = f"{arm}-{g}"
                ledger.ask(TrialRecord(trial, arm, g, "sobol", dict(STUDY.arms[arm].default), 0.0))
                ledger.report(trial, [row(e, 0.8 if e in (1, 3, 9) else None) for e in range(1, 10)])
                ledger.end(trial, "finished", 9)
        ledger.look("test", world.labels, "confirmation", {"holiday=1": HOLIDAY, "holiday=0": ~HOLIDAY})
        for arm in STUDY.arms:
            for g, replicate in replicates(arm):
                add_seed(ledger, arm, g, replicate, scores(arm, replicate), metrics(arm) if metrics else {})
        if said:
            for k in range(SETS):
                add_teachers(ledger, world, k, said)
        ledger.clock("confirmation", "end")
    return compare(run)


def add_seed(ledger, arm, subsearch, replicate, logits, metrics):
    ledger.finish_run(
        *("tuned" if subsearch >= 0 else "fixed", arm, subsearch, STUDY.confirm_on, replicate),
        trial=f"{arm}-{subsearch}" if subsearch >= 0 else "",
        config={},
        epochs=9,
        seconds=0.1,
        metrics={"parameters": 2500.0, **metrics},
        predictions={"test": logits},
    )


def add_teachers(ledger, world, teacher_set, said):
    predicted = {m: said(teacher_set, m) for m in range(len(MODELS))}
    predicted[ENSEMBLE] = sum(predicted.values()) / len(MODELS)
    names = {ENSEMBLE: "plain average", **dict(enumerate(MODELS))}
    facts = {}
    for member, logits in predicted.items():
        facts[member] = {
            **dict.fromkeys(("test_average_precision", "test_accuracy", "test_ks", "test_brier", "test_ece"), 0.5),
            **{"name": names[member], "test_auc": roc_auc_score(world.labels, logits), "bytes": 1000 * (member + 3)},
            **{"ms_per_sample_batch_1": float(member + 2), "ms_per_sample_batch_128": 0.1},
        }
    fit = STUDY.confirm_on
    ledger.teacher_predicts(fit, teacher_set, {(m, "test"): s for m, s in predicted.items()}, facts)


def of_strengths(world, **strengths):
    return lambda arm, replicate: world.scores(strengths.get(arm, 0.8))


def arm(result, name):
    return next(a for a in result["arms"] if a["arm"] == name)


def auc(world, logits):
    return roc_auc_score(world.labels, logits)


def contrast(result, name):
    return next(c for c in result["contrasts"] if c["contrast"] == name)


GATES = {
    "gate xgboost": 0.55,
    "gate random_forest": 0.45,
    "gate xgboost | holiday=1": 0.2,
    "gate random_forest | holiday=1": 0.8,
    "gate xgboost | holiday=0": 0.7,
    "gate random_forest | holiday=0": 0.3,
}


@dataclasses.dataclass
class Run:
    """A whole run of which everything is known: attention_blend is better than all, its gate is right on holidays."""

    world: World
    logits: dict  # {arm: {replicate: logits}}
    result: dict


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    world, logits = World(), {name: {} for name in STUDY.arms}
    strength = {"attention_blend": 1.3, "kd_uniform": 1.0, "xgboost": 0.9, "random_forest": 0.7}

    def scores(name, replicate):
        logits[name][replicate] = world.scores(strength.get(name, 0.8))
        return logits[name][replicate]

    def said(teacher_set, member):
        """The forest is better on holidays, the boosted trees on other days."""
        knows = np.where(HOLIDAY, (0.3, 1.5)[member], (1.2, 0.4)[member])
        return (knows * (2.0 * world.labels - 1) + world.rows + 0.3 * world.rng.standard_normal(ROWS)).astype("f4")

    def metrics(name):
        more = {"test_accuracy": 0.7, "test_majority": 0.65, "ms_per_sample_batch_1": 0.25}
        return more | (GATES if name == "attention_blend" else {})

    result = confirmed(tmp_path_factory.mktemp("auc") / "run", world, scores, metrics, said)
    return Run(world, logits, result)


# means and differences


@pytest.mark.parametrize("name", STUDY.arms)
def test_an_arms_mean_is_the_mean_of_scikit_learns_auc_over_its_seeds(whole, name):
    shown = arm(whole.result, name)["tuned"] or arm(whole.result, name)["fixed"]
    expected = [auc(whole.world, logits) for logits in whole.logits[name].values()]
    assert shown["mean"] == pytest.approx(np.mean(expected), abs=1e-12)
    assert shown["n"] == len(expected) == len(replicates(name))
    assert shown["ci95"][0] < shown["mean"] < shown["ci95"][1]
    if STUDY.arms[name].kind == "searched":
        by_winner = np.reshape(expected, (GROUPS, -1)).mean(axis=1)
        assert shown["winner_means"] == pytest.approx(by_winner, abs=1e-12)


def test_differences_are_those_of_the_means(whole):
    means = {name: np.mean([auc(whole.world, s) for s in seeds.values()]) for name, seeds in whole.logits.items()}
    for name in STUDY.arms:
        delta = arm(whole.result, name)["delta_vs_baseline"]
        if name == BASELINE:
            assert delta is None
        else:
            assert delta["mean"] == pytest.approx(means[name] - means[BASELINE], abs=1e-12)
            assert delta["ci95_family"][0] <= delta["ci95"][0] < delta["mean"] < delta["ci95"][1]
    for a, b, _ in STUDY.contrasts:
        found = contrast(whole.result, f"{a} - {b}")
        assert found["mean"] == pytest.approx(means[a] - means[b], abs=1e-12)


def test_what_is_clearly_better_is_called_so_and_what_is_the_same_is_not(whole):
    assert whole.result["metric"] == "test_auc"
    assert whole.result["complete"] is True
    for name in ("attention_blend", "kd_uniform"):
        assert arm(whole.result, name)["verdict"] == "better"
    for name in ("label_smoothing", "kd_shuffled", "uniform_blend"):
        assert arm(whole.result, name)["verdict"] in ("equivalent", "indistinguishable")
    assert contrast(whole.result, "attention_blend - uniform_blend")["answer"] == "better"
    assert contrast(whole.result, "attention_student - kd_uniform")["answer"] == "worse"


def test_the_order_of_scores_alone_counts(tmp_path, whole):
    """Logits of any scale and place give the same comparison: AUC asks for no threshold."""
    stretched = {n: {r: 100 * s + 5 for r, s in seeds.items()} for n, seeds in whole.logits.items()}
    result = confirmed(tmp_path, whole.world, lambda name, replicate: stretched[name][replicate])
    for name in STUDY.arms:
        one, other = (arm(r, name) for r in (result, whole.result))
        shown, before = one["tuned"] or one["fixed"], other["tuned"] or other["fixed"]
        assert shown["mean"] == pytest.approx(before["mean"], abs=1e-4)  # but for ties of float32
        assert one["verdict"] == other["verdict"]


# roles, and teachers alone


def test_every_arm_says_what_it_takes_to_run_it(whole):
    assert {a["arm"]: a["role"] for a in whole.result["arms"]} == {n: a.role for n, a in STUDY.arms.items()}
    assert json.loads(json.dumps(whole.result, allow_nan=False)) == whole.result


def test_a_teacher_alone_has_a_run_for_each_of_its_sets_and_is_compared_all_the_same(whole):
    for name in ("xgboost", "random_forest", "uniform_mix", "logistic_stack"):
        shown = arm(whole.result, name)
        assert (shown["kind"], shown["tuned"], shown["fixed"]["n"]) == ("fixed", None, SETS)
        assert shown["delta_vs_baseline"]["p_value"] is not None
        assert shown["verdict"] in ("better", "worse", "equivalent", "indistinguishable")


def test_teachers_count_towards_the_time_of_what_needs_them(whole):
    def ms(name):
        return arm(whole.result, name)["evaluation"]["ms_per_sample_batch_1"]["mean"]

    assert ms("kd_uniform") == 0.25
    assert ms("attention_blend") == 0.25 + 1.0  # of the plain average, member -1
    assert ms("uniform_mix") == 1.0
    assert (ms("xgboost"), ms("random_forest")) == (2.0, 3.0)


def test_accuracy_stands_beside_the_majoritys(whole):
    for a in whole.result["arms"]:
        assert (a["evaluation"]["accuracy"]["mean"], a["evaluation"]["majority"]["mean"]) == pytest.approx((0.7, 0.65))
        assert "auc" not in a["evaluation"]


def test_a_student_agrees_with_its_teachers_where_their_classes_are_the_same(tmp_path):
    world = World()
    teachers = {(k, m): world.scores(0.5 + k / 5 + m) for k in range(SETS) for m in range(2)}

    def scores(name, replicate):
        """What its own set of teachers says on average, or the opposite."""
        own = (teachers[replicate % SETS, 0] + teachers[replicate % SETS, 1]) / 2
        return own if name == "kd_uniform" else -own

    result = confirmed(tmp_path, world, scores, said=lambda k, m: teachers[k, m])
    assert arm(result, "kd_uniform")["evaluation"]["teacher_agreement"]["mean"] == 1
    assert arm(result, "hard_labels")["evaluation"]["teacher_agreement"]["mean"] == 0


def test_the_models_of_the_teacher_are_shown_one_by_one(whole):
    models = {m["name"]: m for m in whole.result["teacher"]["models"]}
    assert set(models) == {"plain average", *MODELS}
    assert all(m["n"] == SETS for m in models.values())
    assert models["xgboost"]["ms_per_sample_batch_1"] == 2.0


# the margin


def test_two_searches_that_differ_widen_what_is_better_and_not_what_is_equivalent(tmp_path):
    """Every seed of an arm says the same, so that there is no noise but that of the A/A control."""
    world = World(noise=0.0)
    strengths = {A_A_CONTROL: 0.6, "kd_uniform": 0.85, "attention_student": 1.3}
    result = confirmed(tmp_path, world, of_strengths(world, **strengths))
    base = auc(world, world.scores(0.8))
    differences = {name: auc(world, world.scores(s)) - base for name, s in strengths.items()}
    assert result["margin"] == pytest.approx(-differences[A_A_CONTROL])
    assert STUDY.margin < differences["kd_uniform"] < result["margin"] < differences["attention_student"]
    assert arm(result, "attention_student")["verdict"] == "better"
    assert arm(result, "kd_uniform")["delta_vs_baseline"]["p_adjusted"] < 0.05
    assert arm(result, "kd_uniform")["verdict"] == "indistinguishable"  # neither past the margin nor within the study's
    assert contrast(result, "kd_uniform - hard_labels")["answer"] == "indistinguishable"
    assert arm(result, "label_smoothing")["verdict"] == "equivalent"
    assert contrast(result, "attention_blend - uniform_blend")["answer"] == "equivalent"


@pytest.mark.parametrize(("shift", "judged"), [(None, True), ("amount > 3", False)])
def test_a_shift_with_few_rows_of_a_class_has_figures_and_no_verdicts(tmp_path, shift, judged):
    """140 positives: a stratified split of a small table is judged, a shift that was accepted by hand is not."""
    world = World()
    confirmed(tmp_path / "run", world, of_strengths(world, kd_uniform=1.5))
    given = {"kind": "csv", "path": "t.csv", "target": "y", "shift": shift, "least_test_positives": 10}
    study = yaml.safe_load((tmp_path / "run/study.yaml").read_text())
    (tmp_path / "run/study.yaml").write_text(yaml.safe_dump({**study, "data": given}))
    result = compare(tmp_path / "run")
    assert (world.labels == 1).sum() < 200
    assert arm(result, "kd_uniform")["delta_vs_baseline"]["ci95"] is not None
    assert arm(result, "kd_uniform")["verdict"] == ("better" if judged else None)
    assert (contrast(result, "kd_uniform - hard_labels")["answer"] is None) is not judged
    assert any("no verdicts" in note for note in result["notes"]) is not judged


def test_searches_that_agree_leave_the_studys_margin(tmp_path):
    world = World(noise=0.0)
    result = confirmed(tmp_path, world, of_strengths(world, kd_uniform=0.85))
    assert result["margin"] == STUDY.margin
    assert arm(result, "kd_uniform")["verdict"] == "better"


# claims


def test_claims_against_a_teacher_are_paired_by_its_set_and_cannot_be_compared(tmp_path):
    """What is printed says what its own set of teachers says, and the sets differ much: 16 seeds share 5 of them."""
    world = World(noise=0.0)
    of_set = [world.scores(0.2 * k) for k in range(SETS)]
    result = confirmed(tmp_path, world, lambda name, replicate: of_set[replicate % SETS])
    assert [c["claim"].split(" by ")[0] for c in result["published_claims"]] == [
        "as_printed > xgboost",
        "as_printed > random_forest",
    ]
    for claim in result["published_claims"]:
        assert claim["measured"] == pytest.approx(0, abs=1e-12)
        assert claim["ci95_seeds"] == pytest.approx([0, 0], abs=1e-12)
        assert claim["verdict"] == "not comparable (its table was not released; ours is generated)"
    low, high = arm(result, "as_printed")["fixed"]["ci95_seeds"]
    assert high - low > 0.1
    printed, alone = (arm(result, name)["fixed"]["mean"] for name in ("as_printed", "xgboost"))
    assert printed != pytest.approx(alone, abs=1e-3)  # of 16 seeds and of 5 sets: unpaired they differ


@pytest.mark.parametrize("there", [(0, 1, 2), (0, 2), (3,)], ids=str)
def test_an_interrupted_confirmation_pairs_no_seed_with_another_set_of_teachers(tmp_path, there):
    world = World(noise=0.0)
    of_set = [world.scores(0.2 * k) for k in range(SETS)]
    confirmed(tmp_path, world, lambda name, replicate: of_set[replicate % SETS])
    with Ledger.open(tmp_path) as ledger:
        gone = [CONFIRMATION + k for k in range(SETS) if k not in there]
        marks = ", ".join("?" * len(gone))
        ledger._db.execute(f"DELETE FROM runs WHERE arm = 'xgboost' AND replicate IN ({marks})", gone)
    claim = next(c for c in compare(tmp_path)["published_claims"] if c["claim"].startswith("as_printed > xgboost"))
    assert claim["measured"] is None or claim["measured"] == pytest.approx(0, abs=1e-12)


def test_a_claim_that_a_teacher_is_better_is_measured_as_well(tmp_path):
    """As one's own study may publish it; the built-in claims say that what is printed beats its teachers."""
    claim = dataclasses.replace(STUDY.claims[0], better="xgboost", worse="as_printed", not_comparable=None)
    study, world = dataclasses.replace(STUDY, claims=(claim,)), World()
    confirmed(tmp_path, world, of_strengths(world, xgboost=1.2))
    (tmp_path / "study.yaml").write_text(to_yaml(study), encoding="utf-8")
    (found,) = compare(tmp_path)["published_claims"]
    assert found["verdict"] == "replicates"


# what the search believed


def searched_and_confirmed(run, last, best_epoch):
    """Winners of 0.80 on validation at rung `last`, best at `best_epoch` under fresh seeds, of 0.78 when confirmed."""
    world = World()
    with new_run(run, STUDY) as ledger:
        for name, g in itertools.product(STUDY.searched, range(GROUPS)):
            trial, config = f"{name}-{g}", dict(STUDY.arms[name].default)
            ledger.ask(TrialRecord(trial, name, g, "sobol", config, 0.0))
            ledger.report(trial, [row(e, 0.8 if e in (1, 3, 9) else None) for e in range(1, last + 1)])
            for purpose, first, val in (("reevaluation", 1_000_000, 0.79), ("tuned", CONFIRMATION, 0.78)):
                ledger.finish_run(
                    *(purpose, name, g, "train", first + g * PER_SUBSEARCH),
                    trial=trial,
                    config=config,
                    epochs=best_epoch,
                    seconds=0.1,
                    metrics={"val_auc": val, "val_nll": 0.5, "best_epoch": float(best_epoch)},
                    predictions={} if purpose == "reevaluation" else {"test": world.scores(0.8)},
                )
        ledger.look("test", world.labels, "confirmation")
    return arm(compare(run), "kd_uniform")["tuned"]


def test_optimism_is_the_searchs_value_at_its_best_epoch_minus_that_under_fresh_seeds(tmp_path):
    tuned = searched_and_confirmed(tmp_path, last=9, best_epoch=5)
    assert tuned["optimism"] == pytest.approx(0.80 - 0.78)


def test_optimism_is_null_where_the_searchs_value_is_of_an_earlier_epoch(tmp_path):
    """Chosen at rung 3 by its value there, and trained to epoch 8 because fresh seeds, trained to the end, say so."""
    assert searched_and_confirmed(tmp_path, last=3, best_epoch=8)["optimism"] is None


# seeds that are no number


@pytest.mark.parametrize("name", ["attention_blend", "as_printed"])
def test_a_seed_that_diverged_in_the_confirmation_does_not_stop_the_comparison(tmp_path, name):
    world, first = World(), replicates(name)[0][1]

    def scores(of, replicate):
        return np.full(ROWS, np.nan, np.float32) if (of, replicate) == (name, first) else world.scores(0.8)

    result = confirmed(tmp_path, world, scores)
    assert arm(result, "kd_uniform")["tuned"]["n"] == SEEDS


# for a person


def text(result, width=150):
    console = Console(file=io.StringIO(), width=width, record=True)
    console.print(render(result), highlight=False)
    return console.export_text()


def test_gates_are_shown_by_segment_beside_who_is_better_there(whole):
    found = {g["segment"]: g for g in whole.result["gates"]}
    assert {g["arm"] for g in whole.result["gates"]} == {"attention_blend"}
    assert {part: (g["prefers"], g["better"], g["agrees"]) for part, g in found.items() if part != "all rows"} == {
        "holiday=1": ("random_forest", "random_forest", True),
        "holiday=0": ("xgboost", "xgboost", True),
    }
    assert found["holiday=1"]["rows"] == int(HOLIDAY.sum())


def test_the_tables_show_arms_roles_teachers_and_gates(whole):
    shown = text(whole.result)
    assert max(len(line) for line in shown.splitlines()) <= 150
    for name, definition in STUDY.arms.items():
        assert re.search(rf"^ *{name} .* {re.escape(ROLES[definition.role])} ", shown, re.MULTILINE), name
    for title in ("test_auc in AUC", "teachers on test (5 sets)", "what the gates do, by segment", "beside accuracy"):
        assert title in shown
    assert "contrasts of arms, in AUC (margin" in shown
    mean = arm(whole.result, "attention_blend")["tuned"]["mean"]
    assert f"{mean:.4f}" in shown  # AUC with four digits, and not in percent
    assert f"{100 * mean:.2f}" not in shown


def test_the_question_of_the_gate_is_answered_in_a_sentence(whole):
    sentences = conclusions(whole.result)
    found = contrast(whole.result, "attention_blend - uniform_blend")
    words = f"{found['mean']:+.4f} [{found['ci95_family'][0]:+.4f}, {found['ci95_family'][1]:+.4f}] AUC"
    assert f"The gate beats the plain average of its teachers beyond noise: {words}" in " ".join(sentences)
    shown = " ".join(text(whole.result).split())
    assert all(sentence in shown for sentence in sentences)


@pytest.mark.parametrize("answer", ["worse", "equivalent", "indistinguishable"])
def test_a_gate_that_is_not_better_is_said_to_be_nothing_else(whole, answer):
    contrasts = [{**c, "answer": answer} for c in whole.result["contrasts"]]
    said = " ".join(conclusions({**whole.result, "contrasts": contrasts}))
    assert "This sweep does not show that the gate beats the plain average of its teachers" in said
    assert f"(attention_blend - uniform_blend), {answer}." in said
    assert "beyond noise" not in said


def test_without_an_answer_nothing_is_said_of_the_gate(whole):
    contrasts = [{**c, "answer": None} for c in whole.result["contrasts"]]
    assert "gate" not in " ".join(conclusions({**whole.result, "contrasts": contrasts}))


def test_students_are_ranked_among_students_and_teachers_among_teachers(whole):
    """attention_blend is above all others, and is neither."""
    (sentence,) = [s for s in conclusions(whole.result) if s.startswith("Of the students")]
    student, teacher = arm(whole.result, "kd_uniform")["tuned"]["mean"], arm(whole.result, "xgboost")["fixed"]["mean"]
    assert f"kd_uniform is highest, {student:.4f}" in sentence
    assert f"xgboost, {teacher:.4f}" in sentence
    assert arm(whole.result, "attention_blend")["tuned"]["mean"] > student
    assert "attention_blend" not in sentence


def test_before_anything_is_confirmed_the_tables_are_there_all_the_same(tmp_path):
    new_run(tmp_path, STUDY).close()
    result = compare(tmp_path)
    assert (result["gates"], result["teacher"], result["complete"]) == ([], None, False)
    shown = text(result)
    assert "budget: not complete" in shown
    assert conclusions(result) == []
