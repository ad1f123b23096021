"""Drivers that start at the same moment: one gets the lease where the store honours conditions."""

from __future__ import annotations

import contextlib
import json
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from pipeline.errors import LeaseLostError, UsageError
from pipeline.runs import lease
from pipeline.runs.lease import hold_lease, lease_uri, require_lease
from pipeline.storage import objects
from tests.support import clouds, s3

ROUNDS = {"nothing": 12, "a lease of a dead driver": 6}


@pytest.fixture(params=["local", "moto", "azure", "rclone"])
def store(request, tmp_path):
    """The name of a store, and where runs are on it."""
    with contextlib.ExitStack() as stack:
        if request.param == "local":
            yield "local", str(tmp_path)
        elif request.param == "azure":
            stack.enter_context(clouds.azure_server())
            yield "azure", clouds.make_bucket(clouds.AZURE, "runs")
        else:
            stack.enter_context(s3.moto_server() if request.param == "moto" else s3.rclone_server(tmp_path))
            yield request.param, s3.make_bucket("runs")


@pytest.mark.parametrize("left", ["nothing", "a lease of a dead driver"])
def test_of_drivers_that_start_at_the_same_moment_one_gets_the_lease(store, left, monkeypatch):
    name, base = store
    # Drivers of several machines, which cannot look each other up.
    monkeypatch.setattr(lease, "_identity", lambda: {"host": threading.current_thread().name, "pid": 1, "boot": None})
    with ThreadPoolExecutor(3) as pool:
        for number in range(ROUNDS[left]):
            run = f"{base}/run{number}"
            if left != "nothing":
                dead = {"attempt": "dead", "host": "elsewhere", "pid": 7, "boot": "x", "beat": 3}
                objects.put(lease_uri(run), json.dumps(dead).encode())
            together, ended = threading.Barrier(3), threading.Barrier(3)

            def start(attempt, run=run, together=together, ended=ended):
                together.wait()
                outcome = "refused"
                holding = hold_lease(run, attempt, renew_s=0.2, expire_s=0.6)
                with contextlib.suppress(UsageError, LeaseLostError), holding:
                    outcome = "held"
                    ended.wait(60)
                    require_lease(run, attempt)
                    outcome = "kept"
                if outcome == "refused":
                    ended.wait(60)
                return outcome

            outcomes = sorted(pool.map(start, "abc"))
            assert outcomes.count("kept") == 1
            if name != "rclone":
                assert outcomes == ["kept", "refused", "refused"]
