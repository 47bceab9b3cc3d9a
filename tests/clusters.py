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


SERVER = """
import sys
from pathlib import Path
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import run_simple

app, failures = DomainDispatcherApplication(create_backend_app), Path(sys.argv[2])

def sometimes(environ, answer):
    left = int(failures.read_text() or 0) if failures.exists() else 0
    if left:
        failures.write_text(str(left - 1))
        environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        answer("503 Slow Down", [("Content-Length", "0")])
        return [b""]
    return app(environ, answer)

run_simple("127.0.0.1", int(sys.argv[1]), sometimes, threaded=True)
"""


@contextlib.contextmanager
def s3(failures="/nowhere", bucket="bucket"):
    """moto's server with one bucket; yields what the environment must say for it.

    failures: a file with the number of requests to come that are answered with 503.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER, str(port), str(failures)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
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
