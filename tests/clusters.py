"""Ray clusters of several nodes on this machine, and a store that speaks S3 on 127.0.0.1."""

import contextlib
import socket
import subprocess
import sys
import time
import urllib.request

from ray.cluster_utils import Cluster

HEAD = {"num_cpus": 0, "include_dashboard": False}  # no trials on it


@contextlib.contextmanager
def cluster(nodes=0, head=HEAD, **node):
    """A head on which nothing runs, and so many nodes with a processor each; torn down in the end."""
    made = Cluster(initialize_head=True, head_node_args=head)
    try:
        for _ in range(nodes):
            add(made, **node)
        yield made
    finally:
        with contextlib.suppress(Exception):
            made.shutdown()


def add(made, **node):
    return made.add_node(**{"num_cpus": 1, **node})


def id_of(made, node):
    """Ray's number of a node."""
    sockets = {known["ObjectStoreSocketName"]: known["NodeID"] for known in made.global_state.node_table()}
    return sockets[node.plasma_store_socket_name]


@contextlib.contextmanager
def s3(bucket="bucket"):
    """moto's server with one bucket; yields what the environment must say for it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-c", f"import sys; from moto.server import main; main(['-p', '{port}'])"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    url = f"http://127.0.0.1:{port}"
    try:
        until = time.monotonic() + 60
        while True:
            try:
                urllib.request.urlopen(urllib.request.Request(f"{url}/{bucket}", method="PUT"), timeout=5).close()
                break
            except OSError:
                assert time.monotonic() < until, "the S3 server does not start"
                time.sleep(0.1)
        yield {
            "AWS_ENDPOINT_URL": url,
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "not-a-secret",
            "AWS_DEFAULT_REGION": "us-east-1",
            "NO_PROXY": "127.0.0.1",
        }
    finally:
        server.kill()
        server.wait()
