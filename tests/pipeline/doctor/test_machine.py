"""The checks of the machine, with files as other kernels and containers have them."""

from __future__ import annotations

import resource
from pathlib import Path

from pipeline.doctor import machine
from pipeline.doctor.check import Outcome


def write(folder: Path, **files: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)
    return folder


def test_a_container_with_less_time_than_cpus_is_named(tmp_path):
    write(tmp_path / "v1" / "cpu", cpu__cfs_quota_us="50000\n", cpu__cfs_period_us="100000\n")
    for groups in (write(tmp_path / "v2", cpu__max="50000 100000\n"), tmp_path / "v1"):
        check = machine.processors(groups)
        assert check.outcome is Outcome.WARNING
        assert "the time of 0.5" in check.message
    write(tmp_path / "v1" / "cpu", cpu__cfs_quota_us="-1\n")
    for groups in (write(tmp_path / "v2", cpu__max="max 100000\n"), tmp_path / "v1", tmp_path):
        assert "the time of" not in machine.processors(groups).message


def test_instructions_are_named_and_their_lack_is(tmp_path, monkeypatch):
    monkeypatch.setattr(machine.platform, "machine", lambda: "x86_64")
    info = tmp_path / "cpuinfo"
    info.write_text("processor : 0\nflags : fpu sse2 avx2 avx512f avx512_vnni\n")
    found = machine.instructions(info)
    assert (found.outcome, found.message) == (Outcome.OK, "AVX2, AVX-512, VNNI; `--dtype int8` is exact")
    info.write_text("flags : fpu sse2\n")
    assert machine.instructions(info).outcome is Outcome.WARNING


def test_little_memory_is_named(tmp_path):
    info = tmp_path / "meminfo"
    info.write_text("MemTotal: 4194304 kB\nMemFree: 1 kB\nMemAvailable: 1048576 kB\n")
    check = machine.memory(info, tmp_path)
    assert (check.outcome, check.message) == (Outcome.WARNING, "1.0 of 4.0 GiB available")


def test_the_limit_of_a_container_counts_where_it_is_smaller(tmp_path):
    info = tmp_path / "meminfo"
    info.write_text("MemTotal: 67108864 kB\nMemAvailable: 33554432 kB\n")
    gib = 2**30
    stat = f"anon {gib}\nactive_file {gib // 2}\ninactive_file {gib}\n"
    total = "".join(f"{kind}{line}\n" for line in stat.splitlines() for kind in ("", "total_"))
    second = {"memory__max": f"{6 * gib}\n", "memory__current": f"{4 * gib}\n", "memory__stat": stat}
    first = {
        "memory__limit_in_bytes": f"{6 * gib}\n",
        "memory__usage_in_bytes": f"{4 * gib}\n",
        "memory__stat": total,
    }
    folders = write(tmp_path / "v2", **second), write(tmp_path / "v1" / "memory", **first).parent
    for groups in folders:
        check = machine.memory(info, groups)
        assert check.outcome is Outcome.WARNING
        assert check.message == "3.5 of 6.0 GiB available, by the limit of the container"
    write(tmp_path / "v2", memory__max="max\n")
    write(tmp_path / "v1" / "memory", memory__limit_in_bytes="9223372036854771712\n")
    for groups in folders:
        assert machine.memory(info, groups).message == "32.0 of 64.0 GiB available"


def test_few_open_files_are_named():
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, before[1]))
    try:
        check = machine.open_files()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert check.outcome is Outcome.WARNING
    assert "1,024 open" in check.message


def test_a_temporary_directory_that_does_not_exist_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / "gone"))
    assert machine.temporary_directory().outcome is Outcome.WARNING
