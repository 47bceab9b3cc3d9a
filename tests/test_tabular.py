"""The table family's trainable: packs, full batches, patience, gates, references, and what is deployed."""

import subprocess
import sys
from collections import deque
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from tests.made_tables import STUDY, config, context, rows
from trainables import tabular
from trainables.audit import DeadTerm
from trainables.datasets import Column, Leak
from trainables.encoding import Encoder
from trainables.tabular import TablePack, train
from trainables.variants import VARIANTS

TRAINED = [name for name, arm in STUDY.arms.items() if arm.role != "reference" and name != "hard_labels_again"]


@pytest.fixture
def float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def last(results):
    return deque(results, maxlen=1)[0]


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("batch_size", [64, "full"])
@pytest.mark.parametrize("arm", TRAINED)
def test_packed_equals_solo(float64, arm, batch_size, dropout):
    hp = {"batch_size": batch_size, "dropout": dropout, "learning_rate": 3e-3}
    given = context(sets=2)
    pack = last(train(config(arm, (0, 1, 2), 3, **hp), given))
    for place, replicate in enumerate((0, 1, 2)):
        alone = last(train(config(arm, (replicate,), 3, **hp), given))
        for name, value in alone.state().items():
            if name.split(".")[0] in ("model", "gate"):
                assert torch.allclose(value[0], pack.state()[name][place], atol=1e-10), name
        assert alone.metrics["val_auc"][0] == pytest.approx(pack.metrics["val_auc"][place], abs=1e-12)


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("arm", ["hard_labels", "attention_student", "attention_blend"])
def test_a_full_batch_in_chunks_is_one_pass(float64, monkeypatch, arm, dropout):
    asked = config(arm, (0, 1), 4, batch_size="full", dropout=dropout)
    whole = last(train(asked, context())).state()
    monkeypatch.setattr(tabular, "CHUNK", 64)  # 32 rows of two seeds
    chunks = last(train(asked, context())).state()
    assert all(torch.allclose(whole[k], chunks[k], atol=1e-10) for k in whole)


def test_a_batch_of_all_rows_is_a_full_batch_but_for_their_order(float64):
    a, b = (last(train(config("hard_labels", (0,), 3, batch_size=size), context())).state() for size in ("full", 5000))
    assert all(torch.allclose(a[k], b[k], atol=1e-12) for k in a)


def test_the_features_are_shared_with_the_data_and_with_no_copy_per_seed():
    given = context()
    given.fit.x.setflags(write=False)
    pack = TablePack(config("kd_uniform", tuple(range(8))), given)
    assert pack._x.data_ptr() == given.fit.x.ctypes.data
    assert pack._members.shape[0] == 1  # one teacher set, which all seeds read


# Patience


def patient(arm, patience, epochs, replicates=(0, 1, 2, 3), **hp):
    return replace(config(arm, replicates, epochs, **hp), patience=patience)


def test_a_stopped_seed_is_charged_no_further_epochs_and_the_others_go_on():
    results = list(train(patient("hard_labels", 2, 30, learning_rate=0.01, batch_size=64), context()))
    trained = [r.trained for r in results]
    assert len(results) == 30
    assert trained[0] == 4
    assert sorted(trained, reverse=True) == trained
    assert trained[-1] < 4
    assert any(0 < t < 4 for t in trained)  # one by one


def test_a_stopped_seed_keeps_its_best_state():
    given = context()
    asked = patient("hard_labels", 3, 40, learning_rate=0.01, batch_size=64)
    end = last(train(asked, given))
    for place, replicate in enumerate(asked.replicates):
        curve = []
        for result in train(replace(asked, replicates=(replicate,), patience=None), given):
            curve.append(roc_auc_score(given.validation.y, result.logits(given.validation.x)[0, :, 1]))
            stopped = len(curve) - 1 - int(np.argmax(curve)) >= 3
            if stopped:
                break
        own = roc_auc_score(given.validation.y, end.logits(given.validation.x)[place, :, 1])
        assert own == pytest.approx(max(curve), abs=1e-6)


def test_the_chosen_epoch_is_that_of_the_mean_curve_and_never_a_maximum_per_seed():
    given = context()
    asked = patient("hard_labels", 40, 40, learning_rate=0.01, batch_size=64)
    end = last(train(asked, given))
    curve = [r.metrics["val_auc"] for r in train(replace(asked, patience=None), given)]
    means = np.mean(curve, axis=1)
    best = int(np.argmax(means))
    assert end.metrics["best_epoch"] == [best + 1] * 4
    assert end.metrics["val_auc"] == pytest.approx(curve[best])
    assert np.mean(end.metrics["val_auc"]) < np.mean(np.max(curve, axis=0))


def test_a_stopped_pack_reports_to_the_end_at_no_cost():
    results = list(train(patient("hard_labels", 1, 60, learning_rate=0.01, batch_size=64), context()))
    assert results[-1].trained == 0
    assert results[-1].epoch == 60
    assert results[-1].metrics["val_auc"] == results[-2].metrics["val_auc"]


@pytest.mark.parametrize("arm", ["hard_labels", "kd_shuffled", "attention_student", "attention_blend"])
@pytest.mark.parametrize("stop_after", [3, 12])
def test_a_resumed_trial_is_the_uninterrupted_one(arm, stop_after):
    asked = patient(arm, 2, 25, learning_rate=0.01, batch_size=64, dropout=0.2)
    results = list(train(asked, context(sets=2)))
    state = next(r.state() for r in train(asked, context(sets=2)) if r.epoch == stop_after)
    resumed = list(train(asked, context(sets=2, resume=state, resume_epoch=stop_after)))
    assert [r.trained for r in resumed] == [r.trained for r in results[stop_after:]]
    assert resumed[-1].metrics == results[-1].metrics
    assert all(torch.equal(v, results[-1].state()[k]) for k, v in resumed[-1].state().items())


def test_without_validation_rows_nothing_stops_and_the_trained_student_is_what_one_gets():
    given = context(validation=None)
    asked = patient("as_printed", 2, 20)
    end, start = last(train(asked, given)), last(train(replace(asked, epochs=0), given))
    assert end.trained == 4
    assert not any(torch.equal(v, start.state()[k]) for k, v in end.state().items() if k.startswith("model.weights"))


def test_the_same_trial_twice_is_the_same():
    a, b = (last(train(config("attention_blend"), context())).state() for _ in range(2))
    assert all(torch.equal(a[k], b[k]) for k in a)


# Terms and gates


@pytest.mark.parametrize("arm", TRAINED)
def test_every_term_is_alive_at_the_first_step(arm):
    first = next(train(config(arm, epochs=1), context()))
    assert all(a.norm > 0 for a in first.audits[0].values())
    beside = [name for name, a in first.audits[0].items() if np.isnan(a.share)]
    expected = {"attention_student": ["mix_ce", "gate_entropy"], "global_gate_blend": ["gate_entropy"]}
    assert beside == expected.get(arm, [])


def test_a_gate_that_gets_no_gradient_is_a_dead_term(monkeypatch):
    def broken(student, teacher, labels, hp):
        terms = VARIANTS["attention_student"](student, teacher, labels, hp)
        return {**terms, "mix_ce": replace(terms["mix_ce"], value=terms["mix_ce"].value.detach())}

    monkeypatch.setitem(VARIANTS, "broken", broken)
    monkeypatch.setitem(tabular.GATES, "broken", "own")
    with pytest.raises(DeadTerm, match="mix_ce"):
        next(train(replace(config("attention_student"), variant="broken"), context()))


def test_the_gate_of_the_attention_student_leaves_the_student_alone_but_for_its_target():
    """Without weight on the distillation term the student trains as on labels, whatever its gate learns."""
    with_gate = last(train(config("attention_student", kl_weight=0.0), context())).state()
    alone = last(train(config("hard_labels"), context())).state()
    assert all(torch.equal(with_gate[k], alone[k]) for k in alone if k.startswith("model."))


def test_a_gate_learns_to_trust_the_better_teacher():
    given = context(n=3000)
    end = last(train(config("attention_student", epochs=30, learning_rate=0.01, entropy_weight=0.0), given))
    gate = end.gates(given.validation.x).mean(dim=(0, 1))
    assert gate[0] > 0.7  # its teacher is less noisy
    assert torch.allclose(gate.sum(), torch.tensor(1.0))


def test_a_heavy_entropy_weight_keeps_the_gate_even():
    end = last(train(config("attention_student", epochs=30, learning_rate=0.01, entropy_weight=100.0), context()))
    assert torch.allclose(end.gates(rows(50, 3).x), torch.tensor(0.5), atol=0.05)


def test_a_global_gate_is_the_same_for_all_rows_and_begins_almost_even():
    given = context()
    first = next(train(config("global_gate_blend", epochs=0), given))
    assert torch.allclose(first.gates(given.validation.x), torch.tensor(0.5), atol=0.1)
    end = last(train(config("global_gate_blend", epochs=20, learning_rate=0.01), given))
    assert float(end.gates(given.validation.x).std(dim=1).max()) == 0
    assert not torch.equal(end.gates(given.validation.x)[:, 0], first.gates(given.validation.x)[:, 0])


def test_shuffled_teachers_say_the_same_of_a_class_and_another_thing_of_a_row():
    given = context()
    own, shuffled = (TablePack(config(arm), given)._members for arm in ("kd_uniform", "kd_shuffled"))
    y = given.fit.y
    for seed in shuffled:
        assert not torch.equal(seed, own[0])
        for label in (0, 1):
            assert torch.equal(seed[y == label].sort(dim=0).values, own[0][y == label].sort(dim=0).values)


def test_who_learns_in_sample_reads_what_teachers_say_of_their_own_rows_shuffled_or_not():
    given = context()
    teacher, y = given.teachers[0], torch.from_numpy(given.fit.y)
    own = TablePack(replace(config("kd_uniform"), in_sample=True), given)._members[0]
    assert torch.equal(own, torch.from_numpy(teacher.in_sample))
    shuffled = TablePack(replace(config("kd_shuffled"), in_sample=True), given)._members[0]
    assert torch.equal(shuffled[y == 1].sort(dim=0).values, own[y == 1].sort(dim=0).values)
    assert TablePack(config("as_printed"), given)._config.in_sample


# What is predicted


def test_a_blend_predicts_with_its_teachers_and_a_student_without():
    given = context()
    blend = last(train(config("uniform_blend", blend_weight=0.5), given))
    validation = given.validation
    p = torch.sigmoid(blend.logits(validation.x, validation.teachers)[..., 1])
    assert not torch.allclose(p, torch.sigmoid(blend.logits(validation.x, -validation.teachers)[..., 1]))
    student = last(train(config("kd_uniform"), given))
    assert torch.equal(student.logits(validation.x), student.logits(validation.x, -validation.teachers))


def test_a_blend_of_little_student_is_the_mean_of_its_teachers():
    given = context()
    end = last(train(config("uniform_blend", blend_weight=1e-6), given))
    said = torch.from_numpy(given.validation.teachers[0])
    p = torch.sigmoid(end.logits(given.validation.x, given.validation.teachers)[..., 1])
    assert torch.allclose(p, torch.sigmoid(said).mean(dim=1).expand_as(p), atol=1e-5)


def test_as_printed_predicts_with_uncalibrated_teachers():
    """It has learned from them as they are; what is handed to it is calibrated, slope and intercept known."""
    given = context()
    end = last(train(config("as_printed", blend_weight=1e-6), given))
    said = torch.from_numpy(given.validation.teachers[0])
    raw = torch.stack([said[:, 0], (said[:, 1] - 0.1) / 0.5], dim=1)
    gate = end.gates(given.validation.x)
    p = torch.sigmoid(end.logits(given.validation.x, given.validation.teachers)[..., 1])
    assert torch.allclose(p, (gate * torch.sigmoid(raw)).sum(dim=-1), atol=1e-5)


def test_the_teachers_alone_their_mean_and_their_stack():
    given = context()
    said, y = given.validation.teachers[0].astype(float), given.validation.y

    def scores(arm):
        return next(train(config(arm), given)).logits(given.validation.x, given.validation.teachers)[0, :, 1].numpy()

    assert np.allclose(scores("random_forest"), said[:, 1])
    assert np.allclose(1 / (1 + np.exp(-scores("uniform_mix"))), (1 / (1 + np.exp(-said))).mean(axis=1))
    stack = LogisticRegression(C=1e4).fit(given.teachers[0].fit, given.fit.y)
    assert np.allclose(scores("logistic_stack"), stack.decision_function(said), atol=1e-3)
    result = next(train(config("uniform_mix"), given))
    assert result.metrics["val_auc"][0] == pytest.approx(roc_auc_score(y, (1 / (1 + np.exp(-said))).mean(axis=1)))
    assert (result.parameters, result.trained) == (0, 0)


def test_a_teacher_that_saw_validation_rows_is_refused():
    given = context()
    leaky = replace(given.teachers[0], fitted_on=given.validation.identity[:5])
    with pytest.raises(Leak, match="validation"):
        next(train(config("kd_uniform"), replace(given, teachers=[leaky])))
    next(train(config("hard_labels"), replace(given, teachers=[leaky])))


# What is deployed


def raw_table(n=400):
    random = np.random.default_rng(5)
    x = np.stack([random.exponential(10, n), random.integers(0, 3, n).astype(float), random.standard_normal(n)], axis=1)
    x[::17, 0] = np.nan
    return (Column("amount"), Column("channel", ("mail", "phone", "web")), Column("score")), x


def test_an_exported_student_reloaded_predicts_bit_equal_without_the_teachers_libraries(tmp_path):
    columns, x = raw_table()
    encoder = Encoder.fit(columns, x[:300])
    y = (np.nan_to_num(x[:, 0]) > 8).astype(np.int64)
    given = context(encoder=encoder.state_dict())
    fit, validation = (Rows_(encoder, x[part], y[part]) for part in (slice(0, 300), slice(300, 400)))
    said = replace(given.teachers[0], fit=given.teachers[0].fit[: len(fit)], fitted_on=fit.identity)
    given = replace(given, fit=fit, validation=validation, teachers=[said])
    end = last(train(config("kd_uniform", (0, 1)), given))
    student = tabular.Student(end.state(), 1)
    inside = torch.sigmoid(student(torch.from_numpy(x)))
    assert torch.allclose(student(torch.from_numpy(x[300:])), end.logits(validation.x)[1, :, 1], atol=1e-5)
    save_file({k: v.contiguous() for k, v in end.state().items()}, tmp_path / "student.safetensors")
    np.save(tmp_path / "x.npy", x)
    code = (
        "import sys\nfor name in ('xgboost', 'lightgbm', 'skops', 'ray'): sys.modules[name] = None\n"
        "import numpy as np, torch\nfrom safetensors.torch import load_file\nfrom trainables.tabular import Student\n"
        f"student = Student(load_file({str(tmp_path / 'student.safetensors')!r}), 1)\n"
        f"x = torch.from_numpy(np.load({str(tmp_path / 'x.npy')!r}))\n"
        f"np.save({str(tmp_path / 'p.npy')!r}, torch.sigmoid(student(x)).detach().numpy())\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
    assert np.array_equal(np.load(tmp_path / "p.npy"), inside.detach().numpy())
    assert load_file(tmp_path / "student.safetensors")["encoder.median"].dtype == torch.float64


def Rows_(encoder, x, y):
    from trainables.datasets import Rows

    return Rows(encoder.encode(x), y, np.random.default_rng(len(x)).integers(2**62, size=len(x)))
