"""A verb as a RayJob: KubeRay's operator creates a Ray cluster for it, runs it and deletes the cluster afterwards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import ray
import yaml

from pipeline.cluster.jobs_api import entrypoint

KEPT_AFTER_END_S: Final = 600  # time to read the logs
HEAD: Final = {"cpu": "2", "memory": "8Gi"}
WORKER: Final = {"cpu": "8", "memory": "32Gi", "nvidia.com/gpu": "1"}


def ray_job(
    command: Sequence[str],
    variables: Mapping[str, str],
    image: str,
    workers: int,
    secrets: Sequence[str] = (),
) -> str:
    """The manifest of a RayJob, YAML for `kubectl create -f -`.

    Source: `ray.io/v1` RayJob, KubeRay 1.x (ray-operator/apis/ray/v1/rayjob_types.go).

    Args:
        command: the verb and its arguments.
        variables: environment variables of the job, none of them secret.
        image: container image with this project and Ray installed; KubeRay takes no code from here.
        workers: number of worker nodes, with a GPU each; a run uses those that are ready when it starts.
        secrets: Kubernetes secrets whose keys become environment variables of every container.
    """
    head = {
        # The head runs no tasks, which could overload it: a run does not survive the loss of the head.
        "rayStartParams": {"dashboard-host": "0.0.0.0", "num-cpus": "0"},
        "template": _pod("ray-head", image, HEAD, secrets),
    }
    group = {
        "groupName": "gpu",
        "replicas": workers,
        "minReplicas": workers,
        "maxReplicas": workers,
        "rayStartParams": {},
        "template": _pod("ray-worker", image, WORKER, secrets),
    }
    manifest = {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": {"generateName": f"sewd-{command[0]}-"},
        "spec": {
            "entrypoint": entrypoint(command),
            "runtimeEnvYAML": yaml.safe_dump({"env_vars": dict(variables)}),
            "backoffLimit": 0,  # creating the job again resumes the run; look at a failure before that
            "shutdownAfterJobFinishes": True,
            "ttlSecondsAfterFinished": KEPT_AFTER_END_S,
            "rayClusterSpec": {
                "rayVersion": ray.__version__,
                "headGroupSpec": head,
                "workerGroupSpecs": [group],
            },
        },
    }
    text: str = yaml.safe_dump(manifest, sort_keys=False, width=120)
    return text


def _pod(name: str, image: str, resources: Mapping[str, str], secrets: Sequence[str]) -> dict[str, Any]:
    container = {
        "name": name,
        "image": image,
        "resources": {"limits": dict(resources), "requests": dict(resources)},
        "envFrom": [{"secretRef": {"name": secret}} for secret in secrets],
    }
    return {"spec": {"containers": [container]}}
