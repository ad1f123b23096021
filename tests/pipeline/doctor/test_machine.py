"""The checks of the machine, with files as other kernels and containers have them."""

from __future__ import annotations

import resource

from pipeline.doctor import machine
from pipeline.doctor.check import Outcome


def test_a_container_with_less_time_than_cpus_is_named(tmp_path):
    quota = tmp_path / "cpu.max"
    quota.write_text("50000 100000\n")
    check = machine.processors(quota)
    assert check.outcome is Outcome.WARNING
    assert "the time of 0.5" in check.message
    quota.write_text("max 100000\n")
    assert "the time of" not in machine.processors(quota).message


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
    check = machine.memory(info)
    assert (check.outcome, check.message) == (Outcome.WARNING, "1.0 of 4.0 GiB available")


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
