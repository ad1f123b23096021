"""Fixtures of the whole suite: one small Ray, checkpoints, and real speech if it is available."""

from __future__ import annotations

import json
import logging
import os
import sys
from pathlib import Path

# Read when torch is loaded: waiting threads sleep, and leave the CPUs to the workers.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import pytest
from hypothesis import settings

# A slow machine does not fail tests: speed is measured by benchmarks. `make test` tries the same examples each time, so
# that a change is judged by itself; `make test-all` searches for new ones (`--hypothesis-profile search`).
settings.register_profile("repeatable", deadline=None, derandomize=True)
settings.register_profile("search", deadline=None)
settings.load_profile("repeatable")

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared" / "data"
WITH_RAY = {ROOT / "tests" / "e2e", ROOT / "tests" / "faults"}  # whole commands, each of which starts its own Ray


def pytest_itemcollected(item: pytest.Item) -> None:
    """Mark a test that needs Ray: these share one Ray in each process, and run after the others."""
    if "local_ray" in getattr(item, "fixturenames", ()) or WITH_RAY.intersection(item.path.parents):
        item.add_marker(pytest.mark.ray)


def pytest_runtest_setup() -> None:
    """Give torch one thread in tests that load it. (To load it here would cost seconds in every collection.)"""
    if (torch := sys.modules.get("torch")) is not None:
        torch.set_num_threads(1)


@pytest.fixture(scope="session")
def local_ray():
    """One Ray for the session. It declares three CPUs, so that two actors and decoding fit on any machine."""
    import ray

    ray.init(
        address="local",  # never another Ray on this machine
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
    """A classifier with the backbone of `small_ctc`."""
    from tests.support import checkpoints

    return checkpoints.write_classifier(tmp_path_factory.mktemp("small-cls"), checkpoints.SMALL, backbone=small_ctc)


@pytest.fixture(scope="session")
def sew_d_tiny(tmp_path_factory) -> Path:
    from tests.support import checkpoints

    return checkpoints.write_ctc(tmp_path_factory.mktemp("sew-d-tiny"), checkpoints.SEW_D_TINY)


@pytest.fixture(scope="session")
def librispeech() -> Path:
    """The directory with 1,008 utterances of LibriSpeech dev-clean."""
    folder = SHARED / "librispeech-dev-clean"
    if not folder.is_dir():
        pytest.skip("needs ../shared/data/librispeech-dev-clean, which does not exist")
    return folder


@pytest.fixture(scope="session")
def librispeech_rows(librispeech) -> list[dict]:
    return [json.loads(line) for line in (librispeech / "manifest.jsonl").read_text().splitlines()]
