"""Faults in a real Ray: processes, nodes and the driver are killed, and the results are compared."""

import os

os.environ.setdefault("RAY_raylet_start_wait_time_s", "180")  # read when Ray is loaded; for busy machines

import ray  # noqa: F401 - ships psutil, and makes it importable
