"""What a local Ray has of this machine. Imports neither Ray nor torch."""

from __future__ import annotations

import os
from typing import Final

SHARED_MEMORY: Final = "/dev/shm"
LOCAL_OBJECT_STORE_BYTES: Final = 2 * 2**30  # at most
MIN_OBJECT_STORE_BYTES: Final = 2**29  # room for a few chunks of twenty minutes
ENLARGE_SHARED_MEMORY: Final = (
    f"enlarge it to {LOCAL_OBJECT_STORE_BYTES >> 30} GiB (docker run --shm-size={LOCAL_OBJECT_STORE_BYTES >> 30}g)"
)


def local_cpus() -> int:
    """Number of CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
