"""What a local Ray has of this machine. Imports no Ray, and torch only where there may be a GPU."""

from __future__ import annotations

import ctypes
import importlib.util
import os
from pathlib import Path
from typing import Any, Final

SHARED_MEMORY: Final = "/dev/shm"
LOCAL_OBJECT_STORE_BYTES: Final = 2 * 2**30  # at most
MIN_OBJECT_STORE_BYTES: Final = 2**29  # room for a few chunks of twenty minutes
ENLARGE_SHARED_MEMORY: Final = (
    f"enlarge it to {LOCAL_OBJECT_STORE_BYTES >> 30} GiB (docker run --shm-size={LOCAL_OBJECT_STORE_BYTES >> 30}g)"
)

_CUDA_DRIVER: Final = "nvcuda.dll" if os.name == "nt" else "libcuda.so.1"  # comes with the driver, not with torch


def local_cpus() -> int:
    """Number of CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def local_gpus() -> int:
    """Number of GPUs that this process may use, by this installation of torch: `torch.cuda.device_count()`.

    Loading torch takes more than a second. A build for CPUs, or a machine without a driver for GPUs, has none.
    """
    if not _may_have_gpus():
        return 0
    import torch  # noqa: PLC0415 - see above

    return torch.cuda.device_count()


def _may_have_gpus() -> bool:
    version = _torch_version()
    if getattr(version, "hip", None):
        return True
    if not getattr(version, "cuda", None):
        return False
    try:
        ctypes.CDLL(_CUDA_DRIVER)
    except OSError:
        return False
    return True


def _torch_version() -> Any:
    """The module `torch.version`, which says what torch was built for, by itself."""
    torch = importlib.util.find_spec("torch")
    if torch is None or torch.origin is None:
        return None
    spec = importlib.util.spec_from_file_location("torch_version", Path(torch.origin).with_name("version.py"))
    if spec is None or spec.loader is None:
        return None
    version = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(version)
    return version
