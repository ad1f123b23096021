"""Fixtures that the whole suite shares: one small Ray, checkpoints, and the real speech where it is at hand."""

from __future__ import annotations

import json
import logging
import os
import sys
from pathlib import Path

# Read when torch is loaded: threads that wait sleep, and leave the processors to the workers.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import pytest
from hypothesis import settings

# A slow machine is no failure: speed is measured in benchmarks.
settings.register_profile("sewd", deadline=None)
settings.load_profile("sewd")

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared" / "data"
WITH_RAY = {ROOT / "tests" / "e2e", ROOT / "tests" / "faults"}  # whole commands, each with a Ray of its own


@pytest.hookimpl(tryfirst=True)  # before xdist looks at the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that need Ray, and keep them in one process: they share one Ray, and the processors."""
    for item in items:
        uses_ray = "local_ray" in getattr(item, "fixturenames", ()) or bool(WITH_RAY.intersection(item.path.parents))
        if uses_ray or item.get_closest_marker("ray"):
            item.add_marker(pytest.mark.ray)
            item.add_marker(pytest.mark.xdist_group("ray"))


def pytest_runtest_setup() -> None:
    """One thread for torch, in whichever tests load it. (Loaded here, it would cost every collection seconds.)"""
    if (torch := sys.modules.get("torch")) is not None:
        torch.set_num_threads(1)


@pytest.fixture(scope="session")
def local_ray():
    """One Ray for the session. Three CPUs on paper, so that two actors and decoding fit also on a machine of two."""
    import ray

    ray.init(
        address="local",  # whatever other Ray this machine has
        num_cpus=3,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        object_store_memory=512 * 2**20,
        _node_ip_address="127.0.0.1",
    )
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def small_ctc(tmp_path_factory) -> Path:
    from tests.support import checkpoints

    return checkpoints.write_ctc(tmp_path_factory.mktemp("small-ctc"), checkpoints.SMALL)


@pytest.fixture(scope="session")
def small_classifier(tmp_path_factory, small_ctc) -> Path:
    """Shares its backbone with `small_ctc`."""
    from tests.support import checkpoints

    return checkpoints.write_classifier(tmp_path_factory.mktemp("small-cls"), checkpoints.SMALL, backbone=small_ctc)


@pytest.fixture(scope="session")
def sew_d_tiny(tmp_path_factory) -> Path:
    from tests.support import checkpoints

    return checkpoints.write_ctc(tmp_path_factory.mktemp("sew-d-tiny"), checkpoints.SEW_D_TINY)


@pytest.fixture(scope="session")
def librispeech() -> Path:
    """The folder of LibriSpeech dev-clean's 1,008 utterances."""
    folder = SHARED / "librispeech-dev-clean"
    if not folder.is_dir():
        pytest.skip("needs ../shared/data/librispeech-dev-clean, which is not here")
    return folder


@pytest.fixture(scope="session")
def librispeech_rows(librispeech) -> list[dict]:
    return [json.loads(line) for line in (librispeech / "manifest.jsonl").read_text().splitlines()]
