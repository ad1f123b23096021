"""WebDataset tar shards."""

import gzip
import io
import os
import tarfile
import time
import tracemalloc
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.corpus.layouts import tar as tar_module
from pipeline.corpus.layouts.tar import MAX_HEADER_BYTES, TAR, open_tar, tar_members
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
COMPRESSIONS = {
    "no": bytes,
    "gzip": gzip.compress,
    "zstd": lambda data: pa.compress(data, codec="zstd", asbytes=True),
}


@pytest.mark.parametrize("name", ["a.tar", "a.TAR", "a.tar.gz", "a.tgz", "a.tar.zst", "a.tzst"])
def test_a_shard_is_recognised_by_its_name_and_is_one_part(tmp_path, name):
    tar_of(tmp_path / name, *(f"{i}.wav" for i in range(50)))
    size = (tmp_path / name).stat().st_size
    (part,) = parts_of(tmp_path / name, part_bytes=size // tar_module.CUT_PARTS + 1)
    assert (part.kind, part.uri, part.bytes) == ("tar", f"{tmp_path}/{name}", size)


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
    *found, unused = read(path)
    assert [outcome(u) for u in found] == [("d/a", b"A"), ("d/b.c", b"B"), ("mine", b"E")]
    assert outcome(unused) == ("s", "MISSING")
    assert unused.problem.message == "1 texts and 0 other members belong to no audio, or several to one: orphan.txt"
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


@pytest.mark.parametrize("compress", COMPRESSIONS)
@pytest.mark.parametrize("name", ["s.tar", "s.tar.gz", "s.tgz", "s.tar.zst"])
def test_compressed_shards_are_read_whatever_their_extension(tmp_path, compress, name):
    path = tar(tmp_path / name, ("a.wav", b"A"), ("b.wav", b"B"))
    path.write_bytes(COMPRESSIONS[compress](path.read_bytes()))
    found = read(path)
    assert [outcome(u) for u in found] == [("a", b"A"), ("b", b"B")]
    if compress != "no":  # an offset in the decompressed stream is not one in the object
        assert [(u.byte_start, u.byte_end) for u in found] == [(None, None)] * 2


def test_directories_are_ignored_and_what_is_no_file_is_an_error_row(tmp_path):
    path = tar(
        tmp_path / "s.tar",
        ("d.wav", b"", {"type": tarfile.DIRTYPE}),
        ("d.wav/a.wav", b"A"),
        ("hard.wav", b"", {"type": tarfile.LNKTYPE, "linkname": "d.wav/a.wav"}),
        ("soft.wav", b"", {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}),
        ("soft.txt", b"", {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}),
        ("pipe.wav", b"", {"type": tarfile.FIFOTYPE}),
        ("device.wav", b"", {"type": tarfile.CHRTYPE}),
        ("b.wav", b"B"),
    )
    found = read(path)
    assert [outcome(u) for u in found] == [
        ("d.wav/a", b"A"),
        ("hard", "UNSUPPORTED"),
        ("soft", "UNSUPPORTED"),
        ("pipe", "UNSUPPORTED"),
        ("device", "UNSUPPORTED"),
        ("b", b"B"),
    ]
    assert all(u.meta.text is None for u in found)


def test_hidden_members_are_ignored_and_underscores_are_not_hidden(tmp_path):
    path = tar(tmp_path / "s.tar", ("._a.wav", b"x"), (".d/b.wav", b"x"), ("./_c.wav", b"C"), ("_d/e.wav", b"E"))
    assert outcomes(path) == [("_c", b"C"), ("_d/e", b"E")]


@pytest.mark.parametrize(
    "names",
    [(), ("a.txt",), ("a.wav.data", "a.wav.label"), ("inner.tar",), ("a.npy", "b.npy"), ("README", "b/c.json")],
)
def test_a_shard_without_audio_is_an_error_row(tmp_path, names):
    (row,) = read(path := tar_of(tmp_path / "s.tar", *names))
    assert outcome(row) == ("s", "MISSING")
    assert row.problem.message.startswith("no audio in the shard")
    assert all(name in row.problem.message for name in names)
    assert [part.rows for part in parts_of(path, limit=5)] == [1]


def test_texts_behind_all_audio_are_counted_and_named(tmp_path):
    names = [f"{i}.wav" for i in range(15)] + [f"{i}.txt" for i in range(15)] + ["notes.json"]
    *found, unused = read(path := tar_of(tmp_path / "s.tar", *names))
    assert [outcome(u)[1] for u in found] == [b"abc"] * 15
    message = unused.problem.message
    assert message.startswith("15 texts and 1 other members belong to no audio, or several to one: 0.txt, 1.txt,")
    assert message.endswith("9.txt, ...")
    for limit in (3, 15, 16, 99):
        assert [part.rows for part in parts_of(path, limit=limit)] == [min(limit, 16)]


@pytest.mark.parametrize(
    "names",
    [
        ("a.audio.wav", "a.meta.json", "a.words.txt"),
        ("a.meta.json", "a.words.txt", "a.audio.wav"),
        ("d/a.wav", "d/a.words.txt", "d/a.meta.json"),
        ("a.txt", "a.0.wav", "a.info.json", "a.0.npy"),
        ("x.y/a.audio.wav", "x.y/a.TXT", "x.y/a.meta.JSON"),
    ],
)
def test_members_that_are_equal_up_to_the_first_dot_are_one_sample(tmp_path, names):
    content = {"wav": b"A", "txt": b"words", "json": b'{"speaker": "s"}', "npy": b"x"}
    members = [(name, content[name.rpartition(".")[2].lower()]) for name in names]
    (found,) = read(tar(tmp_path / "s.tar", *members))
    (audio,) = (name for name in names if name.endswith("wav"))
    assert outcome(found) == (audio.removesuffix(".wav"), b"A")
    assert (found.meta.text, found.meta.speaker) == ("words", "s")


@pytest.mark.parametrize(
    ("names", "text", "unused"),
    [
        (("v1.0001.wav", "v1.0002.txt"), None, "1 texts and 0 other members belong"),
        (("v1.0001.wav", "v1.0001.txt", "v1.0002.txt"), "v1.0001.txt", "1 texts and 0 other members belong"),
        (("John.Smith.wav", "John.Doe.txt"), None, "1 texts and 0 other members belong"),
        (("John.Smith.wav", "John.txt"), None, "1 texts and 0 other members belong"),
        (
            ("u.wav", "u.norm.txt", "u.raw.txt"),
            None,
            "2 texts and 0 other members belong to no audio, or several to one: u.norm.txt, u.",
        ),
        (("u.norm.txt", "u.wav", "u.raw.txt", "u.txt"), "u.txt", None),
        (("u.wav", "u.norm.txt"), "u.norm.txt", None),
        (("u.wav", "u.words.npy", "u.0.npy"), None, None),
    ],
)
def test_only_roles_between_dots_join_a_text_to_audio_and_no_text_is_dropped(tmp_path, names, text, unused):
    path = tar(tmp_path / "s.tar", *((name, name.encode()) for name in names))
    found, *rest = read(path)
    assert found.meta.text == text
    assert [row.problem.message.startswith(unused) for row in rest] == ([True] if unused else [])
    assert parts_of(path, limit=9)[0].rows == 1 + len(rest)


def test_rows_of_a_run_that_version_0_1_0_began_keep_its_rules(tmp_path):
    members = [("a.audio.wav", b"A"), ("a.meta.json", b'{"utt_id": "X"}'), ("b.wav", b"B"), ("b.txt", b"words")]
    path = tar(tmp_path / "s.tar", *members, ("c.txt", b"of nobody"))
    (part,) = parts_of(path)
    assert [(u.utt_id, u.meta.text) for u in TAR.read(replace(part, earlier_rules=True))] == [
        ("a.audio", None),
        ("b", "words"),
    ]
    assert [u.utt_id for u in read(path)] == ["X", "b", "s"]


def test_dots_in_the_names_of_several_recordings_do_not_mix_their_texts(tmp_path):
    names = [f"v1.{i:03}.{kind}" for i in range(300) for kind in ("wav", "txt") if kind == "wav" or i % 3]
    members = [(name, name.encode()) for name in names] + [("v1.x.txt", b"of nobody"), ("v1.y.wav", b"Y")]
    *found, last, unused = read(tar(tmp_path / "s.tar", *members))
    assert [u.utt_id for u in found] == [f"v1.{i:03}" for i in range(300)]
    assert [u.meta.text for u in found] == [f"v1.{i:03}.txt" if i % 3 else None for i in range(300)]
    assert (last.utt_id, last.meta.text) == ("v1.y", None)
    assert unused.problem.message == "1 texts and 0 other members belong to no audio, or several to one: v1.x.txt"


def test_composed_and_decomposed_names_are_one_sample(tmp_path):
    path = tar(tmp_path / "s.tar", ("caf\u00e9.wav", b"A"), ("cafe\u0301.txt", b"words"))
    (found,) = read(path)
    assert (found.utt_id, found.meta.text) == ("caf\u00e9", "words")


# Archives that attack their reader


def pax_record(key: str, value: str) -> bytes:
    body = f" {key}={value}\n".encode()
    size = len(body)
    while len(str(size)) + len(body) != size:
        size = len(str(size)) + len(body)
    return str(size).encode() + body


def pax_member(*records: tuple[str, str]) -> tuple[str, bytes, dict]:
    return "pax", b"".join(pax_record(*record) for record in records), {"type": tarfile.XHDTYPE}


HOSTILE = {
    "size that overflows": [pax_member(("size", "9" * 400))],
    "size below zero": [pax_member(("size", "-4096"))],
    "size beyond the file": [pax_member(("size", str(2**61)))],
    "time that overflows": [pax_member(("mtime", "1e999"))],
    "owner that overflows": [pax_member(("uid", "9" * 30))],
    "sparse map of words": [pax_member(("GNU.sparse.map", "a,b"), ("GNU.sparse.size", "3"))],
    "sparse size that overflows": [pax_member(("GNU.sparse.size", "9" * 4000), ("GNU.sparse.map", "0,1"))],
    "sparse map without end": [pax_member(("GNU.sparse.major", "1"), ("GNU.sparse.minor", "0"))],
    "digits without end": [("pax", b"1" * 900_000, {"type": tarfile.XHDTYPE})],
    "length of zero": [("pax", b"0 path=x\n", {"type": tarfile.XHDTYPE})],
    "huge header": [("pax", bytes(MAX_HEADER_BYTES + 1), {"type": tarfile.XHDTYPE})],
    "huge name": [("name", b"x" * (MAX_HEADER_BYTES + 1), {"type": tarfile.GNUTYPE_LONGNAME})],
    "names within names": [("name", b"x", {"type": tarfile.GNUTYPE_LONGNAME})] * 3000,
    "unknown character set": [pax_member(("hdrcharset", "BINARY"), ("path", "x.wav"))],
}


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_header_ends_a_shard_with_an_error_row_in_bounded_time(tmp_path, kind, compress):
    mode = "w:gz" if compress else "w"
    members = [("a.wav", b"A"), *HOSTILE[kind], ("b.wav", b"B")]
    path = tar(tmp_path / "s.tar", *members, mode=mode)
    began = time.process_time()
    found = outcomes(path)
    assert time.process_time() - began < 5
    assert found[0] == ("a", b"A")
    assert found[-1] in [("s", "BAD_ARCHIVE"), ("b", b"B"), ("x", b"B")]
    assert parts_of(path, limit=9)[0].rows == len(found)


def sparse_shard(path: Path, size: int, *names: str) -> Path:
    """A shard whose members are `size` zeros each, as `tar --sparse` stores them; and a recording."""
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        for name in names:
            sparse = {"GNU.sparse.major": "0", "GNU.sparse.minor": "1", "GNU.sparse.name": name}
            sparse |= {"GNU.sparse.size": str(size), "GNU.sparse.map": f"0,1,{size},0"}
            add_member(archive, name, b"x", pax_headers=sparse)
        add_member(archive, "z.wav", b"Z")
    return path


def test_a_sparse_member_of_twenty_gigabytes_is_not_expanded(tmp_path):
    path = sparse_shard(tmp_path / "s.tar", 20 * 2**30, "a.wav", "b.txt", "c.json", "d.npy")
    tracemalloc.start()
    found = outcomes(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found == [("a", "TOO_LARGE"), ("z", b"Z"), ("s", "MISSING")]
    assert peak < 20 * 2**20


def test_a_large_text_of_a_sample_is_an_error_row_and_not_expanded(tmp_path):
    with tarfile.open(tmp_path / "s.tar", "w", format=tarfile.PAX_FORMAT) as archive:
        add_member(archive, "a.wav", b"A")
        sparse = {"GNU.sparse.major": "0", "GNU.sparse.minor": "1", "GNU.sparse.name": "a.txt"}
        sparse |= {"GNU.sparse.size": str(20 * 2**30), "GNU.sparse.map": f"0,1,{20 * 2**30},0"}
        add_member(archive, "a.txt", b"x", pax_headers=sparse)
        add_member(archive, "b.wav", b"B")
    assert outcomes(tmp_path / "s.tar") == [("a", "BAD_ROW"), ("b", b"B")]


@settings(deadline=None, max_examples=300)
@given(data=st.data(), compress=st.sampled_from(list(COMPRESSIONS.values())))
def test_any_damage_to_a_shard_ends_in_rows(tmp_path_factory, data, compress):
    damaged = bytearray(compress(WHOLE))
    for _ in range(data.draw(st.integers(1, 4))):
        # Headers are hit more often than data.
        block = data.draw(st.sampled_from([0, 3, 5, 8, 10, 13])) * 512
        position = min(block + data.draw(st.integers(0, 511)), len(damaged) - 1)
        damaged[position] = data.draw(st.integers(0, 255))
    found = outcomes(write(tmp_path_factory.mktemp("tar") / "s.tar", bytes(damaged)))
    assert found


@pytest.mark.parametrize(
    "data", [b"", b"this is a text, not an archive\n" * 100, b"\x1f\x8bnot gzip" * 100, b"\0" * 100, os.urandom(5000)]
)
def test_a_file_that_is_not_an_archive_is_one_error_row(tmp_path, data):
    ((utt_id, code),) = outcomes(write(tmp_path / "s.tar", data))
    assert (utt_id, code) == ("s", "BAD_ARCHIVE")


@settings(deadline=None)
@given(end=st.integers(0, 10 * 512), compress=st.sampled_from(list(COMPRESSIONS.values())))
def test_a_truncated_shard_keeps_the_samples_before_the_end_and_adds_an_error_row(tmp_path_factory, end, compress):
    # Each sample takes 512 + 1024 + 512 + 512 bytes; the end mark is what remains.
    data = WHOLE[:end]
    found = outcomes(write(tmp_path_factory.mktemp("tar") / "s.tar", compress(data)))
    if end < 3 * 2560 + 512:
        *found, (_, code) = found
        assert code == "BAD_ARCHIVE"
    whole = [(name, name.encode() * 700) for i, name in enumerate("abc") if end >= i * 2560 + 512 + 700]
    assert found == whole


@pytest.mark.parametrize("compress", ["gzip", "zstd"])
def test_a_truncated_compressed_shard_keeps_whole_samples_and_adds_an_error_row(tmp_path, compress):
    members = [(f"{i}.wav", os.urandom(3000)) for i in range(20)]
    data = COMPRESSIONS[compress](tar(tmp_path / "whole.tar", *members).read_bytes())
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

    expiring = objects.RetryingFile(Expiring(path.read_bytes()), str(path))
    monkeypatch.setattr(objects, "open_read", lambda uri, version=None: expiring)
    with pytest.raises(StorageError, match="expired"):
        list(read_part(part))
