"""The choice of student size: each against its own baseline, the front, the smallest that serves as its teacher."""

import numpy as np
import pytest
import yaml

import distune
from analysis import answer, tables
from analysis.front import front
from analysis.tracking import views
from analysis.units import Unit
from search.ledger import Ledger
from search.payload import refuse_unusable
from spaces import BadInput, load_study
from spaces.load import Extension, adjust, extended, to_yaml
from tests.test_sweep import TINY

SIZES = {
    "objective": ["val_accuracy", "params"],
    "sizes": {"mini": {"hidden": [2]}},
    "quick": {"confirm_seeds": 12},
    "arms": dict.fromkeys(("label_smoothing", "kd_shuffled")),
}


def written(folder, **changes):
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump({**TINY, **SIZES, **changes}))
    return path


@pytest.fixture
def study(tmp_path):
    return load_study(written(tmp_path))


def test_every_searched_arm_is_searched_once_more_for_each_size(study):
    assert list(study.arms) == ["hard_labels", "hard_labels_again", "kd", "hard_labels-mini", "kd-mini"]
    assert study.candidates == ["kd", "kd-mini"]
    assert study.baseline_of("kd") == "hard_labels"
    assert study.baseline_of("kd-mini") == "hard_labels-mini"
    assert study.student_of("kd")["hidden"] == (8,)
    assert study.student_of("kd-mini")["hidden"] == (2,)
    assert study.arms["kd-mini"].space == study.arms["kd"].space
    assert study.arms["kd-mini"].published is None  # the source says nothing of such a student


def test_the_studys_own_text_gives_the_same_study_again(study, tmp_path):
    path = tmp_path / "stored.yaml"
    path.write_text(to_yaml(study))
    assert load_study(path) == study


def test_an_arm_that_is_asked_for_comes_in_all_its_sizes(tmp_path):
    whole = load_study(written(tmp_path, arms={}))
    assert "label_smoothing-mini" in whole.arms
    kept = ["hard_labels", "hard_labels_again", "kd", "hard_labels-mini", "kd-mini"]
    assert list(adjust(whole, arms=("kd",)).arms) == kept


def test_an_arm_that_is_added_later_comes_in_all_its_sizes(study):
    more, _ = extended(study, Extension(arms=("label_smoothing",), source="mlp-ensemble"))
    assert {"label_smoothing", "label_smoothing-mini"} <= set(more.arms)


def test_a_size_of_a_table_fixes_the_widths_that_others_search(tmp_path):
    changes = {"objective": ["val_auc", "latency"], "sizes": {"small": {"hidden": "16"}}}
    budget = {"budget": {"confirm_seeds": 20}, "quick": {"confirm_seeds": 20}}
    path = tmp_path / "tables.yaml"
    path.write_text(yaml.safe_dump({"extends": "promo-attention", **changes, **budget}))
    found = load_study(path)
    arm = found.arms["kd_uniform-small"]
    assert arm.default["hidden"] == "16"
    assert "hidden" in found.arms["kd_uniform"].space
    assert set(found.arms["kd_uniform"].space) - set(arm.space) == {"hidden"}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"objective": None}, ["sizes is given without objective", "objective: [val_accuracy, params]"]),
        ({"sizes": {}}, ["objective is given without sizes", "hidden: [16]"]),
        ({"objective": ["val_auc", "params"]}, ["objective must begin with val_accuracy", "val_auc"]),
        ({"objective": ["val_accuracy", "latency"]}, ["latency", "for the family mlp use params"]),
        ({"objective": ["val_accuracy", "flops"]}, ["flops", "params", "latency"]),
        ({"sizes": {"mini": {"hiden": [2]}}}, ["sizes.mini", "hiden", "did you mean 'hidden'?"]),
        ({"sizes": {"mini": {"hidden": [8]}}}, ["sizes.mini", "the same student as that of the study"]),
        ({"sizes": {"a": {"hidden": [2]}, "b": {"hidden": [2]}}}, ["sizes.b", "the same student as sizes.a"]),
        ({"sizes": {"so so": {"hidden": [2]}}}, ["letters, digits", "so so"]),
        ({"sizes": {"mini": {}}}, ["sizes.mini is empty"]),
        ({"within": 0}, ["within", "greater than 0"]),
    ],
)
def test_a_choice_of_size_that_cannot_be_is_refused(tmp_path, changes, words):
    with pytest.raises(BadInput) as refused:
        load_study(written(tmp_path, **changes))
    assert all(word in str(refused.value) for word in words), refused.value


def test_a_size_that_cannot_be_trained_is_refused_before_anything_starts(tmp_path):
    (tmp_path / "nets.py").write_text(
        "from torch import nn\n\ndef net(features, classes, width=8):\n"
        "    return nn.Sequential(nn.Linear(features, width), nn.ReLU(), nn.Linear(8, classes))\n"
    )
    student = {"kind": "factory", "function": "nets.py:net"}
    study = load_study(written(tmp_path, student=student, sizes={"wide": {"options": {"width": 9}}}))
    with pytest.raises(BadInput, match=r"nets\.py:net"):
        refuse_unusable(study, print)


# The front on made-up students: two winners of two seeds each, over 100 rows.


def confirmed(arm, size, parameters, mean, validation):
    tuned = {"mean": mean, "ci95": [mean - 0.01, mean + 0.01], "n": 4, "search_value": validation, "val_mean": None}
    about = {"arm": arm, "size": size, "kind": "searched", "role": "student", "tuned": tuned}
    return {**about, "evaluation": {"parameters": {"mean": parameters}}}


def right(share, spread=0):
    """(2 seeds, 100 rows) of one winner: the first rows are right."""
    return np.array([np.arange(100) < 100 * share + s for s in (-spread, spread)], dtype=float)


TEACHER = {0: right(0.9)[0]}


def front_of(study, *arms, behind):
    units = {arm["arm"]: ([0, 1, 1000, 1001], behind[arm["arm"]]) for arm in arms}
    return front(study, arms, units, TEACHER, 0.05)


def test_the_front_leaves_out_what_is_larger_and_no_better(study):
    arms = [
        confirmed("hard_labels", None, 100, 0.90, 0.90),
        confirmed("kd", None, 100, 0.88, 0.91),
        confirmed("kd-mini", "mini", 20, 0.88, 0.89),
        confirmed("hard_labels-mini", "mini", 20, 0.80, 0.80),
    ]
    same = {arm["arm"]: [right(0.9), right(0.9)] for arm in arms}
    found = front_of(study, *arms, behind=same)
    assert {p["arm"]: p["on_front"] for p in found["points"]} == {
        "hard_labels": True,  # nobody is better
        "kd": False,  # kd-mini is as good and smaller
        "kd-mini": True,
        "hard_labels-mini": False,
    }
    assert found["chosen"] == {"study": "kd", "mini": "kd-mini"}  # by validation, whatever the test split says


def test_the_smallest_student_is_shown_and_not_merely_seen_to_be_within(study):
    arms = [confirmed("kd", None, 100, 0.90, 0.9), confirmed("kd-mini", "mini", 20, 0.90, 0.9)]
    sure, unsure = [right(0.9), right(0.9)], [right(0.87), right(0.93)]
    found = front_of(study, *arms, behind={"kd": sure, "kd-mini": unsure})
    assert [p["behind_teacher"]["mean"] for p in found["points"]] == pytest.approx([0, 0])
    assert found["smallest_within"] == "kd"
    assert "smallest student shown to be within 0.5 points of its teacher is kd, 100 parameters" in found["sentence"]
    assert front_of(study, *arms, behind={"kd": sure, "kd-mini": sure})["smallest_within"] == "kd-mini"


def test_sizes_are_tested_from_the_largest_down_and_a_failure_ends_it(study):
    arms = [confirmed("kd", None, 100, 0.90, 0.9), confirmed("kd-mini", "mini", 20, 0.90, 0.9)]
    found = front_of(study, *arms, behind={"kd": [right(0.8), right(0.8)], "kd-mini": [right(0.9), right(0.9)]})
    assert found["smallest_within"] is None
    assert "No student is shown to be within 0.5 points" in found["sentence"]


def test_a_seed_is_set_against_its_own_teacher(study):
    arms = [confirmed("kd", None, 100, 0.90, 0.9)]
    units = {"kd": ([0, 1], [np.stack([right(0.9)[0], right(0.5)[0]])])}
    teachers = {0: right(0.9)[0], 1: right(0.5)[0]}
    found = front(study, arms, units, teachers, 0.05)
    assert found["points"][0]["behind_teacher"] == {"mean": 0, "ci95": [0, 0]}


def test_a_study_of_one_size_has_no_front(tmp_path):
    study = load_study(written(tmp_path, objective=None, sizes={}))
    assert front(study, [], {}, {}, 0.05) is None


# One small sweep on real Ray.


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sizes")
    return distune.sweep(load_study(written(folder)), out=folder / "run", quiet=True)


def test_a_sweep_confirms_every_size_and_judges_it_against_its_own_baseline(finished):
    result = finished.compare()
    assert result["complete"]
    arms = {arm["arm"]: arm for arm in result["arms"]}
    assert arms["hard_labels-mini"]["delta_vs_baseline"] is None
    difference = arms["kd-mini"]["tuned"]["mean"] - arms["hard_labels-mini"]["tuned"]["mean"]
    assert arms["kd-mini"]["delta_vs_baseline"]["mean"] == pytest.approx(difference)
    assert arms["kd-mini"]["delta_vs_baseline"]["comparisons"] == 2
    sizes = {p["arm"]: p["measured"] for p in result["front"]["points"]}
    assert sizes == {"hard_labels": 20 * 8 + 8 + 8 * 2 + 2, "kd": 186} | dict.fromkeys(
        ("hard_labels-mini", "kd-mini"), 20 * 2 + 2 + 2 * 2 + 2
    )
    with Ledger.open(finished.path) as ledger:
        spent = {name: b["seed_epochs"] for name, b in result["budget"].items()}
        assert min(spent.values()) >= 240, spent
        assert {t.arm for t in ledger.trials()} == set(spent)


def test_the_smallest_student_is_what_a_sweep_ends_with(finished):
    result = finished.compare()
    sentence = result["front"]["sentence"]
    assert sentence in answer.answer(result)
    assert sentence in (finished.path / "report.html").read_text()
    shown = tables.front_table(result["front"], Unit.of(result["metric"]))
    assert shown.row_count == 4


def test_a_mini_student_is_handed_out(finished):
    assert sum(p.numel() for p in finished.student("kd-mini").parameters()) == 48


def test_wandb_shows_quality_against_size(finished):
    study = load_study(finished.path / "study.yaml")
    panels = [panel.title for panel in views._ablation(study)]
    assert "test_accuracy against parameters" in panels
