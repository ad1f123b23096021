"""Storage to test on: a local directory, and buckets on two S3 servers, Google's and Azure's; and recorded waits."""

from __future__ import annotations

from typing import NamedTuple

import pytest
from botocore.retries.standard import ExponentialBackoff

from pipeline.storage import retry
from tests.support import clouds, s3


@pytest.fixture(scope="package")
def servers(tmp_path_factory):
    """The endpoints of the servers by name, each with an empty bucket `bucket`."""
    with s3.rclone_server(tmp_path_factory.mktemp("rclone")) as rclone:
        s3.make_bucket("bucket")
        with s3.moto_server() as moto:
            s3.make_bucket("bucket")
            yield {"rclone": rclone, "moto": moto}


@pytest.fixture(scope="package")
def google():
    """The endpoint of a server of Google's protocol, with an empty bucket `bucket`."""
    with clouds.google_server() as endpoint:
        clouds.make_bucket(clouds.GOOGLE, "bucket")
        yield endpoint


@pytest.fixture(scope="package")
def azure():
    """The endpoint of a server of Azure's protocol, with an empty container `bucket`."""
    with clouds.azure_server() as endpoint:
        clouds.make_bucket(clouds.AZURE, "bucket")
        yield endpoint


@pytest.fixture(scope="module", params=["local", "rclone", "moto", "google", "azure"])
def store(request):
    if request.param == "local":
        yield request.param
    elif request.param in ("rclone", "moto"):
        with s3.use_endpoint(request.getfixturevalue("servers")[request.param]):
            yield request.param
    else:
        request.getfixturevalue(request.param)  # the server of its kind that runs is the one in use
        yield request.param


@pytest.fixture
def base(store, tmp_path):
    """An empty directory or prefix on each kind of storage."""
    schemes = {"google": clouds.GOOGLE, "azure": clouds.AZURE}
    return str(tmp_path) if store == "local" else f"{schemes.get(store, 's3')}://bucket/{tmp_path.name}"


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
