"""What keeps Ray from starting is one error of this project, which says what to do."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest
import ray

from pipeline.cluster import ray_start
from pipeline.errors import RunFailedError, UsageError

GIB = 2**30


@pytest.fixture
def no_ray(monkeypatch, tmp_path):
    """Ray is not started: `ray.init` raises the error that a test sets."""
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray_start, "ray_temporary_directory", lambda: str(tmp_path / "ray"))
    monkeypatch.setattr(ray_start, "MAX_SOCKET_NAME", 1000)

    def fail_with(error):
        def init(**_):
            raise error

        monkeypatch.setattr(ray, "init", init)

    return fail_with


@pytest.mark.parametrize(
    "error",
    [
        Exception("The current node timed out during startup. This could happen because some of the raylet failed"),
        RuntimeError("Failed to start GCS."),
        TimeoutError("Timed out while waiting for the dashboard"),
        ray.exceptions.RaySystemError("System error: Broken pipe"),
        ConnectionError("ray is not reachable"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_ray_that_does_not_start_fails_the_run_with_what_to_do(no_ray, error, tmp_path):
    no_ray(error)
    with pytest.raises(RunFailedError, match="did not start on this machine") as raised, ray_start.connect("local"):
        pass
    assert "Run the same command again" in str(raised.value)
    assert str(tmp_path) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_bug_while_ray_starts_is_raised(no_ray):
    no_ray(ZeroDivisionError())
    with pytest.raises(ZeroDivisionError), ray_start.connect("local"):
        pass


@pytest.mark.parametrize("length", [43, 44, 107, 200])
def test_a_temporary_directory_with_a_long_name_is_refused(monkeypatch, length):
    directory = "/tmp/" + "x" * (length - 9) + "/ray"
    monkeypatch.setattr(os, "getpid", lambda: 4_194_304)
    monkeypatch.setattr(ray_start, "ray_temporary_directory", lambda: directory)
    monkeypatch.setattr(os, "makedirs", lambda *_, **__: None)
    monkeypatch.setattr(os, "access", lambda *_: True)
    if length == 43:
        ray_start._check_temporary_directory()
        return
    with pytest.raises(UsageError, match="RAY_TMPDIR"):
        ray_start._check_temporary_directory()


def test_a_temporary_directory_that_cannot_be_made_is_refused(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(ray_start, "ray_temporary_directory", lambda: str(tmp_path / "file" / "ray"))
    monkeypatch.setattr(ray_start, "MAX_SOCKET_NAME", 1000)
    with pytest.raises(UsageError, match="Ray cannot write to"):
        ray_start._check_temporary_directory()


@pytest.mark.parametrize(
    ("free_gib", "wanted_gib", "store_gib", "warned"),
    [(20, 2, 2, False), (2.5, 2, 2, False), (1, 2, 0.9, False), (0.0625, 2, 2, True), (0.0625, 0.5, 0.5, True)],
)
def test_the_object_store_fits_into_shared_memory_or_a_warning_says_that_it_does_not(
    free_gib, wanted_gib, store_gib, warned, monkeypatch, caplog
):
    blocks = SimpleNamespace(f_bavail=int(free_gib * GIB) // 4096, f_frsize=4096)
    monkeypatch.setattr(os, "statvfs", lambda _: blocks)
    monkeypatch.setattr(ray_start.log, "propagate", True)
    assert ray_start._fitting_store(int(wanted_gib * GIB)) == pytest.approx(store_gib * GIB, rel=1e-3)
    assert ("to 2 GiB (docker run --shm-size=2g)" in caplog.text) == warned


@pytest.mark.parametrize(
    ("cpus", "gpus", "memory_gib", "store_gib"),
    [(2, 0, 24, 0.5), (6, 0, 24, 1.5), (64, 0, 500, 2), (2, 1, 24, 2), (2, 0, 1, 0.25)],
)
def test_a_local_object_store_is_as_large_as_the_cpus_or_gpus_need(cpus, gpus, memory_gib, store_gib):
    assert ray_start._enough_store(cpus, gpus, memory_gib * GIB) == store_gib * GIB
