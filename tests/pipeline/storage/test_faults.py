"""Storage behind a proxy that throttles, resets, stalls and cuts: what is read and written is right, or an error."""

from __future__ import annotations

import contextlib
import functools
from http.server import SimpleHTTPRequestHandler

import fsspec
import pyarrow as pa
import pyarrow.dataset as pads
import pytest

from pipeline.errors import StorageError
from pipeline.storage import clients, objects, reads
from pipeline.storage.arrow import arrow_filesystem
from pipeline.storage.parquet import encode_table
from tests.support import clouds, fault_proxy, s3

RATE = 0.35  # so that the few requests of a test meet several faults


@pytest.fixture(autouse=True)
def read_timeout(waits, monkeypatch):
    """Set the time after which the client fails that receives nothing; there are no waits between attempts."""

    def set_to(seconds):
        monkeypatch.setitem(fsspec.config.conf, "s3", {"config_kwargs": {"read_timeout": seconds}})

    set_to(0.3)
    return set_to


@pytest.fixture(params=["rclone", "moto"])
def endpoint(servers, request):
    return servers[request.param]


def use_storage(base):
    """Write, list, look up, read, delete; return all that was found."""
    data = {f"{base}/{name}": name.encode() * 20_000 for name in ("a", "d/b", "d/c")}
    for uri, content in data.items():
        objects.put(uri, content)
    found = [objects.list_objects(base), [objects.stat(uri) for uri in data], [objects.fetch(uri) for uri in data]]
    found.append([objects.fetch(uri, 100, 20_000) for uri in data])
    with objects.open_read(f"{base}/a") as file:
        found.append([file.read(10), file.read()])
    objects.delete([f"{base}/d/b", f"{base}/none"])
    found.append([objects.exists(uri) for uri in data])
    return found


@pytest.mark.parametrize("kind", [*fault_proxy.KINDS, "mixture"])
def test_storage_with_faults_reads_and_writes_what_it_does_without(endpoint, kind, tmp_path):
    base = f"s3://bucket/{tmp_path.name}"
    with s3.use_endpoint(endpoint):
        expected = use_storage(base)
    kinds = fault_proxy.KINDS if kind == "mixture" else (kind,)
    with fault_proxy.fault_proxy(endpoint, fault_proxy.seeded(5, RATE, kinds)) as proxy:
        proxy.stall_s, proxy.delay_s = 1, 0.1
        assert use_storage(base) == expected
        assert proxy.faults.total() >= 4
        assert set(proxy.faults) <= set(kinds)


@pytest.mark.parametrize("kind", [fault_proxy.SLOW_DOWN, fault_proxy.STALL, fault_proxy.CUT, "mixture"])
def test_a_dataset_is_read_through_faults(endpoint, kind, tmp_path):
    table = pa.table({"number": range(1000)})
    uris = [f"s3://bucket/{tmp_path.name}/{n}.parquet" for n in range(6)]
    with s3.use_endpoint(endpoint):
        for uri in uris:
            objects.put(uri, encode_table(table))
    kinds = fault_proxy.KINDS if kind == "mixture" else (kind,)
    with fault_proxy.fault_proxy(endpoint, fault_proxy.seeded(2, RATE, kinds)) as proxy:
        proxy.stall_s, proxy.delay_s = 1, 0.1
        fs, _ = arrow_filesystem(uris[0])
        found = pads.dataset([uri.removeprefix("s3://") for uri in uris], format="parquet", filesystem=fs)
        assert found.to_table() == pa.concat_tables([table] * 6)
        assert proxy.faults.total() >= 2
        with pytest.raises(FileNotFoundError):
            pads.dataset([f"bucket/{tmp_path.name}/none.parquet"], format="parquet", filesystem=fs).to_table()


def test_the_faults_of_a_proxy_follow_from_its_seed():
    requests = [("GET", f"/bucket/{n % 500}") for n in range(4000)]
    faults = [[choose(*request) for request in requests] for choose in map(_seeded, (1, 1, 2))]
    assert faults[0] == faults[1] != faults[2]
    assert sum(fault is not None for fault in faults[0]) == pytest.approx(800, rel=0.15)
    assert set(faults[0]) == {None, *fault_proxy.KINDS}


@pytest.mark.parametrize("scheme", [*clouds.SERVERS, "http"])
@pytest.mark.parametrize("limit", ["deadline", "idle"])
def test_a_read_of_another_store_that_stalls_ends_too(scheme, limit, tmp_path, request, monkeypatch):
    if limit == "deadline":
        monkeypatch.setattr(reads, "START_S", 0.5)
    elif scheme == clouds.AZURE:
        pytest.skip("Azure's client has a limit of its own, of a minute")
    else:
        monkeypatch.setattr(clients, "IDLE_S", 0.5)
    with contextlib.ExitStack() as stack:
        if scheme == "http":
            (tmp_path / "a").write_bytes(b"x" * 1000)
            folder = functools.partial(SilentFiles, directory=str(tmp_path))
            endpoint = f"http://127.0.0.1:{stack.enter_context(s3.web_server(folder)).server_port}"
            use, uri = contextlib.nullcontext, "{}/a"
        else:
            endpoint = request.getfixturevalue({clouds.GOOGLE: "google", clouds.AZURE: "azure"}[scheme])
            use, uri = functools.partial(clouds.use_endpoint, scheme), f"{scheme}://bucket/{tmp_path.name}"
            objects.put(uri, b"x" * 1000)
        proxy = stack.enter_context(fault_proxy.fault_proxy(endpoint, use=use))
        uri, proxy.stall_s = uri.format(proxy.endpoint), 20
        stalls = [fault_proxy.STALL]
        proxy.choose = lambda method, path: stalls.pop() if method == "GET" and stalls else None
        assert objects.fetch(uri, 0, 1000) == b"x" * 1000
        assert proxy.faults[fault_proxy.STALL] == 1


class SilentFiles(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


def _seeded(seed):
    return fault_proxy.seeded(seed, 0.2)


def test_a_stalled_read_ends_at_its_deadline_and_is_retried(endpoint, read_timeout, tmp_path, monkeypatch):
    read_timeout(600)
    monkeypatch.setattr(reads, "START_S", 0.5)
    uri = f"s3://bucket/{tmp_path.name}/a"
    with s3.use_endpoint(endpoint):
        objects.put(uri, b"x" * 1000)
    with fault_proxy.fault_proxy(endpoint) as proxy:
        proxy.stall_s = 20
        stalls = [fault_proxy.STALL, None]
        proxy.choose = lambda method, path: stalls.pop(0) if method == "GET" and stalls else None
        assert objects.fetch(uri) == b"x" * 1000
        assert proxy.faults[fault_proxy.STALL] == 1
        proxy.stall_s, proxy.choose = 1, lambda method, path: fault_proxy.STALL
        with pytest.raises(StorageError, match="TimeoutError: no answer in time"):
            objects.fetch(uri)
