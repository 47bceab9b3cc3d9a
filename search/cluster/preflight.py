"""What a cluster is found to be before a sweep begins, and why one could not run there."""

import hashlib
import importlib.metadata
import os
import platform
import secrets
import shutil
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from search.options import Options
from search.revisions import PACKAGES
from search.storage import Storage
from spaces import BadInput
from trainables.cache import cache_folder

ANSWER_S = 120.0  # a node that has not answered after so long is not waited for
FIRST_NODE_S = 300.0
FOLDER = "preflight"
GIB = 2**30


@dataclass(frozen=True)
class Node:
    """What a node says of itself; memory, disk: bytes free. storage: why it cannot use the storage, or empty."""

    host: str
    versions: Mapping[str, str]
    memory: int
    disk: int
    storage: str


def alive() -> list[dict[str, Any]]:
    """Ray's record of every node that is there, those without processors for trials too."""
    return [node for node in ray.nodes() if node["Alive"]]


def wait_for_a_node(say: Callable[[str], None]) -> None:
    """A cluster that has just been started may have its head only, with no processor for trials."""
    until, told = time.monotonic() + FIRST_NODE_S, False
    while not any(n["Resources"].get("CPU") for n in alive()) and time.monotonic() < until:
        if not told:
            told = True
            say(f"the cluster has no node for trials yet; waiting up to {FIRST_NODE_S:g} s for the first")
        time.sleep(1.0)


def refuse_impossible(nodes: Sequence[Mapping[str, float]], options: Options) -> None:
    """Raise BadInput for a trial that no node has room for, whatever they have together."""
    for resource, wanted in (("CPU", options.cpus_per_trial), ("GPU", options.gpus_per_trial)):
        most = max((n.get(resource, 0.0) for n in nodes), default=0.0)
        if wanted > most:
            where = "no node has more than" if len(nodes) > 1 else "Ray has"
            raise BadInput(f"a trial asks for {wanted:g} {resource}, and {where} {most:g}")
    if not any(
        n.get("CPU", 0.0) >= options.cpus_per_trial and n.get("GPU", 0.0) >= options.gpus_per_trial for n in nodes
    ):
        raise BadInput(
            f"a trial asks for {options.cpus_per_trial:g} CPU and {options.gpus_per_trial:g} GPU, and no node has both"
        )


def survey(options: Options) -> str:
    """One line on the cluster. Raises BadInput where a node cannot do what others can, naming it and the difference."""
    nodes = [n for n in alive() if n["Resources"].get("CPU", 0.0) > 0]
    if len(nodes) > 1 and options.storage is None:
        raise BadInput(
            f"the cluster has {len(nodes)} nodes, and they share no folder that is known: give --storage, a folder "
            "that all of them see or a bucket (s3://..., gs://...)"
        )
    storage = None if options.storage is None else Storage(options.storage)
    sign = secrets.token_hex(8)
    if storage is not None:
        _refuse_unwritable(storage, sign)
    found = _ask(nodes, storage, sign)
    _refuse_different(found)
    _refuse_apart(found, storage, sign)
    return _described(nodes, found, options)


def _refuse_unwritable(storage: Storage, sign: str) -> None:
    try:
        storage.write(f"{FOLDER}/{sign}", sign.encode(), patience=10.0)
    except OSError as error:
        raise BadInput(f"--storage {storage.uri} cannot be written from here: {error}") from None


def _ask(nodes: Sequence[Mapping[str, Any]], storage: Storage | None, sign: str) -> dict[str, Node]:
    """{node id: what it says}. Raises BadInput for one that does not answer."""
    asked = {
        n["NodeID"]: _look.options(scheduling_strategy=NodeAffinitySchedulingStrategy(n["NodeID"], soft=False)).remote(
            storage, sign, n["NodeID"]
        )
        for n in nodes
    }
    found = {}
    for node in nodes:
        name = _name(node)
        try:
            found[node["NodeID"]] = ray.get(asked[node["NodeID"]], timeout=ANSWER_S)
        except GetTimeoutError:
            raise BadInput(f"node {name} has not answered for {ANSWER_S:g} s: take it out of the cluster") from None
        except RayError as error:
            last = str(error).strip().splitlines()[-1]
            raise BadInput(f"node {name} cannot run distune's workers: {last}") from None
    return found


@ray.remote(num_cpus=0, max_retries=0)
def _look(storage: Storage | None, sign: str, node: str) -> Node:
    """What this node is, and whether it reads what the driver wrote and writes beside it."""
    trouble = ""
    if storage is not None:
        try:
            if storage.read(f"{FOLDER}/{sign}") == sign.encode():
                storage.write(f"{FOLDER}/{sign}-{node}", sign.encode(), patience=10.0)
        except FileNotFoundError:
            trouble = "what the driver has written there is not there"
        except OSError as error:
            trouble = str(error).splitlines()[0]
    place = next(p for p in (cache_folder(), *cache_folder().parents) if p.exists())
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return Node(platform.node(), versions(), free, shutil.disk_usage(place).free, trouble)


def versions() -> dict[str, str]:
    """{package: version} of what training stands on, and a fingerprint of distune's own code, of this process."""
    import trainables

    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "none"
    root = Path(trainables.__file__).parent
    code = b"".join(path.read_bytes() for path in sorted(root.rglob("*.py")))
    return found | {"distune's code": hashlib.blake2b(code, digest_size=6).hexdigest()}


def _refuse_different(found: Mapping[str, Node]) -> None:
    """Trials of one sweep are compared with one another: they must not run on different code."""
    here = versions()
    for node in found.values():
        other = [f"{name} {has} (here {here[name]})" for name, has in node.versions.items() if has != here[name]]
        if other:
            raise BadInput(f"node {node.host} has {', '.join(other)}: install the same on every node")


def _refuse_apart(found: Mapping[str, Node], storage: Storage | None, sign: str) -> None:
    if storage is None:
        return
    for node in found.values():
        if node.storage:
            raise BadInput(f"--storage {storage.uri} cannot be used on node {node.host}: {node.storage}")
    came = storage.names(FOLDER)
    missing = [node.host for number, node in found.items() if f"{sign}-{number}" not in came]
    if missing:
        raise BadInput(
            f"--storage {storage.uri} is another place on node {missing[0]}: what it writes there does not come here"
        )
    for name in came:
        if name.startswith(sign):
            storage.remove(f"{FOLDER}/{name}")


def _described(nodes: Sequence[Mapping[str, Any]], found: Mapping[str, Node], options: Options) -> str:
    """Such as `cluster: 4 nodes, 64 CPU, 8 GPU (A100 x8), 12 GiB of memory free on the fullest`."""
    cpus = sum(n["Resources"].get("CPU", 0.0) for n in nodes)
    gpus = sum(n["Resources"].get("GPU", 0.0) for n in nodes)
    kinds = Counter[str]()
    for node in nodes:
        for name in node["Resources"]:
            if name.startswith("accelerator_type:"):
                kinds[name.partition(":")[2]] += int(node["Resources"].get("GPU", 0.0))
    of = f" ({', '.join(f'{kind} x{count}' for kind, count in sorted(kinds.items()))})" if kinds else ""
    memory = min(node.memory for node in found.values()) / GIB
    disk = min(node.disk for node in found.values()) / GIB
    kept = f"; storage {options.storage}, written from every node" if options.storage else ""
    return (
        f"cluster: {len(nodes)} nodes with {cpus:g} CPU and {gpus:g} GPU{of}; on the fullest {memory:.1f} GiB of "
        f"memory and {disk:.1f} GiB of disk free; the same versions on all{kept}"
    )


def _name(node: Mapping[str, Any]) -> str:
    return f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})"
