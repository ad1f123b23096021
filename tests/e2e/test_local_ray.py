"""The processes of the Ray that a local run starts, and who may use it."""

import os
import subprocess
import sys

LIST = """
import os
import subprocess
import sys

import psutil
import ray

from pipeline.cluster.ray_start import connect

with connect("local"):
    assert ray.get(ray.remote(lambda: 3).remote()) == 3
    for process in psutil.Process().children(recursive=True):
        print(" ".join(process.cmdline()))
    address = ray.get_runtime_context().gcs_address
    for mode in ("token", "disabled"):
        asked = subprocess.run(
            [sys.executable, "-c", sys.argv[1], address],
            env=os.environ | {"RAY_AUTH_MODE": mode}, capture_output=True, text=True, timeout=120,
        )
        print("asked with", mode, asked.stdout.strip() or asked.stderr)
"""
ASK = """
import sys
from ray._raylet import GcsClient
print("answered", len(GcsClient(address=sys.argv[1]).internal_kv_keys(b"", b"", timeout=20)) >= 0)
"""


def test_there_is_no_dashboard_no_autoscaler_and_no_answer_without_a_token():
    # As for users, whose environment says nothing about tokens.
    environment = {name: value for name, value in os.environ.items() if name != "RAY_AUTH_MODE"}
    ended = subprocess.run(
        [sys.executable, "-c", LIST, ASK], capture_output=True, text=True, timeout=180, check=True, env=environment
    )
    for needed in ("gcs_server", "raylet/raylet"):
        assert needed in ended.stdout
    for spared in ("dashboard/dashboard.py", "monitor.py --logs-dir"):
        assert spared not in ended.stdout
    assert "asked with token answered True" in ended.stdout
    assert "asked with disabled answered" not in ended.stdout
    assert "Unauthenticated" in ended.stdout
