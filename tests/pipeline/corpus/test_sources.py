"""From parts to utterances, in the four containers. The bytes here are no audio: nothing is decoded."""

import gzip
import io
import json
import os
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.corpus import utterances
from pipeline.corpus.layouts import tar as tar_layout
from pipeline.corpus.parts import Part
from pipeline.corpus.plan import plan
from pipeline.corpus.read import read_part
from pipeline.errors import AudioError, ErrorCode, InputChangedError, StorageError
from pipeline.storage import objects, retry
from tests.support import s3

LARGE = 1 << 40


def planned(table):
    """The parts of a plan, as they are read back."""
    return [Part.from_row(row) for row in table.to_pylist()]


def write(path: Path, data: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def manifest(path: Path, *rows: dict) -> Path:
    return write(path, "".join(json.dumps(row) + "\n" for row in rows))


def add(archive: tarfile.TarFile, name: str, data: bytes = b"", **fields) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for field, value in fields.items():
        setattr(info, field, value)
    archive.addfile(info, io.BytesIO(data))


def tar(path: Path, *members: tuple, mode: str = "w", **options) -> Path:
    with tarfile.open(path, mode, **options) as archive:
        for member in members:
            add(archive, *member[:2], **(member[2] if len(member) > 2 else {}))
    return path


def parquet(path: Path, rows: list[dict], group: int | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = {name: [row.get(name) for row in rows] for name in dict.fromkeys(name for row in rows for name in row)}
    pq.write_table(pa.table(columns), path, row_group_size=group)
    return path


def read(*inputs, part_bytes=LARGE, limit=None):
    parts = planned(plan([str(uri) for uri in inputs], part_bytes, limit))
    return [utterance for part in parts for utterance in read_part(part)]


def told(utterance):
    """(id, bytes or code)."""
    if utterance.problem is not None:
        return utterance.utt_id, utterance.problem.code.value
    try:
        audio = utterance.open()
    except AudioError as error:
        return utterance.utt_id, error.code.value
    return utterance.utt_id, audio if isinstance(audio, bytes) else audio.read()


def told_all(*inputs, **options):
    return [told(utterance) for utterance in read(*inputs, **options)]


# Files.


def test_files_come_with_their_bytes_and_references(tmp_path):
    write(tmp_path / "a.wav", b"A")
    write(tmp_path / "a.txt", "\ufeffhello there\n")
    write(tmp_path / "1/1-2-3.flac", b"B")
    write(tmp_path / "1/1-2-4.flac", b"C")
    write(tmp_path / "1/1-2.trans.txt", "1-2-3 GOOD\u2028MORNING\r\n1-2-5 NOBODY\n")
    found = read(tmp_path)
    assert [told(u) for u in found] == [("1/1-2-3", b"B"), ("1/1-2-4", b"C"), ("a", b"A")]
    assert [u.meta.text for u in found] == ["GOOD\u2028MORNING", None, "hello there"]
    assert [u.uri for u in found] == [f"{tmp_path}/1/1-2-3.flac", f"{tmp_path}/1/1-2-4.flac", f"{tmp_path}/a.wav"]
    assert not any(u.fixed_id for u in found)


def test_a_single_file_has_its_reference(tmp_path):
    write(tmp_path / "1-2-3.flac", b"B")
    write(tmp_path / "1-2.trans.txt", "1-2-3 GOOD MORNING\n")
    (found,) = read(tmp_path / "1-2-3.flac")
    assert (told(found), found.meta.text) == (("1-2-3", b"B"), "GOOD MORNING")


def test_a_reference_that_is_no_text_costs_its_file_one_row(tmp_path):
    write(tmp_path / "a.wav", b"A")
    write(tmp_path / "a.txt", b"caf\xe9")
    write(tmp_path / "b.wav", b"B")
    assert told_all(tmp_path) == [("a", "BAD_ROW"), ("b", b"B")]


def test_a_transcript_that_changed_between_two_runs_is_read_again(tmp_path):
    write(tmp_path / "1-2-3.flac", b"B")
    for text in ("OLD", "NEW"):
        write(tmp_path / "1-2.trans.txt", f"1-2-3 {text}\n")
        assert [u.meta.text for u in read(tmp_path)] == [text]


def test_an_unreadable_name_and_a_link_to_nothing_are_missing(tmp_path):
    (tmp_path / os.fsdecode(b"caf\xe9.wav")).write_bytes(b"x")
    (tmp_path / "link.wav").symlink_to(tmp_path / "none")
    assert [what for _, what in told_all(tmp_path)] == ["MISSING", "MISSING"]


def test_a_linked_file_is_read(tmp_path):
    write(tmp_path / "far/a.wav", b"A")
    (tmp_path / "near").mkdir()
    (tmp_path / "near/b.wav").symlink_to(tmp_path / "far/a.wav")
    assert told_all(tmp_path / "near") == [("b", b"A")]


def test_a_large_object_is_opened_and_not_fetched(tmp_path, monkeypatch):
    monkeypatch.setattr(utterances, "WHOLE_OBJECT_BYTES", 3)
    write(tmp_path / "a.wav", b"1234")
    (found,) = read(tmp_path)
    with found.open() as file:
        assert file.read(2) == b"12"


# What changed since it was planned.


@pytest.mark.parametrize("kind", ["files", "tar", "parquet", "manifest"])
@pytest.mark.parametrize("change", ["rewritten", "shorter", "gone"])
def test_what_changed_since_it_was_planned_is_no_row(tmp_path, kind, change):
    write(tmp_path / "d/a.wav", b"1234")
    path = {
        "files": tmp_path / "d/a.wav",
        "tar": tar(tmp_path / "s.tar", ("a.wav", b"A")),
        "parquet": parquet(tmp_path / "t.parquet", [{"audio": {"bytes": b"A", "path": "a.wav"}}]),
        "manifest": manifest(tmp_path / "m.jsonl", {"audio_filepath": "d/a.wav"}),
    }[kind]
    (part,) = planned(plan([str(tmp_path / "d" if kind == "files" else path)], LARGE))
    data = path.read_bytes()
    path.unlink()
    if change != "gone":
        path.write_bytes(data.replace(b"a", b"b") if change == "rewritten" else data[:-3])
        os.utime(path, (1, 1))
    if kind == "files" and change == "gone":  # its absence is the data's business
        assert [told(u) for u in read_part(part)] == [("a", "MISSING")]
        return
    with pytest.raises(InputChangedError, match=str(path)):
        [told(u) for u in read_part(part)]


def test_a_reference_that_is_gone_since_it_was_planned_is_no_row(tmp_path):
    write(tmp_path / "a.wav", b"A")
    text = write(tmp_path / "a.txt", "hello")
    (part,) = planned(plan([str(tmp_path)], LARGE))
    text.unlink()
    with pytest.raises(InputChangedError, match=r"a\.txt"):
        list(read_part(part))


def test_rows_added_to_a_manifest_change_nothing_for_the_planned_ones(tmp_path):
    write(tmp_path / "a.wav", b"A")
    path = manifest(tmp_path / "m.jsonl", {"audio_filepath": "a.wav"})
    (part,) = planned(plan([str(path)], LARGE))
    with path.open("a") as file:
        file.write('{"audio_filepath": "b.wav"}\n')
    assert [told(u) for u in read_part(part)] == [("a", b"A")]


# Manifests.


def test_a_recording_that_rows_in_a_row_are_parts_of_is_fetched_once(tmp_path, monkeypatch):
    for name in "ab":
        write(tmp_path / f"{name}.mp3", name)
    parts = [{"audio_filepath": f"{name}.mp3", "offset": start, "duration": 1} for start, name in enumerate("aaabba")]
    utterances = read(manifest(tmp_path / "m.jsonl", *parts))
    fetched = []
    fetch = objects.fetch
    monkeypatch.setattr(objects, "fetch", lambda uri: fetched.append(uri) or fetch(uri))
    assert b"".join(utterance.open() for utterance in utterances) == b"aaabba"
    assert [Path(uri).stem for uri in fetched] == ["a", "b", "a"]


def test_manifest_paths_lead_from_the_manifest_absolutely_or_to_another_store(tmp_path):
    for name in ("in/a.wav", "in/d/b.wav", "out/c.wav"):
        write(tmp_path / name, name)
    path = manifest(
        tmp_path / "in/m.jsonl",
        {"audio_filepath": "a.wav", "text": "hi", "speaker": 5, "lang": "en"},
        {"audio_filepath": "./d/../d/b.wav", "offset": 1, "duration": 2},
        {"audio_filepath": f"{tmp_path}/out/c.wav"},
        {"audio_filepath": f"file://{tmp_path}/in/d/b.wav", "id": "mine"},
    )
    found = read(path)
    assert [told(u) for u in found] == [
        ("a", b"in/a.wav"),
        ("d/b", b"in/d/b.wav"),
        ("../out/c", b"out/c.wav"),
        ("mine", b"in/d/b.wav"),
    ]
    assert (found[0].meta.text, found[0].meta.speaker, found[0].meta.tags) == ("hi", "5", '{"lang": "en"}')
    assert [u.meta.span for u in found] == [None, (1.0, 2.0), None, None]
    assert [u.fixed_id for u in found] == [False, False, False, True]


def test_bad_rows_say_where_they_are_and_cost_one_row_each(tmp_path):
    write(tmp_path / "a.wav", b"A")
    good = b'{"audio_filepath": "a.wav"}'
    data = b"\xef\xbb\xbf" + good + b"\r\n\n  \nnot json\n\n{}\n" + good[:-1] + b', "id": "last"}'
    path = write(tmp_path / "m.jsonl", data)
    found = read(path)
    assert [told(u)[1] for u in found] == [b"A", "BAD_ROW", "BAD_ROW", b"A"]
    for utterance, line in zip(found[1:3], (b"not json", b"{}"), strict=True):
        assert data[utterance.byte_start : utterance.byte_end] == line
        assert f"{path}, row at byte {utterance.byte_start}: " in utterance.problem.message
    assert len({u.utt_id for u in found}) == 4


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("none.wav", "MISSING"),
        ("..", "MISSING"),
        ("a.wav/b.wav", "MISSING"),
        ("x" * 300, "MISSING"),
        ("nothing://a/b.wav", "BAD_ROW"),
        ("s3://a bad bucket/b.wav", "MISSING"),
    ],
)
def test_a_row_that_leads_nowhere_is_bad_data(tmp_path, path, code):
    write(tmp_path / "a.wav", b"A")
    found = told_all(manifest(tmp_path / "m.jsonl", {"audio_filepath": path}, {"audio_filepath": "a.wav"}))
    assert [what for _, what in found] == [code, b"A"]


def test_a_refusal_fails_the_part_and_makes_no_row(tmp_path, monkeypatch):
    monkeypatch.setattr(retry, "BACKOFF_S", 0)
    with s3.forbidden_server():
        (found,) = read(manifest(tmp_path / "m.jsonl", {"audio_filepath": "s3://bucket/a.wav"}))
        with pytest.raises(StorageError):
            told(found)


@settings(deadline=None)
@given(
    rows=st.lists(st.sampled_from(['{"audio_filepath": "%d.wav"}', "bad %d", '{"id": "%d"}']), min_size=1, max_size=12),
    blanks=st.lists(st.sampled_from(["", "\n", " \r\n", "\r\n\n"]), min_size=13, max_size=13),
    part_bytes=st.integers(1, 2_000_000),
)
def test_every_row_of_a_manifest_is_read_once_in_order_however_it_is_cut(tmp_path_factory, rows, blanks, part_bytes):
    rows = [row % i for i, row in enumerate(rows)]
    text = "".join(blank + row + "\n" for blank, row in zip(blanks, rows, strict=False)) + blanks[-1]
    path = write(tmp_path_factory.mktemp("manifest") / "m.jsonl", text)
    found = read(path, part_bytes=part_bytes)
    assert len(found) == len(rows)
    for row, utterance in zip(rows, found, strict=True):
        if utterance.problem is not None:
            assert text.encode()[utterance.byte_start : utterance.byte_end].strip().decode() == row
        else:
            assert json.loads(row)["audio_filepath"] == utterance.utt_id + ".wav"


# Tar shards.


def test_neighbours_of_one_name_are_one_sample(tmp_path):
    path = tar(
        tmp_path / "s.tar",
        ("d/a.json", b'{"speaker": "s", "text": "from json", "x": 1}'),
        ("d/a.wav", b"A"),
        ("d/a.txt", b" from txt\n"),
        ("d/b.c.flac", b"B"),
        ("orphan.txt", b"nobody's"),
        ("e.json", b'{"id": "mine"}'),
        ("e.mp3", b"E"),
    )
    found = read(path)
    assert [told(u) for u in found] == [("d/a", b"A"), ("d/b.c", b"B"), ("mine", b"E")]
    assert [u.meta.text for u in found] == ["from txt", None, None]
    assert (found[0].meta.speaker, found[0].meta.tags) == ("s", '{"x": 1}')
    assert [u.fixed_id for u in found] == [False, False, True]
    data = path.read_bytes()
    assert [data[u.byte_start : u.byte_end] for u in found] == [b"A", b"B", b"E"]
    assert all(u.uri == str(path) for u in found)


@pytest.mark.parametrize("format_", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_and_foreign_names_are_read(tmp_path, format_):
    names = ["x/" * 80 + "long.wav", "ä/ö ü.wav", "./dotted/./a.wav", "/absolute.wav"]
    path = tar(tmp_path / "s.tar", *((name, b"A") for name in names), format=format_)
    assert [u.utt_id for u in read(path)] == ["x/" * 80 + "long", "ä/ö ü", "dotted/a", "absolute"]


def test_a_name_that_is_not_utf8_is_written_in_letters_that_are(tmp_path):
    path = tar(tmp_path / "s.tar", ("caf\xe9.wav", b"A"), format=tarfile.GNU_FORMAT, encoding="latin-1")
    assert told_all(path) == [("caf\\xe9", b"A")]


@pytest.mark.parametrize("mode", ["w:gz", "w"])
@pytest.mark.parametrize("name", ["s.tar", "s.tar.gz", "s.tgz"])
def test_compressed_shards_are_read_whatever_they_are_called(tmp_path, mode, name):
    path = tar(tmp_path / name, ("a.wav", b"A"), ("b.wav", b"B"), mode=mode)
    found = read(path)
    assert [told(u) for u in found] == [("a", b"A"), ("b", b"B")]
    if mode == "w:gz":  # a place in the decompressed stream is none in the object
        assert [(u.byte_start, u.byte_end) for u in found] == [(None, None)] * 2


def test_directories_are_passed_over_and_links_are_rows(tmp_path):
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
    assert [told(u) for u in found] == [
        ("d.wav/a", b"A"),
        ("hard", "UNSUPPORTED"),
        ("soft", "UNSUPPORTED"),
        ("b", b"B"),
    ]
    assert all(u.meta.text is None for u in found)


def test_hidden_members_are_passed_over_and_underscores_are_not(tmp_path):
    path = tar(tmp_path / "s.tar", ("._a.wav", b"x"), (".d/b.wav", b"x"), ("./_c.wav", b"C"), ("_d/e.wav", b"E"))
    assert told_all(path) == [("_c", b"C"), ("_d/e", b"E")]


def test_a_shard_without_audio_holds_nothing(tmp_path):
    assert read(tar(tmp_path / "s.tar")) == []
    assert read(tar(tmp_path / "t.tar", ("a.txt", b"x"))) == []


@pytest.mark.parametrize(
    "data", [b"", b"this is a text, and no archive\n" * 100, b"\x1f\x8bnot gzip" * 100, b"\0" * 100, os.urandom(5000)]
)
def test_what_is_no_archive_is_one_row(tmp_path, data):
    ((utt_id, code),) = told_all(write(tmp_path / "s.tar", data))
    assert (utt_id, code) == ("s", "BAD_ARCHIVE")


def whole_archive() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name in "abc":
            add(archive, f"{name}.wav", name.encode() * 700)
            add(archive, f"{name}.txt", name.encode() * 5)
    return buffer.getvalue()


WHOLE = whole_archive()


@settings(deadline=None)
@given(end=st.integers(0, 10 * 512), compress=st.booleans())
def test_a_shard_that_breaks_off_keeps_what_came_before_and_says_so(tmp_path_factory, end, compress):
    # Each sample takes 512 + 1024 + 512 + 512 bytes; the end mark is what remains.
    data = WHOLE[:end]
    path = write(
        tmp_path_factory.mktemp("tar") / ("s.tgz" if compress else "s.tar"), gzip.compress(data) if compress else data
    )
    found = told_all(path)
    if end < 3 * 2560 + 512:
        *found, (_, code) = found
        assert code == "BAD_ARCHIVE"
    whole = [(name, name.encode() * 700) for i, name in enumerate("abc") if end >= i * 2560 + 512 + 700]
    assert found == whole


def test_a_compressed_shard_that_breaks_off_says_so(tmp_path):
    members = [(f"{i}.wav", os.urandom(3000)) for i in range(20)]
    data = tar(tmp_path / "whole.tgz", *members, mode="w:gz").read_bytes()
    for end in range(1, len(data) - 12, 997):
        *found, (_, code) = told_all(write(tmp_path / "s.tgz", data[:end]))
        assert code == "BAD_ARCHIVE"
        assert [what for _, what in found] == [audio for _, audio in members[: len(found)]]


def test_a_damaged_header_half_way_does_not_end_a_shard_in_silence(tmp_path):
    data = bytearray(WHOLE)
    data[2560 : 2560 + 20] = b"\xff" * 20
    assert told_all(write(tmp_path / "s.tar", bytes(data))) == [("a", b"a" * 700), ("s", "BAD_ARCHIVE")]


def test_bad_words_beside_audio_cost_that_sample_one_row(tmp_path):
    path = tar(
        tmp_path / "s.tar", ("a.wav", b"A"), ("a.json", b"{"), ("b.wav", b"B"), ("b.txt", b"\xff"), ("c.wav", b"C")
    )
    assert told_all(path) == [("a", "BAD_ROW"), ("b", "BAD_ROW"), ("c", b"C")]


def test_a_member_that_is_too_large_is_a_row_and_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(tar_layout, "MAX_MEMBER_BYTES", 3)
    path = tar(tmp_path / "s.tar", ("a.wav", b"1234"), ("b.wav", b"123"))
    assert told_all(path) == [("a", "TOO_LARGE"), ("b", b"123")]


def test_names_that_are_taken_in_a_shard_are_rows_that_name_both_places(tmp_path):
    path = tar(tmp_path / "s.tar", ("a.wav", b"1"), ("a.flac", b"2"), ("b.wav", b"3"), ("a.wav", b"4"))
    found = read(path)
    assert [told(u) for u in found] == [("a", b"1"), ("a", "DUPLICATE_ID"), ("b", b"3"), ("a", "DUPLICATE_ID")]
    data = path.read_bytes()
    first, second = data.index(b"1", 512), found[3].byte_start
    assert found[3].problem.message == f"a names both {path}[{first}:{first + 1}] and {path}[{second}:{second + 1}]"


def test_weather_in_a_shard_is_no_broken_archive(tmp_path, monkeypatch):
    path = tar(tmp_path / "s.tar", ("a.wav", b"A"), ("b.wav", bytes(3_000_000)))
    (part,) = planned(plan([str(path)], LARGE))
    monkeypatch.setattr(retry, "BACKOFF_S", 0)

    class Expiring(io.BytesIO):
        def read(self, size=-1):
            if self.tell() > 1_000_000:
                raise PermissionError("the key has expired")
            return super().read(size)

    monkeypatch.setattr(objects, "open_read", lambda uri: objects.RetryingFile(Expiring(path.read_bytes()), uri))
    with pytest.raises(StorageError, match="expired"):
        list(read_part(part))


# Parquet.


def test_parquet_holds_bytes_or_paths_in_a_struct_or_a_column(tmp_path):
    write(tmp_path / "far.wav", b"F")
    struct = [
        {"audio": {"bytes": b"A", "path": "d/a.wav"}, "text": "hi", "speaker_id": 3, "lang": "en"},
        {"audio": {"bytes": None, "path": "far.wav"}, "text": None},
        {"audio": {"bytes": b"B", "path": None}},
        {"audio": {"bytes": None, "path": "none.wav"}},
        {"audio": {"bytes": None, "path": None}},
        {"audio": None},
        {"audio": {"bytes": b"C", "path": "/data/cache/c.wav"}, "id": 7},
        {"audio": {"bytes": b"D", "path": "/data/cache/d.wav"}},
    ]
    found = read(parquet(tmp_path / "t.parquet", struct))
    assert [told(u) for u in found] == [
        ("d/a", b"A"),
        ("far", b"F"),
        ("t/2", b"B"),
        ("none", "MISSING"),
        ("t/4", "MISSING"),
        ("t/5", "MISSING"),
        ("7", b"C"),
        ("/data/cache/d", b"D"),  # a name and no place: how far it is from here means nothing
    ]
    assert (found[0].meta.text, found[0].meta.speaker, found[0].meta.tags) == ("hi", "3", '{"lang": "en"}')
    assert found[1].uri == str(tmp_path / "far.wav")
    assert told_all(parquet(tmp_path / "p.parquet", [{"audio": "far.wav"}, {"audio": None}])) == [
        ("far", b"F"),
        ("p/1", "MISSING"),
    ]
    assert told_all(parquet(tmp_path / "b.parquet", [{"audio": b"B"}])) == [("b/0", b"B")]


def test_nameless_rows_are_told_apart_across_row_groups_and_directories(tmp_path):
    for split in ("train", "test"):
        rows = [{"audio": {"bytes": f"{split}{i}".encode(), "path": None}} for i in range(5)]
        parquet(tmp_path / split / "0.parquet", rows, group=2)
    found = told_all(tmp_path, part_bytes=1)
    assert found == [(f"{split}/0/{i}", f"{split}{i}".encode()) for split in ("test", "train") for i in range(5)]


def test_pieces_of_one_recording_in_parquet_are_no_duplicates(tmp_path):
    write(tmp_path / "a.wav", b"A")
    rows = [{"audio": "a.wav", "offset": float(i % 2), "duration": 1.0} for i in range(3)]
    assert [what for _, what in told_all(parquet(tmp_path / "t.parquet", rows))] == [b"A", b"A", "DUPLICATE_ID"]


def test_names_that_are_taken_in_a_parquet_file_name_both_rows(tmp_path):
    rows = [{"audio": {"bytes": b"A", "path": "a.wav"}}] * 2
    path = parquet(tmp_path / "t.parquet", rows)
    _, second = read(path)
    assert second.problem.message == f"a names both {path}, row 0 and {path}, row 1"


def test_a_bad_parquet_row_is_a_row(tmp_path):
    rows = [{"audio": "a.wav", "offset": "soon"}, {"audio": "b.wav", "offset": "0"}]
    path = parquet(tmp_path / "t.parquet", rows)
    first, second = read(path)
    assert first.problem.message.startswith(f"{path}, row 0: offset")
    assert second.problem is None


def test_a_string_that_is_not_utf8_in_parquet_is_a_row(tmp_path):
    words = pa.array([b"good", b"caf\xe9"]).view(pa.string())
    pq.write_table(pa.table({"audio": pa.array([b"A", b"B"]), "text": words}), tmp_path / "t.parquet")
    assert told_all(tmp_path / "t.parquet") == [("t/0", b"A"), ("t/1", "BAD_ROW")]


def test_a_corrupt_parquet_file_is_one_row_and_keeps_what_came_before(tmp_path):
    assert told_all(write(tmp_path / "bad.parquet", b"PAR1 no parquet PAR1" * 9)) == [("bad", "BAD_ARCHIVE")]
    rows = [{"audio": {"bytes": os.urandom(2000), "path": f"{i}.wav"}} for i in range(200)]
    path = parquet(tmp_path / "t.parquet", rows, group=100)
    offset = pq.ParquetFile(path).metadata.row_group(1).column(0).data_page_offset
    data = bytearray(path.read_bytes())
    data[offset : offset + 30] = b"\xff" * 30
    found = told_all(write(tmp_path / "broken.parquet", bytes(data)))
    assert found[:-1] == [(str(i), rows[i]["audio"]["bytes"]) for i in range(len(found) - 1)]
    assert found[-1] == ("broken", "BAD_ARCHIVE")
    assert 0 < len(found) <= 101


def test_weather_in_parquet_is_no_corrupt_file(tmp_path, monkeypatch):
    (part,) = planned(plan([str(parquet(tmp_path / "t.parquet", [{"audio": "a.wav"}]))], LARGE))
    monkeypatch.setattr(retry, "BACKOFF_S", 0)

    class Expired(io.BytesIO):
        def read(self, size=-1):
            raise PermissionError("the key has expired")

    monkeypatch.setattr(objects, "open_read", lambda uri: objects.RetryingFile(Expired(b"x" * 1000), uri))
    with pytest.raises(StorageError, match="expired"):
        list(read_part(part))


# Limits, progress, duplicates.


def test_a_limit_is_kept_across_everything(tmp_path):
    for name in ("a/1.wav", "a/2.wav", "x.wav", "y.wav"):
        write(tmp_path / name, b"A")
    inputs = (
        tmp_path / "a",
        tar(tmp_path / "b.tar", ("3.wav", b"A"), ("4.wav", b"A"), ("5.txt", b""), ("5.wav", b"A")),
        write(tmp_path / "broken.tar", WHOLE[: 2560 + 5]),
        parquet(tmp_path / "c.parquet", [{"audio": {"bytes": b"A", "path": f"p{i}"}} for i in range(4)], group=2),
        manifest(tmp_path / "d.jsonl", {"audio_filepath": "x.wav"}, {"audio_filepath": "y.wav"}),
    )
    everything = told_all(*inputs)
    assert len(everything) == 13
    for limit in range(1, 15):
        assert told_all(*inputs, limit=limit) == everything[:limit]


def test_planned_bytes_are_got_through_whole(tmp_path):
    write(tmp_path / "1.wav", b"A" * 10)
    rows = [{"audio_filepath": "1.wav", "id": i, "duration": d} for i, d in enumerate((1.3, 2.7, 0.001))]
    for path in (
        tmp_path / "1.wav",
        manifest(tmp_path / "m.jsonl", *rows),
        parquet(tmp_path / "p.parquet", [{"audio": "1.wav", "id": str(i)} for i in range(7)]),
    ):
        (part,) = planned(plan([str(path)], LARGE))
        assert sum(u.size for u in read_part(part)) == part.bytes
    (part,) = planned(plan([str(tar(tmp_path / "s.tar", ("a.wav", b"A"), ("b.wav", b"B")))], LARGE))
    assert 0 < sum(u.size for u in read_part(part)) <= part.bytes


def test_duplicates_across_parts_and_inputs_are_rows_that_name_both_places(tmp_path):
    write(tmp_path / "a/x.wav", b"1")
    write(tmp_path / "b/x.wav", b"2")
    rows = manifest(tmp_path / "b/m.jsonl", {"audio_filepath": "y.wav", "id": "z"}, {"audio_filepath": "x.wav"})
    first, second, _, third = read(tmp_path / "a", tmp_path / "b", rows)
    assert told(first) == ("x", b"1")
    assert second.problem.code == ErrorCode.DUPLICATE_ID
    assert second.problem.message == f"x names both {tmp_path}/a/x.wav and {tmp_path}/b/x.wav"
    offset = rows.read_text().index("\n") + 1
    assert third.problem.message == f"x names both {tmp_path}/a/x.wav and {rows}, row at byte {offset}"


# One corpus in every form.

KEYS = ["a", "d/b", "d/c.1", "ü/ö x"]


def directory(base: Path) -> Path:
    for key in KEYS:
        write(base / f"{key}.wav", key)
        write(base / f"{key}.txt", f"text of {key}")
    return base


FORMS = {
    "directory": directory,
    "glob": lambda base: f"{directory(base)}/**/*.wav",
    "manifest": lambda base: manifest(
        directory(base) / "m.jsonl", *({"audio_filepath": f"{key}.wav", "text": f"text of {key}"} for key in KEYS)
    ),
    "manifest, absolute": lambda base: manifest(
        directory(base) / "m.jsonl",
        *({"audio_filepath": f"{base}/{key}.wav", "text": f"text of {key}"} for key in KEYS),
    ),
    "tar": lambda base: tar(
        base / "s.tar",
        *(m for key in KEYS for m in ((f"{key}.txt", f"text of {key}".encode()), (f"{key}.wav", key.encode()))),
    ),
    "parquet": lambda base: parquet(
        base / "t.parquet",
        [{"audio": {"bytes": key.encode(), "path": f"{key}.wav"}, "text": f"text of {key}"} for key in KEYS],
    ),
    "parquet, paths": lambda base: parquet(
        directory(base) / "t.parquet", [{"audio": f"{key}.wav", "text": f"text of {key}"} for key in KEYS]
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_the_same_audio_has_the_same_name_and_reference_in_every_form(tmp_path, form):
    found = read(FORMS[form](tmp_path))
    assert sorted((*told(u), u.meta.text) for u in found) == sorted(
        (key, key.encode(), f"text of {key}") for key in KEYS
    )


@pytest.mark.parametrize("form", ["directory", "manifest", "tar", "parquet"])
def test_every_form_is_read_from_object_storage_too(tmp_path, form):
    corpus = Path(FORMS[form](tmp_path))
    with s3.moto_server():
        base = s3.make_bucket("bucket")
        for path in tmp_path.rglob("*"):
            if path.is_file():
                objects.put(f"{base}/c/{path.relative_to(tmp_path)}", path.read_bytes())
        uri = f"{base}/c" if corpus == tmp_path else f"{base}/c/{corpus.name}"
        assert sorted(told_all(uri)) == sorted((key, key.encode()) for key in KEYS)
        assert all(u.uri.startswith(f"{base}/c/") for u in read(uri))
