"""analysis/gates.py on gates made by hand, and what analysis/beside.py says of models, their times and classes."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from analysis import beside, gates
from analysis.gates import ALL
from search.ledger import ENSEMBLE, RunRecord

ROWS, SETS = 600, 3
NAMES = {0: "trees", 1: "line"}
DAY, NIGHT = (np.arange(ROWS) < 300), (np.arange(ROWS) >= 300)
SEGMENTS = {"hour=day": DAY, "hour=night": NIGHT}
LABELS = (np.arange(ROWS) % 3 == 0).astype(np.uint8)


def run(replicate=0, **metrics):
    return RunRecord(0, "tuned", "blend", 0, "train", replicate, "t", {}, 9, 0.1, metrics)


def gate(**on_trees):
    """A run whose mean gate on `trees` is so much over all rows, by day and by night; the rest is on `line`."""
    parts = {"all": "", "day": " | hour=day", "night": " | hour=night"}
    found = {f"gate trees{parts[part]}": share for part, share in on_trees.items()}
    return run(**found, **{f"gate line{parts[part]}": 1 - share for part, share in on_trees.items()})


def said(seed=0, sets=SETS, day=(2.0, 0.5), night=(0.5, 2.0)):
    """What both teachers say: `trees` knows of the label by day, `line` by night; and the ensemble."""
    random, found = np.random.default_rng(seed), {}
    for k in range(sets):
        for member in NAMES:
            knows = np.where(DAY, day[member], night[member])
            noise = random.standard_normal(ROWS)
            found[k, member] = (knows * (2.0 * LABELS - 1) + 2 * noise).astype(np.float32)
        found[k, ENSEMBLE] = np.zeros(ROWS, np.float32)
    return found


def by_part(runs, said, **changes):
    given = {"names": NAMES, "labels": LABELS, "segments": SEGMENTS, **changes}
    found = gates.by_segment({"blend": runs}, given["names"], said, given["labels"], given["segments"])
    return {entry["segment"]: entry for entry in found}


# who is better where, and whom the gate prefers


def test_a_gate_that_prefers_the_better_teacher_of_each_part_agrees_with_what_is_measured():
    found = by_part([gate(all=0.5, day=0.8, night=0.2)], said())
    assert list(found) == [ALL, "hour=day", "hour=night"]
    assert [found[part]["rows"] for part in found] == [600, 300, 300]
    assert (found["hour=day"]["prefers"], found["hour=day"]["better"], found["hour=day"]["agrees"]) == (
        *("trees", "trees"),
        True,
    )
    assert (found["hour=night"]["prefers"], found["hour=night"]["better"], found["hour=night"]["agrees"]) == (
        *("line", "line"),
        True,
    )


def test_a_gate_that_prefers_the_worse_teacher_does_not_agree():
    found = by_part([gate(all=0.5, day=0.2, night=0.8)], said())
    assert [found[part]["agrees"] for part in SEGMENTS] == [False, False]
    assert [found[part]["better"] for part in SEGMENTS] == ["trees", "line"]


def test_where_no_teacher_is_better_beyond_noise_there_is_nothing_to_agree_with():
    same = {(k, m): s for (k, m), s in said(day=(1.0, 1.0), night=(1.0, 1.0)).items()}
    for entry in by_part([gate(all=0.6, day=0.9, night=0.3)], same).values():
        assert entry["better"] is None
        assert entry["agrees"] is None
        assert entry["prefers"] in NAMES.values()
        assert len({teacher["auc"] for teacher in entry["teachers"].values()}) == 2


THREE = {**NAMES, 2: "third"}


def beside_a_third(third):
    """Entries where `trees` is better than `line` in every part, and a third teacher says third(set) of the rows."""
    spoken = said(night=(2.0, 0.5))
    assert by_part([gate(all=0.5)], spoken, segments={})[ALL]["better"] == "trees"
    spoken |= {(k, 2): third(k, spoken).astype(np.float32) for k in range(SETS)}
    runs = [run(**{"gate trees": 0.5, "gate line": 0.2, "gate third": 0.3})]
    return by_part(runs, spoken, names=THREE, segments={})[ALL]


def test_a_teacher_is_better_only_if_the_next_best_is_not_as_good():
    noise = np.random.default_rng(9).standard_normal((SETS, ROWS))
    entry = beside_a_third(lambda k, spoken: spoken[k, 0] + 0.3 * noise[k])
    assert entry["teachers"]["third"]["auc"] == pytest.approx(entry["teachers"]["trees"]["auc"], abs=0.01)
    assert (entry["prefers"], entry["better"], entry["agrees"]) == ("trees", None, None)


def test_a_teacher_is_better_only_if_the_one_that_varies_most_is_not_as_good_either():
    """The third is the worst on average, but so different from set to set that it might be the best."""
    strength, noise = (6.0, -0.5, -0.5), np.random.default_rng(9).standard_normal((SETS, ROWS))
    entry = beside_a_third(lambda k, spoken: strength[k] * (2.0 * LABELS - 1) + 2 * noise[k])
    auc = {name: teacher["auc"] for name, teacher in entry["teachers"].items()}
    assert auc["third"] < auc["line"] < auc["trees"]
    assert entry["better"] is None


def test_auc_is_that_of_the_part_as_a_mean_over_teacher_sets():
    spoken = said()
    found = by_part([gate(all=0.5, day=0.8, night=0.2)], spoken)
    for part, mask in {ALL: np.ones(ROWS, bool), **SEGMENTS}.items():
        for member, name in NAMES.items():
            expected = np.mean([roc_auc_score(LABELS[mask], spoken[k, member][mask]) for k in range(SETS)])
            assert found[part]["teachers"][name]["auc"] == pytest.approx(expected)


def test_one_set_of_teachers_has_an_auc_and_nobody_is_better_beyond_its_noise():
    found = by_part([gate(all=0.5, day=0.8, night=0.2)], said(sets=1))
    assert all(entry["better"] is None for entry in found.values())
    assert found["hour=day"]["teachers"]["trees"]["auc"] > found["hour=day"]["teachers"]["line"]["auc"] + 0.1


def test_a_part_with_hardly_a_row_of_one_class_has_no_auc():
    few = {"few": np.isin(np.arange(ROWS), [0, 1, 2, 4])}  # one of class 1
    runs = [run(**{"gate trees": 0.5, "gate line": 0.5, "gate trees | few": 0.9, "gate line | few": 0.1})]
    entry = by_part(runs, said(), segments=few)["few"]
    assert (entry["rows"], entry["better"], entry["agrees"], entry["prefers"]) == (4, None, None, "trees")
    assert [teacher["auc"] for teacher in entry["teachers"].values()] == [None, None]


def test_before_the_teachers_are_judged_the_gate_is_shown_without_them():
    entry = by_part([gate(all=0.7, day=0.8, night=0.6)], {})[ALL]
    assert (entry["prefers"], entry["better"], entry["agrees"]) == ("trees", None, None)


# gates


def test_gates_are_means_over_the_seeds_with_their_interval():
    runs = [gate(all=share, day=share, night=0.1) for share in (0.5, 0.6, 0.7, 0.8)]
    trees = by_part(runs, said())["hour=day"]["teachers"]["trees"]
    assert trees["gate"] == pytest.approx(0.65)
    half = 3.182446 * np.std([0.5, 0.6, 0.7, 0.8], ddof=1) / 2  # t with 3 degrees of freedom
    assert trees["ci95_seeds"] == pytest.approx([0.65 - half, 0.65 + half], abs=1e-6)


def test_a_gate_of_one_seed_has_no_interval():
    teachers = by_part([gate(all=0.5, day=0.8, night=0.2)], said())[ALL]["teachers"]
    assert [teacher["ci95_seeds"] for teacher in teachers.values()] == [None, None]


def test_a_gate_that_is_the_same_for_all_rows_has_one_entry():
    same = [gate(all=share, day=share, night=share + 1e-9) for share in (0.5, 0.6)]
    assert list(by_part(same, said())) == [ALL]
    by_one_seed = [*same, gate(all=0.5, day=0.6, night=0.4)]
    assert list(by_part(by_one_seed, said())) == [ALL, *SEGMENTS]


@pytest.mark.parametrize("first", [True, False])
def test_a_seed_that_diverged_has_no_gate_and_does_not_hide_the_others(first):
    whole, diverged = [gate(all=0.5, day=0.8, night=0.2)], [run(diverged=1.0)]
    found = by_part(diverged + whole if first else whole + diverged, said())
    assert found["hour=day"]["teachers"]["trees"]["gate"] == 0.8


def test_arms_without_a_gate_or_without_seeds_have_no_entry():
    runs = {"student": [run(test_auc=0.8)], "none yet": [], "blend": [gate(all=0.5, day=0.8, night=0.2)]}
    found = gates.by_segment(runs, NAMES, said(), LABELS, SEGMENTS)
    assert {entry["arm"] for entry in found} == {"blend"}


def test_without_names_of_teachers_there_are_no_entries():
    assert gates.by_segment({"blend": [gate(all=0.5)]}, {}, said(), LABELS, SEGMENTS) == []


# models, beside the arms


def test_what_is_known_of_a_model_is_the_median_over_its_sets():
    facts = {
        (0, ENSEMBLE): {"name": "plain average", "test_auc": 0.9},
        (0, 0): {"name": "trees", "test_auc": 0.7, "bytes": 10},
        (1, 0): {"name": "trees", "test_auc": 0.8, "bytes": 30},
        (2, 0): {"name": "trees", "test_auc": 0.2, "bytes": 12},
    }
    assert beside.models(facts) == [
        {"name": "plain average", "n": 1, "test_auc": 0.9},
        {"name": "trees", "n": 3, "test_auc": 0.7, "bytes": 12.0},
    ]
    assert beside.models({}) == []


MODELS = [
    {"name": "plain average", "n": 2, "ms_per_sample_batch_1": 5.0, "ms_per_sample_batch_128": 0.5},
    {"name": "trees", "n": 2, "ms_per_sample_batch_1": 3.0, "ms_per_sample_batch_128": 0.3},
]


def times(teacher, student, own=1.0):
    found = {name: {"mean": own, "ci95_seeds": None} for name in ("ms_per_sample_batch_1", "ms_per_sample_batch_128")}
    found["ks"] = {"mean": 0.4, "ci95_seeds": [0.3, 0.5]}
    beside.with_teachers(found, MODELS, teacher, student)
    assert found["ks"] == {"mean": 0.4, "ci95_seeds": [0.3, 0.5]}
    return [found[name]["mean"] for name in ("ms_per_sample_batch_1", "ms_per_sample_batch_128")]


def test_a_blend_takes_as_long_as_its_teachers_and_its_student():
    assert times(None, student=True) == [6.0, 1.5]


def test_a_teacher_alone_takes_as_long_as_that_teacher_and_all_of_them_as_all():
    assert times("trees", student=False) == [3.0, 0.3]
    assert times(None, student=False) == [5.0, 0.5]


@pytest.mark.parametrize(("teacher", "models"), [("unknown", MODELS), (None, [])])
def test_times_of_teachers_that_are_not_known_are_not_made_up(teacher, models):
    found = {"ms_per_sample_batch_1": {"mean": 1.0, "ci95_seeds": None}}
    beside.with_teachers(found, models, teacher, True)
    assert found == {"ms_per_sample_batch_1": {"mean": 1.0, "ci95_seeds": None}}


def test_logits_of_class_1_become_classes_and_classes_stay_what_they_are():
    logits = np.array([[-0.1, 0.0, 0.1], [3.0, -3.0, np.nan]], dtype=np.float32)
    assert beside.classes(logits).tolist() == [[0, 0, 1], [1, 0, 0]]
    classes = np.array([[0, 2, 999]], dtype=np.uint16)
    assert beside.classes(classes) is classes
