"""Conditional writes on every kind of storage."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from pipeline.errors import StorageError
from pipeline.storage import conditional, objects
from tests.support import fault_proxy, s3

IGNORE_CONDITIONS = ("rclone", "google")  # the server of rclone and the emulator of Google's store


def test_an_object_is_replaced_only_as_it_was_read(base):
    uri = f"{base}/control/lease"
    assert conditional.read(uri) is None
    assert conditional.replace(uri, b"first", None)
    first = conditional.read(uri)
    assert first.data == b"first"
    assert conditional.replace(uri, b"second", first)
    assert conditional.replace(uri, b"third", conditional.read(uri))
    assert objects.fetch(uri) == b"third"


def test_an_object_that_has_changed_is_not_replaced(base, store):
    uri = f"{base}/lease"
    assert conditional.replace(uri, b"one", None)
    old = conditional.read(uri)
    objects.put(uri, b"two")
    if store not in IGNORE_CONDITIONS:
        assert not conditional.replace(uri, b"three", None)
    if store != "rclone":
        assert not conditional.replace(uri, b"three", old)
        assert objects.fetch(uri) == b"two"
    objects.delete([uri])
    if store != "rclone":
        assert not conditional.replace(uri, b"three", old)
        assert not objects.exists(uri)


@pytest.mark.parametrize("exists", [False, True])
def test_of_several_writers_at_the_same_time_one_succeeds(base, store, exists):
    if store in IGNORE_CONDITIONS:
        pytest.skip(f"{store} ignores the conditions")
    with ThreadPoolExecutor(4) as pool:
        for number in range(10):
            uri = f"{base}/{number}"
            if exists:
                objects.put(uri, b"old")
            old = conditional.read(uri)
            together = threading.Barrier(4)

            def write(data, uri=uri, old=old, together=together):
                together.wait()
                return conditional.replace(uri, data, old)

            written = list(pool.map(write, [b"a", b"b", b"c", b"d"]))
            assert sum(written) == 1
            assert objects.fetch(uri) == [b"a", b"b", b"c", b"d"][written.index(True)]


def test_a_write_whose_answer_was_lost_has_succeeded(servers, tmp_path, waits):
    with fault_proxy.fault_proxy(servers["moto"]) as proxy:
        uri = f"s3://bucket/{tmp_path.name}/lease"
        lost = [fault_proxy.LOST]
        proxy.choose = lambda method, path: lost.pop() if method == "PUT" and lost else None
        assert conditional.replace(uri, b"mine", None)
        assert proxy.faults.total() == 1


def test_a_missing_bucket_is_a_storage_error(servers, waits):
    with s3.use_endpoint(servers["moto"]), pytest.raises(StorageError, match="no-such-bucket"):
        conditional.replace("s3://no-such-bucket/a", b"x", None)
