"""Ray, started here or joined, and how many trials it runs at once."""

import atexit
import contextlib
import importlib.util
import logging
import math
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import ray

import search
import spaces
import trainables
from search import tuning
from search.cluster import preflight
from search.options import Options
from spaces import BadInput

LOOK_S = 3.0  # between two looks at which nodes there are
PACKAGES = (search, spaces, trainables)


class Interrupted(RuntimeError):
    """The sweep was stopped by a signal and can be resumed."""


class Capacity:
    """How many trials run at once: as many as were asked for, else as many as fit, looked up again as nodes come."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._looked, self._fit = -math.inf, 0

    def __call__(self) -> int:
        wanted = self._options.max_concurrent or sys.maxsize
        if self._options.address and self._options.max_concurrent:
            return wanted  # also more than fit now: what waits is what an autoscaler adds nodes for
        if time.monotonic() > self._looked + LOOK_S:
            self._looked = time.monotonic()
            self._fit = max(1, sum(fitting(n["Resources"], self._options) for n in preflight.alive()))
        return min(wanted, self._fit)


def fitting(have: Mapping[str, float], options: Options) -> int:
    """Trials that fit on a node with these resources: a trial takes its GPUs whole, or its fraction of one."""
    cpus, gpus = options.cpus_per_trial, options.gpus_per_trial
    by_cpu = have.get("CPU", 0.0) / cpus
    by_gpu = math.inf
    if 0 < gpus < 1:
        by_gpu = math.floor(1 / gpus + 1e-9) * math.floor(have.get("GPU", 0.0))
    elif gpus:
        by_gpu = have.get("GPU", 0.0) / gpus
    return math.floor(min(by_cpu, by_gpu) + 1e-9)


@contextlib.contextmanager
def connected(options: Options, say: Callable[[str], None]) -> Iterator[Capacity]:
    """Ray, started here or joined, while a signal raises Interrupted.

    Raises BadInput for what no node can give, and for a cluster on which the sweep could not run.
    """
    _refuse_unreachable(options.address)
    os.environ.update(tuning.ENVIRONMENT)
    level = logging.INFO if options.verbose else logging.ERROR
    for name in ("ray", "ray.tune", "ray.train"):
        logging.getLogger(name).setLevel(level)
    if not options.verbose:  # a snapshot that a full disk prevents is nobody's loss
        logging.getLogger("ray.tune.execution.experiment_state").setLevel(logging.CRITICAL)
    try:
        ray.init(
            address=options.address or "local",
            include_dashboard=False,
            log_to_driver=options.verbose,
            logging_level=level,
            runtime_env=_runtime_env(options),
        )
    except ConnectionError as error:
        raise BadInput(
            f"--address {options.address}: no Ray cluster answers there ({error}). One that asks for a token wants "
            "RAY_AUTH_MODE=token and its token here, too"
        ) from None
    except RuntimeError as error:
        if "ersion mismatch" not in str(error):
            raise
        raise BadInput(f"--address {options.address}: {' '.join(str(error).split())}") from None
    except SystemExit:  # Ray's own answer to SIGTERM
        raise Interrupted from None
    try:
        if options.address:
            preflight.wait_for_a_node(say)
        preflight.refuse_impossible([n["Resources"] for n in preflight.alive()], options)
        with raises_on_signal():
            if options.address:
                say(preflight.survey(options))
            yield Capacity(options)
    finally:
        ray.shutdown()


def _runtime_env(options: Options) -> dict[str, Any]:
    """What workers are given. Never a credential: a node has its own.

    On a cluster that is this code too, so that every node runs the same.
    """
    environment: dict[str, Any] = {"env_vars": tuning.WORKER_ENVIRONMENT}
    if options.address:
        packages = [str(Path(p.__file__).parent) for p in PACKAGES if p.__file__]
        environment["py_modules"] = [*packages, *_face()]
        environment["excludes"] = ["**/__pycache__/**"]
    return environment


def _face() -> list[str]:
    """distune.py, from which a user's file may import, as a folder, which is all that Ray takes; gone at our end."""
    found = importlib.util.find_spec("distune")
    if found is None or found.origin is None:
        return []
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    package = Path(folder) / "distune"
    package.mkdir()
    shutil.copy(found.origin, package / "__init__.py")
    return [str(package)]


def _refuse_unreachable(address: str | None) -> None:
    """Raise BadInput where nothing listens at the address: Ray would try for minutes."""
    if address is None or address in ("auto", "local"):
        return
    if address.startswith("ray://"):
        raise BadInput(
            f"--address {address}: the sweep's driver runs in the cluster; "
            f"use `ray job submit --address http://HEAD:8265 -- distune sweep ... --address auto`"
        )
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except (OSError, ValueError, OverflowError) as error:
        raise BadInput(f"--address {address}: no Ray cluster answers there ({error}); give HOST:PORT or auto") from None


@contextlib.contextmanager
def raises_on_signal() -> Iterator[None]:
    """Where no trial trains there is nothing to wait for: finished seeds are in the ledger, so leave at once."""

    def leave(number: int, frame: object) -> None:
        raise Interrupted

    with handling(leave):
        yield


@contextlib.contextmanager
def handling(handler: Any) -> Iterator[None]:
    """SIGINT and SIGTERM go to `handler`."""
    before = {s: signal.signal(s, handler) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for s, old in before.items():
            signal.signal(s, old)
