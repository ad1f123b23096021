"""What the workers of a job get of the driver's `sys.path`; with a Ray, see tests/e2e/test_installed.py."""

from __future__ import annotations

from pathlib import Path

from ray.core.generated.common_pb2 import JobConfig as JobConfigMessage

from pipeline.cluster.ray_private import IsolatedJobConfig

ROOT = Path(__file__).parents[3]


def test_workers_get_only_the_directory_of_this_project(tmp_path):
    config = IsolatedJobConfig(_py_driver_sys_path=[str(tmp_path), str(ROOT), str(ROOT / "jobs")])
    assert list(JobConfigMessage.FromString(config._serialize()).py_driver_sys_path) == [str(ROOT)]
