"""Faults on a real Ray."""

import ray  # noqa: F401 - brings psutil along, and makes it importable
