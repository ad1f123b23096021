"""Storage: local, and on two S3 servers; what is absent, and what only cannot be reached."""

import errno
import io
import os
import signal
import socket
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
import s3fs

from pipeline.errors import StorageError, UsageError
from pipeline.storage import globs, objects, retry, uris
from tests.support import s3

READS = {
    "stat": objects.stat,
    "list_objects": objects.list_objects,
    "list_directory": objects.list_directory,
    "glob_objects": lambda uri: globs.glob_objects(f"{uri}/*/x.wav"),
    "glob_objects, deep": lambda uri: globs.glob_objects(f"{uri}/**/x.wav"),
    "fetch": objects.fetch,
    "open_read": objects.open_read,
    "lines": lambda uri: list(objects.lines(uri)),
    "exists": objects.exists,
}
WRITES = {
    "put": lambda uri: objects.put(uri, b"data"),
    "delete": lambda uri: objects.delete([uri]),
}


@pytest.fixture(scope="module")
def servers(tmp_path_factory):
    """Endpoints of the servers, each with a bucket `bucket`."""
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
        with s3.at(servers[request.param]):
            yield request.param


@pytest.fixture
def base(store, tmp_path):
    """An empty directory or prefix on each kind of storage."""
    return str(tmp_path) if store == "local" else f"s3://bucket/{tmp_path.name}"


@pytest.fixture
def no_waits(monkeypatch):
    monkeypatch.setattr(retry, "BACKOFF_S", 0)


def names(objects, base):
    return [found.uri.removeprefix(f"{base}/") for found in objects]


# What every storage does.


def test_what_is_put_is_fetched_whole_and_by_range(base):
    objects.put(f"{base}/deep/er/a.bin", bytes(range(256)))
    assert objects.fetch(f"{base}/deep/er/a.bin") == bytes(range(256))
    assert objects.fetch(f"{base}/deep/er/a.bin", 10, 13) == bytes([10, 11, 12])
    assert objects.exists(f"{base}/deep/er/a.bin")


def test_put_replaces_what_was_there_and_its_version(base):
    objects.put(f"{base}/a", b"old")
    before = objects.stat(f"{base}/a")
    objects.put(f"{base}/a", b"new")
    after = objects.stat(f"{base}/a")
    assert objects.fetch(f"{base}/a") == b"new"
    assert before.size == after.size == 3
    assert before.version != after.version


def test_listing_and_stat_agree_on_uri_size_and_version(base):
    objects.put(f"{base}/a/b.wav", b"12345")
    (listed,) = objects.list_objects(base)
    assert listed == objects.stat(f"{base}/a/b.wav")
    assert (listed.uri, listed.size) == (f"{base}/a/b.wav", 5)


def test_lists_everything_below_in_path_order_and_nothing_beside(base):
    for name in ("dir/b", "dir/a", "dir/a.b/c", "dir/ä ö.wav", "dirt/x", "dir.txt"):
        objects.put(f"{base}/{name}", b"x")
    assert names(objects.list_objects(f"{base}/dir"), base) == ["dir/a", "dir/a.b/c", "dir/b", "dir/ä ö.wav"]
    assert names(objects.list_directory(f"{base}/dir"), base) == ["dir/a", "dir/b", "dir/ä ö.wav"]


def test_what_another_process_has_written_since_the_last_listing_is_seen(base):
    listings = (objects.list_objects, objects.list_directory, lambda uri: globs.glob_objects(f"{uri}/*"))
    objects.put(f"{base}/d/a", b"x")
    assert [len(listing(f"{base}/d")) for listing in listings] == [1, 1, 1]
    assert not objects.exists(f"{base}/d/b")
    write_elsewhere(f"{base}/d/b", b"x")
    write_elsewhere(f"{base}/d/a", b"longer")
    assert [len(listing(f"{base}/d")) for listing in listings] == [2, 2, 2]
    assert objects.exists(f"{base}/d/b")
    assert objects.stat(f"{base}/d/a").size == 6
    with objects.open_read(f"{base}/d/a") as file:
        assert file.read() == b"longer"


def write_elsewhere(uri, data):
    """As another process would: fsspec here hears nothing of it."""
    if uri.startswith("s3://"):
        bucket, _, key = uri.removeprefix("s3://").partition("/")
        s3.client().put_object(Bucket=bucket, Key=key, Body=data)
    else:
        Path(uri).write_bytes(data)


@pytest.mark.parametrize(
    ("pattern", "wanted"),
    [
        ("*.wav", ["0.wav"]),
        ("?.wav", ["0.wav"]),
        ("[0-9].wav", ["0.wav"]),
        ("*", ["0.wav", "a/1.wav", "a/b/2.wav", "a/b/3.txt", "c/b/4.wav"]),
        ("a*", ["a/1.wav", "a/b/2.wav", "a/b/3.txt"]),
        ("*/b", ["a/b/2.wav", "a/b/3.txt", "c/b/4.wav"]),
        ("*/b/*.wav", ["a/b/2.wav", "c/b/4.wav"]),
        ("**/*.wav", ["0.wav", "a/1.wav", "a/b/2.wav", "c/b/4.wav"]),
        ("a/**", ["a/1.wav", "a/b/2.wav", "a/b/3.txt"]),
        ("**/b", ["a/b/2.wav", "a/b/3.txt", "c/b/4.wav"]),
        ("**/b/*.txt", ["a/b/3.txt"]),
        ("*.mp3", []),
        ("nowhere/*.wav", []),
        ("nowhere/**/*.wav", []),
    ],
)
def test_globs_name_objects_and_what_lies_below_directories(base, pattern, wanted):
    for name in ("0.wav", "a/1.wav", "a/b/2.wav", "a/b/3.txt", "c/b/4.wav"):
        objects.put(f"{base}/{name}", b"x")
    assert names(globs.glob_objects(f"{base}/{pattern}"), base) == wanted


def test_a_glob_tells_what_lies_beside_the_objects_that_it_names(base):
    for name in ("0.txt", "a/1.wav", "a/1.txt", "b/2.txt", "b/c/3.txt", "d.x/4.txt"):
        objects.put(f"{base}/{name}", b"x")
    named, beside = globs.glob_and_beside(f"{base}/[ab]/*.wav")
    assert (names(named, base), names(beside, base)) == (["a/1.wav"], ["a/1.txt", "b/2.txt"])


def test_a_missing_object_is_file_not_found_at_once(base, monkeypatch):
    monkeypatch.setattr(retry, "BACKOFF_S", 60)  # a single wait would be felt
    began = time.monotonic()
    for name in ("stat", "fetch", "open_read", "lines"):
        with pytest.raises(FileNotFoundError):
            READS[name](f"{base}/none.wav")
    assert time.monotonic() - began < 5


def test_nothing_there_lists_as_nothing(base):
    assert objects.list_objects(f"{base}/none") == []
    assert objects.list_directory(f"{base}/none") == []
    assert not objects.exists(f"{base}/none")


def test_stat_and_exists_tell_a_directory_from_an_object(base):
    objects.put(f"{base}/d/a", b"x")
    assert objects.stat(f"{base}/d") is None
    assert objects.exists(f"{base}/d")
    with pytest.raises(FileNotFoundError):
        objects.fetch(f"{base}/d")


def test_delete_removes_and_does_not_mind_what_is_gone(base):
    objects.put(f"{base}/a", b"x")
    objects.put(f"{base}/b", b"x")
    objects.delete([f"{base}/a", f"{base}/none"])
    assert names(objects.list_objects(base), base) == ["b"]


def test_many_are_deleted_in_few_requests_whatever_their_names(base, monkeypatch):
    monkeypatch.setattr(objects, "_DELETED_AT_ONCE", 3)
    names = [*(f"d/{n}" for n in range(8)), "d/with [a] glob", "d/star*", "d/ümlaut and space"]
    for name in [*names, "d/stays", "d/star and more"]:
        objects.put(f"{base}/{name}", b"x")
    objects.delete([f"{base}/{name}" for name in [*names, "d/never was", "d/nor this"]])
    left = [found.uri for found in objects.list_objects(f"{base}/d")]
    assert left == [f"{base}/d/star and more", f"{base}/d/stays"]


@pytest.mark.parametrize("whole", [False, True])
def test_what_a_store_does_not_delete_is_tried_alone_and_then_an_error(servers, tmp_path, no_waits, monkeypatch, whole):
    """S3 answers 200 also where it has refused each of many keys; others that speak it do not know the request."""
    call = s3fs.S3FileSystem._call_s3
    alone = []
    to_try = "abc" if whole else "ab"  # the last one is refused again: those before it have their answers by then

    def many(_, method, **kwargs):
        assert method == "delete_objects"
        if whole:
            raise OSError(errno.EIO, "NotImplemented")
        return {"Errors": [{"Key": item["Key"], "Code": "SlowDown"} for item in kwargs["Delete"]["Objects"][:2]]}

    async def refusing(self, method, *args, **kwargs):
        if method == "delete_object":
            alone.append(kwargs["Key"])
            if kwargs["Key"] == f"{folder}/{to_try[-1]}":
                raise PermissionError("AccessDenied")
        return await call(self, method, *args, **kwargs)

    folder = f"{tmp_path.name}/dir"
    with s3.at(servers["moto"]):
        uris = [f"s3://bucket/{folder}/{name}" for name in "abc"]
        for uri in uris:
            objects.put(uri, b"x")
        monkeypatch.setattr(s3fs.S3FileSystem, "call_s3", many)
        monkeypatch.setattr(s3fs.S3FileSystem, "_call_s3", refusing)
        with pytest.raises(StorageError, match="AccessDenied"):
            objects.delete(uris)
        assert set(alone) == {f"{folder}/{name}" for name in to_try}


def test_an_open_object_can_be_sought_and_read(base):
    objects.put(f"{base}/a", bytes(range(100)))
    with objects.open_read(f"{base}/a") as file:
        file.seek(-3, io.SEEK_END)
        assert file.read() == bytes([97, 98, 99])
        file.seek(5)
        assert file.read(2) == bytes([5, 6])
        assert file.tell() == 7


@pytest.mark.parametrize("block", [1, 3, 1 << 20])
def test_lines_come_with_their_offsets_whatever_the_block(base, monkeypatch, block):
    monkeypatch.setattr(objects, "LINES_BLOCK_BYTES", block)
    data = b"one\r\n\n three \nno end"
    objects.put(f"{base}/a", data)
    found = list(objects.lines(f"{base}/a"))
    assert [line for _, line in found] == [b"one\r\n", b"\n", b" three \n", b"no end"]
    assert all(data[offset : offset + len(line)] == line for offset, line in found)


def test_large_objects_are_written_whole(base):
    data = os.urandom(1 << 20) * 12
    objects.put(f"{base}/large", data)
    assert objects.fetch(f"{base}/large") == data


# S3 alone.


@pytest.mark.parametrize("server", ["rclone", "moto"])
def test_a_missing_bucket_holds_nothing_and_cannot_be_written(servers, server):
    with s3.at(servers[server]):
        with pytest.raises(FileNotFoundError):
            objects.stat("s3://no-such-bucket/a.wav")
        assert objects.list_objects("s3://no-such-bucket/d") == []
        assert globs.glob_objects("s3://no-such-bucket/*") == []
        assert not objects.exists("s3://no-such-bucket")
        with pytest.raises(StorageError, match="cannot write s3://no-such-bucket/a"):
            objects.put("s3://no-such-bucket/a", b"x")


def test_a_bucket_name_that_cannot_be_is_absence(servers):
    with s3.at(servers["moto"]), pytest.raises(FileNotFoundError, match="Invalid bucket name"):
        objects.stat("s3://my bucket!/a.wav")


def test_a_trailing_slash_key_is_a_directory_and_no_object(servers):
    with s3.at(servers["moto"]):
        s3.client().put_object(Bucket="bucket", Key="marked/", Body=b"")
        objects.put("s3://bucket/marked/a.wav", b"x")
        assert names(objects.list_objects("s3://bucket/marked"), "s3://bucket/marked") == ["a.wav"]
        assert names(globs.glob_objects("s3://bucket/marked/*"), "s3://bucket/marked") == ["a.wav"]


@pytest.mark.parametrize("name", [*READS, *WRITES])
def test_a_refusal_is_a_storage_error_after_bounded_retries(name, no_waits):
    with s3.forbidden_server() as requests:
        with pytest.raises(StorageError, match=r"s3://bucket/dir.*PermissionError"):
            (READS | WRITES)[name]("s3://bucket/dir")
        assert retry.ATTEMPTS <= len(requests) <= 2 * retry.ATTEMPTS


class SlowDownHandler(s3.ForbiddenHandler):
    status, code = 503, "SlowDown"


@pytest.mark.parametrize("name", ["stat", "list_objects", "put"])
def test_throttling_is_retried_by_one_layer_and_not_by_each_inside_the_other(name, no_waits):
    with s3.web_server(SlowDownHandler) as server, s3.at(f"http://127.0.0.1:{server.server_port}"):
        with pytest.raises(StorageError, match="s3://bucket/dir"):
            (READS | WRITES)[name]("s3://bucket/dir")
        assert retry.PATIENT_ATTEMPTS <= len(server.requests) <= 2 * retry.PATIENT_ATTEMPTS


@pytest.mark.parametrize("name", ["stat", "fetch", "open_read", "exists"])
def test_a_refusal_over_http_is_a_storage_error(name, no_waits):
    with s3.web_server(s3.ForbiddenHandler) as server, pytest.raises(StorageError, match="403"):
        READS[name](f"http://127.0.0.1:{server.server_port}/a.wav")


def test_what_is_missing_over_http_is_file_not_found_at_once(monkeypatch):
    class NotFoundHandler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_error(404)

        do_HEAD = do_GET

        def log_message(self, *_):
            pass

    monkeypatch.setattr(retry, "BACKOFF_S", 60)
    with s3.web_server(NotFoundHandler) as server:
        uri = f"http://127.0.0.1:{server.server_port}/a.wav"
        for name in ("stat", "fetch", "open_read"):
            with pytest.raises(FileNotFoundError):
                READS[name](uri)
        assert not objects.exists(uri)


@pytest.mark.parametrize("uri", ["s3://bucket/a.wav", "http://127.0.0.1:{port}/a.wav"])
def test_a_refused_connection_is_a_storage_error_within_seconds(uri, no_waits):
    port = s3.free_port()
    began = time.monotonic()
    with s3.at(f"http://127.0.0.1:{port}"), pytest.raises(StorageError, match=r"a\.wav"):
        objects.stat(uri.format(port=port))
    assert time.monotonic() - began < 10


def test_waiting_between_attempts_is_bounded():
    # The n-th wait is up to BACKOFF_S * 2**n: with the calls themselves this stays well under 15 s.
    assert sum(min(retry.MAX_BACKOFF_S, retry.BACKOFF_S * 2**n) for n in range(retry.ATTEMPTS - 1)) <= 5


def test_a_call_outlives_weather_that_clears(no_waits):
    calls = []

    @retry.retried
    def third_time_lucky(uri):
        calls.append(uri)
        if len(calls) < 3:
            raise ConnectionResetError("weather")
        return "sun"

    assert third_time_lucky("s3://x/y") == "sun"
    assert len(calls) == 3


def test_a_programming_error_is_raised_as_it_is(no_waits):
    calls = []

    @retry.retried
    def wrong(uri):
        calls.append(uri)
        raise KeyError("bug")

    with pytest.raises(KeyError):
        wrong("s3://x/y")
    assert len(calls) == 1


class FlakyFile(io.BytesIO):
    """Fails at the reads whose numbers are given."""

    def __init__(self, data, fail_at, error):
        super().__init__(data)
        self.reads, self.fail_at, self.error = 0, fail_at, error

    def read(self, size=-1):
        self.reads += 1
        if self.reads in self.fail_at:
            super().read(size)  # part of it was consumed
            raise self.error
        return super().read(size)


def test_a_read_that_fails_is_taken_up_where_it_began(no_waits):
    file = objects._GuardedFile(FlakyFile(b"0123456789", {2, 3}, TimeoutError("weather")), "s3://b/k")
    assert file.read(4) + file.read(4) + file.read(4) == b"0123456789"


@pytest.mark.parametrize("error", [TimeoutError("weather"), FileNotFoundError("gone"), PermissionError("key expired")])
def test_a_read_that_fails_for_good_is_a_storage_error_and_no_end_of_file(error, no_waits):
    file = objects._GuardedFile(FlakyFile(b"0123456789", range(2, 100), error), "s3://b/k")
    assert file.read(4) == b"0123"
    with pytest.raises(StorageError, match="s3://b/k"):
        file.read(4)


# Local alone.


def test_a_local_file_that_may_not_be_read_is_a_storage_error(tmp_path, no_waits, monkeypatch):
    (tmp_path / "a").write_bytes(b"x")
    monkeypatch.setattr(os, "stat", refuse)  # the tests may run as root, whom no mode keeps out
    with pytest.raises(StorageError, match="PermissionError"):
        objects.stat(str(tmp_path / "a"))
    with pytest.raises(StorageError, match="PermissionError"):
        objects.list_objects(str(tmp_path))


def refuse(*_, **__):
    raise PermissionError(13, "Permission denied")


def test_a_directory_that_may_not_be_listed_is_not_left_out(tmp_path, no_waits, monkeypatch):
    objects.put(f"{tmp_path}/open/a.wav", b"x")
    objects.put(f"{tmp_path}/shut/b.wav", b"x")
    listdir = os.listdir
    monkeypatch.setattr(os, "listdir", lambda path: refuse() if str(path).endswith("shut") else listdir(path))
    for call in (objects.list_objects, lambda uri: globs.glob_objects(f"{uri}/*/*.wav")):
        with pytest.raises(StorageError, match="PermissionError"):
            call(str(tmp_path))


@pytest.mark.parametrize("name", ["x" * 300 + ".wav", "file.txt/below.wav", "loop/loop.wav"])
def test_a_path_that_no_file_can_have_is_absence(tmp_path, name):
    (tmp_path / "file.txt").write_bytes(b"x")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(FileNotFoundError):
        objects.stat(str(tmp_path / name))
    with pytest.raises(FileNotFoundError):
        objects.fetch(str(tmp_path / name))
    assert not objects.exists(str(tmp_path / name))


def test_links_are_followed_and_a_loop_ends(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a.wav").write_bytes(b"12345")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "dir").symlink_to(tmp_path / "real")
    (tmp_path / "in" / "file.wav").symlink_to(tmp_path / "real" / "a.wav")
    (tmp_path / "in" / "again").symlink_to(tmp_path / "in")
    found = objects.list_objects(str(tmp_path / "in"))
    assert names(found, tmp_path / "in") == ["dir/a.wav", "file.wav"]
    assert [item.size for item in found] == [5, 5]
    assert found == [objects.stat(item.uri) for item in found]


def test_a_link_to_nothing_and_a_pipe_are_listed_but_not_there(tmp_path):
    (tmp_path / "a.wav").symlink_to(tmp_path / "none.wav")
    os.mkfifo(tmp_path / "b.wav")
    assert names(objects.list_objects(str(tmp_path)), tmp_path) == ["a.wav", "b.wav"]
    for name in ("a.wav", "b.wav"):
        with pytest.raises(FileNotFoundError):
            objects.stat(str(tmp_path / name))


def test_a_name_that_is_not_utf8_is_listed_in_letters_that_are(tmp_path):
    (tmp_path / os.fsdecode(b"caf\xe9.wav")).write_bytes(b"x")
    (found,) = objects.list_objects(str(tmp_path))
    assert found.uri.encode()  # Arrow can hold it
    assert found.uri.startswith(str(tmp_path / "caf"))


def test_a_changed_mtime_is_another_version_to_the_nanosecond(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"x")
    versions = set()
    for nanoseconds in range(3):
        os.utime(path, ns=(0, 1_700_000_000_000_000_000 + nanoseconds))
        versions.add(objects.stat(str(path)).version)
    assert len(versions) == 3


def test_a_killed_writer_leaves_nothing_under_the_name(tmp_path):
    script = """
import os, signal, sys
from pipeline.storage import objects
os.fsync = lambda descriptor: os.kill(os.getpid(), signal.SIGKILL)
objects.put(sys.argv[1], b"half")
"""
    (tmp_path / "a").write_bytes(b"old")
    died = subprocess.run([sys.executable, "-c", script, str(tmp_path / "a")], check=False)
    assert died.returncode == -signal.SIGKILL
    assert (tmp_path / "a").read_bytes() == b"old"
    left = [path.name for path in tmp_path.iterdir() if path.name != "a"]
    assert len(left) == 1
    assert objects.is_temporary(str(tmp_path / left[0]))
    assert not objects.is_temporary(str(tmp_path / "a"))


def test_a_full_disk_is_a_storage_error_that_leaves_no_litter(tmp_path, monkeypatch, no_waits):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="No space left"):
        objects.put(f"{tmp_path}/a", b"x")
    assert list(tmp_path.iterdir()) == []


def test_data_is_synced_before_it_has_its_name_and_every_new_directory_after(tmp_path, monkeypatch):
    events = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (events.append(os.path.realpath(f"/proc/self/fd/{fd}")), fsync(fd))[1])
    monkeypatch.setattr(os, "replace", lambda a, b: (events.append("replace"), replace(a, b))[1])
    objects.put(f"{tmp_path}/x/y/a", b"data")
    made, temporary = events[:2], events[2]
    assert made == [str(tmp_path), str(tmp_path / "x")]
    assert objects.is_temporary(temporary)
    assert events[3:] == ["replace", str(tmp_path / "x" / "y")]


def test_a_file_where_a_directory_should_be_is_a_storage_error(tmp_path, no_waits):
    (tmp_path / "run").write_bytes(b"x")
    with pytest.raises(StorageError, match="run"):
        objects.put(f"{tmp_path}/run/a", b"x")


# URIs.


@pytest.mark.parametrize(
    ("uri", "wanted"),
    [
        ("a/b", "{cwd}/a/b"),
        ("./a//b/", "{cwd}/a/b"),
        ("../a", "{parent}/a"),
        ("a/../../b", "{parent}/b"),
        ("file:///a/b/", "/a/b"),
        ("s3://bucket/a/", "s3://bucket/a"),
        ("s3a://bucket/a", "s3://bucket/a"),
        ("s3://bucket/", "s3://bucket"),
        ("http://host/a?b=c", "http://host/a?b=c"),
        ("~nobody-here/a", "{cwd}/~nobody-here/a"),
    ],
)
def test_absolute_means_the_same_everywhere(uri, wanted, tmp_path, monkeypatch):
    directory = tmp_path / "parent" / "cwd"
    directory.mkdir(parents=True)
    monkeypatch.chdir(directory)
    assert uris.absolute(uri) == wanted.format(cwd=directory, parent=tmp_path / "parent")
    assert uris.absolute(uris.absolute(uri)) == uris.absolute(uri)


def test_a_parent_after_a_link_is_the_parent_of_its_target(tmp_path):
    (tmp_path / "far" / "dir").mkdir(parents=True)
    (tmp_path / "far" / "a.wav").write_bytes(b"x")
    (tmp_path / "link").symlink_to(tmp_path / "far" / "dir")
    assert uris.absolute(f"{tmp_path}/link/../a.wav") == f"{tmp_path}/far/a.wav"


@pytest.mark.parametrize(
    ("uri", "kind"),
    [
        ("nothing://a/b", uris.UnknownSchemeError),
        ("reference://a.wav", uris.UnknownSchemeError),
        ("zip://a.wav::s3://bucket/b.zip", UsageError),
    ],
)
def test_a_uri_that_cannot_be_opened_is_a_usage_error(uri, kind):
    with pytest.raises(kind, match="cannot open"):
        uris.absolute(uri)


def test_another_endpoint_in_the_environment_is_another_store(servers):
    with s3.at(servers["moto"]):
        objects.put("s3://bucket/only-here", b"x")
    with s3.at(servers["rclone"]):
        assert not objects.exists("s3://bucket/only-here")


def test_the_servers_listen_on_loopback_alone(servers):
    for endpoint in servers.values():
        assert endpoint.startswith("http://127.0.0.1:")
        port = int(endpoint.rpartition(":")[2])
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.2", port), timeout=1)
