"""URIs: absolute forms, unknown schemes, and the file system behind a URI."""

from __future__ import annotations

import socket

import pytest

from pipeline.errors import StorageError, UsageError
from pipeline.storage import clients, objects, retry, uris
from tests.support import s3


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
def test_an_absolute_uri_does_not_depend_on_the_working_directory(uri, wanted, tmp_path, monkeypatch):
    directory = tmp_path / "parent" / "cwd"
    directory.mkdir(parents=True)
    monkeypatch.chdir(directory)
    assert uris.absolute(uri) == wanted.format(cwd=directory, parent=tmp_path / "parent")
    assert uris.absolute(uris.absolute(uri)) == uris.absolute(uri)


def test_a_parent_after_a_link_is_the_parent_of_the_links_target(tmp_path):
    (tmp_path / "far" / "dir").mkdir(parents=True)
    (tmp_path / "far" / "a.wav").write_bytes(b"x")
    (tmp_path / "link").symlink_to(tmp_path / "far" / "dir")
    assert uris.absolute(f"{tmp_path}/link/../a.wav") == f"{tmp_path}/far/a.wav"


@pytest.mark.parametrize(
    ("uri", "kind"),
    [
        ("nothing://a/b", uris.UnknownSchemeError),
        ("reference://a.wav", uris.UnknownSchemeError),
        ("zip://a.wav", uris.UnknownSchemeError),
        ("dir://x/a.wav", uris.UnknownSchemeError),
        ("data://x/a.wav", uris.UnknownSchemeError),
        ("zip://a.wav::s3://bucket/b.zip", UsageError),
        ("memory://a\0b/c.wav", uris.ImpossibleNameError),
        ("a\0b.wav", uris.ImpossibleNameError),
    ],
)
def test_a_uri_that_cannot_be_opened_is_a_usage_error(uri, kind):
    with pytest.raises(kind, match="cannot open"):
        uris.absolute(uri)


def test_storage_that_its_client_has_given_up_is_unknown(monkeypatch):
    def retired(uri):
        raise AttributeError("has been retired")  # as adlfs for adl://

    monkeypatch.setattr(uris, "_open", retired)
    with pytest.raises(uris.UnknownSchemeError, match=r"cannot open adl://x/a\.wav: has been retired"):
        uris.absolute("adl://x/a.wav")


@pytest.mark.parametrize("call", [uris.absolute, objects.list_objects, objects.fetch, objects.exists])
def test_a_server_whose_name_is_unknown_is_a_storage_error(call, waits, monkeypatch):
    def unknown(*_, **__):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(StorageError, match=r"ftp://nowhere\.invalid/a\.wav: gaierror: .*not known"):
        call("ftp://nowhere.invalid/a.wav")
    assert len(waits.retry) == retry.MAX_ATTEMPTS - 1


def test_hadoop_without_java_is_a_usage_error(monkeypatch, waits):
    def no_java(*_, **__):
        raise OSError("Unable to load libjvm: libjvm.so: cannot open shared object file: No such file or directory")

    monkeypatch.setattr(clients.fsspec.core, "url_to_fs", no_java)
    with pytest.raises(UsageError, match="JAVA_HOME"):
        uris.absolute("hdfs://namenode/a.wav")
    assert waits.retry == []


def test_another_endpoint_in_the_environment_is_another_file_system(servers):
    with s3.use_endpoint(servers["moto"]):
        objects.put("s3://bucket/only-here", b"x")
    with s3.use_endpoint(servers["rclone"]):
        assert not objects.exists("s3://bucket/only-here")
