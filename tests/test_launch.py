"""The launch scripts and manifests, as far as they can be checked without a cluster."""

import copy
import json
import pathlib
import re
import shlex
import subprocess
import sys

import kubernetes_validate
import pytest
import yaml
from kubernetes_validate import ValidationError

from jpeglm_jax.hardware.chips import MEMORY_FRACTION

LAUNCH = pathlib.Path(__file__).parents[1] / "launch"
MANIFESTS = sorted(LAUNCH.glob("*.yaml"))
SCRIPTS = [LAUNCH / "tpu_vm.sh", LAUNCH / "slurm.sbatch"]

# The fields of a JobSet that the manifests may use, and the values of its enumerations: the types
# in kubernetes-sigs/jobset, api/jobset/v1alpha2/jobset_types.go. The schemas of Kubernetes do not
# contain a JobSet, but the template of each of its jobs.
JOBSET = {"replicatedJobs", "network", "successPolicy", "failurePolicy", "suspend", "coordinator"}
REPLICATED_JOB = {"name", "replicas", "template", "groupName", "dependsOn"}
NETWORK = {"enableDNSHostnames", "subdomain", "publishNotReadyAddresses"}
FAILURE_POLICY = {"maxRestarts", "restartStrategy", "rules"}
FAILURE_RULE = {"name", "action", "targetReplicatedJobs", "onJobFailureReasons"}
ACTIONS = {"FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts"}
REASONS = {
    "BackoffLimitExceeded",
    "DeadlineExceeded",
    "FailedIndexes",
    "MaxFailedIndexesExceeded",
    "PodFailurePolicy",
}


def jobs_of(manifest):
    """The jobs that a JobSet creates, as manifests of their own."""
    return [
        {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": {"name": job["name"]},
            "spec": job["template"]["spec"],
        }
        for job in manifest["spec"]["replicatedJobs"]
    ]


def check(manifest):
    version = kubernetes_validate.latest_version()
    for job in jobs_of(manifest):
        kubernetes_validate.validate(job, version, strict=True)


def load(path):
    return yaml.safe_load(path.read_text())


def container_of(manifest):
    (job,) = jobs_of(manifest)
    (container,) = job["spec"]["template"]["spec"]["containers"]
    return job, container


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_finds_nothing(path):
    found = subprocess.run(
        ["shellcheck", path],
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stdout + found.stderr


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_jobs_conform_to_the_kubernetes_schemas(path):
    check(load(path))


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_a_misspelt_field_is_found(path):
    manifest = copy.deepcopy(load(path))
    pod = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    pod["terminationGraceSeconds"] = pod.pop("terminationGracePeriodSeconds")
    with pytest.raises(ValidationError):
        check(manifest)


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_a_jobset_has_known_fields_only(path):
    manifest = load(path)
    assert manifest["apiVersion"] == "jobset.x-k8s.io/v1alpha2" and manifest["kind"] == "JobSet"
    assert set(manifest) == {"apiVersion", "kind", "metadata", "spec"}
    spec = manifest["spec"]
    assert set(spec) <= JOBSET
    assert set(spec.get("network", {})) <= NETWORK
    assert set(spec["failurePolicy"]) <= FAILURE_POLICY
    for rule in spec["failurePolicy"]["rules"]:
        assert set(rule) <= FAILURE_RULE
        assert rule["action"] in ACTIONS
        assert set(rule["onJobFailureReasons"]) <= REASONS
    for job in spec["replicatedJobs"]:
        assert set(job) <= REPLICATED_JOB


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_errors_are_not_restarted_and_all_machines_are_one_job(path):
    job, container = container_of(load(path))
    (rule,) = job["spec"]["podFailurePolicy"]["rules"]
    assert rule["action"] == "FailJob"
    assert rule["onExitCodes"]["values"] == [1, 2]
    assert rule["onExitCodes"]["containerName"] == container["name"]
    assert job["spec"]["parallelism"] == job["spec"]["completions"]


def test_gpu_processes_are_as_many_as_pods_and_know_the_first():
    manifest = load(LAUNCH / "gke_gpu.yaml")
    job, container = container_of(manifest)
    variables = {v["name"]: v.get("value") for v in container["env"]}
    assert int(variables["JAX_NUM_PROCESSES"]) == job["spec"]["completions"]
    # JobSet names pods JOBSET-JOB-REPLICA-INDEX, in a network named after the JobSet.
    name = manifest["metadata"]["name"]
    host, port = variables["JAX_COORDINATOR_ADDRESS"].split(":")
    assert host == f"{name}-{job['metadata']['name']}-0-0.{name}"
    assert {"containerPort": int(port)} in container["ports"]


def test_gpu_launchers_give_jax_the_memory_that_compiling_ahead_of_time_counts_with():
    variables = container_of(load(LAUNCH / "gke_gpu.yaml"))[1]["env"]
    values = {v["name"]: v.get("value") for v in variables}
    assert float(values["XLA_PYTHON_CLIENT_MEM_FRACTION"]) == MEMORY_FRACTION
    script = (LAUNCH / "slurm.sbatch").read_text()
    (value,) = re.findall(r"^export XLA_PYTHON_CLIENT_MEM_FRACTION=(\S+)$", script, re.MULTILINE)
    assert float(value) == MEMORY_FRACTION


def test_a_slice_has_as_many_chips_as_its_topology():
    job, container = container_of(load(LAUNCH / "gke_tpu.yaml"))
    selector = job["spec"]["template"]["spec"]["nodeSelector"]
    sides = map(int, selector["cloud.google.com/gke-tpu-topology"].split("x"))
    chips = container["resources"]["limits"]["google.com/tpu"] * job["spec"]["parallelism"]
    assert chips == next(sides) * next(sides)


def commands():
    """The training command of every launcher, as a list of arguments."""
    for path in SCRIPTS:
        text = path.read_text().replace("\\\n", " ")
        (line,) = re.findall(r"python -m jpeglm_jax\.train (.*?)(?:\"$| \|\|)", text, re.MULTILINE)
        yield path.name, shlex.split(line.replace("'", ""))
    for path in MANIFESTS:
        yield path.name, container_of(load(path))[1]["args"]


# A process parses flags once: each command is parsed in a fork of one with all imports.
PARSE = """
import json, os, runpy, sys
from absl import flags
from data_pipelines.utils import command
import jpeglm_jax.train

def parse(main, *errors):
    values = flags.FLAGS
    rest = values(sys.argv)
    found = [rest[1:], values.config.preset, values.config.data.shards, values.workdir]
    print(json.dumps([name, *found, values.distributed]), flush=True)

command.run = parse
for name, arguments in json.loads(sys.argv[1]):
    process = os.fork()
    if not process:
        sys.argv = ["train", *arguments]  # the flag of the config reads it, too
        runpy.run_module("jpeglm_jax.train", run_name="__main__")
        os._exit(0)
    assert os.waitpid(process, 0)[1] == 0, name
"""


def test_the_program_accepts_the_commands():
    found = subprocess.run(
        [sys.executable, "-c", PARSE, json.dumps(list(commands()))],
        cwd=LAUNCH.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    parsed = [json.loads(line) for line in found.stdout.splitlines()]
    assert len(parsed) == len(SCRIPTS) + len(MANIFESTS)
    for name, rest, preset, shards, workdir, detects in parsed:
        assert not rest and preset in ("7b", "7b_h100x32") and shards and workdir, name
        assert detects or name == "gke_gpu.yaml", "which sets the coordinator itself"


def test_the_image_copies_existing_paths():
    lines = (LAUNCH / "Dockerfile").read_text().splitlines()
    copied = [path for line in lines if line.startswith("COPY ") for path in line.split()[1:-1]]
    assert {"setup.py", "jpeglm_jax", "data_pipelines", "configs"} <= set(copied)
    for path in copied:
        assert (LAUNCH.parent / path).exists(), path
    entry = next(line for line in lines if line.startswith("ENTRYPOINT "))
    assert json.loads(entry.removeprefix("ENTRYPOINT "))[1:] == ["-m", "jpeglm_jax.train"]
