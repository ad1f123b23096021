"""Runs behind a proxy that disturbs a fifth of all requests, whose keys expire in the middle: `disturbed_storage`."""

from __future__ import annotations

import pytest

from tests.faults.disturbed_storage import disturbed_run
from tests.faults.world import Difference
from tests.support import s3
from tests.support.fault_proxy import EXPIRED, KINDS


@pytest.mark.slow
@pytest.mark.parametrize("storage", ["rclone", "moto"])
def test_a_run_on_disturbed_storage_whose_keys_expire_is_resumed_and_complete(storage, tmp_path, small_ctc):
    (tmp_path / "buckets").mkdir()
    server = s3.moto_server() if storage == "moto" else s3.rclone_server(tmp_path / "buckets")
    with server as endpoint:
        s3.make_bucket("speech")
        result = disturbed_run(endpoint, small_ctc, tmp_path / "in", clips=24, rate=0.2, seed=1)
    assert result.difference == Difference(0, 0, 0)
    assert result.errors == 0
    assert set(result.faults) == {*KINDS, EXPIRED}
    assert "access was refused: check the credentials" in result.refusals[0]
