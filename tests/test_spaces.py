"""Studies from names, YAML and assignments: what is refused and how, what changes, and what budgets and ranges mean."""

import dataclasses
import math
import re

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from spaces import (
    A_A_CONTROL,
    BASELINE,
    BUILT_IN,
    BadInput,
    Budget,
    Choice,
    Range,
    adjust,
    is_at_limit,
    load_study,
    to_yaml,
)
from spaces.families import WEIGHS_TEACHERS, CsvTable

STUDY = load_study("mlp-ensemble")
ACCEPTED = pytest.fail.Exception  # what `pytest.raises` raises where nothing was refused


def written(folder, text):
    path = folder / "study.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def refusal(*args, **kwargs):
    """The one line that `load_study` refuses this with."""
    with pytest.raises(BadInput) as refused:
        load_study(*args, **kwargs)
    line = str(refused.value)
    assert line
    assert "\n" not in line
    return line


# bad input: one line that says what was given and what is allowed


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("mlp-ensembl", ["unknown study 'mlp-ensembl'", "did you mean 'mlp-ensemble'?", ".yaml"]),
        ("promo", ["unknown study 'promo'", "mlp-ensemble"]),
        ("", ["unknown study ''"]),
        ("no/such/file.yaml", ["no/such/file.yaml", "No such file"]),
    ],
)
def test_an_unknown_study_is_refused(name, says):
    line = refusal(name)
    assert all(part in line for part in says)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[1, 2]", ["must be a mapping", "list"]),
        ("just words", ["must be a mapping", "str"]),
        ("", ["must be a mapping"]),
        ("name: [", ["not valid YAML"]),
        ("\tname: x", ["not valid YAML"]),
        (b"\xff\xfe\x00", ["cannot read the study file"]),
        ("extends: mlp-ensembel", ["unknown study 'mlp-ensembel'", "did you mean 'mlp-ensemble'?"]),
        ("extends: promo", ["unknown study 'promo'", "allowed are mlp-ensemble"]),
        ("extends: null", ["unknown study 'None'"]),
        ("extends: [mlp-ensemble]", ["extends"]),
        ("name: mine", ["is missing"]),
        ("extends: mlp-ensemble\nbugdet: {confirm_seeds: 40}", ["unknown key bugdet", "did you mean 'budget'?"]),
        ("extends: mlp-ensemble\nspace: {learning_rat: {low: 0.0005}}", ["did you mean 'learning_rate'?"]),
        ("extends: mlp-ensemble\narms: {kd: {space: {temperature: warm}}}", ["arms.kd.space.temperature", "'warm'"]),
        ("extends: mlp-ensemble\narms: {kdd: null}", ["arms.kdd", "did you mean 'kd'?"]),
        ("extends: mlp-ensemble\narms: {kd: 3}\nspace: {learning_rate: {low: 0.0005}}", ["arms.kd"]),
        ("extends: mlp-ensemble\n1: 2", ["keys should be strings"]),
    ],
)
def test_a_study_file_that_cannot_be_used_is_refused(tmp_path, text, says):
    line = refusal(written(tmp_path, text))
    assert all(part in line for part in says)


@pytest.mark.parametrize(
    ("assignment", "says"),
    [
        # keys
        ("confirm_seeds", ["key=value", "'confirm_seeds'"]),
        ("=3", ["key=value"]),
        ("budget..confirm_seeds=40", ["key=value"]),
        ("budget.confirm_seed=40", ["unknown key budget.confirm_seed", "did you mean 'confirm_seeds'?"]),
        ("data.n_sample=600", ["unknown key data.n_sample", "did you mean 'n_samples'?"]),
        ("arms.kd.spaces={}", ["unknown key arms.kd.spaces", "did you mean 'space'?"]),
        ("arms.kd.space.temperature.hihg=9", ["unknown key", "did you mean 'high'?"]),
        ("arms.kd.space.smoothing={low: 0.1, high: 0.2}", ["arms.kd", "smoothing", "temperature"]),
        ("space.temperatur.low=2", ["space.temperatur", "did you mean 'temperature'?"]),
        ("space=3", ["space", "3"]),
        # types
        ("budget.confirm_seeds=[", ["not valid YAML"]),
        ("budget.confirm_seeds=many", ["budget.confirm_seeds", "'many'", "integer"]),
        ("budget.confirm_seeds=20.5", ["budget.confirm_seeds", "20.5", "integer"]),
        ("budget=3", ["budget", "got 3"]),
        ("arms=null", ["arms", "None"]),
        ("data.kind=sql", ["data.kind", "'sql'", "'make_classification'"]),
        ("data={kind: csv, path: a.csv, target: y}", ["data.kind", "'csv'", "'make_classification'"]),
        ("arms.kd.variant=kdd", ["arms.kd.variant", "'kdd'", "'hard_labels'"]),
        ("confirm_on=test", ["confirm_on", "'test'", "'train+validation'"]),
        ("contrasts=[[kd, hard_labels]]", ["contrasts.0.2 is missing"]),
        # ranges
        ("space.learning_rate.low=0.5", ["low must be less than high", "low=0.5", "high=0.03"]),
        ("space.learning_rate.low=0.03", ["low must be less than high"]),
        ("space.weight_decay.low=0", ["log range must start above 0", "low=0"]),
        ("space.weight_decay.low=-1", ["log range must start above 0"]),
        ("space.learning_rate.low=.nan", ["learning_rate.low", "nan", "finite"]),
        ("space.learning_rate.high=.inf", ["learning_rate.high", "inf", "finite"]),
        ("space.kd_weight.high=1.5", ["kd_weight must be a number from 0 to 1", "1.5"]),
        ("space.batch_size.choices=[64]", ["two or more different values", "64"]),
        ("space.batch_size.choices=[64, 64]", ["two or more different values"]),
        ("space.batch_size.choices=[64, big]", ["batch_size must be a whole number", "'big'"]),
        ("space.batch_size.choices=[64, 0.5]", ["batch_size must be a whole number", "0.5"]),
        ("arms.kd.space.learning_rate.low=0.0005", ["arms.kd.space.learning_rate", "hard_labels", "0.0005"]),
        # configurations
        ("arms.kd.default.temperature=99", ["temperature=99", "outside its space", "1 to 20"]),
        ("arms.kd.default.temperature=.nan", ["arms.kd.default.temperature", "nan"]),
        ("arms.kd.default.temperature=true", ["temperature=True", "outside its space"]),
        ("arms.kd.default.momentum=0.9", ["arms.kd.default", "momentum"]),
        ("arms.kd.published.config.kd_weight=7", ["kd_weight must be a number from 0 to 1", "7"]),
        ("margin=.nan", ["margin", "nan"]),
        ("margin=0", ["margin", "greater than 0"]),
        # budgets
        ("budget.seed_epochs_per_arm=100", ["seed_epochs_per_arm=100 is too small", "192"]),
        ("budget.seed_epochs_per_arm=0", ["budget.seed_epochs_per_arm", "greater than 0"]),
        ("quick.seed_epochs_per_arm=20", ["quick", "seed_epochs_per_arm=20 is too small"]),
        ("budget.confirm_seeds=4", ["confirm_seeds=4 cannot decide between 5 arms", "at least 7"]),
        ("quick.confirm_seeds=6", ["confirm_seeds=6 cannot decide", "at least 7"]),
        ("budget.confirm_seeds=21", ["confirm_seeds=21 must be a multiple of subsearches=4"]),
        ("budget.reevaluate_share=0.9", ["budget.reevaluate_share", "0.9", "0.5"]),
        # arms and data
        ("claims=[{better: kd, worse: at, gain: 0.1, source: x}]", ["claim kd > at", "does not have"]),
        ("contrasts=[[kd, at, why]]", ["contrast kd - at", "does not have"]),
        ("trainable=nowhere.py:train", ["path/to/file.py:function", "nowhere.py:train"]),
        ("data.n_redundant=15", ["n_informative=10 + n_redundant=15", "n_features=20"]),
        ("teacher.dropout=[0.3]", ["dropout", "3 hidden layers"]),
        ("student.hidden=[64, 0]", ["student.hidden.1", "greater than 0"]),
    ],
)
def test_an_assignment_that_cannot_be_used_is_refused(assignment, says):
    line = refusal("mlp-ensemble", [assignment])
    assert all(part in line for part in says), line


def test_the_same_fault_in_every_arm_is_told_once_and_counted():
    assert refusal("mlp-ensemble", ["space.learning_rate.low=0.5"]).endswith("(and 4 more like it)")


@pytest.mark.parametrize("needed", [BASELINE, A_A_CONTROL])
def test_a_study_without_its_baseline_or_a_a_control_is_refused(tmp_path, needed):
    raw = yaml.safe_load(to_yaml(STUDY))
    del raw["arms"][needed]
    raw["contrasts"] = raw["claims"] = []
    assert f"every study searches the arm {needed}" in refusal(written(tmp_path, yaml.safe_dump(raw)))


def test_a_study_whose_baseline_is_not_searched_is_refused(tmp_path):
    raw = yaml.safe_load(to_yaml(STUDY))
    raw["arms"][BASELINE]["space"] = {}
    assert f"every study searches the arm {BASELINE}" in refusal(written(tmp_path, yaml.safe_dump(raw)))


@pytest.mark.parametrize(
    "assignments",
    [
        ["arms.kd.teacher_rows=none"],
        ["metric=accurracy"],
        ["data.n_informative=1", "data.n_redundant=0"],
        ["data.random_state=-1"],
        ["space.batch_size={low: 32, high: 256}"],
        ["arms.kd.space.temperature.high=10"],
        ["arms=3", "space.learning_rate.low=0.0005"],
    ],
    ids=" ".join,
)
def test_a_study_that_could_not_run_or_not_compare_is_refused(assignments):
    refusal("mlp-ensemble", assignments)


TABLES = load_study("promo-attention")


@pytest.mark.parametrize(
    ("assignment", "says"),
    [
        # what only tables have
        ("space.batch_size.choices=[64, 128, full]", ["hard_labels", "batch_size=full is for tables", "mlp"]),
        ("arms.kd.default.batch_size=full", ["arms.kd", "full"]),
        ("metric=auc", ["metric", "family mlp must be accuracy", "auc"]),
        ("budget.patience=10", ["budget.patience=10", "only the family tabular stops early"]),
        ("quick.patience=3", ["quick.patience=3", "only the family tabular"]),
        ("arms.kd.variant=kd_uniform", ["arms.kd.variant", "family mlp", "half_ce", "got kd_uniform"]),
        ("arms.kd.variant=one_teacher", ["arms.kd", "one_teacher"]),
        ("teacher={kind: table_models}", ["teacher.kind", "'table_models'", "'mlp_ensemble'"]),
    ],
)
def test_what_is_for_tables_is_refused_elsewhere(assignment, says):
    line = refusal("mlp-ensemble", [assignment])
    assert all(part in line for part in says), line


@pytest.mark.parametrize(
    ("assignment", "says"),
    [
        ("metric=accuracy", ["metric", "family tabular must be auc", "accuracy"]),
        ("budget.patience=0", ["budget.patience", "greater than 0"]),
        ("space.batch_size.choices=[64, 256, ful]", ["batch_size must be a whole number", "'ful'"]),
        ("space.batch_size.choices=[256, 0.5]", ["batch_size must be a whole number", "0.5"]),
        ("arms.as_printed.default.hidden=64,32", ["hidden must be the widths", "64-32", "'64,32'"]),
        ("arms.as_printed.default.hidden=64-0", ["hidden must be the widths", "'64-0'"]),
        ("arms.as_printed.default.hidden=64-", ["hidden must be the widths", "'64-'"]),
        ("arms.as_printed.default.hidden=-64", ["hidden", "64-32", "-64"]),
        ("space.hidden.choices=[64-32, wide]", ["hidden must be the widths", "'wide'"]),
        ("space.dropout.high=1.0", ["dropout must be a number from 0 to 0.95", "1"]),
        ("space.blend_weight.high=1.5", ["blend_weight must be a number from 0 to 1", "1.5"]),
        ("arms.kd_uniform.variant=kd", ["arms.kd_uniform.variant", "family tabular", "kd_uniform", "got kd"]),
        ("arms.kd_uniform.variant=kd_at", ["arms.kd_uniform.variant", "family tabular", "got kd_at"]),
        ("arms.uniform_mix.space={learning_rate: {low: 0.1, high: 0.2}}", ["arms.uniform_mix", "learning_rate"]),
        ("arms.uniform_mix.teacher_rows=none", ["uniform_mix needs a teacher"]),
        ("arms.uniform_mix.default={learning_rate: 0.1}", ["arms.uniform_mix.default", "learning_rate"]),
        ("teacher.models=[]", ["models must be one or more different ones"]),
        ("teacher.models=[xgboost, xgboost]", ["models must be one or more different ones"]),
        ("teacher.models=[xgbost]", ["teacher.models.0", "'xgbost'", "'xgboost'"]),
        ("teacher.predictions=in-sample", ["teacher.predictions", "'out_of_fold'"]),
        ("teacher.folds=1", ["teacher.folds", "greater than or equal to 2"]),
        ("data.specialisation=2", ["data.specialisation", "less than or equal to 1"]),
        ("data.kind=digits", ["data.kind", "'digits'", "'promotions', 'csv'"]),
        ("student={kind: mlp}", ["student.kind", "'mlp'", "'table_mlp'"]),
    ],
)
def test_a_study_of_tables_that_cannot_be_used_is_refused(assignment, says):
    line = refusal("promo-attention", [assignment])
    assert all(part in line for part in says), line


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"default": {"teacher": "lightgbm"}}, "teacher must be one of the study's teachers (xgboost, random_forest)"),
        ({"default": {}}, "arms.xgboost.default must give teacher"),
        ({"variant": "kd_uniform"}, "arms.xgboost.default must give batch_size"),
    ],
)
def test_an_arm_of_a_teacher_that_the_study_does_not_have_is_refused(changes, says):
    arm = dataclasses.replace(TABLES.arms["xgboost"], published=None, **changes)
    with pytest.raises(ValueError, match=re.escape(says)):
        dataclasses.replace(TABLES, arms={**TABLES.arms, "xgboost": arm})


@pytest.mark.parametrize("value", [3, True])
def test_a_teacher_is_named_by_its_name(value):
    with pytest.raises(ValueError, match="teacher must be a name such as xgboost"):
        dataclasses.replace(TABLES.arms["xgboost"], default={"teacher": value})


def test_an_arm_of_teachers_alone_has_nothing_to_search():
    arm = [
        "arms.xgboost.default={teacher: xgboost}",
        "arms.xgboost.space={teacher: {choices: [xgboost, random_forest]}}",
    ]
    assert "one_teacher trains no student, so there is nothing to search" in refusal("promo-attention", arm)


# what a study file and an assignment change


@pytest.mark.parametrize("study", BUILT_IN.values(), ids=lambda study: study.name)
def test_a_study_survives_its_yaml(tmp_path, study):
    assert load_study(written(tmp_path, to_yaml(study))) == study
    quick = adjust(study, quick=True)
    assert load_study(written(tmp_path, to_yaml(quick))) == quick != study


def test_extending_a_study_changes_what_it_names_and_nothing_else(tmp_path):
    extended = load_study(
        written(
            tmp_path,
            "extends: mlp-ensemble\nname: mine\nbudget: {confirm_seeds: 40}\narms: {kd: {default: {temperature: 5.0}}}",
        )
    )
    expected, changed = yaml.safe_load(to_yaml(STUDY)), yaml.safe_load(to_yaml(extended))
    expected["name"] = "mine"
    expected["budget"]["confirm_seeds"] = 40
    expected["arms"]["kd"]["default"]["temperature"] = 5.0
    assert changed == expected


def test_extending_a_study_leaves_the_built_in_one_alone(tmp_path):
    before = to_yaml(BUILT_IN["mlp-ensemble"])
    load_study(written(tmp_path, "extends: mlp-ensemble\nspace: {learning_rate: {low: 0.0005}}"))
    adjust(STUDY, quick=True, arms=["kd"], trials=50, confirm_seeds=40)
    assert to_yaml(BUILT_IN["mlp-ensemble"]) == before


def test_assignments_are_laid_over_the_study_in_order():
    study = load_study("mlp-ensemble", ["budget.confirm_seeds=40", "budget.confirm_seeds=60", "name=mine"])
    assert (study.budget.confirm_seeds, study.name) == (60, "mine")
    assert load_study("mlp-ensemble", ["budget.confirm_seeds=20"]) == STUDY


@pytest.mark.parametrize("low", ["0.0005", "5e-4"])
def test_a_space_assignment_changes_a_dimension_in_every_arm_that_searches_it(low):
    study = load_study("mlp-ensemble", [f"space.learning_rate.low={low}", "space.temperature.high=10"])
    for name, arm in study.arms.items():
        assert arm.space["learning_rate"] == Range(5e-4, 3e-2, log=True)
        assert arm.space.keys() == STUDY.arms[name].space.keys()
    for name in ("kd", "kd_shuffled"):
        assert study.arms[name].space["temperature"] == Range(1.0, 10.0, log=True)


def test_a_dimension_may_get_other_choices_or_turn_into_one():
    study = load_study(
        "mlp-ensemble", ["space.batch_size.choices=[64, 128]", "space.weight_decay={choices: [0, 0.0001]}"]
    )
    assert study.arms["kd"].space["batch_size"] == Choice((64, 128))
    assert study.arms["kd"].space["weight_decay"] == Choice((0, 0.0001))


def test_numbers_without_a_point_are_numbers_in_configurations_too():
    assert load_study("mlp-ensemble", ["arms.kd.default.learning_rate=1e-3"]) == STUDY


def test_a_fixed_arm_of_ones_own_goes_with_a_space_for_all(tmp_path):
    text = """
        extends: mlp-ensemble
        arms:
          as_printed:
            variant: kd
            teacher_rows: own
            default: {learning_rate: 0.001, weight_decay: 0, batch_size: 64, temperature: 3, kd_weight: 0.7}
        space: {learning_rate: {low: 0.0005}}
    """
    assert load_study(written(tmp_path, text)).arms["as_printed"].kind == "fixed"


# tables


CSV = """
extends: promo-attention
name: mine
data: {kind: csv, path: here/table.csv, target: bought, categorical: [region], segments: [region]}
"""


def teacher_arms(study):
    return {name: arm.default["teacher"] for name, arm in study.arms.items() if arm.variant == "one_teacher"}


def test_a_table_of_ones_own_in_place_of_the_generated_one(tmp_path):
    study = load_study(written(tmp_path, CSV))
    assert study.data == CsvTable(
        path=str(tmp_path / "here/table.csv"), target="bought", categorical=("region",), segments=("region",)
    )
    assert (study.name, study.metric, study.budget) == ("mine", "auc", TABLES.budget)
    assert study.contrasts == TABLES.contrasts
    assert load_study(written(tmp_path, to_yaml(study))) == study


def test_what_the_source_measured_is_gone_with_its_table(tmp_path):
    study = load_study(written(tmp_path, CSV))
    assert study.claims == study.notes == ()
    for name, arm in study.arms.items():
        assert arm == dataclasses.replace(TABLES.arms[name], published=None)


def test_ones_own_claims_and_published_numbers_stay(tmp_path):
    text = CSV + (
        "claims: [{better: kd_uniform, worse: xgboost, gain: 0.01, source: us}]\n"
        "arms: {xgboost: {published: {value: 0.9, config: {teacher: xgboost}}}}\n"
    )
    study = load_study(written(tmp_path, text))
    assert [(claim.better, claim.worse) for claim in study.claims] == [("kd_uniform", "xgboost")]
    assert [name for name, arm in study.arms.items() if arm.published] == ["xgboost"]


def test_a_smaller_generated_table_keeps_what_the_source_measured(tmp_path):
    study = load_study(written(tmp_path, "extends: promo-attention\ndata: {rows: 1000}"))
    assert (study.data.rows, study.claims) == (1000, TABLES.claims)
    assert study.arms == TABLES.arms


def test_a_path_is_relative_to_the_file_that_names_it_or_to_the_working_folder(tmp_path, monkeypatch):
    (tmp_path / "studies").mkdir()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    file = written(tmp_path / "studies", CSV)
    assert load_study(file).data.path == str(tmp_path / "studies/here/table.csv")
    assert load_study("../studies/study.yaml").data.path.endswith("studies/here/table.csv")
    assert load_study(file, ["data.path=other.csv"]).data.path == str(tmp_path / "elsewhere/other.csv")
    assert load_study(file, ["data.path=/data/other.csv"]).data.path == "/data/other.csv"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load_study(file, ["data.path=~/other.csv"]).data.path == str(tmp_path / "other.csv")


@pytest.mark.parametrize(
    ("models", "arms"),
    [
        (["random_forest"], ["random_forest"]),
        (["lightgbm", "xgboost"], ["lightgbm", "xgboost"]),
        (["lightgbm"], ["lightgbm"]),
        (["xgboost", "random_forest", "logistic_regression"], ["logistic_regression", "random_forest", "xgboost"]),
    ],
)
def test_every_teacher_has_an_arm_of_its_own_and_no_arm_is_left_of_one_that_is_gone(tmp_path, models, arms):
    by_assignment = load_study("promo-attention", [f"teacher.models={models}"])
    by_file = load_study(written(tmp_path, f"extends: promo-attention\nteacher: {{models: {models}}}"))
    assert by_assignment == by_file
    assert teacher_arms(by_file) == {name: name for name in arms}
    assert by_file.teacher.models == tuple(models)
    for name, arm in by_file.arms.items():
        assert arm.variant == "one_teacher" or arm == TABLES.arms[name]
    kept = [c for c in TABLES.claims if {c.better, c.worse} <= by_file.arms.keys()]
    assert by_file.claims == tuple(kept)
    assert by_file.contrasts == tuple(c for c in TABLES.contrasts if {c[0], c[1]} <= by_file.arms.keys())
    weighing = {name for name, arm in TABLES.arms.items() if arm.variant in WEIGHS_TEACHERS}
    assert weighing & by_file.arms.keys() == (weighing if len(models) > 1 else set())


def test_an_arm_that_weighs_teachers_needs_two():
    one = dataclasses.replace(TABLES.teacher, models=("xgboost",))
    with pytest.raises(ValueError, match="weighs several teachers, and the study has 1"):
        dataclasses.replace(TABLES, teacher=one)


def test_a_new_teachers_arm_is_a_reference_that_trains_nothing():
    arm = load_study("promo-attention", ["teacher.models=[xgboost, lightgbm]"]).arms["lightgbm"]
    assert (arm.kind, arm.role, arm.teacher_rows, arm.published) == ("fixed", "reference", "own", None)


def test_a_teachers_arm_by_another_name_is_enough(tmp_path):
    text = """
        extends: promo-attention
        teacher: {models: [xgboost, random_forest, lightgbm]}
        arms: {boosted leaves: {variant: one_teacher, teacher_rows: own, default: {teacher: lightgbm}}}
    """
    arms = teacher_arms(load_study(written(tmp_path, text)))
    assert arms == {"xgboost": "xgboost", "random_forest": "random_forest", "boosted leaves": "lightgbm"}


def test_studies_of_other_families_get_no_arm_of_teachers():
    for study in BUILT_IN.values():
        assert bool(teacher_arms(study)) == (study.family == "tabular")
        assert load_study(study.name) == study


def test_roles_of_arms():
    roles = {name: arm.role for name, arm in TABLES.arms.items()}
    students = ("hard_labels", "hard_labels_again", "label_smoothing", "kd_shuffled", "kd_uniform", "attention_student")
    blends = ("attention_blend", "uniform_blend", "global_gate_blend", "as_printed")
    references = ("uniform_mix", "logistic_stack", "xgboost", "random_forest")
    assert roles == (
        dict.fromkeys(students, "student")
        | dict.fromkeys(blends, "needs_teachers")
        | dict.fromkeys(references, "reference")
    )
    assert {arm.role for study in BUILT_IN.values() for arm in study.arms.values() if study.family != "tabular"} == {
        "student"
    }


def test_students_that_learn_in_sample_do_so_in_every_arm_of_the_study():
    in_sample = load_study("promo-attention", ["teacher.predictions=in_sample"])
    for name in ("kd_uniform", "kd_shuffled", "attention_student", "attention_blend", "uniform_blend"):
        assert (TABLES.learns_in_sample(name), in_sample.learns_in_sample(name)) == (False, True)
    assert TABLES.learns_in_sample("as_printed")  # as the article did


def test_a_full_batch_is_a_choice_among_numbers_of_rows():
    assert "full" in TABLES.arms["hard_labels"].space["batch_size"].choices
    study = load_study("promo-attention", ["space.batch_size.choices=[256, full]"])
    assert all(study.arms[name].space["batch_size"] == Choice((256, "full")) for name in study.searched)


@pytest.mark.parametrize("hidden", ["'64'", "64-32", "7-128-9-1"])
def test_hidden_layers_are_widths_with_dashes_between(hidden):
    study = load_study("promo-attention", [f"arms.as_printed.default.hidden={hidden}"])
    assert study.arms["as_printed"].default["hidden"] == hidden.strip("'")


@pytest.mark.parametrize("arms", [["kd_uniform"], ["kd_uniform", "xgboost"]], ids=" ".join)
def test_some_arms_of_a_study_of_tables_survive_their_yaml(tmp_path, arms):
    kept = adjust(TABLES, arms=arms)
    assert list(load_study(written(tmp_path, to_yaml(kept))).arms) == list(kept.arms)


@pytest.mark.parametrize(
    "assignment",
    [
        *("claims=3", "claims=null", "claims=[3]", "contrasts=null", "contrasts=[[kd_uniform]]", "effects=[3]"),
        *("arms.xgboost.default=3", "teacher.models=[[xgboost]]"),
    ],
)
def test_a_malformed_part_of_a_study_of_tables_is_refused_like_any_other(assignment):
    refusal("promo-attention", [assignment])


@pytest.mark.parametrize("hidden", ["1024-64-32", "2048-12-10"])
def test_widths_that_look_like_a_date_are_widths(hidden):
    study = load_study("promo-attention", [f"space.hidden.choices=[{hidden}, 64-32]"])
    assert study.arms["kd_uniform"].space["hidden"] == Choice((hidden, "64-32"))


def test_what_the_source_measured_is_gone_with_its_table_by_assignment_too():
    study = load_study("promo-attention", ["data={kind: csv, path: a.csv, target: y}"])
    assert study.claims == study.notes == ()
    assert not any(arm.published for arm in study.arms.values())


def test_a_misspelt_teacher_of_an_arm_is_refused():
    assert "xgbost" in refusal("promo-attention", ["arms.xgboost.default.teacher=xgbost"])


@pytest.mark.parametrize(
    ("study", "assignment"),
    [
        ("mlp-ensemble", "arms.kd.published.config.batch_size=full"),
        ("promo-attention", "arms.xgboost.published.config.teacher=lightgbm"),
    ],
)
def test_a_published_configuration_that_cannot_run_is_refused(study, assignment):
    refusal(study, [assignment])


# adjusting


def test_quick_takes_the_quick_budget():
    assert adjust(STUDY, quick=True).budget == STUDY.quick
    assert adjust(STUDY).budget == STUDY.budget


def test_other_numbers_replace_those_of_the_budget():
    budget = adjust(STUDY, quick=True, confirm_seeds=12, seed_epochs_per_arm=None).budget
    assert budget.confirm_seeds == 12
    assert budget.seed_epochs_per_arm == STUDY.quick.seed_epochs_per_arm


@pytest.mark.parametrize("trials", [10, 25, 64, 200])
@pytest.mark.parametrize("quick", [False, True])
def test_a_number_of_trials_is_a_search_of_so_many_mean_costs(trials, quick):
    budget = adjust(STUDY, quick=quick, trials=trials).budget
    wanted = trials * budget.mean_trial_cost
    assert budget.seed_epochs_per_arm == math.ceil(wanted / (1 - budget.reevaluate_share))
    assert budget.search_seed_epochs >= wanted


def test_the_mean_cost_of_a_trial_when_a_third_passes_each_rung():
    budget = Budget(6000, seeds_per_trial=8, confirm_seeds=20, max_epochs=50)
    assert budget.rungs == (6, 18, 50)
    assert budget.mean_trial_cost == pytest.approx(8 * (6 + 12 / 3 + 32 / 9))


def test_some_arms_keep_the_baseline_and_the_a_a_control():
    kept = adjust(STUDY, arms=["kd"])
    assert list(kept.arms) == [BASELINE, A_A_CONTROL, "kd"]
    assert all(kept.arms[name] == STUDY.arms[name] for name in kept.arms)
    assert [(a, b) for a, b, _ in kept.contrasts] == [("kd", "hard_labels")]
    assert kept.claims == STUDY.claims


def test_contrasts_and_claims_of_missing_arms_are_dropped():
    kept = adjust(STUDY, arms=["kd_shuffled", "label_smoothing"])
    assert list(kept.arms) == [BASELINE, A_A_CONTROL, "label_smoothing", "kd_shuffled"]
    assert kept.contrasts == ()
    assert kept.claims == ()


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"arms": ["kdd"]}, ["unknown arm 'kdd'", "did you mean 'kd'?", "label_smoothing"]),
        ({"trials": 0}, ["number of trials", "got 0"]),
        ({"trials": 1}, ["seed_epochs_per_arm", "too small"]),
        ({"confirm_seeds": 22}, ["multiple of subsearches=4"]),
        ({"confirm_seeds": 4}, ["cannot decide"]),
        ({"seed_epochs_per_arm": 100}, ["too small"]),
        ({"seeds_per_trial": -1}, ["seeds_per_trial", "greater than 0"]),
    ],
)
def test_an_adjustment_that_cannot_be_used_is_refused(asked, says):
    with pytest.raises(BadInput) as refused:
        adjust(STUDY, **asked)
    line = str(refused.value)
    assert "\n" not in line
    assert all(part in line for part in says), line


# budgets


@pytest.mark.parametrize(
    ("max_epochs", "rungs"),
    [
        (1, (1,)),
        (2, (1, 2)),
        (3, (1, 3)),
        (9, (1, 3, 9)),
        (10, (2, 6, 10)),
        (24, (3, 9, 24)),
        (27, (3, 9, 27)),
        (50, (6, 18, 50)),
        (81, (9, 27, 81)),
        (100, (12, 36, 100)),
    ],
)
def test_rungs(max_epochs, rungs):
    assert Budget(10**6, 8, 20, max_epochs).rungs == rungs


@given(st.integers(1, 1000), st.integers(2, 5))
def test_the_first_rung_is_a_ninth_at_least_and_the_last_is_all_epochs(max_epochs, reduction_factor):
    rungs = Budget(10**7, 8, 20, max_epochs, reduction_factor=reduction_factor).rungs
    assert max_epochs / 9 <= rungs[0] < max_epochs / 9 + 1
    assert rungs[-1] == max_epochs
    assert list(rungs) == sorted(set(rungs))


@given(st.integers(4_000, 200_000), st.integers(1, 32), st.integers(1, 8), st.integers(10, 60), st.floats(0, 0.5))
def test_search_and_reevaluation_add_up_to_the_budget(spend, seeds, subsearches, max_epochs, share):
    budget = Budget(spend, seeds, 8 * subsearches, max_epochs, subsearches=subsearches, reevaluate_share=share)
    top, fresh_seeds = budget.reevaluation
    reevaluation = subsearches * top * fresh_seeds * max_epochs
    assert budget.search_seed_epochs + reevaluation == spend
    assert 0 <= reevaluation <= share * spend + 1e-6
    assert (top, fresh_seeds) == (0, 0) or (2 <= top <= 5 and 2 <= fresh_seeds <= 2 * seeds)


def test_the_default_budget_reevaluates_the_best_of_each_sub_search():
    assert Budget(12000, 8, 20, 50).reevaluation == (2, 3)  # 0.1 x 12000 / 4 / 50 = 6 runs
    assert Budget(48000, 8, 20, 50).reevaluation == (5, 4)  # 24 runs


@pytest.mark.parametrize("arms", [("kd",), ("kd", "kd_shuffled"), ("kd", "kd_shuffled", "label_smoothing")])
def test_the_least_number_of_seeds_can_decide_and_one_fewer_cannot(arms):
    study = adjust(STUDY, arms=arms)
    tests, n = len(arms), study.least_confirm_seeds
    assert 2.0 ** (1 - n) <= 0.05 / tests < 2.0 ** (1 - (n - 1))


# ranges and choices


@st.composite
def ranges(draw):
    log = draw(st.booleans())
    low = draw(st.floats(1e-8, 1e3)) if log else draw(st.floats(-1e3, 1e3))
    return Range(low, low + draw(st.floats(1e-2, 1e3)), log=log)


@given(ranges(), st.floats(0, 1))
def test_fraction_is_the_inverse_of_at(dimension, u):
    assert dimension.fraction(dimension.at(u)) == pytest.approx(u, abs=1e-6)


@given(ranges(), st.floats(0, 1), st.floats(0, 1))
def test_at_rises_with_the_fraction(dimension, a, b):
    low, high = sorted((a, b))
    assert dimension.at(low) <= dimension.at(high) + 1e-12 * abs(dimension.at(high))


@pytest.mark.parametrize("name", ["weight_decay"])
def test_the_ends_of_a_range_lie_within_it(name):
    dimension = STUDY.arms["kd"].space[name]
    assert dimension.contains(dimension.at(0.0))
    assert dimension.contains(dimension.at(1.0))


def test_at_follows_the_logarithm_where_it_is_asked_to():
    assert Range(1e-4, 1e-2, log=True).at(0.5) == pytest.approx(1e-3)
    assert Range(0.0, 4.0).at(0.25) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("dimension", "value", "edge"),
    [
        (Range(0.0, 1.0), 0.0, True),
        (Range(0.0, 1.0), 0.049, True),
        (Range(0.0, 1.0), 0.051, False),
        (Range(0.0, 1.0), 0.949, False),
        (Range(0.0, 1.0), 0.951, True),
        (Range(1e-4, 1e-2, log=True), 1.2e-4, True),
        (Range(1e-4, 1e-2, log=True), 6e-4, False),  # 5 % of the line, 39 % of the logarithm
        (Range(1e-4, 1e-2, log=True), 9e-3, True),
        (Choice((32, 64, 128)), 32, True),
        (Choice((32, 64, 128)), 64, False),
        (Choice((128, 32, 64)), 128, True),
        (Choice((32, 64)), 32, False),
        (Choice(("sum", "mean", "paper")), "sum", False),
    ],
)
def test_a_value_close_to_a_bound_is_at_the_edge(dimension, value, edge):
    assert dimension.at_edge(value) is edge


@given(st.floats(0, 1))
def test_a_choice_takes_each_value_for_an_equal_part_of_the_fraction(u):
    choices = ("a", "b", "c", "d")
    assert Choice(choices).at(u) == choices[min(math.floor(4 * u), 3)]


@pytest.mark.parametrize(
    ("name", "low", "high", "value", "at_limit"),
    [
        ("dropout", 0.0, 0.5, 0.01, True),  # there is no dropout below 0
        ("dropout", 0.0, 0.5, 0.49, False),
        ("dropout", 0.1, 0.5, 0.11, False),
        ("blend_weight", 0.0, 1.0, 0.99, True),
        ("learning_rate", 1e-4, 1e-2, 1e-4, False),
    ],
)
def test_an_end_beyond_which_there_is_nothing_is_no_edge(name, low, high, value, at_limit):
    assert is_at_limit(name, Range(low, high), value) is at_limit
