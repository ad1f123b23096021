"""Shards that are cut into parts: together they give the rows of the whole shard, wherever they are cut."""

import dataclasses
import io
import tarfile
from pathlib import Path

import fsspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.corpus.layouts import tar as tar_module
from pipeline.corpus.layouts.tar import TAR
from pipeline.corpus.parts import Part
from pipeline.corpus.plan import plan
from pipeline.corpus.read import read_part
from pipeline.corpus.utterances import Utterance
from tests.support.corpora import LARGE, add_member, parts_of
from tests.support.inputs import outcome, tar, tar_of, write


@pytest.fixture(autouse=True)
def cut_small_shards(monkeypatch):
    monkeypatch.setattr(tar_module, "CUT_PARTS", 1)


def row(utterance: Utterance) -> tuple:
    """All that a run keeps of an utterance: its id, its audio or error, what it names, and where it is."""
    meta = utterance.meta
    message = utterance.problem.message if utterance.problem else None
    place = (utterance.where, utterance.byte_start, utterance.byte_end, utterance.fixed_id)
    return *outcome(utterance), message, meta.text, meta.speaker, meta.tags, *place


def rows(*found: Part) -> list[tuple]:
    return [row(utterance) for part in found for utterance in read_part(part)]


def assert_cuts_change_nothing(path: Path, part_bytes: int) -> list[Part]:
    whole = rows(*parts_of(path))
    parts = parts_of(path, part_bytes=part_bytes)
    assert rows(*parts) == whole
    assert sum(part.bytes for part in parts) == path.stat().st_size
    if len(parts) > 1:
        assert sum(part.rows for part in parts) == len(whole)
    return parts


def archive_of(*members: tuple, **options) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", **options) as archive:
        for name, data, *fields in members:
            add_member(archive, name, data, **(fields[0] if fields else {}))
    return buffer.getvalue()


def test_a_large_shard_is_cut_between_its_samples(tmp_path):
    names = [f"{i:03}.{kind}" for i in range(50) for kind in ("wav", "txt")]
    path = tar(tmp_path / "s.tar", *((name, name.encode() * 100) for name in names))
    parts = assert_cuts_change_nothing(path, 5000)
    assert [part.rows for part in parts] == [2] * 25
    assert [part.end for part in parts] == [part.start for part in parts[1:]] + [None]
    assert len({part.part_id for part in parts}) == 25


def test_a_part_reads_none_of_the_bytes_of_another(tmp_path):
    path = tar(tmp_path / "s.tar", *((f"{i}.wav", b"x" * 5000) for i in range(9)))
    parts = parts_of(path, part_bytes=15_000)
    data = bytearray(path.read_bytes())
    for other in (parts[0], parts[2]):
        data[other.start : other.end] = bytes((other.end or len(data)) - other.start)
    path.write_bytes(data)
    found = [outcome(utterance) for utterance in TAR.read(dataclasses.replace(parts[1], version=None))]
    assert found == [(str(i), b"x" * 5000) for i in (3, 4, 5)]


def test_shards_that_are_compressed_many_or_small_are_not_cut(tmp_path, monkeypatch):
    members = [(f"{i}.wav", b"x" * 5000) for i in range(9)]
    assert len(parts_of(tar(tmp_path / "a.tar.gz", *members, mode="w:gz"), part_bytes=100)) == 1
    (tmp_path / "d").mkdir()
    for name in "bcd":
        tar(tmp_path / "d" / f"{name}.tar", *members)
    assert len(parts_of(tmp_path / "d", part_bytes=15_000)) == 9
    monkeypatch.setattr(tar_module, "CUT_SHARDS", 2)
    assert len(parts_of(tmp_path / "d", part_bytes=15_000)) == 3
    monkeypatch.setattr(tar_module, "CUT_PARTS", 32)
    assert len(parts_of(tmp_path / "d" / "b.tar", part_bytes=15_000)) == 1


def test_an_archive_in_an_archive_and_audio_that_looks_like_headers_are_not_taken_for_members(tmp_path):
    inner = archive_of(*((f"inner{i}.wav", b"i" * 700) for i in range(40)))
    path = tar(
        tmp_path / "s.tar",
        ("a.wav", b"A" * 600),
        ("b.wav", inner),  # with the mark of an end
        ("c.wav", inner[: 30 * 1536]),  # without one: its headers lead to the next header of this shard
        ("d.tar", inner),
        ("e.wav", b"E" * 600),
    )
    for part_bytes in (1, 600, 5000, 30_000, 70_000):
        parts = assert_cuts_change_nothing(path, part_bytes)
        assert [found[0] for found in rows(*parts)] == ["a", "b", "c", "e", "s"]


def test_an_id_that_an_earlier_part_has_is_an_error_row_that_names_it(tmp_path):
    members = [(f"{i % 7}.wav", b"%d" % i * 600) for i in range(20)]
    members += [("x.wav", b"X" * 600), ("x.json", b'{"id": "3"}')]
    other = tar(tmp_path / "other.tar", *members)
    parts = assert_cuts_change_nothing(tar(tmp_path / "s.tar", *members), 2000)
    assert [found[1] for found in rows(*parts)].count("DUPLICATE_ID") == 14
    # Not across shards, whether they are cut or not.
    both = [Part.from_row(found) for found in plan([str(tmp_path / "s.tar"), str(other)], 2000).to_pylist()]
    assert [found[1] for found in rows(*both)].count("DUPLICATE_ID") == 28


def test_global_headers_hold_for_the_parts_behind_them(tmp_path):
    """A global `path` renames all members without a header of their own, which a name of 120 letters needs."""
    members = [(name + ".wav", b"x" * 600) for name in ("a", "b" * 120, "c", "d" * 120)]
    data = archive_of(*members, format=tarfile.PAX_FORMAT, pax_headers={"path": "all.wav"})
    parts = assert_cuts_change_nothing(write(tmp_path / "s.tar", data), 1)
    assert [found[:2] for found in rows(*parts[1:])] == [
        ("b" * 120, b"x" * 600),
        ("all", "DUPLICATE_ID"),
        ("d" * 120, b"x" * 600),
    ]


def test_a_limit_holds_over_the_parts_of_a_shard(tmp_path):
    names = [f"{i}.wav" for i in range(10)] + ["of-nobody.txt"]
    path = tar_of(tmp_path / "s.tar", *names)
    whole = rows(*parts_of(path))
    for limit in range(1, 14):
        parts = parts_of(path, part_bytes=3000, limit=limit)
        assert rows(*parts) == whole[:limit]
        assert sum(part.rows for part in parts) == min(limit, 11)
    twice = [Part.from_row(found) for found in plan([str(path), f"{tmp_path}/*.tar"], 3000, 25).to_pylist()]
    assert rows(*twice) == whole


def test_a_run_that_was_planned_with_whole_shards_reads_them_whole(tmp_path):
    """Plans of earlier versions have neither the column `state` nor ranges of shards."""
    path = tar(tmp_path / "s.tar", *((f"{i}.wav", b"x" * 600) for i in range(9)))
    (stored,) = plan([str(path)], LARGE).drop_columns(["state"]).to_pylist()
    assert stored["start"] is stored["end"] is None
    assert len(rows(Part.from_row(stored))) == 9


def test_a_shard_in_an_object_store_is_cut_as_a_local_one(tmp_path):
    members = [(f"{i}.{kind}", b"%d" % i * 300) for i in range(30) for kind in ("wav", "txt")]
    path = tar(tmp_path / "s.tar", *members)
    fsspec.filesystem("memory").pipe_file("/tar-parts/s.tar", path.read_bytes())
    local, remote = (parts_of(uri, part_bytes=4000) for uri in (path, "memory://tar-parts/s.tar"))
    assert [(part.start, part.end, part.rows) for part in remote] == [(p.start, p.end, p.rows) for p in local]
    assert [found[:2] for found in rows(*remote)] == [found[:2] for found in rows(*local)]


SPARSE = {"GNU.sparse.major": "0", "GNU.sparse.minor": "1", "GNU.sparse.size": "900", "GNU.sparse.map": "0,3,900,0"}
KINDS = ("wav", "wav", "flac", "txt", "json", "npy", "tar")
STEMS = ("a", "b", "d/a", "d/b.c", "v1.01", "v1.02", "v1.03", "a.audio", "a.words", "a.0", "n" * 120, "caf\u00e9", ".x")


@st.composite
def member(draw) -> tuple:
    kind = draw(st.sampled_from(KINDS))
    name = f"{draw(st.sampled_from(STEMS))}.{kind}"
    size = draw(st.sampled_from([0, 1, 511, 512, 700, 3000]))
    data = name.encode()[:3] * size
    if kind == "json":
        data = draw(st.sampled_from([b'{"id": "mine"}', b'{"speaker": "s", "x": 1}', b"{", b'{"id": "a"}']))
    elif kind == "txt":
        data = draw(st.sampled_from([b"words", b"\xff", b""]))
    elif kind == "tar" or draw(st.integers(0, 9)) == 0:
        inner = archive_of(("in.wav", b"I"), ("in.txt", b"inner words"))
        data = draw(st.sampled_from([inner, inner[:2048], inner[:1024]]))
    fields = draw(
        st.sampled_from(
            [{}] * 6
            + [
                {"type": tarfile.DIRTYPE, "size": 0},
                {"type": tarfile.LNKTYPE, "linkname": "a.wav", "size": 0},
                {"pax_headers": {**SPARSE, "GNU.sparse.name": name}, "size": 3},
                {"pax_headers": {"comment": "c" * 300}},
            ]
        )
    )
    size = fields.get("size", len(data))
    return name, data[:size].ljust(size, b"."), fields


@st.composite
def shard(draw) -> bytes:
    """An archive in one or several formats, which may be cut short or damaged."""
    data = b""
    for _ in range(draw(st.integers(1, 3))):
        options = {"format": draw(st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]))}
        if draw(st.integers(0, 4)) == 0:
            options["pax_headers"] = draw(st.sampled_from([{"comment": "all"}, {"path": "all.wav"}]))
        piece = archive_of(*draw(st.lists(member(), max_size=12)), **options)
        # Without its end, another one follows it as if it was one archive.
        data += piece.rstrip(b"\0").ljust(-(-len(piece.rstrip(b"\0")) // 512) * 512, b"\0")
    data += bytes(1024)
    damage = draw(st.sampled_from(["no", "no", "no", "cut", "byte"]))
    if damage == "cut":
        data = data[: draw(st.integers(0, len(data)))]
    elif damage == "byte":
        block = draw(st.integers(0, len(data) // 512 - 1))
        position = 512 * block + draw(st.sampled_from([0, 100, 124, 148, 156, 257, 300]))
        data = data[:position] + bytes([data[position] ^ 0x55]) + data[position + 1 :]
    return data


@settings(deadline=None, max_examples=400)
@given(data=shard(), part_bytes=st.sampled_from([1, 512, 1500, 4000, 10_000]))
def test_the_parts_of_any_shard_give_the_rows_of_the_whole(tmp_path_factory, data, part_bytes):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tar_module, "CUT_PARTS", 1)
        assert_cuts_change_nothing(write(tmp_path_factory.mktemp("tar") / "s.tar", data), part_bytes)
