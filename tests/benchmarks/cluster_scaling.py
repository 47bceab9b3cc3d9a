"""How much of a cluster's time its trials use: sleeping trials through the whole of `search` on several Ray nodes.

    python -m tests.benchmarks.cluster_scaling --json
    python -m tests.benchmarks.cluster_scaling --json --workers 4 --trial-seconds 2 --window 10 --repeats 1    # it runs
    python -m tests.benchmarks.cluster_scaling --json --workers 64 --trials 10000            # memory of many trials

Up to eight Ray nodes on this machine share the workers' logical processors; a ninth, the head, runs no trials. A trial
reports at four rungs as a training one does, and in between it sleeps: evenly drawn from half to one and a half times
--trial-seconds in all, so that scheduling is what is measured. The search is `distune sweep`'s, with Optuna, rungs,
ledger and progress on. `efficiency` is the time that trials slept in the window, over workers times window; the window
goes from the moment when every worker has begun its first trial to the last that is asked, --window seconds later or
when the budget is spent. `trials_a_second` are those asked in it. With 0 s there is nothing to sleep, and they are the
driver's own ceiling: no efficiency, and a window from the first trial's begin. `driver_mb` is the driver's peak memory,
`nodes_mb` what the workers and agents of all nodes hold when no more is asked, shared pages divided among them. Workers
import an empty stand-in for torch: with torch each holds half a GB, and 64 would not fit on a small machine.

With --trials so many trials follow the recorded curves of `mlp-ensemble` (tests/benchmarks/curves), stopped at rungs as
real ones are, as fast as they can.
"""

import argparse
import contextlib
import dataclasses
import json
import math
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.benchmarks.search_quality import CURVES

RUNGS = (1, 2, 4, 8)
NODES = 8
FASTEST = 60.0  # trials a second that no driver exceeds
SLEEPING = """
import os, random, time

from trainables.context import EpochResult


def train(config, context):
    seconds = {seconds} * random.Random(repr(sorted(config.hp.items()))).uniform(0.5, 1.5)
    for epoch in range(1, config.epochs + 1):
        began = time.monotonic()
        time.sleep(seconds / config.epochs)
        measured = {{"began": [began], "ended": [time.monotonic()], "process": [os.getpid()]}}
        metrics = {{"val_accuracy": [0.5], "val_nll": [0.7], **measured}}
        yield EpochResult(epoch, metrics, 1, {{}}, False, dict, lambda x: x)
"""
TABULATED = """
from functools import cache
from pathlib import Path

from search.tabulated import Curves, Table
from spaces import load_study
from trainables.context import EpochResult


@cache
def table(variant):
    study = load_study("mlp-ensemble")
    return Table.of(Curves.read(Path({curves!r}) / f"{{variant}}.parquet"), study.arms[variant].space, study.val_metric)


def train(config, context):
    curves = table(config.variant).curves
    number = table(config.variant).nearest(config.hp)
    seeds = [replicate % curves.score.shape[1] for replicate in config.replicates]
    for epoch in range(1, config.epochs + 1):
        score, nll = (c[number, seeds, epoch - 1].astype(float).tolist() for c in (curves.score, curves.nll))
        yield EpochResult(epoch, {{"val_accuracy": score, "val_nll": nll}}, 1, {{}}, False, dict, lambda x: x)
"""

# Found by workers when they start: whatever they import of torch is there and does nothing.
NO_TORCH = """
import importlib.abc, importlib.machinery, sys, types


class Kind(type):
    def __getattr__(cls, name):
        return nothing(name)


class Nothing(metaclass=Kind):
    def __init__(self, *args, **kwargs): ...
    def __bool__(self): return False
    def __call__(self, *args, **kwargs): return args[0] if args else self
    def __getattr__(self, name): return nothing(name)


def nothing(name):
    if name.startswith("__"):
        raise AttributeError(name)
    return Kind(name, (Nothing,), {})


class Empty(types.ModuleType):
    __path__, __version__ = [], "2.14.0"

    def __getattr__(self, name):
        setattr(self, name, nothing(name))
        return self.__dict__[name]


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "torchvision"):
            return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec): return Empty(spec.name)
    def exec_module(self, module): ...


sys.meta_path.insert(0, Finder())
"""


def sleeping_study(path: Path, workers: int, seconds: float, window: float) -> Any:
    """Two arms with the budget for the window and for two seconds before it in which each worker starts.

    It decides when Optuna's random trials end and its own proposals begin. No trial is stopped at a rung.
    """
    from spaces import Budget

    path.write_text(SLEEPING.format(seconds=seconds))
    a_second = min(FASTEST, workers / seconds) if seconds else FASTEST
    budget = Budget(
        seed_epochs_per_arm=math.ceil(a_second * (window + 2 * workers) / 2) * RUNGS[-1],
        seeds_per_trial=1,
        confirm_seeds=8,
        max_epochs=RUNGS[-1],
        reevaluate_share=0.0,
        reduction_factor=2,
    )
    return _study(path, ("hard_labels", "hard_labels_again"), budget)


def tabulated_study(path: Path, trials: int) -> Any:
    """Three arms under the study's own budget for a trial, with enough for three times so many trials of mean cost.

    Many workers at once pass more trials at a rung than the mean cost counts on, since the first to come are the best.
    """
    from spaces import load_study

    path.write_text(TABULATED.format(curves=str(CURVES)))
    budget = dataclasses.replace(load_study("mlp-ensemble").budget, reevaluate_share=0.0)
    arms = ("hard_labels", "hard_labels_again", "kd")
    each = math.ceil(3 * trials / len(arms) * budget.mean_trial_cost)
    return _study(path, arms, dataclasses.replace(budget, seed_epochs_per_arm=each))


def _study(path: Path, arms: Sequence[str], budget: Any) -> Any:
    from spaces import load_study

    study = load_study("mlp-ensemble")
    bare: dict[str, Any] = {"contrasts": (), "claims": (), "trainable": f"{path}:train"}
    return dataclasses.replace(study, arms={name: study.arms[name] for name in arms}, budget=budget, **bare)


class Watched:
    """What a search does, seen from its `SearchState`; ends it when the window has passed."""

    def __init__(self, state: Any, workers: int, window: float) -> None:
        self._state, self._report, self._next = state, state.report, state.next_trial
        self._workers, self._window = workers, window
        self.asked: list[float] = []
        self.slept: list[tuple[float, float]] = []
        self.first: dict[float, float] = {}  # when each worker began its first trial, by process
        self.begins: float | None = None  # the window
        self.nodes_mb = 0.0
        state.report, state.next_trial = self.report, self.next_trial

    def report(self, trial: str, rows: Sequence[Any], diverged: str | bool) -> bool:
        goes_on = bool(self._report(trial, rows, diverged))
        for row in rows:
            measured = {name: row["metrics"][name][0] for name in ("began", "ended", "process")}
            self.slept.append((measured["began"], measured["ended"]))
            self.first.setdefault(measured["process"], measured["began"])
        if self.begins is None and len(self.first) >= self._workers:
            self.begins = sorted(self.first.values())[self._workers - 1]
        return goes_on

    def next_trial(self) -> Any:
        now = time.monotonic()
        if self.begins is not None and now > self.begins + self._window:
            self._state.stopping = True
        live = None if self._state.stopping else self._next()
        if live is not None:
            self.asked.append(now)
        elif not self.nodes_mb:  # while the last trials run
            self.nodes_mb = sum(nodes_memory())
        return live

    def figures(self) -> dict[str, float]:
        assert self.begins is not None, f"only {len(self.first)} of {self._workers} workers were ever busy"
        begins, ends = self.begins, self.asked[-1]
        slept = sum(max(0.0, min(to, ends) - max(since, begins)) for since, to in self.slept)
        in_window = sum(begins < at <= ends for at in self.asked)
        return {
            "efficiency": slept / self._workers / (ends - begins),
            "trials_a_second": in_window / (ends - begins),
            "trials": len(self.asked),
            "window_s": ends - begins,
            "nodes_mb": self.nodes_mb,
        }


def limit(state: Any, trials: int) -> None:
    """Let a search ask so many trials and no more."""
    ask, left = state.next_trial, iter(range(trials))
    state.next_trial = lambda: None if next(left, None) is None else ask()


@contextlib.contextmanager
def nodes(workers: int) -> Iterator[str]:
    """The address of a cluster whose nodes have as many processors together, none of them on the head."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        count = min(NODES, workers)
        for node in range(count):
            cluster.add_node(num_cpus=workers // count + (node < workers % count))
        cluster.wait_for_nodes()
        yield cluster.address
    finally:
        cluster.shutdown()


def side(workers: int, seconds: float, window: float, trials: int | None) -> dict[str, Any]:
    """One search in this process."""
    import ray

    from search import tuning
    from search.cluster.connection import connected
    from search.ledger import Ledger
    from search.options import Options
    from search.progress import Progress
    from search.state import SearchState

    @ray.remote
    def make(study: Any) -> Any:
        """As in a sweep, the data never come to the driver."""
        from search.payload import Payload
        from trainables.datasets import load

        dataset = load(dataclasses.asdict(study.data)).without_test()
        return Payload(study, 0, dataset.train, dataset.validation, dataset.classes, ())

    with tempfile.TemporaryDirectory() as folder, nodes(workers) as address:
        path, run, first = (Path(folder) / name for name in ("trainable.py", "run", "first"))
        first.mkdir()
        (first / "sitecustomize.py").write_text(NO_TORCH)
        tuning.WORKER_ENVIRONMENT["PYTHONPATH"] = str(first)
        study = sleeping_study(path, workers, seconds, window) if trials is None else tabulated_study(path, trials)
        run.mkdir()
        options = Options(max_concurrent=workers, address=address, storage=str(Path(folder) / "storage"))
        with (
            connected(options, lambda line: None) as concurrent,
            Ledger.create(run, {"study": study.name, "seed": 0}) as ledger,
        ):
            payload = make.remote(study)
            state = SearchState(study, ledger, 0)
            watched = Watched(state, workers if seconds else 1, window) if trials is None else None
            if trials is not None:
                limit(state, trials)
            began = time.monotonic()
            tuning.search(state, [payload], options, concurrent, run, Progress())
            took, count = time.monotonic() - began, len(ledger.trials())
    found = watched.figures() if watched else {"trials": count, "seconds": took, "trials_a_second": count / took}
    if not seconds:
        found.pop("efficiency", None)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return found | {"driver_mb": peak / (1e6 if sys.platform == "darwin" else 1e3)}


def nodes_memory() -> list[float]:
    """MB of each process that the nodes of this cluster have started; a page that several share counts in parts."""
    parents: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
    found = []
    for process, parent in parents.items():
        if parents.get(parent) == os.getpid():  # a child of a node, which is a child of ours
            with contextlib.suppress(OSError):
                rollup = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
                found.append(sum(int(line.split()[1]) for line in rollup if line.startswith("Pss:")) / 1e3)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, nargs="+", default=[8, 64])
    parser.add_argument("--trial-seconds", type=float, nargs="+", default=[5.0, 1.0, 0.0], help="means; 0: the ceiling")
    parser.add_argument("--window", type=float, default=60.0, help="seconds that are measured")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--trials", type=int, help="so many tabulated trials instead")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.add_argument("--side", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    if given.side:
        with contextlib.redirect_stdout(sys.stderr):
            found = side(given.workers[0], given.trial_seconds[0], given.window, given.trials)
        print(json.dumps(found))
        return
    cases = [(w, s) for w in given.workers for s in (given.trial_seconds if given.trials is None else [0.0])]
    raw: dict[tuple[int, float], list[dict[str, Any]]] = {case: [] for case in cases}
    for _ in range(given.repeats):
        for workers, seconds in cases:
            command = [sys.executable, "-m", "tests.benchmarks.cluster_scaling", "--side"]
            command += ["--workers", str(workers), "--trial-seconds", str(seconds), "--window", str(given.window)]
            command += ["--trials", str(given.trials)] if given.trials else []
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                sys.exit(done.stderr)
            raw[workers, seconds].append(json.loads(done.stdout.strip().splitlines()[-1]))
            print(f"{workers} workers, {seconds:g} s: {raw[workers, seconds][-1]}", file=sys.stderr, flush=True)
    whole = {
        "n": given.repeats,
        "cases": [
            {"workers": workers, "trial_seconds": None if given.trials else seconds, **medians(runs), "raw": runs}
            for (workers, seconds), runs in raw.items()
        ],
    }
    print(json.dumps(whole) if given.json else json.dumps(whole, indent=1))


def medians(runs: Sequence[dict[str, float]]) -> dict[str, list[float]]:
    """{figure: [lowest, median, highest]} over the repeats."""
    return {figure: [f(run[figure] for run in runs) for f in (min, statistics.median, max)] for figure in runs[0]}


if __name__ == "__main__":
    main()
