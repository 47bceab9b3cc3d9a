"""A pack of seeds trains each seed as it would train alone, resumes to the bit, and stops where numbers end."""

import itertools
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load, save
from torch import nn
from torch.nn import functional as F

from search.payload import trial_config
from spaces import load_study
from trainables import datasets, mlp
from trainables.context import Context, TeacherOutputs
from trainables.packing import Pack, shuffled_within_class
from trainables.streams import Streams
from trainables.variants import hard_labels

STUDY = load_study("mlp-ensemble", ["data.n_samples=600", "data.fresh_rows=0"])
DATA = datasets.load(asdict(STUDY.data)).without_test()
ARMS = ("hard_labels", "label_smoothing", "kd", "kd_shuffled")
REPLICATES = (4, 1, 3)  # neither their own places in the pack nor in order, and on both teacher sets
STREAMS = Streams(STUDY.name)
NOT_FITTED = np.zeros(0, dtype=np.int64)


@pytest.fixture
def float64():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def random_teacher(seed):
    logits = 3 * np.random.default_rng(seed).standard_normal((len(DATA.train), DATA.classes))
    return TeacherOutputs(logits.astype(np.float32), NOT_FITTED)


CONTEXT = Context(
    fit=DATA.train,
    validation=DATA.validation,
    classes=DATA.classes,
    teachers=(random_teacher(0), random_teacher(1)),
    streams=STREAMS,
)


def configured(arm, replicates, epochs, **hp):
    return trial_config(STUDY, arm, {**STUDY.arms[arm].default, **hp}, replicates, epochs)


def trained(config, context=CONTEXT):
    """Every epoch's metrics, and the state after the last."""
    metrics = []
    for result in mlp.train(config, context):
        metrics.append(result.metrics)
    return metrics, result.state()


def parameters_of(state, place):
    return {name: tensor[place] for name, tensor in state.items() if name.startswith("model.")}


def assert_equal_parameters(a, b, within):
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=0, atol=within)


def assert_packed_equals_solo(arm, epochs, within):
    packed_metrics, packed = trained(configured(arm, REPLICATES, epochs))
    for place, replicate in enumerate(REPLICATES):
        solo_metrics, solo = trained(configured(arm, (replicate,), epochs))
        assert_equal_parameters(parameters_of(packed, place), parameters_of(solo, 0), within)
        for together, alone in zip(packed_metrics, solo_metrics, strict=True):
            assert together.keys() == alone.keys() >= {"val_accuracy", "val_nll"}
            for name, values in alone.items():
                assert together[name][place] == pytest.approx(values[0], abs=10 * within)


# packed equals solo


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("arm", ARMS)
def test_packed_equals_solo_in_float64(arm):
    assert_packed_equals_solo(arm, epochs=3, within=1e-10)


@pytest.mark.parametrize("arm", ARMS)
def test_packed_equals_solo_in_float32(arm):
    assert_packed_equals_solo(arm, epochs=20, within=1e-5)


def pack_with_dropout(replicates, dropout=(0.3, 0.2)):
    x, y = torch.from_numpy(DATA.train.x), torch.from_numpy(DATA.train.y)
    hp = {"learning_rate": 1e-3, "weight_decay": 1e-4, "batch_size": 64}
    pack = Pack([20, 16, 8, 2], dropout, replicates, STREAMS, hp, x, y)
    for epoch in (1, 2, 3):
        pack.train_epoch(epoch, labels_only)
    return pack.state()


def labels_only(student, teacher, labels):
    return hard_labels(student, None, labels, {})


def test_packed_equals_solo_with_dropout():
    packed = pack_with_dropout(REPLICATES)
    for place, replicate in enumerate(REPLICATES):
        solo = pack_with_dropout((replicate,))
        assert_equal_parameters(parameters_of(packed, place), parameters_of(solo, 0), 1e-10)
    assert not torch.allclose(packed["model.weights.0"], pack_with_dropout(REPLICATES, ())["model.weights.0"])


def test_dropout_keeps_the_mean_of_what_it_scales():
    x, y = torch.ones(4000, 3, dtype=torch.float64), torch.zeros(4000, dtype=torch.int64)
    hp = {"learning_rate": 1e-12, "weight_decay": 0.0, "batch_size": 4000}
    pack = Pack([3, 50, 2], (0.3,), (0,), STREAMS, hp, x, y)
    seen = []

    def watch(student, teacher, labels):
        seen.append(student.logits.detach())
        return labels_only(student, teacher, labels)

    pack.train_epoch(1, watch)
    with_dropout, without = seen[0][0], pack.logits(x[:1])[0]
    error = with_dropout.std(dim=0) / np.sqrt(len(x))
    assert (error > 0).all()
    assert ((with_dropout.mean(dim=0) - without).abs() < 4 * error).all()


# one seed against a loop that anybody would write


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("arm", ["hard_labels", "kd"])
def test_a_packed_seed_equals_a_plain_training_loop(arm):
    config = configured(arm, REPLICATES, epochs=3, batch_size=100, weight_decay=1e-2)
    _, packed = trained(config)
    x = DATA.train.x
    x = torch.from_numpy((x - x.mean(axis=0)) / x.std(axis=0))
    y = torch.from_numpy(DATA.train.y)
    assert len(y) % 100 != 0
    start = Pack([20, *STUDY.student.hidden, 2], (), REPLICATES, STREAMS, config.hp, x, y)
    for place, replicate in enumerate(REPLICATES):
        network = start.model.single(place)
        teacher = torch.from_numpy(CONTEXT.teachers[replicate % 2].logits).double()
        plain_loop(network, x, y, teacher if arm == "kd" else None, config.hp, replicate, epochs=3)
        for layer, linear in enumerate(m for m in network if isinstance(m, nn.Linear)):
            weight, bias = packed[f"model.weights.{layer}"][place], packed[f"model.biases.{layer}"][place, 0]
            torch.testing.assert_close(linear.weight.detach(), weight.T, rtol=0, atol=1e-9)
            torch.testing.assert_close(linear.bias.detach(), bias, rtol=0, atol=1e-9)


def plain_loop(network, x, y, teacher, hp, replicate, epochs):
    adam = torch.optim.Adam(network.parameters(), lr=hp["learning_rate"], weight_decay=hp["weight_decay"])
    for epoch in range(1, epochs + 1):
        order = torch.randperm(len(y), generator=STREAMS.generator("order", replicate, epoch))
        for rows in order.split(hp["batch_size"]):
            logits = network(x[rows])
            loss = F.cross_entropy(logits, y[rows])
            if teacher is not None:
                t = hp["temperature"]
                soft = F.kl_div(
                    F.log_softmax(logits / t, dim=-1), F.softmax(teacher[rows] / t, dim=-1), reduction="batchmean"
                )
                loss = hp["kd_weight"] * t**2 * soft + (1 - hp["kd_weight"]) * loss
            adam.zero_grad()
            loss.backward()
            adam.step()


# seeds


def first_batches(pack, epoch=1):
    """The labels of each batch of one epoch, (S, rows) a batch."""
    seen = []

    def watch(student, teacher, labels):
        seen.append(labels)
        return labels_only(student, teacher, labels)

    pack.train_epoch(epoch, watch)
    return seen


def ten_rows(replicates):
    """A pack on ten rows in batches of four, whose labels are the numbers of the rows."""
    hp = {"learning_rate": 1e-3, "weight_decay": 0.0, "batch_size": 4}
    return Pack([3, 5, 10], (), replicates, STREAMS, hp, torch.randn(10, 3), torch.arange(10))


def test_every_row_is_used_once_an_epoch_also_those_of_the_partial_last_batch():
    batches = first_batches(ten_rows((0, 1)))
    assert [labels.shape for labels in batches] == [(2, 4), (2, 4), (2, 2)]
    for order in torch.cat(batches, dim=1):
        assert order.sort().values.tolist() == list(range(10))


def test_seeds_and_epochs_differ_in_the_order_of_rows():
    pack = ten_rows((0, 1))
    orders = [*torch.cat(first_batches(pack, 1), dim=1), *torch.cat(first_batches(pack, 2), dim=1)]
    assert not any(torch.equal(a, b) for a, b in itertools.combinations(orders, 2))


def test_seeds_start_and_end_differently():
    starts = dict(ten_rows(REPLICATES).model.named_parameters())
    _, state = trained(configured("hard_labels", REPLICATES, epochs=1))
    ends = {name: tensor for name, tensor in state.items() if name.startswith("model.")}
    for tensor in [*starts.values(), *ends.values()]:
        assert not any(torch.equal(a, b) for a, b in itertools.combinations(tensor, 2))


def test_seeds_start_as_linear_layers_do():
    hp = {"learning_rate": 1e-3, "weight_decay": 0.0, "batch_size": 4}
    pack = Pack([100, 400, 2], (), (0,), STREAMS, hp, torch.randn(4, 100), torch.zeros(4, dtype=torch.int64))
    for start in (pack.model.weights[0], pack.model.biases[0]):
        assert start.abs().max() <= 0.1  # 1 / sqrt(fan_in)
        assert start.std().item() == pytest.approx(0.1 / np.sqrt(3), rel=0.1)
        assert start.mean().item() == pytest.approx(0, abs=0.01)


@pytest.mark.usefixtures("float64")
def test_a_seed_starts_and_shuffles_alike_in_every_arm():
    _, plain = trained(configured("hard_labels", REPLICATES, epochs=2))
    for arm in ("kd", "kd_shuffled"):
        _, without_teacher = trained(configured(arm, REPLICATES, epochs=2, kd_weight=0.0))
        for place in range(len(REPLICATES)):
            assert_equal_parameters(parameters_of(plain, place), parameters_of(without_teacher, place), 1e-12)


# the shuffled teacher

labellings = st.lists(st.integers(0, 3), min_size=1, max_size=40)


@given(labellings, st.integers(0, 5))
def test_shuffling_within_class_is_a_permutation_that_keeps_classes(labels, replicate):
    labels = np.array(labels)
    order = shuffled_within_class(labels, STREAMS.generator("teacher rows", replicate)).numpy()
    assert sorted(order) == list(range(len(labels)))
    assert (labels[order] == labels).all()


def test_shuffling_within_class_differs_between_replicates_and_moves_nearly_every_row():
    a, b = (shuffled_within_class(DATA.train.y, STREAMS.generator("teacher rows", r)).numpy() for r in (0, 1))
    rows = np.arange(len(DATA.train))
    for left, right in ((a, b), (a, rows), (b, rows)):
        assert (left == right).mean() < 0.05


def test_kd_shuffled_is_kd_with_the_teachers_rows_permuted_once_for_the_replicate():
    order = shuffled_within_class(DATA.train.y, STREAMS.generator("teacher rows", 2)).numpy()
    teacher = CONTEXT.teachers[0]
    permuted = replace(CONTEXT, teachers=(replace(teacher, logits=teacher.logits[order]),))
    _, by_hand = trained(configured("kd", (2,), epochs=2), permuted)
    _, shuffled = trained(configured("kd_shuffled", (2,), epochs=2))
    _, own = trained(configured("kd", (2,), epochs=2))
    assert_equal_parameters(parameters_of(by_hand, 0), parameters_of(shuffled, 0), 0)
    assert not torch.equal(own["model.weights.0"], shuffled["model.weights.0"])


# resuming


@pytest.mark.parametrize("arm", ARMS)
def test_a_resumed_run_equals_the_uninterrupted_one_to_the_bit(arm):
    config = configured(arm, REPLICATES, epochs=6)
    whole = []
    for result in mlp.train(config, CONTEXT):
        whole.append(result.metrics)
        if result.epoch == 3:
            stored = save(result.state())
    rest = list(mlp.train(config, replace(CONTEXT, resume_epoch=3, resume=load(stored))))
    assert [r.epoch for r in rest] == [4, 5, 6]
    assert [r.metrics for r in rest] == whole[3:]
    uninterrupted, resumed = result.state(), rest[-1].state()
    assert uninterrupted.keys() == resumed.keys()
    assert all(torch.equal(uninterrupted[name], resumed[name]) for name in uninterrupted)


def test_resuming_leaves_the_state_it_was_given_as_it_was():
    config = configured("kd", REPLICATES, epochs=2)
    state = next(mlp.train(config, CONTEXT)).state()
    before = {name: tensor.clone() for name, tensor in state.items()}
    list(mlp.train(config, replace(CONTEXT, resume_epoch=1, resume=state)))
    assert all(torch.equal(before[name], state[name]) for name in before)


def test_a_state_is_that_of_its_moment():
    run = mlp.train(configured("kd", REPLICATES, epochs=2), CONTEXT)
    state = next(run).state()
    before = {name: tensor.clone() for name, tensor in state.items()}
    next(run)
    assert all(torch.equal(before[name], state[name]) for name in before)


# divergence


def test_a_learning_rate_that_diverges_ends_the_run_with_its_last_result():
    results = list(mlp.train(configured("hard_labels", REPLICATES, epochs=50, learning_rate=1e20), CONTEXT))
    assert len(results) < 50
    assert [r.diverged for r in results] == [False] * (len(results) - 1) + [True]
    assert "val_accuracy" not in results[-1].metrics


def test_one_diverged_seed_ends_the_pack():
    broken = replace(CONTEXT.teachers[1], logits=np.full_like(CONTEXT.teachers[1].logits, np.nan))
    context = replace(CONTEXT, teachers=(CONTEXT.teachers[0], broken))
    healthy = list(mlp.train(configured("kd", (0, 2), epochs=2), context))
    assert [r.diverged for r in healthy] == [False, False]
    mixed = list(mlp.train(configured("kd", (0, 1), epochs=2), context))
    assert [r.diverged for r in mixed] == [True]


# what comes out


def test_a_reloaded_student_gives_the_logits_of_the_result():
    *_, result = mlp.train(configured("kd", REPLICATES, epochs=2), CONTEXT)
    x = DATA.validation.x
    expected, state = result.logits(x), load(save(result.state()))
    assert expected.shape == (len(REPLICATES), len(x), 2)
    for place in range(len(REPLICATES)):
        with torch.no_grad():
            logits = mlp.Student(state, place)(torch.from_numpy(x).float())
        torch.testing.assert_close(logits, expected[place], rtol=0, atol=1e-4)


def test_validation_metrics_are_those_of_the_logits():
    result = next(mlp.train(configured("hard_labels", REPLICATES, epochs=1), CONTEXT))
    logits, y = result.logits(DATA.validation.x), torch.from_numpy(DATA.validation.y)
    for place in range(len(REPLICATES)):
        accuracy = (logits[place].argmax(dim=-1) == y).float().mean().item()
        assert result.metrics["val_accuracy"][place] == pytest.approx(accuracy)
        assert result.metrics["val_nll"][place] == pytest.approx(F.cross_entropy(logits[place], y).item(), rel=1e-5)


def test_the_published_student_has_3490_parameters():
    result = next(mlp.train(configured("hard_labels", (0,), epochs=1), CONTEXT))
    assert result.parameters == 3490
    assert sum(t.numel() for name, t in result.state().items() if name.startswith("model.")) == 3490
