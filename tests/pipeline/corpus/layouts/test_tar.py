"""WebDataset tar shards."""

import gzip
import io
import os
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.corpus.layouts import tar as tar_module
from pipeline.corpus.layouts.tar import open_tar, tar_members
from pipeline.corpus.read import read_part
from pipeline.errors import StorageError
from pipeline.storage import objects, retry
from tests.support.corpora import add_member, parts_of
from tests.support.inputs import outcome, outcomes, read, tar, tar_of, write


def whole_archive() -> bytes:
    """An archive of three samples, each of audio and text."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name in "abc":
            add_member(archive, f"{name}.wav", name.encode() * 700)
            add_member(archive, f"{name}.txt", name.encode() * 5)
    return buffer.getvalue()


WHOLE = whole_archive()


@pytest.mark.parametrize("name", ["a.tar", "a.TAR", "a.tar.gz", "a.tgz"])
def test_a_shard_is_recognised_by_its_name_and_never_divided(tmp_path, name):
    tar_of(tmp_path / name, *(f"{i}.wav" for i in range(50)))
    (part,) = parts_of(tmp_path / name, part_bytes=1)
    assert (part.kind, part.uri, part.bytes) == ("tar", f"{tmp_path}/{name}", (tmp_path / name).stat().st_size)


def test_the_members_of_a_shard_are_not_kept_in_memory(tmp_path):
    with Path(tar_of(tmp_path / "a.tar", *(f"{i}.wav" for i in range(50)))).open("rb", buffering=0) as file:
        archive, _ = open_tar(file)
        assert max(len(archive.members) for _ in tar_members(archive)) <= 1


def test_neighbouring_members_of_one_name_are_one_sample(tmp_path):
    path = tar(
        tmp_path / "s.tar",
        ("d/a.json", b'{"speaker": "s", "text": "from json", "x": 1}'),
        ("d/a.wav", b"A"),
        ("d/a.txt", b" from txt\n"),
        ("d/b.c.flac", b"B"),
        ("orphan.txt", b"without audio"),
        ("e.json", b'{"id": "mine"}'),
        ("e.mp3", b"E"),
    )
    found = read(path)
    assert [outcome(u) for u in found] == [("d/a", b"A"), ("d/b.c", b"B"), ("mine", b"E")]
    assert [u.meta.text for u in found] == ["from txt", None, None]
    assert (found[0].meta.speaker, found[0].meta.tags) == ("s", '{"x": 1}')
    assert [u.fixed_id for u in found] == [False, False, True]
    data = path.read_bytes()
    assert [data[u.byte_start : u.byte_end] for u in found] == [b"A", b"B", b"E"]
    assert all(u.uri == str(path) for u in found)


@pytest.mark.parametrize("format_", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_and_non_ascii_names_are_read(tmp_path, format_):
    names = ["x/" * 80 + "long.wav", "ä/ö ü.wav", "./dotted/./a.wav", "/absolute.wav"]
    path = tar(tmp_path / "s.tar", *((name, b"A") for name in names), format=format_)
    assert [u.utt_id for u in read(path)] == ["x/" * 80 + "long", "ä/ö ü", "dotted/a", "absolute"]


def test_a_name_that_is_not_utf8_is_escaped(tmp_path):
    path = tar(tmp_path / "s.tar", ("caf\xe9.wav", b"A"), format=tarfile.GNU_FORMAT, encoding="latin-1")
    assert outcomes(path) == [("caf\\xe9", b"A")]


@pytest.mark.parametrize("mode", ["w:gz", "w"])
@pytest.mark.parametrize("name", ["s.tar", "s.tar.gz", "s.tgz"])
def test_compressed_shards_are_read_whatever_their_extension(tmp_path, mode, name):
    path = tar(tmp_path / name, ("a.wav", b"A"), ("b.wav", b"B"), mode=mode)
    found = read(path)
    assert [outcome(u) for u in found] == [("a", b"A"), ("b", b"B")]
    if mode == "w:gz":  # an offset in the decompressed stream is not one in the object
        assert [(u.byte_start, u.byte_end) for u in found] == [(None, None)] * 2


def test_directories_are_ignored_and_links_are_error_rows(tmp_path):
    path = tar(
        tmp_path / "s.tar",
        ("d.wav", b"", {"type": tarfile.DIRTYPE}),
        ("d.wav/a.wav", b"A"),
        ("hard.wav", b"", {"type": tarfile.LNKTYPE, "linkname": "d.wav/a.wav"}),
        ("soft.wav", b"", {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}),
        ("soft.txt", b"", {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}),
        ("pipe.wav", b"", {"type": tarfile.FIFOTYPE}),
        ("b.wav", b"B"),
    )
    found = read(path)
    assert [outcome(u) for u in found] == [
        ("d.wav/a", b"A"),
        ("hard", "UNSUPPORTED"),
        ("soft", "UNSUPPORTED"),
        ("b", b"B"),
    ]
    assert all(u.meta.text is None for u in found)


def test_hidden_members_are_ignored_and_underscores_are_not_hidden(tmp_path):
    path = tar(tmp_path / "s.tar", ("._a.wav", b"x"), (".d/b.wav", b"x"), ("./_c.wav", b"C"), ("_d/e.wav", b"E"))
    assert outcomes(path) == [("_c", b"C"), ("_d/e", b"E")]


def test_a_shard_without_audio_has_no_utterances(tmp_path):
    assert read(tar(tmp_path / "s.tar")) == []
    assert read(tar(tmp_path / "t.tar", ("a.txt", b"x"))) == []


@pytest.mark.parametrize(
    "data", [b"", b"this is a text, not an archive\n" * 100, b"\x1f\x8bnot gzip" * 100, b"\0" * 100, os.urandom(5000)]
)
def test_a_file_that_is_not_an_archive_is_one_error_row(tmp_path, data):
    ((utt_id, code),) = outcomes(write(tmp_path / "s.tar", data))
    assert (utt_id, code) == ("s", "BAD_ARCHIVE")


@settings(deadline=None)
@given(end=st.integers(0, 10 * 512), compress=st.booleans())
def test_a_truncated_shard_keeps_the_samples_before_the_end_and_adds_an_error_row(tmp_path_factory, end, compress):
    # Each sample takes 512 + 1024 + 512 + 512 bytes; the end mark is what remains.
    data = WHOLE[:end]
    path = write(
        tmp_path_factory.mktemp("tar") / ("s.tgz" if compress else "s.tar"), gzip.compress(data) if compress else data
    )
    found = outcomes(path)
    if end < 3 * 2560 + 512:
        *found, (_, code) = found
        assert code == "BAD_ARCHIVE"
    whole = [(name, name.encode() * 700) for i, name in enumerate("abc") if end >= i * 2560 + 512 + 700]
    assert found == whole


def test_a_truncated_compressed_shard_keeps_whole_samples_and_adds_an_error_row(tmp_path):
    members = [(f"{i}.wav", os.urandom(3000)) for i in range(20)]
    data = tar(tmp_path / "whole.tgz", *members, mode="w:gz").read_bytes()
    for end in range(1, len(data) - 12, 997):
        *found, (_, code) = outcomes(write(tmp_path / "s.tgz", data[:end]))
        assert code == "BAD_ARCHIVE"
        assert [result for _, result in found] == [audio for _, audio in members[: len(found)]]


def test_a_damaged_header_does_not_end_a_shard_silently(tmp_path):
    data = bytearray(WHOLE)
    data[2560 : 2560 + 20] = b"\xff" * 20
    assert outcomes(write(tmp_path / "s.tar", bytes(data))) == [("a", b"a" * 700), ("s", "BAD_ARCHIVE")]


def test_a_bad_text_or_json_member_makes_its_sample_an_error_row(tmp_path):
    path = tar(
        tmp_path / "s.tar", ("a.wav", b"A"), ("a.json", b"{"), ("b.wav", b"B"), ("b.txt", b"\xff"), ("c.wav", b"C")
    )
    assert outcomes(path) == [("a", "BAD_ROW"), ("b", "BAD_ROW"), ("c", b"C")]


def test_a_member_that_is_too_large_is_an_error_row_and_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(tar_module, "MAX_MEMBER_BYTES", 3)
    path = tar(tmp_path / "s.tar", ("a.wav", b"1234"), ("b.wav", b"123"))
    assert outcomes(path) == [("a", "TOO_LARGE"), ("b", b"123")]


def test_a_duplicate_id_in_a_shard_is_an_error_row_that_names_both_places(tmp_path):
    path = tar(tmp_path / "s.tar", ("a.wav", b"1"), ("a.flac", b"2"), ("b.wav", b"3"), ("a.wav", b"4"))
    found = read(path)
    assert [outcome(u) for u in found] == [("a", b"1"), ("a", "DUPLICATE_ID"), ("b", b"3"), ("a", "DUPLICATE_ID")]
    data = path.read_bytes()
    first, second = data.index(b"1", 512), found[3].byte_start
    assert found[3].problem.message == f"a names both {path}[{first}:{first + 1}] and {path}[{second}:{second + 1}]"


def test_a_storage_error_in_a_shard_is_not_a_broken_archive(tmp_path, monkeypatch):
    path = tar(tmp_path / "s.tar", ("a.wav", b"A"), ("b.wav", bytes(3_000_000)))
    (part,) = parts_of(path)
    monkeypatch.setattr(retry, "BACKOFF_S", 0)

    class Expiring(io.BytesIO):
        def read(self, size=-1):
            if self.tell() > 1_000_000:
                raise PermissionError("the key has expired")
            return super().read(size)

    monkeypatch.setattr(objects, "open_read", lambda uri: objects.RetryingFile(Expiring(path.read_bytes()), uri))
    with pytest.raises(StorageError, match="expired"):
        list(read_part(part))
