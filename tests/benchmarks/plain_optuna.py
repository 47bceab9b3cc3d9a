"""The KD search of `mlp-ensemble` as an Optuna user writes it: two processes, journal storage, TPE, a pruner.

Claim: 100 trials train 21 seed-epochs a second on 2 cores (median, n=6, 9.8 to 23; the lowest run was disturbed).
An epoch at batch 32 has 8 times the steps of one at 256, so the rate follows what the sampler happens to favour.
Run: python -m tests.benchmarks.plain_optuna --trials 100 --json
"""

import argparse
import json
import multiprocessing
import tempfile
import time
from pathlib import Path

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import MaxTrialsCallback

from tests.benchmarks.plain_loop import load_data, teacher_logits, train

WORKERS = 2
STUDY = "mlp-ensemble"


def open_study(journal: Path) -> optuna.Study:
    return optuna.create_study(
        storage=JournalStorage(JournalFileBackend(str(journal))),
        study_name=STUDY,
        load_if_exists=True,
        direction="maximize",
        sampler=optuna.samplers.TPESampler(),
        # The rungs of Ray's ASHAScheduler: 1, 4, 16 epochs.
        pruner=optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=4),
    )


def work(journal: Path, trials: int) -> None:
    """One worker process: draw, train and prune trials until the shared study has `trials` of them."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    data = load_data()
    teacher = teacher_logits(data)

    def objective(trial: optuna.Trial) -> float:
        config = {
            "lr": trial.suggest_float("lr", 3e-4, 3e-2, log=True),
            "weight_decay": trial.suggest_float("weight_decay", 1e-6, 1e-2, log=True),
            "batch_size": trial.suggest_categorical("batch_size", [32, 64, 128, 256]),
            "temperature": trial.suggest_float("temperature", 1.0, 20.0, log=True),
            "kd_weight": trial.suggest_float("kd_weight", 0.0, 1.0),
        }
        for epoch, accuracy in train(config, data, teacher):
            trial.report(accuracy, epoch)
            if trial.should_prune():
                raise optuna.TrialPruned
        return accuracy

    # states=None counts running trials too, so that the two workers together stop at `trials`.
    open_study(journal).optimize(objective, callbacks=[MaxTrialsCallback(trials, states=None)])


def sweep(trials: int) -> dict[str, float]:
    """Seed-epochs trained over all trials, and wall seconds from before the study is made to the last worker's end."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        journal = Path(folder) / "journal.log"
        open_study(journal)
        spawn = multiprocessing.get_context("spawn")
        workers = [spawn.Process(target=work, args=(journal, trials)) for _ in range(WORKERS)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        seconds = time.perf_counter() - started
        if any(worker.exitcode for worker in workers):
            raise SystemExit("a worker of plain Optuna failed; its traceback is above")
        finished = open_study(journal).trials
    seed_epochs = sum(len(trial.intermediate_values) for trial in finished)
    return {"seed_epochs": seed_epochs, "seconds": seconds, "trials": len(finished)}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    args = parser.parse_args()
    figures = sweep(args.trials)
    rate = figures["seed_epochs"] / figures["seconds"]
    print(json.dumps(figures) if args.json else f"{rate:.2f} seed-epochs a second: {figures}")
