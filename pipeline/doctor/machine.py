"""The machine: processors and their instructions, memory, shared memory, open files, the temporary directory."""

from __future__ import annotations

import math
import os
import platform
import resource
import shutil
import tempfile
from pathlib import Path
from typing import Final

from pipeline.cluster.local_machine import ENLARGE_SHARED_MEMORY, MIN_OBJECT_STORE_BYTES, SHARED_MEMORY, local_cpus
from pipeline.doctor.check import Check, ok, warning

CPU_INFO: Final = Path("/proc/cpuinfo")
CONTROL_GROUPS: Final = Path("/sys/fs/cgroup")  # in a container, its own group is the root
MEMORY_INFO: Final = Path("/proc/meminfo")
# Of instruction sets, those that decide how fast the model is, by the names that Linux gives them.
INSTRUCTIONS: Final = {
    "avx2": "AVX2",
    "avx512f": "AVX-512",
    "avx512_vnni": "VNNI",
    "avx512_bf16": "BF16",
    "amx_int8": "AMX",
}
MIN_MEMORY_GIB: Final = 4.0  # Ray's processes take two, and a recogniser of the smallest model one
MIN_TEMPORARY_GIB: Final = 2.0  # Ray's logs, copies of checkpoints, and what does not fit in the object store
MIN_OPEN_FILES: Final = 4096


def machine_checks() -> list[Check]:
    """All checks of this module."""
    return [processors(), instructions(), memory(), shared_memory(), open_files(), temporary_directory()]


def processors(groups: Path = CONTROL_GROUPS) -> Check:
    """The CPUs that this process may use, and the limit of its container on their time."""
    cpus, load = local_cpus(), os.getloadavg()[0]
    message = f"{platform.system()} {platform.machine()}, {cpus} CPUs, load {load:.1f}"
    limit = _quota_cpus(groups)
    if limit is not None and limit < cpus:
        return warning(
            "CPUs",
            f"{message}; the container has the time of {limit:g}",
            f"give the container {cpus} CPUs, or the command `taskset` {max(1, int(limit))}: threads that wait for "
            "their turn make each other slow",
        )
    if load > 2 * cpus:
        return warning(
            "CPUs", message, "wait until other work has ended: decoding and the model share the CPUs with it"
        )
    return ok("CPUs", message)


def _quota_cpus(groups: Path) -> float | None:
    """CPUs by the quota of the control group, of version 2 or 1; None where there is none."""
    try:
        if (current := groups / "cpu.max").exists():
            quota, period = current.read_text().split()
        else:
            quota, period = ((groups / "cpu" / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        return int(quota) / int(period) if int(quota) > 0 else None
    except (OSError, ValueError):  # version 2 writes "max" where there is no limit, version 1 -1
        return None


def instructions(info: Path = CPU_INFO) -> Check:
    """The instruction sets that the model uses on CPUs."""
    try:
        flags = next(line for line in info.read_text().splitlines() if line.startswith(("flags", "Features"))).split()
    except (OSError, StopIteration):
        return ok("instructions", f"not known for {platform.machine()}")
    found = [name for flag, name in INSTRUCTIONS.items() if flag in flags]
    int8 = "`--dtype int8` is exact" if "VNNI" in found else "`--dtype int8` computes in float32"
    message = f"{', '.join(found) or 'none of AVX2, AVX-512 and VNNI'}; {int8}"
    if platform.machine() in ("x86_64", "AMD64") and "AVX2" not in found:
        return warning(
            "instructions", message, "use a machine with AVX2 or a GPU: the model is several times slower here"
        )
    return ok("instructions", message)


def memory(info: Path = MEMORY_INFO, groups: Path = CONTROL_GROUPS) -> Check:
    """Memory that is available now: of the machine, or of the container where that has less."""
    try:
        lines = dict(line.split(":", 1) for line in info.read_text().splitlines())
        total, available = (int(lines[name].split()[0]) / 2**20 for name in ("MemTotal", "MemAvailable"))
    except (OSError, KeyError, ValueError):
        return ok("memory", "not known on this system")
    limit, free = _container_memory(groups)
    available = min(available, free)
    message = f"{available:.1f} of {min(total, limit):.1f} GiB available"
    if limit < total:
        message += ", by the limit of the container"
    if available < MIN_MEMORY_GIB:
        return warning(
            "memory",
            message,
            f"free {MIN_MEMORY_GIB:g} GiB: a run whose processes are killed for memory is slow, or fails",
        )
    return ok("memory", message)


def _container_memory(groups: Path) -> tuple[float, float]:
    """Limit of the control group, of version 2 or 1, and what is left of it, in GiB; infinite where there is none.

    Cached files do not count as used: the kernel drops them first. Ray's monitor, which ends workers, counts so too.
    """
    if (groups / "memory.max").exists():
        folder, limit, usage, prefix = groups, "memory.max", "memory.current", ""
    else:
        folder, limit, usage, prefix = groups / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_"
    try:
        stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        cached = sum(int(stat[f"{prefix}{kind}_file"]) for kind in ("active", "inactive"))
        most, used = (int((folder / name).read_text()) for name in (limit, usage))
    except (OSError, KeyError, ValueError):  # version 2 writes "max" where there is no limit
        return math.inf, math.inf
    return most / 2**30, max(0, most - used + cached) / 2**30


def shared_memory(directory: str = SHARED_MEMORY) -> Check:
    """Room for Ray's object store, in which chunks wait between the stages."""
    try:
        free = shutil.disk_usage(directory).free
    except OSError:
        return ok("shared memory", f"there is no {directory} on this system: Ray keeps its objects elsewhere")
    message = f"{directory} has {free / 2**30:.2f} GiB free"
    if free < MIN_OBJECT_STORE_BYTES:
        return warning(
            "shared memory",
            f"{message}: chunks wait on the disk instead, which is slower",
            ENLARGE_SHARED_MEMORY,
        )
    return ok("shared memory", message)


def open_files() -> Check:
    """How many files and connections a process may have open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    message = f"a process may have {'any number' if soft == resource.RLIM_INFINITY else format(soft, ',')} open"
    if soft != resource.RLIM_INFINITY and soft < MIN_OPEN_FILES:
        can = (
            "" if hard == resource.RLIM_INFINITY or hard >= 65536 else f" (now at most {hard:,}: raise the hard limit)"
        )
        return warning(
            "open files",
            message,
            f"ulimit -n 65536{can}, in a container --ulimit nofile=65536: Ray needs several for each worker",
        )
    return ok("open files", message)


def temporary_directory() -> Check:
    """Room for logs, copies of checkpoints, and objects that Ray moves out of memory."""
    directory = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
    try:
        free = shutil.disk_usage(directory).free / 2**30
    except OSError as error:
        return warning(
            "temporary files", f"{directory}: {error.strerror}", "set RAY_TMPDIR and TMPDIR to directories that exist"
        )
    message = f"{directory} has {free:.1f} GiB free"
    if free < MIN_TEMPORARY_GIB:
        return warning(
            "temporary files", message, "remove files, or set RAY_TMPDIR and TMPDIR to a disk with more room"
        )
    return ok("temporary files", message)
