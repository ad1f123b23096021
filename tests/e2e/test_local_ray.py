"""The processes of the Ray that a local run starts."""

import subprocess
import sys

LIST = """
import psutil
import ray

from pipeline.cluster.ray_start import connect

with connect("local"):
    assert ray.get(ray.remote(lambda: 3).remote()) == 3
    for process in psutil.Process().children(recursive=True):
        print(" ".join(process.cmdline()))
"""


def test_there_is_no_dashboard_and_no_autoscaler():
    ended = subprocess.run([sys.executable, "-c", LIST], capture_output=True, text=True, timeout=180, check=True)
    for needed in ("gcs_server", "raylet/raylet"):
        assert needed in ended.stdout
    for spared in ("dashboard/dashboard.py", "monitor.py --logs-dir"):
        assert spared not in ended.stdout
