"""The table study end to end on real Ray: a CSV of one's own, teachers alone and with students, and deployment."""

import subprocess
import sys
from dataclasses import asdict

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from safetensors.torch import load_file
from sklearn.metrics import roc_auc_score

import distune
from search.export import bundle
from search.export.modules import blend_of
from search.ledger import Ledger
from search.payload import build_teacher
from search.students import Confirmed
from search.weights import pack_name
from tests.test_sweep import assert_whole, run
from trainables.datasets import load

SEARCHED = ["hard_labels", "hard_labels_again", "kd_uniform", "attention_student", "attention_blend", "uniform_blend"]
FIXED = ["uniform_mix", "logistic_stack", "as_printed", "xgboost", "logistic_regression"]
TINY = {
    "extends": "promo-attention",
    "name": "tiny-table",
    "data": {
        **{"kind": "csv", "path": "table.csv", "target": "bought", "positive": "yes", "drop": ["customer"]},
        **{"test_fraction": 0.3, "segments": ["channel"]},
    },
    "teacher": {"models": ["xgboost", "logistic_regression"]},
    "confirm_teachers": 2,
    "space": {"hidden": {"choices": ["8", "8-4"]}, "batch_size": {"choices": [128, "full"]}},
    "arms": {name: {"default": {"hidden": "8"}} for name in [*SEARCHED, "label_smoothing", "kd_shuffled"]}
    | {"global_gate_blend": {"default": {"hidden": "8", "batch_size": 128}}},
    "budget": {
        **{"seed_epochs_per_arm": 240, "seeds_per_trial": 2, "confirm_seeds": 10, "max_epochs": 9, "patience": 3},
        **{"subsearches": 2, "reevaluate_share": 0.4},
    },
}
for arm in TINY["arms"].values():
    arm["default"]["batch_size"] = 128


def a_table(rows=900):
    random = np.random.default_rng(0)
    amount, age = random.exponential(10, rows), random.integers(18, 80, rows).astype(float)
    channel = random.choice(["mail", "phone", "web"], rows)
    logit = 0.25 * (amount - 10) * np.where(channel == "web", 1, 0.2) - 0.05 * (age - 45)
    bought = random.random(rows) < 1 / (1 + np.exp(-logit))
    age[::13] = np.nan
    columns = {"customer": np.arange(rows), "amount": amount, "age": age, "channel": channel}
    return pd.DataFrame(columns | {"bought": np.where(bought, "yes", "no")})


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    folder = tmp_path_factory.mktemp("table")
    a_table().to_csv(folder / "table.csv", index=False)
    (folder / "study.yaml").write_text(yaml.safe_dump(TINY))
    return folder


@pytest.fixture(scope="module")
def finished(table):
    arms = ",".join([*SEARCHED, *FIXED])
    done = run("sweep", table / "study.yaml", "--arms", arms, "--out", table / "run")
    assert done.returncode == 0, done.stderr
    return table / "run", done


def test_a_sweep_of_a_csv_confirms_students_blends_and_teachers(finished):
    out, done = finished
    result = assert_whole(out, searched=SEARCHED, budget=240)
    arms = {arm["arm"]: arm for arm in result["arms"]}
    assert list(arms) == [*SEARCHED, *FIXED]
    assert result["metric"] == "test_auc"
    assert all(arms[a]["tuned"]["n"] == 10 for a in SEARCHED)
    references = [a for a in FIXED if a != "as_printed"]
    assert all(arms[a]["fixed"]["n"] == 2 for a in references)  # one for each set of teachers
    assert arms["as_printed"]["fixed"]["n"] == 10
    assert {a: arms[a]["role"] for a in ("kd_uniform", "attention_blend", "xgboost")} == {
        **{"kd_uniform": "student", "attention_blend": "needs_teachers", "xgboost": "reference"}
    }
    sentences = ("Of the students that run alone", "the gate beats the plain")
    for words in ("what the gates do", "teachers on test", *sentences):
        assert words in done.stdout


def test_the_auc_of_the_table_is_that_of_the_stored_predictions(finished):
    out, _ = finished
    result = distune.open_run(out).compare()
    tuned = {arm["arm"]: arm["tuned"] or arm["fixed"] for arm in result["arms"]}
    with Ledger.open(out) as ledger:
        labels = ledger.labels("test")
        for arm in ("kd_uniform", "attention_blend"):
            runs = [r for r in ledger.runs("tuned") if r.arm == arm]
            scores = ledger.predictions(runs, "test")
            aucs = [roc_auc_score(labels, s) for s in scores]
            assert np.mean(aucs) == pytest.approx(tuned[arm]["mean"], abs=1e-9)
            assert aucs == pytest.approx([r.metrics["test_auc"] for r in runs], abs=1e-9)


def test_students_are_confirmed_at_the_epoch_that_the_search_found_best(finished):
    out, _ = finished
    with Ledger.open(out) as ledger:
        again = ledger.runs("reevaluation")
        assert again
        best = {}
        for r in again:
            best.setdefault(r.trial, []).append(r.metrics["best_epoch"])
        assert all(r.epochs <= 9 for r in again)
        confirmed = ledger.runs("tuned")
        assert {r.epochs for r in confirmed} - {9}  # some stop before the end
        for r in confirmed:
            assert r.epochs == round(float(np.median(best[r.trial])))


def test_a_stopped_seed_is_not_paid_for(finished):
    out, _ = finished
    with Ledger.open(out) as ledger:
        seeds = {row.seeds for row in ledger.epochs()}
        assert seeds <= {0, 1, 2}
        assert 0 in seeds or 1 in seeds


def test_gates_are_told_by_segment_beside_who_is_better_there(finished):
    out, _ = finished
    gates = distune.open_run(out).compare()["gates"]
    of_blend = {g["segment"]: g for g in gates if g["arm"] == "attention_blend"}
    assert list(of_blend) == ["all rows", "channel=mail", "channel=phone", "channel=web"]
    for g in of_blend.values():
        assert sum(t["gate"] for t in g["teachers"].values()) == pytest.approx(1)
        assert g["agrees"] in (None, g["prefers"] == g["better"])
    assert sum(g["rows"] for s, g in of_blend.items() if s != "all rows") == of_blend["all rows"]["rows"]


def test_speed_and_size_of_teachers_blends_and_students_stand_beside_quality(finished):
    out, _ = finished
    result = distune.open_run(out).compare()
    arms = {arm["arm"]: arm["evaluation"] for arm in result["arms"]}
    one = {name: values["ms_per_sample_batch_1"]["mean"] for name, values in arms.items()}
    assert one["attention_blend"] > one["uniform_mix"] >= one["xgboost"] > 0
    assert one["kd_uniform"] < one["attention_blend"]
    assert {m["name"] for m in result["teacher"]["models"]} == {"plain average", "xgboost", "logistic_regression"}
    assert all(m["bytes"] > 0 for m in result["teacher"]["models"])
    wanted = {"average_precision", "accuracy", "accuracy_at_threshold", "ks", "brier", "calibration_error", "majority"}
    assert wanted <= arms["kd_uniform"].keys()


def test_the_deployed_student_reads_a_data_frame_and_needs_no_teacher(finished, table, tmp_path):
    out, _ = finished
    student = distune.open_run(out).student("kd_uniform")
    frame = pd.read_csv(table / "table.csv").drop(columns=["bought"])
    p = student.predict_proba(frame)
    y = (a_table()["bought"] == "yes").to_numpy()
    assert roc_auc_score(y, p) > 0.6
    code = (
        "import sys\nfor name in ('xgboost', 'lightgbm', 'skops'): sys.modules[name] = None\n"
        "import distune, numpy as np, pandas as pd\n"
        f"student = distune.open_run({str(out)!r}).student('kd_uniform')\n"
        f"frame = pd.read_csv({str(table / 'table.csv')!r})\n"
        f"np.save({str(tmp_path / 'p.npy')!r}, student.predict_proba(frame))\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
    assert np.array_equal(np.load(tmp_path / "p.npy"), p)


def test_a_blend_is_not_handed_out_as_a_student(finished):
    out, _ = finished
    with pytest.raises(ValueError, match="attention_blend needs its teachers"):
        distune.open_run(out).student("attention_blend")


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("data.target=price", "no column 'price'"),
        ("data.positive=maybe", "maybe"),
        ("data.shift=channel == fax", "shift"),
        ("data.delimiter=;", "delimiter"),
        ("teacher.models=[catboost]", "catboost"),
        ("budget.patience=0", "patience"),
        ("space.batch_size.choices=[all, 64]", "batch_size"),
    ],
)
def test_bad_input_is_one_line_before_anything_starts(table, tmp_path, setting, says):
    done = run("sweep", table / "study.yaml", "--set", setting, "--out", tmp_path / "run", timeout=60)
    assert done.returncode == 2
    assert says in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_an_audit_of_a_table_study_shows_terms_that_train_the_gate(table):
    done = run("audit", table / "study.yaml", "--json")
    assert done.returncode == 0, done.stderr
    import json

    rows = json.loads(done.stdout)["terms"]
    gate = [r for r in rows if r["arm"] == "attention_student" and r["term"] == "mix_ce"]
    assert gate
    assert all(r["norm"] > 0 and r["share"] is None and r["status"] == "trains the gate" for r in gate)


def test_every_confirmed_blend_has_learned_from_its_own_replicates_teachers(finished):
    """Replicate r has the teacher set r mod `confirm_teachers`: with another one it would not say what it said."""
    out, _ = finished
    study = distune.load_study(out / "study.yaml")
    dataset = load(asdict(study.data))
    with Ledger.open(out) as ledger:
        records = [r for r in ledger.runs("tuned") if (r.arm, r.fit) == ("uniform_blend", "train")]
        stored = ledger.predictions(records, "test")
        seed = ledger.meta["seed"]
    teachers = [build_teacher(study, seed, dataset, "train", k) for k in range(study.confirm_teachers)]
    nearest = {}
    for record, logits in zip(records, stored, strict=True):
        first = min(r.replicate for r in records if r.subsearch == record.subsearch)
        path = out / "models" / f"{pack_name(record, first)}.safetensors"
        found = Confirmed(study, record.arm, record, 1, load_file(path), record.replicate - first, path)
        apart = []
        for fitted in teachers:
            blend, about = blend_of(found, torch.from_numpy(fitted.platt))
            predict = bundle._torch_of(bundle.Student(blend, about, (), fitted))
            apart.append(float(np.abs(predict(dataset.test.x) - logits).max()))
        assert min(apart) < 1e-3
        nearest[record.replicate] = int(np.argmin(apart))
    assert {r % 2 for r in nearest} == {0, 1}
    assert nearest == {r: r % 2 for r in nearest}
