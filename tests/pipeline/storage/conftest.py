"""Storage to test on: a local directory, and buckets on two S3 servers; and a retry layer that records its waits."""

from __future__ import annotations

from typing import NamedTuple

import pytest
from botocore.retries.standard import ExponentialBackoff

from pipeline.storage import retry
from tests.support import s3


@pytest.fixture(scope="package")
def servers(tmp_path_factory):
    """The endpoints of the servers by name, each with an empty bucket `bucket`."""
    with s3.rclone_server(tmp_path_factory.mktemp("rclone")) as rclone:
        s3.make_bucket("bucket")
        with s3.moto_server() as moto:
            s3.make_bucket("bucket")
            yield {"rclone": rclone, "moto": moto}


@pytest.fixture(scope="module", params=["local", "rclone", "moto"])
def store(request, servers):
    if request.param == "local":
        yield request.param
    else:
        with s3.use_endpoint(servers[request.param]):
            yield request.param


@pytest.fixture
def base(store, tmp_path):
    """An empty directory or prefix on each kind of storage."""
    return str(tmp_path) if store == "local" else f"s3://bucket/{tmp_path.name}"


class Waits(NamedTuple):
    """Seconds that would have been waited between attempts.

    Attributes:
        retry: by the project's retry layer.
        client: by the S3 client below it.
    """

    retry: list[float]
    client: list[float]


@pytest.fixture
def waits(monkeypatch):
    """Record the waits between attempts, and do not wait."""
    recorded = Waits([], [])
    monkeypatch.setattr(retry, "_sleep", recorded.retry.append)
    backoff = ExponentialBackoff.delay_amount

    def record(self, context):
        recorded.client.append(backoff(self, context))
        return 0

    monkeypatch.setattr(ExponentialBackoff, "delay_amount", record)
    return recorded
