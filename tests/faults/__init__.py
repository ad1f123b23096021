"""Faults on a real Ray."""

import os

os.environ.setdefault("RAY_raylet_start_wait_time_s", "180")  # read when Ray is loaded: for machines that are busy

import ray  # noqa: F401 - brings psutil along, and makes it importable
