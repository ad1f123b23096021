"""Objects: read, write, list and delete them, on local disks, two S3 servers, Google's and Azure's."""

from __future__ import annotations

import errno
import io
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import s3fs

from pipeline.errors import StorageError
from pipeline.storage import globs, objects, uris
from tests.support import clouds, s3


def names(objects, base):
    return [item.uri.removeprefix(f"{base}/") for item in objects]


# ---- On every kind of storage.


def test_a_written_object_is_read_whole_and_by_range(base):
    objects.put(f"{base}/deep/er/a.bin", bytes(range(256)))
    assert objects.fetch(f"{base}/deep/er/a.bin") == bytes(range(256))
    assert objects.fetch(f"{base}/deep/er/a.bin", 10, 13) == bytes([10, 11, 12])
    assert objects.exists(f"{base}/deep/er/a.bin")


def test_put_replaces_an_object_and_its_version(base):
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


def test_a_listing_holds_all_objects_below_a_directory_in_path_order_and_no_others(base):
    for name in ("dir/b", "dir/a", "dir/a.b/c", "dir/ä ö.wav", "dirt/x", "dir.txt"):
        objects.put(f"{base}/{name}", b"x")
    assert names(objects.list_objects(f"{base}/dir"), base) == ["dir/a", "dir/a.b/c", "dir/b", "dir/ä ö.wav"]
    assert names(objects.list_directory(f"{base}/dir"), base) == ["dir/a", "dir/b", "dir/ä ö.wav"]


def test_changes_by_another_process_are_seen_by_the_next_listing(base):
    listings = (objects.list_objects, objects.list_directory, lambda uri: globs.expand_glob(f"{uri}/*").matched)
    objects.put(f"{base}/d/a", b"x")
    assert [len(listing(f"{base}/d")) for listing in listings] == [1, 1, 1]
    assert not objects.exists(f"{base}/d/b")
    write_as_another_process(f"{base}/d/b", b"x")
    write_as_another_process(f"{base}/d/a", b"longer")
    assert [len(listing(f"{base}/d")) for listing in listings] == [2, 2, 2]
    assert objects.exists(f"{base}/d/b")
    assert objects.stat(f"{base}/d/a").size == 6
    with objects.open_read(f"{base}/d/a") as file:
        assert file.read() == b"longer"


def write_as_another_process(uri, data):
    """Write without this process's fsspec, whose caches therefore do not learn of it."""
    if uri.startswith("s3://"):
        bucket, _, key = uri.removeprefix("s3://").partition("/")
        s3.client().put_object(Bucket=bucket, Key=key, Body=data)
    elif "://" in uri:
        clouds.put_as_another_process(uri, data)
    else:
        Path(uri).write_bytes(data)


def test_a_missing_directory_lists_no_objects(base):
    assert objects.list_objects(f"{base}/none") == []
    assert objects.list_directory(f"{base}/none") == []
    assert not objects.exists(f"{base}/none")


def test_stat_and_exists_distinguish_a_directory_from_an_object(base):
    objects.put(f"{base}/d/a", b"x")
    assert objects.stat(f"{base}/d") is None
    assert objects.exists(f"{base}/d")
    with pytest.raises(FileNotFoundError):
        objects.fetch(f"{base}/d")


def test_delete_ignores_objects_that_do_not_exist(base):
    objects.put(f"{base}/a", b"x")
    objects.put(f"{base}/b", b"x")
    objects.delete([f"{base}/a", f"{base}/none"])
    assert names(objects.list_objects(base), base) == ["b"]


def test_objects_are_deleted_in_batches_whatever_their_names(base, monkeypatch):
    monkeypatch.setattr(objects, "_DELETE_BATCH", 3)
    names = [*(f"d/{n}" for n in range(8)), "d/with [a] glob", "d/star*", "d/ümlaut and space"]
    for name in [*names, "d/stays", "d/star and more"]:
        objects.put(f"{base}/{name}", b"x")
    objects.delete([f"{base}/{name}" for name in [*names, "d/missing", "d/missing too"]])
    remaining = [item.uri for item in objects.list_objects(f"{base}/d")]
    assert remaining == [f"{base}/d/star and more", f"{base}/d/stays"]


def test_an_open_object_can_be_sought_and_read(base):
    objects.put(f"{base}/a", bytes(range(100)))
    with objects.open_read(f"{base}/a") as file:
        file.seek(-3, io.SEEK_END)
        assert file.read() == bytes([97, 98, 99])
        file.seek(5)
        assert file.read(2) == bytes([5, 6])
        assert file.tell() == 7


@pytest.mark.parametrize("block", [1, 3, 1 << 20])
def test_lines_have_their_byte_offsets_whatever_the_block_size(base, monkeypatch, block):
    monkeypatch.setattr(objects, "LINES_BLOCK_BYTES", block)
    data = b"one\r\n\n three \nno end"
    objects.put(f"{base}/a", data)
    found_lines = list(objects.lines(f"{base}/a"))
    assert [line for _, line in found_lines] == [b"one\r\n", b"\n", b" three \n", b"no end"]
    assert all(data[offset : offset + len(line)] == line for offset, line in found_lines)


def test_large_objects_are_written_whole(base):
    data = os.urandom(1 << 20) * 12
    objects.put(f"{base}/large", data)
    assert objects.fetch(f"{base}/large") == data


@pytest.mark.parametrize("name", ["take#1", "take#1.wav", "a?b=c", "100% & more", "[a]*"])
def test_names_with_characters_of_urls_are_names(base, name):
    objects.put(f"{base}/{name}", b"x")
    assert names(objects.list_objects(base), base) == [name]
    assert uris.absolute(f"{base}/{name}") == f"{base}/{name}"
    assert objects.fetch(f"{base}/{name}") == b"x"


# ---- On Google's and Azure's stores only.


@pytest.fixture(params=[clouds.GOOGLE, clouds.AZURE])
def cloud(request):
    """The scheme of a store that is in use."""
    request.getfixturevalue({clouds.GOOGLE: "google", clouds.AZURE: "azure"}[request.param])
    return request.param


def test_a_missing_bucket_of_a_cloud_lists_no_objects_and_cannot_be_written(cloud, waits):
    bucket = f"{cloud}://no-such-bucket"
    with pytest.raises(FileNotFoundError):
        objects.stat(f"{bucket}/a.wav")
    assert objects.list_objects(f"{bucket}/d") == objects.list_directory(f"{bucket}/d") == []
    assert globs.expand_glob(f"{bucket}/*") == ([], [])
    assert not objects.exists(bucket)
    with pytest.raises(StorageError, match=f"^cannot write {bucket}/a: no such bucket") as error:
        objects.put(f"{bucket}/a", b"x")
    assert str(error.value).count(bucket) == 1
    assert len(str(error.value).splitlines()) == 1
    assert waits.retry == []


def test_an_invalid_bucket_name_of_a_cloud_is_a_missing_object(cloud, waits):
    with pytest.raises(FileNotFoundError):
        objects.stat(f"{cloud}://my bucket!/a.wav")
    assert waits.retry == []


def test_the_list_below_an_object_does_not_fail(cloud):
    objects.put(f"{cloud}://bucket/{cloud}/a", b"x")
    assert [item.uri for item in objects.list_objects(f"{cloud}://bucket/{cloud}/a")] in (
        [],
        [f"{cloud}://bucket/{cloud}/a"],
    )


def test_the_account_that_a_uri_of_azure_names_is_kept(azure, tmp_path):
    base = f"abfs://bucket@{clouds.ACCOUNT}.dfs.core.windows.net/{tmp_path.name}"
    objects.put(f"{base}/d/a", b"x")
    assert uris.absolute(base.replace("abfs:", "abfss:")) == base
    assert names(objects.list_objects(base), base) == names(globs.expand_glob(f"{base}/**").matched, base) == ["d/a"]
    assert objects.stat(f"{base}/d/a").uri == f"{base}/d/a"
    assert objects.exists(f"abfs://bucket/{tmp_path.name}/d/a")


# ---- On S3 only.


@pytest.mark.parametrize("server", ["rclone", "moto"])
def test_a_missing_bucket_lists_no_objects_and_cannot_be_written(servers, server):
    with s3.use_endpoint(servers[server]):
        with pytest.raises(FileNotFoundError):
            objects.stat("s3://no-such-bucket/a.wav")
        assert objects.list_objects("s3://no-such-bucket/d") == []
        assert globs.expand_glob("s3://no-such-bucket/*") == ([], [])
        assert not objects.exists("s3://no-such-bucket")
        with pytest.raises(StorageError, match="cannot write s3://no-such-bucket/a"):
            objects.put("s3://no-such-bucket/a", b"x")


def test_an_invalid_bucket_name_is_a_missing_object(servers):
    with s3.use_endpoint(servers["moto"]), pytest.raises(FileNotFoundError, match="Invalid bucket name"):
        objects.stat("s3://my bucket!/a.wav")


def test_a_key_that_ends_in_a_slash_is_a_directory_and_not_an_object(servers):
    with s3.use_endpoint(servers["moto"]):
        s3.client().put_object(Bucket="bucket", Key="marked/", Body=b"")
        objects.put("s3://bucket/marked/a.wav", b"x")
        assert names(objects.list_objects("s3://bucket/marked"), "s3://bucket/marked") == ["a.wav"]
        assert names(globs.expand_glob("s3://bucket/marked/*").matched, "s3://bucket/marked") == ["a.wav"]


@pytest.mark.parametrize("unsupported", [False, True])
def test_objects_left_by_a_batch_deletion_are_deleted_singly_and_a_refusal_is_an_error(
    servers, tmp_path, waits, monkeypatch, unsupported
):
    """S3 returns status 200 even if it deleted none of the keys; some other servers do not implement the request."""
    call = s3fs.S3FileSystem._call_s3
    deleted_singly = []
    expected = "abc" if unsupported else "ab"  # the last is refused again, when those before it are done

    def delete_batch(_, method, **kwargs):
        assert method == "delete_objects"
        if unsupported:
            raise OSError(errno.EIO, "NotImplemented")
        return {"Errors": [{"Key": item["Key"], "Code": "SlowDown"} for item in kwargs["Delete"]["Objects"][:2]]}

    async def refusing(self, method, *args, **kwargs):
        if method == "delete_object":
            deleted_singly.append(kwargs["Key"])
            if kwargs["Key"] == f"{folder}/{expected[-1]}":
                raise PermissionError("AccessDenied")
        return await call(self, method, *args, **kwargs)

    folder = f"{tmp_path.name}/dir"
    with s3.use_endpoint(servers["moto"]):
        uris = [f"s3://bucket/{folder}/{name}" for name in "abc"]
        for uri in uris:
            objects.put(uri, b"x")
        monkeypatch.setattr(s3fs.S3FileSystem, "call_s3", delete_batch)
        monkeypatch.setattr(s3fs.S3FileSystem, "_call_s3", refusing)
        with pytest.raises(StorageError, match="AccessDenied"):
            objects.delete(uris)
        assert set(deleted_singly) == {f"{folder}/{name}" for name in expected}


def test_the_test_servers_listen_on_loopback_only(servers):
    for endpoint in servers.values():
        assert endpoint.startswith("http://127.0.0.1:")
        port = int(endpoint.rpartition(":")[2])
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.2", port), timeout=1)


# ---- On local disks only.


def refuse(*_, **__):
    raise PermissionError(13, "Permission denied")


def test_a_local_file_that_may_not_be_read_is_a_storage_error(tmp_path, waits, monkeypatch):
    (tmp_path / "a").write_bytes(b"x")
    monkeypatch.setattr(os, "stat", refuse)  # not chmod: the tests may run as root
    with pytest.raises(StorageError, match="PermissionError"):
        objects.stat(str(tmp_path / "a"))
    with pytest.raises(StorageError, match="PermissionError"):
        objects.list_objects(str(tmp_path))


def test_a_directory_that_may_not_be_listed_is_not_silently_skipped(tmp_path, waits, monkeypatch):
    objects.put(f"{tmp_path}/open/a.wav", b"x")
    objects.put(f"{tmp_path}/shut/b.wav", b"x")
    listdir = os.listdir
    monkeypatch.setattr(os, "listdir", lambda path: refuse() if str(path).endswith("shut") else listdir(path))
    for call in (objects.list_objects, lambda uri: globs.expand_glob(f"{uri}/*/*.wav").matched):
        with pytest.raises(StorageError, match="PermissionError"):
            call(str(tmp_path))


@pytest.mark.parametrize("name", ["x" * 300 + ".wav", "file.txt/below.wav", "loop/loop.wav"])
def test_a_path_that_no_file_can_have_is_a_missing_object(tmp_path, name):
    (tmp_path / "file.txt").write_bytes(b"x")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(FileNotFoundError):
        objects.stat(str(tmp_path / name))
    with pytest.raises(FileNotFoundError):
        objects.fetch(str(tmp_path / name))
    assert not objects.exists(str(tmp_path / name))


def test_links_are_followed_and_a_loop_of_links_ends(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a.wav").write_bytes(b"12345")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "dir").symlink_to(tmp_path / "real")
    (tmp_path / "in" / "file.wav").symlink_to(tmp_path / "real" / "a.wav")
    (tmp_path / "in" / "again").symlink_to(tmp_path / "in")
    listed = objects.list_objects(str(tmp_path / "in"))
    assert names(listed, tmp_path / "in") == ["dir/a.wav", "file.wav"]
    assert [item.size for item in listed] == [5, 5]
    assert listed == [objects.stat(item.uri) for item in listed]


def test_a_dangling_link_and_a_pipe_are_listed_as_missing_objects(tmp_path):
    (tmp_path / "a.wav").symlink_to(tmp_path / "none.wav")
    os.mkfifo(tmp_path / "b.wav")
    assert names(objects.list_objects(str(tmp_path)), tmp_path) == ["a.wav", "b.wav"]
    for name in ("a.wav", "b.wav"):
        with pytest.raises(FileNotFoundError):
            objects.stat(str(tmp_path / name))


def test_a_name_that_is_not_utf8_is_listed_with_escapes(tmp_path):
    (tmp_path / os.fsdecode(b"caf\xe9.wav")).write_bytes(b"x")
    (item,) = objects.list_objects(str(tmp_path))
    assert item.uri.encode()  # Arrow can hold it
    assert item.uri.startswith(str(tmp_path / "caf"))


def test_a_modification_time_that_differs_by_a_nanosecond_is_another_version(tmp_path):
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


def test_a_full_disk_is_a_storage_error_and_leaves_no_temporary_files(tmp_path, monkeypatch, waits):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="No space left"):
        objects.put(f"{tmp_path}/a", b"x")
    assert list(tmp_path.iterdir()) == []


def test_data_is_synced_before_its_rename_and_new_directories_are_synced_too(tmp_path, monkeypatch):
    events = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (events.append(os.path.realpath(f"/proc/self/fd/{fd}")), fsync(fd))[1])
    monkeypatch.setattr(os, "replace", lambda a, b: (events.append("replace"), replace(a, b))[1])
    objects.put(f"{tmp_path}/x/y/a", b"data")
    created, temporary = events[:2], events[2]
    assert created == [str(tmp_path), str(tmp_path / "x")]
    assert objects.is_temporary(temporary)
    assert events[3:] == ["replace", str(tmp_path / "x" / "y")]


def test_a_file_where_a_directory_should_be_is_a_storage_error(tmp_path, waits):
    (tmp_path / "run").write_bytes(b"x")
    with pytest.raises(StorageError, match="run"):
        objects.put(f"{tmp_path}/run/a", b"x")
