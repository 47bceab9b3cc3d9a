"""An image trial: the released arms are 0.5 x CE to the bit, seeds and resumed runs are what they would be alone."""

import copy
import math
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from search.families import vision as family
from search.payload import trial_config
from search.runner import Checkpoints
from search.storage import Storage
from spaces import BadInput, load_study
from tests.made_images import context_of, digits, telling_teacher, told_map, told_row, untrained_teacher
from trainables import vision
from trainables.audit import DeadTerm
from trainables.datasets import Leak, Rows
from trainables.layers import wanted
from trainables.models.resnet import parameter_count
from trainables.streams import Streams
from trainables.teachers import cached
from trainables.variants import VARIANTS
from trainables.views import Views

STUDY, DATA = digits()
N = len(DATA.train)
RELEASED = [name for name, arm in STUDY.arms.items() if arm.dead_terms]
WITH_EVERYTHING = {"schedule": "cosine", "layers": "layer1+layer2", "mask": "layer_cam", "mask_percentile": 30.0}


@pytest.fixture(scope="module")
def context():
    teacher = family.build_teacher(STUDY, 0, DATA.train, DATA, 0, "cpu")
    return context_of(STUDY, DATA.train, DATA.validation, family.label(STUDY, teacher, DATA.train, DATA))


@pytest.fixture(scope="module")
def telling(tmp_path_factory):
    """Two teachers that tell whose outputs they give; the second's have the other sign."""
    teachers = [telling_teacher(tmp_path_factory.mktemp("told"), DATA.train.y, 7, sign) for sign in (1, -1)]
    return replace(context_of(STUDY, DATA.train, None, *teachers), views={**asdict(STUDY.views), "count": 7})


def configured(arm, replicates=(0,), epochs=2, **hp):
    return trial_config(STUDY, arm, {**STUDY.arms[arm].default, **hp}, replicates, epochs)


def trained(config, context):
    """Every epoch's metrics, and the state after the last."""
    metrics = []
    for result in vision.train(config, context):
        metrics.append(result.metrics)
    return metrics, result.state()


def assert_equal_states(a, b):
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


def of_seed(state, place):
    return {name.split(".", 1)[1]: tensor for name, tensor in state.items() if name.startswith(f"{place}.")}


def network(state, place=0):
    return {name: tensor for name, tensor in of_seed(state, place).items() if name.startswith("model.")}


# the released arms


@pytest.mark.parametrize("arm", RELEASED)
def test_twenty_steps_of_a_released_arm_are_those_of_half_the_cross_entropy_to_the_bit(arm, context):
    config = configured(arm, batch_size=20)
    assert config.epochs * math.ceil(N / 20) == 20
    hp = {name: value for name, value in config.hp.items() if name != "layers"}
    plain = replace(config, variant="half_ce", hp=hp, teacher_rows="none", dead_terms=())
    released_metrics, released = trained(config, context)
    metrics, half_ce = trained(plain, context)
    assert_equal_states(released, half_ce)
    for told, expected in zip(released_metrics, metrics, strict=True):
        assert {name: told[name] for name in expected} == expected
        assert told.keys() - expected.keys() == {f"loss_{term}" for term in config.dead_terms}
    (start,) = vision.train(replace(plain, epochs=0), context)
    assert not torch.equal(start.state()["0.model.conv1.weight"], half_ce["0.model.conv1.weight"])


@pytest.mark.parametrize("arm", STUDY.arms)
def test_every_term_of_an_arm_reaches_the_student_except_those_it_declares_dead(arm, context):
    (result,) = vision.train(configured(arm, epochs=0), context)
    (audited,) = result.audits.values()
    dead = STUDY.arms[arm].dead_terms
    for name, term in audited.items():
        assert term.weight > 0
        assert (term.norm, term.share) == (0.0, 0.0) if name in dead else min(term.norm, term.share) > 1e-3
    assert set(dead) <= audited.keys()
    assert sum(term.share for term in audited.values()) == pytest.approx(1)


@pytest.mark.parametrize("arm", RELEASED)
def test_a_released_arm_that_does_not_declare_its_dead_terms_is_stopped(arm, context):
    config = configured(arm, epochs=0)
    with pytest.raises(DeadTerm, match=f"the loss term {', '.join(sorted(config.dead_terms))} has a weight"):
        next(vision.train(replace(config, dead_terms=()), context))


# seeds, resuming, the audit


@pytest.mark.parametrize("arm", ["hard_labels", "kd_shuffled", "kd_fa_at"])
def test_each_seed_of_a_trial_trains_as_it_would_alone(arm, context):
    hp = WITH_EVERYTHING if arm == "kd_fa_at" else {}
    together_metrics, together = trained(configured(arm, (4, 1), **hp), context)
    for place, replicate in enumerate((4, 1)):
        alone_metrics, alone = trained(configured(arm, (replicate,), **hp), context)
        assert_equal_states(of_seed(together, place), of_seed(alone, 0))
        for both, one in zip(together_metrics, alone_metrics, strict=True):
            assert {name: values[place : place + 1] for name, values in both.items()} == one
    assert not torch.equal(together["0.model.fc.weight"], together["1.model.fc.weight"])


@pytest.mark.parametrize(("arm", "hp"), [("kd_fa_at", WITH_EVERYTHING), ("hard_labels", {"schedule": "cosine"})])
def test_a_resumed_run_equals_the_uninterrupted_one_to_the_bit(arm, hp, context, tmp_path):
    config, whole = configured(arm, (4, 1), epochs=3, **hp), []
    for result in vision.train(config, context):
        whole.append(result.metrics)
        if result.epoch == 1:
            Checkpoints(Storage(tmp_path), "kd-00000").save(result)
    epoch, stored = Checkpoints(Storage(tmp_path), "kd-00000").newest()
    before = {name: tensor.clone() for name, tensor in stored.items()}
    rest = list(vision.train(config, replace(context, resume_epoch=epoch, resume=stored)))
    assert [r.epoch for r in rest] == [2, 3]
    assert 0 not in {e for r in rest for e in r.audits}
    assert [r.metrics for r in rest] == whole[1:]
    assert_equal_states(result.state(), rest[-1].state())
    assert_equal_states(stored, before)
    kinds = {name.split(".")[1] for name in stored if name[0].isdigit()}
    assert kinds == {"model", "optimiser"} | ({"extras"} if arm == "kd_fa_at" else set())


def test_a_state_is_that_of_its_moment(context):
    run = vision.train(configured("kd_fa"), context)
    state = next(run).state()
    before = {name: tensor.clone() for name, tensor in state.items()}
    next(run)
    assert_equal_states(before, state)


@pytest.mark.parametrize("arm", ["hard_labels", "kd_fa_at"])
def test_an_audit_changes_nothing(arm, context, monkeypatch):
    config = configured(arm, **(WITH_EVERYTHING if arm == "kd_fa_at" else {}))
    often = list(vision.train(replace(config, audit_at=(1, 2)), context))
    assert [list(r.audits) for r in often] == [[0, 1], [2]]
    monkeypatch.setattr(vision._Replicate, "audit", lambda replicate, declared: {})
    never = list(vision.train(replace(config, audit_at=()), context))
    assert [r.metrics for r in often] == [r.metrics for r in never]
    assert_equal_states(often[-1].state(), never[-1].state())


def test_without_weights_a_teacher_changes_nothing(context):
    weights = {"ce_weight": 1.0, "kd_weight": 0.0, "fa_weight": 0.0, "at_weight": 0.0}
    _, plain = trained(configured("hard_labels"), context)
    _, idle = trained(configured("kd_fa_at", **weights), context)
    _, taught = trained(configured("kd_fa_at"), context)
    assert_equal_states(network(plain), network(idle))
    assert not torch.equal(plain["0.model.fc.weight"], taught["0.model.fc.weight"])


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_a_trial_equals_a_plain_training_loop(schedule, context):
    config = configured("kd_fa", (2,), epochs=2, schedule=schedule, batch_size=48, fa_weight=0.3, weight_decay=0.01)
    _, state = trained(config, context)
    start = vision._Replicate(config, context, 2).learner
    model, regressor = copy.deepcopy(start.model), copy.deepcopy(start.extras["layer2"])
    normalise, views, teacher = (
        start.normalise,
        Views(torch.from_numpy(DATA.train.x), context.views),
        context.teachers[0],
    )
    labels, hp, steps = torch.from_numpy(DATA.train.y), config.hp, math.ceil(N / 48)
    sgd = torch.optim.SGD([*model.parameters(), *regressor.parameters()], lr=0.01, momentum=0.9, weight_decay=0.01)
    model.train()
    for epoch in (1, 2):
        order = torch.randperm(N, generator=Streams(STUDY.name).generator("order", 2, epoch))
        for step, rows in enumerate(order.split(48)):
            if schedule == "cosine":  # laid out for the study's three epochs
                done = (epoch - 1 + step / steps) / STUDY.budget.max_epochs
                sgd.param_groups[0]["lr"] = 0.01 * (1 + math.cos(math.pi * done)) / 2
            logits, features = model(normalise(views(rows, epoch)), ["layer2"])
            soft = F.kl_div(
                F.log_softmax(logits / 4, dim=1),
                F.softmax(teacher.logits(epoch, rows) / 4, dim=1),
                reduction="batchmean",
            )
            aligned = F.mse_loss(regressor(features["layer2"]), teacher.features("layer2", epoch, rows))
            sgd.zero_grad()
            (F.cross_entropy(logits, labels[rows]) + hp["kd_weight"] * 16 * soft + 0.3 * aligned).backward()
            sgd.step()
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(state[f"0.model.{name}"], tensor, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(state["0.extras.layer2.weight"], regressor.weight.detach(), rtol=1e-4, atol=1e-5)


# what is shown of the teacher


@pytest.fixture
def shown(monkeypatch):
    """What a variant is shown of its teacher, and the labels, on these rows of a view."""

    def show(config, context, rows, view, replicate=0):
        seen = []

        def watch(student, teacher, labels, hp):
            seen.append((teacher, labels))

        monkeypatch.setitem(VARIANTS, config.variant, watch)
        vision._Replicate(config, context, replicate).loss(None, rows, view)
        return seen[0]

    return show


ROWS = torch.randperm(N, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("view", [0, 6])
def test_an_arm_is_shown_its_own_rows_of_the_view(view, shown, telling):
    teacher, labels = shown(configured("kd_fa_at", mask="layer_cam"), telling, ROWS, view)
    assert torch.equal(labels, torch.from_numpy(DATA.train.y)[ROWS])
    assert torch.equal(told_row(teacher.logits[:, 0], view), ROWS)
    assert torch.equal(told_row(teacher.features["layer2"][:, 2, 3, 3], view), ROWS)
    assert torch.equal(told_map(teacher.attention["layer2"]), ROWS)
    assert torch.equal(told_map(teacher.masks["layer2"]), ROWS)


def test_kd_shuffled_is_shown_a_permutation_within_the_class_the_same_in_every_view(shown, telling):
    config, labels = configured("kd_shuffled"), torch.from_numpy(DATA.train.y)
    by_replicate = {}
    for replicate in (0, 2):
        told = [told_row(shown(config, telling, ROWS, v, replicate)[0].logits[:, 0], v) for v in (1, 5)]
        assert torch.equal(*told)
        assert torch.equal(told[0].sort().values, torch.arange(N))
        assert torch.equal(labels[told[0]], labels[ROWS])
        assert (told[0] == ROWS).float().mean() < 0.15  # 20 images a class
        by_replicate[replicate] = told[0]
    assert not torch.equal(*by_replicate.values())


def test_with_shuffled_rows_everything_is_of_the_other_image_but_the_mask(shown, telling):
    config = replace(configured("kd_fa_at", mask="layer_cam"), teacher_rows="shuffled_within_class")
    teacher, _ = shown(config, telling, ROWS, 3)
    theirs = told_row(teacher.logits[:, 0], 3)
    assert not torch.equal(theirs, ROWS)
    assert torch.equal(told_row(teacher.features["layer2"][:, 0, 0, 0], 3), theirs)
    assert torch.equal(told_map(teacher.attention["layer2"]), theirs)
    assert torch.equal(told_map(teacher.masks["layer2"]), ROWS)


def test_a_random_mask_is_another_images_the_same_in_every_view(shown, telling):
    config, by_replicate = configured("kd_at", mask="random_mask"), {}
    for replicate in (0, 2):
        teachers = [shown(config, telling, ROWS, view, replicate)[0] for view in (1, 5)]
        told = [told_map(teacher.masks["layer2"]) for teacher in teachers]
        assert torch.equal(*told)
        assert torch.equal(told[0].sort().values, torch.arange(N))
        assert not (told[0] == ROWS).any()
        assert torch.equal(told_map(teachers[0].attention["layer2"]), ROWS)
        by_replicate[replicate] = told[0]
    assert not torch.equal(*by_replicate.values())


def test_without_a_mask_there_is_none(shown, telling):
    teacher, _ = shown(configured("kd_at"), telling, ROWS, 0)
    assert teacher.masks == {"layer2": None}


@pytest.mark.parametrize(("replicate", "sign"), [(0, 1), (1, -1), (2, 1), (2_000_001, -1)])
def test_replicates_learn_from_the_teacher_sets_in_turn(replicate, sign, shown, telling):
    teacher, _ = shown(configured("kd"), telling, ROWS, 0, replicate)
    assert torch.equal(told_row(sign * teacher.logits[:, 0], 0), ROWS)


def test_a_layer_is_compared_with_the_teachers_layer_of_its_pair(shown, context):
    teacher, _ = shown(configured("kd_fa", layers="layer1:layer2", mask="layer_cam"), context, ROWS[:9], 1)
    views = context.teachers[0]
    assert torch.equal(teacher.features["layer1"], views.features("layer2", 1, ROWS[:9]))
    assert torch.equal(teacher.attention["layer1"], views.attention("layer2", 1, ROWS[:9]))
    assert teacher.masks["layer1"].shape == (9, 4, 4)
    metrics, _ = trained(configured("kd_fa_at", layers="layer1:layer2", mask="layer_cam"), context)
    assert math.isfinite(metrics[-1]["loss_fa"][0] + metrics[-1]["loss_at"][0])


# masks


@pytest.mark.parametrize("mask", ["layer_cam", "random_mask"])
@pytest.mark.parametrize("edge", ["soft", "hard"])
def test_masked_arms_train_and_the_mask_matters(mask, edge, context):
    hp = {"layers": "layer1+layer2", "mask_percentile": 60.0}
    metrics, state = trained(configured("kd_fa_at", mask=mask, mask_edge=edge, **hp), context)
    assert all(math.isfinite(value) for epoch in metrics for values in epoch.values() for value in values)
    for other in ({"mask": "none"}, {"mask": mask, "mask_edge": "hard" if edge == "soft" else "soft"}):
        _, without = trained(configured("kd_fa_at", **hp, **other), context)
        assert not torch.equal(state["0.model.conv1.weight"], without["0.model.conv1.weight"])


def doubled(rows):
    """The images at twice the size."""
    return Rows(rows.x.repeat(2, axis=-2).repeat(2, axis=-1), rows.y)


def with_masks(n=96, *overrides):
    """A study of larger images with every mask in its spaces, and a trial's context whose teacher never trained."""
    study, data = digits("space.mask.choices=[none, layer_cam, grad_cam, random_mask]", *overrides)
    fit = doubled(Rows(data.train.x[:n], data.train.y[:n]))
    teacher = untrained_teacher(fit, precision=study.compute.precision)
    views = cached.build(teacher, fit, asdict(study.views), wanted(family.uses(study), teacher.model.layer_names), 10)
    return study, context_of(study, fit, None, views)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("mask", ["grad_cam", "layer_cam", "random_mask"])
def test_larger_images_train_under_every_mask_and_precision(mask, precision):
    study, context = with_masks(96, f"compute.precision={precision}", "views.count=2")
    hp = {**study.arms["kd_fa_at"].default, "mask": mask, "mask_percentile": 40.0}
    for result in vision.train(trial_config(study, "kd_fa_at", hp, (0,), 2), context):
        assert all(math.isfinite(values[0]) for values in result.metrics.values())
        assert not result.diverged
        assert all(tensor.dtype != torch.bfloat16 for tensor in result.state().values())


def test_grad_cam_masks_every_layer_by_the_last_stage(shown):
    study, context = with_masks(40, "views.count=1", "space.layers.choices=[layer2, 'layer1:layer3+layer2']")
    hp = {**study.arms["kd_at"].default, "mask": "grad_cam", "layers": "layer1:layer3+layer2"}
    teacher, _ = shown(trial_config(study, "kd_at", hp, (0,), 1), context, torch.arange(5), 0)
    activation = context.teachers[0].activation("grad_cam", "layer3", 0, torch.arange(5))
    low, high = activation.amin(dim=(1, 2), keepdim=True), activation.amax(dim=(1, 2), keepdim=True)
    torch.testing.assert_close(teacher.masks["layer1"], (activation - low) / (high - low))
    assert teacher.masks["layer2"].shape == (5, 8, 8)


# a teacher that runs live


def alive(*overrides):
    study, _ = digits("views.alignment_channels=live", *overrides)
    teacher = family.build_teacher(study, 0, DATA.train, DATA, 0, "cpu")
    return context_of(study, DATA.train, DATA.validation, family.label(study, teacher, DATA.train, DATA))


def test_a_live_teachers_features_are_those_of_the_cache_where_that_keeps_all_channels(shown, context):
    config = configured("kd_fa_at", layers="layer1+layer2")
    assert [context.teachers[0].shape(f"features.layer{i}")[0] for i in (1, 2)] == [8, 16]
    for rows_of in ("own", "shuffled_within_class"):
        which = replace(config, teacher_rows=rows_of)
        cached_, live = (shown(which, c, ROWS[:50], 3)[0] for c in (context, alive()))
        assert cached_.features.keys() == live.features.keys() == {"layer1", "layer2"}
        for layer, features in cached_.features.items():
            torch.testing.assert_close(live.features[layer], features, rtol=2e-3, atol=2e-3)
    assert not any(name.startswith("features") for name in alive().teachers[0].names())


@pytest.mark.parametrize("arm", ["kd_fa", "kd_fa_at", "released_kd", "released_fa", "released_fa_at", "released_at"])
def test_every_arm_trains_with_a_live_teacher(arm):
    metrics, _ = trained(configured(arm, epochs=1), alive())
    assert all(math.isfinite(values[0]) for values in metrics[-1].values())


def test_a_live_teachers_maps_may_be_larger_than_a_caches():
    study, data = digits("views.alignment_channels=live", "views.count=1", "compute.precision=fp32")
    fit = doubled(doubled(Rows(data.train.x[:30], data.train.y[:30])))
    teacher = family.build_teacher(study, 0, fit, DATA, 0, "cpu")
    context = context_of(study, fit, None, family.label(study, teacher, fit, DATA))
    hp = {**study.arms["kd_fa"].default, "layers": "layer1", "mask": "layer_cam"}
    metrics, _ = trained(trial_config(study, "kd_fa", hp, (0,), 1), context)
    assert math.isfinite(metrics[0]["loss_fa"][0])


# leaks, divergence, batches


@pytest.mark.parametrize("seen", [1, 315])
def test_a_teacher_fitted_on_validation_rows_is_refused(seen, context):
    contaminated = replace(context.teachers[0], fitted_on=DATA.validation.fingerprints()[:seen])
    leaking = replace(context, teachers=(contaminated,))
    with pytest.raises(Leak, match=f"the teacher was fitted on {seen} of the 315 validation rows"):
        next(vision.train(configured("kd"), leaking))
    for config, without in (
        (configured("hard_labels"), leaking),
        (configured("kd"), replace(leaking, validation=None)),
    ):
        assert next(vision.train(config, without)).epoch == 1


def test_the_leak_of_any_teacher_set_in_use_is_seen(context):
    contaminated = replace(context.teachers[0], fitted_on=DATA.validation.fingerprints())
    with pytest.raises(Leak):
        next(vision.train(configured("kd", (0, 1)), replace(context, teachers=(*context.teachers, contaminated))))


def test_a_learning_rate_that_diverges_ends_the_trial_with_its_last_result(context):
    results = list(vision.train(configured("hard_labels", (0, 1), epochs=20, learning_rate=1e3), context))
    assert len(results) < 20
    assert [r.diverged for r in results] == [False] * (len(results) - 1) + [True]
    assert "val_accuracy" not in results[-1].metrics
    assert "val_accuracy" in results[0].metrics or len(results) == 1


@pytest.mark.parametrize(("arm", "broken"), [("kd", "logits"), ("released_kd", "features.layer2")])
def test_one_seed_whose_loss_is_no_number_ends_the_trial(arm, broken, telling, tmp_path):
    silent = telling_teacher(tmp_path, DATA.train.y, 7)
    path = tmp_path / f"{broken}.npy"
    np.save(path, np.full_like(np.load(path), np.nan))
    context = replace(telling, teachers=(telling.teachers[0], silent))
    assert [r.diverged for r in vision.train(configured(arm, (0, 2)), context)] == [False, False]
    assert [r.diverged for r in vision.train(configured(arm, (0, 1)), context)] == [True]


def batches_of(context, epoch, replicate=0, **hp):
    """(rows, view) of every batch of one epoch."""
    config, seen = configured("hard_labels", (replicate,), **hp), []
    learner = vision._Replicate(config, context, replicate).learner

    def watch(student, rows, view):
        seen.append((rows, view))
        return VARIANTS["hard_labels"](student, None, learner.labels[rows], config.hp)

    learner.train_epoch(epoch, watch)
    return seen


def test_an_epoch_shows_every_image_once_at_the_epochs_view_in_an_order_of_its_own(context):
    orders = []
    for epoch, replicate in ((1, 0), (2, 0), (8, 0), (1, 1)):
        batches = batches_of(context, epoch, replicate)
        assert [len(rows) for rows, _ in batches] == [64, 64, 64, 8]
        assert {view for _, view in batches} == {epoch % 8}
        orders.append(torch.cat([rows for rows, _ in batches]))
        assert torch.equal(orders[-1].sort().values, torch.arange(N))
    assert len({tuple(order.tolist()) for order in orders}) == 4


def test_a_last_batch_of_one_image_is_left_out_and_the_trial_trains(context):
    assert [len(rows) for rows, _ in batches_of(context, 1, batch_size=199)] == [199]
    metrics, state = trained(configured("kd_fa_at", batch_size=199), context)
    assert all(math.isfinite(value) for epoch in metrics for values in epoch.values() for value in values)
    assert state["0.model.bn1.num_batches_tracked"] == 2


def test_a_batch_of_one_image_on_which_a_batch_norm_cannot_train_is_refused():
    with pytest.raises(BadInput, match=r"batch_size of the family vision must be 2 or more"):
        load_study("digits-attention-transfer", ["arms.kd.default.batch_size=1"])
    with pytest.raises(BadInput, match=r"teacher\.batch_size"):
        load_study("digits-attention-transfer", ["teacher.batch_size=1"])


def test_a_term_that_dies_on_the_way_is_a_collapsed_student_and_ends_the_trial_as_diverged(context, monkeypatch):
    audits = vision._Replicate.audit

    def dies(replicate, declared):
        if replicate.learner.state()["model.bn1.num_batches_tracked"]:
            raise DeadTerm("the loss term at has a weight but sends the student no gradient")
        return audits(replicate, declared)

    monkeypatch.setattr(vision._Replicate, "audit", dies)
    *_, last = vision.train(replace(configured("kd_at", epochs=3), audit_at=(2, 3)), context)
    assert (last.epoch, last.diverged) == (2, True)
    assert "collapsed by epoch 2" in last.reason
    assert "the loss term at" in last.reason
    assert not any(name.startswith("val_") for name in last.metrics)


# what comes out


def test_of_no_epochs_only_the_first_steps_audit_comes_out(context):
    (result,) = vision.train(configured("kd_fa", (0, 1), epochs=0), context)
    assert (result.epoch, result.metrics, result.diverged) == (0, {}, False)
    assert list(result.audits) == [0]
    assert list(result.audits[0]) == ["ce", "kd", "fa"]
    fresh = vision._Replicate(configured("kd_fa"), context, 1).learner.state()
    assert_equal_states(of_seed(result.state(), 1), fresh)


@pytest.mark.parametrize(
    ("arm", "changes", "outputs"),
    [("kd_fa_at", {}, 10), ("kd", {"cbam": True, "width": 16}, 10), ("released_fa_at", {}, 1000)],
)
def test_a_reloaded_student_gives_the_logits_of_the_result(arm, changes, outputs, context):
    config = configured(arm, (4, 1))
    config = replace(config, student={**config.student, **changes})
    *_, result = vision.train(config, context)
    x = DATA.validation.x
    floats, expected = x.astype(np.float32) / np.float32(255), result.logits(x)
    assert expected.shape == (2, len(x), outputs)
    torch.testing.assert_close(result.logits(floats), expected)
    state = {name: tensor.contiguous() for name, tensor in result.state().items()}
    for place in (0, 1):
        student = vision.Student(state, place, config.student)
        assert not student.model.training
        assert parameter_count(student) == result.parameters
        with torch.no_grad():
            torch.testing.assert_close(student(torch.from_numpy(floats)), expected[place], rtol=1e-3, atol=1e-3)
    assert not torch.allclose(expected[0], expected[1])


def test_validation_metrics_are_those_of_the_logits(context):
    *_, result = vision.train(configured("kd_at", (0, 3)), context)
    logits, y = result.logits(DATA.validation.x), torch.from_numpy(DATA.validation.y)
    for place in (0, 1):
        accuracy = (logits[place].argmax(dim=1) == y).double().mean().item()
        assert result.metrics["val_accuracy"][place] == pytest.approx(accuracy)
        assert result.metrics["val_nll"][place] == pytest.approx(F.cross_entropy(logits[place], y).item(), rel=1e-4)


# a GPU


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, and there is none")
@pytest.mark.parametrize("precision", ["auto", "fp32", "fp16", "bf16"])
def test_a_combined_trial_trains_and_resumes_on_a_gpu(precision, tmp_path):
    study, data = digits(f"compute.precision={precision}", "views.count=2")
    fit, validation = doubled(data.train), doubled(data.validation)
    teacher = family.build_teacher(study, 0, fit, DATA, 0, "cuda")
    views = family.label(study, teacher, fit, DATA)
    context = context_of(study, fit, validation, views, device="cuda")
    hp = {**study.arms["kd_fa_at"].default, **WITH_EVERYTHING}
    config = trial_config(study, "kd_fa_at", hp, (0, 1), 3)
    for result in vision.train(config, context):
        assert not result.diverged
        assert all(math.isfinite(value) for values in result.metrics.values() for value in values)
        if result.epoch == 1:
            Checkpoints(Storage(tmp_path), "kd-00000").save(result)
            assert all(term.norm > 0 for term in result.audits[0].values())
    epoch, stored = Checkpoints(Storage(tmp_path), "kd-00000").newest()
    *_, resumed = vision.train(config, replace(context, resume_epoch=epoch, resume=stored))
    state = {name: tensor.cpu().contiguous() for name, tensor in resumed.state().items()}
    expected = resumed.logits(validation.x).cpu()
    with torch.no_grad():
        logits = vision.Student(state, 1, config.student)(torch.from_numpy(validation.x).float() / 255)
    assert (logits.argmax(dim=1) == expected[1].argmax(dim=1)).float().mean() > 0.9


@pytest.mark.slow
def test_a_compiled_student_learns_what_an_uncompiled_one_does(context):
    (plain,), (compiled,) = (
        vision.train(
            configured("kd_fa_at", epochs=1), replace(context, compute={**context.compute, "compile": compiled})
        )
        for compiled in (False, True)
    )
    for name, values in plain.metrics.items():
        assert compiled.metrics[name] == pytest.approx(values, rel=1e-2), name
