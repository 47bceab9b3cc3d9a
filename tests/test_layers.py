"""trainables/layers.py: which layers are compared, what that needs of the teacher, and every map that cannot serve."""

import re

import pytest

from search.families import vision as family
from search.payload import refuse_unusable as refuse_unusable_study
from spaces import BadInput, load_study
from trainables.layers import Pair, UnusableLayer, Use, layer_pairs, mask_source, refuse_unusable, wanted
from trainables.teachers.cached import Wanted

SHAPES = {"layer1": (4, 8, 8), "layer2": (8, 4, 4), "layer3": (16, 2, 2), "layer4": (32, 1, 1)}
WIDE = {"layer1": (4, 8, 3), **{name: SHAPES[name] for name in ("layer2", "layer3")}}
DEEP = {"stage1": (4, 16, 16), "stage2": (8, 8, 8)}
NAMES = tuple(SHAPES)
DIGITS = "digits-attention-transfer"


def use(*layers, **more):
    return Use("kd_at", {}, layers, **more)


@pytest.mark.parametrize(
    ("layers", "pairs"),
    [
        ("layer3", [("layer3", "layer3")]),
        ("layer2+layer3", [("layer2", "layer2"), ("layer3", "layer3")]),
        ("layer3:layer4", [("layer3", "layer4")]),
        ("layer1:layer2+layer3", [("layer1", "layer2"), ("layer3", "layer3")]),
        ("", []),
    ],
)
def test_layers_are_read_as_pairs_of_student_and_teacher(layers, pairs):
    assert layer_pairs(layers) == tuple(Pair(*pair) for pair in pairs)


@pytest.mark.parametrize(
    ("uses", "expected"),
    [
        ([], Wanted()),
        ([use("layer2")], Wanted(("layer2",))),
        ([use("layer2", aligns=True)], Wanted(("layer2",), ("layer2",))),
        ([use("layer3:layer2+layer1")], Wanted(("layer1", "layer2"))),
        ([use("layer2", "layer1"), use("layer3", aligns=True)], Wanted(("layer1", "layer2", "layer3"), ("layer3",))),
        ([use("layer1", masks=("none", "layer_cam"))], Wanted(("layer1",), (), (("layer_cam", "layer1"),))),
        ([use("layer1:layer2", masks=("random_mask",))], Wanted(("layer2",), (), (("layer_cam", "layer2"),))),
        ([use("layer1", "layer2", masks=("grad_cam",))], Wanted(("layer1", "layer2"), (), (("grad_cam", "layer4"),))),
    ],
)
def test_the_cache_holds_what_the_arms_use_by_the_teachers_layers_and_no_more(uses, expected):
    assert wanted(uses, NAMES) == expected


@pytest.mark.parametrize(
    ("mask", "source"),
    [
        ("layer_cam", ("layer_cam", "layer1")),
        ("random_mask", ("layer_cam", "layer1")),
        ("grad_cam", ("grad_cam", "layer4")),
    ],
)
def test_a_mask_is_of_the_compared_layer_except_grad_cam_which_is_of_the_last(mask, source):
    assert mask_source(mask, Pair("layer2", "layer1"), NAMES) == source


# refusals


@pytest.mark.parametrize(
    ("given", "student", "teacher", "says"),
    [
        (use(""), SHAPES, SHAPES, "kd_at: layers must name one, such as layer1, got ''"),
        (use("layer2", "+"), SHAPES, SHAPES, "kd_at: layers must name one, such as layer1, got '+'"),
        (use("layer1+layer1"), SHAPES, SHAPES, "kd_at: layers=layer1+layer1 names a layer of the student twice"),
        (use("layer1:layer2+layer1:layer3"), SHAPES, SHAPES, "names a layer of the student twice"),
        (
            use("layer9"),
            SHAPES,
            SHAPES,
            "kd_at: the student has no layer 'layer9'; it has layer1, layer2, layer3, layer4",
        ),
        (use("layer1", "layer1+fc"), SHAPES, SHAPES, "kd_at: the student has no layer 'fc'"),
        (use("layer1"), SHAPES, DEEP, "kd_at: the teacher has no layer 'layer1'; it has stage1, stage2"),
        (use("layer1:layer2"), SHAPES, DEEP, "kd_at: the teacher has no layer 'layer2'; it has stage1, stage2"),
        (use(":layer2"), SHAPES, SHAPES, "kd_at: the student has no layer ''"),
        (use("layer9", dead=True), SHAPES, SHAPES, "the student has no layer 'layer9'"),
        (
            use("layer4"),
            SHAPES,
            SHAPES,
            "kd_at: the student's layer4 is 1x1, and attention transfer and alignment needs at least 2x2; "
            "use layer1 or layer2 or layer3",
        ),
        (use("layer2:layer4"), SHAPES, SHAPES, "kd_at: the teacher's layer4 is 1x1"),
        (
            use("layer3", masks=("none", "layer_cam")),
            SHAPES,
            SHAPES,
            "kd_at: the student's layer3 is 2x2, and a causal mask needs at least 4x4; use layer1 or layer2",
        ),
        (
            use("layer2:layer3", masks=("random_mask",)),
            SHAPES,
            SHAPES,
            "the teacher's layer3 is 2x2, and a causal mask",
        ),
        (use("layer1", masks=("layer_cam",)), WIDE, SHAPES, "the student's layer1 is 8x3, .* at least 4x4; use layer2"),
        (
            use("layer1", masks=("none", "grad_cam")),
            SHAPES,
            SHAPES,
            "kd_at: the teacher's layer4 is 1x1, and grad_cam, which reads the last stage, needs at least 4x4",
        ),
        (
            use("stage:layer4"),
            {"stage": (4, 1, 1)},
            SHAPES,
            "the student's stage is 1x1, .*; no layer of it is that large: use another stem or larger images",
        ),
    ],
)
def test_what_cannot_serve_is_refused_with_the_layers_that_exist_or_would_do(given, student, teacher, says):
    with pytest.raises(UnusableLayer, match=says.replace("+", "[+]")):
        refuse_unusable(given, student, teacher)


@pytest.mark.parametrize(
    ("given", "teacher"),
    [
        (use("layer3", "layer1+layer2"), SHAPES),
        (use("layer1:layer2+layer2"), SHAPES),
        (use("layer2", masks=("none", "layer_cam", "random_mask")), SHAPES),
        (use("layer1:stage1", masks=("grad_cam",)), DEEP),
        (use("layer4", dead=True), SHAPES),
        (use("layer4", masks=("layer_cam",), dead=True), SHAPES),
    ],
)
def test_what_can_serve_is_let_through(given, teacher):
    refuse_unusable(given, SHAPES, teacher)


# a study


def test_an_arm_may_use_every_layer_and_mask_of_its_space_its_default_and_its_published_settings():
    published = "arms.kd_fa.published.config"
    study = load_study(
        "cifar10-attention-transfer", [f"{published}.layers=layer1:layer2", f"{published}.mask=random_mask"]
    )
    uses = {u.arm: u for u in family.uses(study)}
    assert set(uses["kd_fa"].layers) == {"layer3", "layer2", "layer2+layer3", "layer1:layer2"}
    assert set(uses["kd_fa"].masks) == {"none", "layer_cam", "random_mask"}
    assert uses["released_kd"].layers == ("layer3",)


def test_arms_without_layers_use_none_and_only_aligning_arms_align():
    uses = {u.arm: u for u in family.uses(load_study(DIGITS))}
    assert set(uses) == {"kd_fa", "kd_at", "kd_fa_at", "released_kd", "released_fa", "released_at", "released_fa_at"}
    assert {name for name, u in uses.items() if not u.aligns} == {"kd_at", "released_at"}
    assert {name for name, u in uses.items() if u.dead} == {name for name in uses if name.startswith("released")}
    assert uses["released_kd"].student["stem"] == "no_maxpool" != uses["kd_at"].student["stem"]


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (
            ["space.layers.choices=[layer2, layer9]"],
            "kd_fa: the student has no layer 'layer9'; it has layer1, layer2, layer3",
        ),
        (
            ["arms.released_at.default.layers=layer7"],
            "released_at: the student has no layer 'layer7'; it has layer1, layer2, layer3",
        ),
        (
            ["space.layers.choices=[layer2, layer3]"],
            "kd_fa: the student's layer3 is 2x2, and a causal mask needs at least 4x4; use layer1 or layer2",
        ),
        (
            ["student.stem=torchvision"],
            "kd_fa: the student's layer2 is 1x1, and attention transfer and alignment needs at least 2x2; use layer1",
        ),
        (["space.layers.choices=[layer2, 'layer1:layer3']"], "kd_fa: the teacher's layer3 is 2x2, and a causal mask"),
        (["space.mask.choices=[none, grad_cam]"], "kd_fa: the teacher's layer3 is 2x2, and grad_cam"),
        (["views.cache_limit_mb=1"], "views.cache_limit_mb is 1: lower views.count"),
    ],
)
def test_a_study_that_cannot_work_is_bad_input_before_anything_runs(overrides, says):
    with pytest.raises(BadInput, match=re.escape(says)):
        refuse_unusable_study(load_study(DIGITS, overrides), print)


@pytest.mark.parametrize(
    "overrides",
    [[], ["space.layers.choices=[layer2, 'layer1:layer2']"], ["student.depth=14", "views.alignment_channels=live"]],
    ids=str,
)
def test_a_study_that_can_work_is_let_through(overrides):
    refuse_unusable_study(load_study(DIGITS, overrides), print)


def test_a_study_of_tables_has_no_layers_to_refuse():
    refuse_unusable_study(load_study("mlp-ensemble"), print)
