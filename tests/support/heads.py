"""A Ray of its own for a test: `ray start --head` with the Jobs API on loopback, ended by pid."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID, FAKE_HEAD_NODE_TYPE

from tests.support.s3 import free_port

START_S = 90


@dataclass(frozen=True)
class Head:
    """A running head.

    Attributes:
        cluster: its HOST:PORT.
        address: URL of its Jobs API.
        metrics: URL that Prometheus scrapes.
        process: of `ray start --block`.
    """

    cluster: str
    address: str
    metrics: str
    process: subprocess.Popen

    def kill(self) -> None:
        """Kill all its processes at once, as the loss of the node would."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@contextlib.contextmanager
def head(
    directory: Path,
    variables: Mapping[str, str] | None = None,
    cpus: int = 3,
    workers: Mapping[str, Mapping] | None = None,
) -> Iterator[Head]:
    """A head on this machine, with an autoscaler if there are node types for it.

    Args:
        directory: for Ray's sessions, and the head's working directory; as sockets are stored in it, its path must be
            short.
        variables: environment variables of the head and of its workers.
        cpus: CPUs of the head.
        workers: node types that the autoscaler may start on this machine, by name.
    """
    port, dashboard, metrics = free_port(), free_port(), free_port()
    arguments = [
        *("start", "--head", "--block", f"--num-cpus={cpus}", "--node-ip-address=127.0.0.1", f"--port={port}"),
        *("--include-dashboard=true", f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={free_port()}"),
        *(
            f"--metrics-export-port={metrics}",
            "--object-store-memory=300000000",
            f"--temp-dir={directory}",
            "--disable-usage-stats",
        ),
    ]
    # Its `python` is that of the tests, as on a node where the project is installed. Its code comes with the jobs.
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {key: value for key, value in os.environ.items() if key not in ("RAY_ADDRESS", "PYTHONPATH")}
    # No authentication: this user may have a token for another Ray.
    environment |= {"PATH": path, "RAY_AUTH_MODE": "disabled", **(variables or {})}
    if workers is not None:
        arguments.append(f"--autoscaling-config={_autoscaling(directory, f'127.0.0.1:{port}', workers)}")
        environment |= {"RAY_FAKE_CLUSTER": "1", "RAY_enable_autoscaler_v2": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"}
        environment |= {
            "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
            "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
        }
        environment |= {"RAY_NODE_TYPE_NAME": FAKE_HEAD_NODE_TYPE, "HOME": str(directory)}
    log = (directory / "start.log").open("wb")
    process = subprocess.Popen(
        [sys.executable, "-m", "ray.scripts.scripts", *arguments],
        env=environment,
        stdout=log,
        stderr=log,
        cwd=directory,
        start_new_session=True,
    )
    started = Head(f"127.0.0.1:{port}", f"http://127.0.0.1:{dashboard}", f"http://127.0.0.1:{metrics}/metrics", process)
    try:
        _wait(started)
        yield started
    finally:
        started.kill()
        log.close()


def _autoscaling(directory: Path, address: str, workers: Mapping[str, Mapping]) -> Path:
    """The configuration that Ray's `AutoscalingCluster` would write. That class stops every Ray on the machine."""
    head_type = {"resources": {"CPU": 0}, "node_config": {}, "min_workers": 0, "max_workers": 0}
    types = {name: {"node_config": {}, "min_workers": 0, **node_type} for name, node_type in workers.items()}
    config = {
        "cluster_name": "grows",
        "max_workers": sum(node_type["max_workers"] for node_type in types.values()),
        "upscaling_speed": 100,
        "idle_timeout_minutes": 0.1,
        "provider": {
            # `fake_multinode`: under that name Ray needs a file that is not in its wheel.
            "type": "external",
            "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
            "launch_multiple": True,
            "head_node_id": FAKE_HEAD_NODE_ID,
            "gcs_address": address,
        },
        "auth": {},
        "available_node_types": {FAKE_HEAD_NODE_TYPE: head_type, **types},
        "head_node_type": FAKE_HEAD_NODE_TYPE,
        "docker": {},
        "file_mounts": {},
        "cluster_synced_files": [],
        "file_mounts_sync_continuously": False,
        "initialization_commands": [],
        "setup_commands": [],
        "head_setup_commands": [],
        "worker_setup_commands": [],
        "head_start_ray_commands": [],
        "worker_start_ray_commands": [],
    }
    path = directory / "ray_bootstrap_config.yaml"  # the name that `ray up` gives it
    path.write_text(json.dumps(config))
    return path


def _wait(started: Head) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        assert started.process.poll() is None, "ray start ended"
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{started.address}/api/jobs/", timeout=5) as answer:
            if answer.status == 200:
                return
        time.sleep(0.3)
    raise TimeoutError("the Jobs API did not start")
