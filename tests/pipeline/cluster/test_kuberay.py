"""The printed RayJob has the structure of KubeRay's `ray.io/v1`, and the requested content."""

from __future__ import annotations

import shlex

import pytest
import ray
import yaml

from pipeline.cluster.kuberay import ray_job
from tests.support.command import sewd

# The fields of RayJobSpec, RayClusterSpec, HeadGroupSpec, WorkerGroupSpec that are used, with their types, from
# KubeRay's ray-operator/apis/ray/v1.
JOB = {
    "entrypoint": str,
    "runtimeEnvYAML": str,
    "backoffLimit": int,
    "shutdownAfterJobFinishes": bool,
    "ttlSecondsAfterFinished": int,
    "rayClusterSpec": dict,
}
CLUSTER = {"rayVersion": str, "headGroupSpec": dict, "workerGroupSpecs": list}
HEAD = {"rayStartParams": dict, "template": dict}
GROUP = HEAD | {"groupName": str, "replicas": int, "minReplicas": int, "maxReplicas": int}
CONTAINER = {"name": str, "image": str, "resources": dict, "envFrom": list}


def check_fields(values, fields):
    assert {name: type(value) for name, value in values.items()} == fields


def manifest(**changes):
    arguments = {
        "command": ["transcribe", "s3://a b/", "--output", "s3://r", "--address", "auto"],
        "variables": {"AWS_REGION": "eu-west-1"},
        "image": "registry/sewd:1",
        "workers": 8,
        "secrets": ["s3-keys"],
    }
    return yaml.safe_load(ray_job(**(arguments | changes)))


def test_the_manifest_has_the_structure_of_a_ray_job():
    job = manifest()
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    assert job["metadata"] == {"generateName": "sewd-transcribe-"}
    check_fields(job["spec"], JOB)
    cluster = job["spec"]["rayClusterSpec"]
    check_fields(cluster, CLUSTER)
    check_fields(cluster["headGroupSpec"], HEAD)
    [group] = cluster["workerGroupSpecs"]
    check_fields(group, GROUP)
    for template in (cluster["headGroupSpec"]["template"], group["template"]):
        [container] = template["spec"]["containers"]
        check_fields(container, CONTAINER)
        assert container["image"] == "registry/sewd:1"
        assert container["envFrom"] == [{"secretRef": {"name": "s3-keys"}}]
        assert container["resources"]["limits"] == container["resources"]["requests"]
    for parameters in (cluster["headGroupSpec"]["rayStartParams"], group["rayStartParams"]):
        assert all(isinstance(value, str) for value in parameters.values()), "KubeRay accepts only strings"


def test_the_manifest_has_the_requested_command_variables_and_nodes():
    spec = manifest()["spec"]
    command = ["python", "-P", "-m", "jobs.main", "transcribe", "s3://a b/", "--output", "s3://r", "--address", "auto"]
    assert shlex.split(spec["entrypoint"]) == command
    assert yaml.safe_load(spec["runtimeEnvYAML"]) == {"env_vars": {"AWS_REGION": "eu-west-1"}}
    cluster = spec["rayClusterSpec"]
    assert cluster["rayVersion"] == ray.__version__
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0", "no tasks on the head"
    [group] = cluster["workerGroupSpecs"]
    assert (group["replicas"], group["minReplicas"], group["maxReplicas"]) == (8, 8, 8)
    [worker] = group["template"]["spec"]["containers"]
    assert worker["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert (
        manifest(secrets=[])["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]["envFrom"]
        == []
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--image", "x", "--workers", "0"], "workers"),
        (["--image", "x", "--workers", "some"], "workers"),
        ([], "--image"),
    ],
)
def test_a_request_without_image_or_workers_is_refused(options, message):
    done = sewd("submit", "--kuberay", *options, "--", "status", "run")
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stdout == ""


def test_the_command_prints_the_manifest():
    done = sewd("submit", "--kuberay", "--image", "x:1", "--require-env", "HF_TOKEN", "--", "status", "run")
    assert done.returncode == 0
    spec = yaml.safe_load(done.stdout)["spec"]
    assert spec["entrypoint"] == "python -P -m jobs.main status run"
    assert "HF_TOKEN" in spec["runtimeEnvYAML"]
