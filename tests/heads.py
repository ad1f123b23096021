"""A Ray of its own for a test: `ray start --head` with the Jobs API on loopback, ended by pid."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.s3 import free_port

START_S = 90


@dataclass(frozen=True)
class Head:
    """A head that runs: where its Jobs API is, what Prometheus scrapes, and the process of `ray start --block`."""

    address: str
    metrics: str
    process: subprocess.Popen

    def kill(self) -> None:
        """All of it at once, as a machine that is lost."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@contextlib.contextmanager
def head(directory: Path, variables: Mapping[str, str] | None = None, cpus: int = 3) -> Iterator[Head]:
    """`directory` takes Ray's sessions: sockets lie in it, so that its path has to be short."""
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
    # Its `python` is ours, as on a machine where the project is installed; not its code.
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {key: value for key, value in os.environ.items() if key not in ("RAY_ADDRESS", "PYTHONPATH")}
    # No token that this user may happen to have.
    environment |= {"PATH": path, "RAY_AUTH_MODE": "disabled", **(variables or {})}
    log = (directory / "start.log").open("wb")
    process = subprocess.Popen(
        [sys.executable, "-m", "ray.scripts.scripts", *arguments],
        env=environment,
        stdout=log,
        stderr=log,
        cwd=directory,
        start_new_session=True,
    )
    started = Head(f"http://127.0.0.1:{dashboard}", f"http://127.0.0.1:{metrics}/metrics", process)
    try:
        _wait(started)
        yield started
    finally:
        started.kill()
        log.close()


def _wait(started: Head) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        assert started.process.poll() is None, "ray start has ended"
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{started.address}/api/jobs/", timeout=5) as answer:
            if answer.status == 200:
                return
        time.sleep(0.3)
    raise TimeoutError("the Jobs API did not come up")
