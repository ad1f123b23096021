"""Planning a corpus again: the parts that stay and the new ones make the rows of a new plan, each once."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.corpus.layouts import manifest as manifest_layout
from pipeline.corpus.layouts import table as table_layout
from pipeline.corpus.layouts import tar as tar_layout
from pipeline.corpus.parts import Part
from pipeline.corpus.plan import plan, plan_parts
from pipeline.corpus.read import read_part
from pipeline.corpus.update import UpdatedPlan, known_manifests, update_plan
from tests.support.inputs import manifest, parquet_of_bytes, tar_of, write

PART_BYTES = 25  # two or three of the files and rows below


@pytest.fixture(autouse=True, scope="module")
def rows_of_ten_bytes():
    """Rows of manifests and tables are as large as files here, and small shards are cut."""
    with pytest.MonkeyPatch.context() as patch:
        for layout in (manifest_layout, table_layout):
            patch.setattr(layout, "estimated_bytes", lambda row: 10)
        patch.setattr(tar_layout, "CUT_PARTS", 2)
        yield


def parts_of(table: pa.Table) -> list[Part]:
    return [Part.from_row(row) for row in table.to_pylist()]


def again(stored: pa.Table, inputs: Sequence[Path | str], number: int = 1, **options) -> UpdatedPlan:
    """The plan that follows the stored one."""
    known = known_manifests(parts_of(stored))
    now = plan_parts(list(map(str, inputs)), PART_BYTES, **options, known=known)
    return update_plan(parts_of(stored), now, PART_BYTES, number)


def first(inputs: Sequence[Path | str], **options) -> pa.Table:
    return plan(list(map(str, inputs)), PART_BYTES, **options)


def rows(table: pa.Table) -> Counter[str]:
    """What reading the parts of a plan gives, but for the audio."""
    return Counter(row for part in parts_of(table) for row in _rows(part))


def _rows(part: Part) -> Iterator[str]:
    for found in read_part(part):
        problem = found.problem and (found.problem.code, found.problem.message)
        place = (found.utt_id, found.uri, found.channel, found.byte_start, found.byte_end, found.fixed_id)
        yield repr((place, found.meta.model_dump_json(), problem))


def ids(table: pa.Table) -> list[str]:
    return table["part_id"].to_pylist()


# ------------------------------------------------------------------------------------------------- random histories
NAMES = ("a", "b", "c", "d", "e", "f", "g")
ROW = st.tuples(st.sampled_from(NAMES), st.sampled_from(["x", "y", "z"]), st.booleans())
STATE = st.fixed_dictionaries(
    {
        "files": st.dictionaries(
            st.tuples(st.sampled_from(NAMES), st.sampled_from(["wav", "flac"])),
            st.tuples(st.integers(0, 2), st.sampled_from([None, "one", "two"])),
            min_size=1,
        ),
        "table": st.lists(ROW, min_size=1, max_size=9),
        "manifest": st.lists(ROW, min_size=1, max_size=9),
        "shards": st.dictionaries(st.sampled_from("pq"), st.integers(1, 6), min_size=1),
        "parquet": st.integers(1, 4),
    }
)


class Corpus:
    """A corpus on disk. What does not change between two states is not written again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.inputs = [folder / "in", folder / "t.csv", folder / "m.jsonl", folder / "shards", folder / "p.parquet"]
        self._stored: dict[Path, object] = {}

    def become(self, state: dict) -> None:
        wanted: dict[Path, object] = {}
        for (name, kind), (content, text) in state["files"].items():
            wanted[self.folder / f"in/{name}.{kind}"] = content
            if text is not None:
                wanted[self.folder / f"in/{name}.txt"] = text
        wanted[self.folder / "t.csv"] = tuple(state["table"])
        wanted[self.folder / "m.jsonl"] = tuple(state["manifest"])
        for name, count in state["shards"].items():
            wanted[self.folder / f"shards/{name}.tar"] = count
        wanted[self.folder / "p.parquet"] = state["parquet"]
        for path in self._stored.keys() - wanted.keys():
            path.unlink()
        for path, content in wanted.items():
            if self._stored.get(path, self) != content:
                self._write(path, content)
        self._stored = wanted

    def _write(self, path: Path, content) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".csv":
            lines = [f"{name}.wav,{text},{'1' if good else 'soon'}" for name, text, good in content]
            path.write_text("\n".join(["path,text,duration", *lines]))
        elif path.suffix == ".jsonl":
            values = ({"audio_filepath": f"{name}.wav", "text": text} for name, text, _ in content)
            lines = [json.dumps(row) if good else f'{{"{row}' for row, (*_, good) in zip(values, content, strict=True)]
            path.write_text("\n".join([json.dumps({"audio_filepath": "first.wav"}), *lines, ""]))
        elif path.suffix == ".tar":
            tar_of(path, *(f"{i}.wav" for i in range(content)))
        elif path.suffix == ".parquet":
            parquet_of_bytes(path, content, row_group=1)
        else:
            write(path, str(content).ljust(10))


@settings(max_examples=60, deadline=None)
@given(states=st.lists(STATE, min_size=2, max_size=4), limit=st.sampled_from([None, None, 5, 14]))
def test_after_any_history_a_plan_has_the_rows_of_a_new_one(states, limit):
    folder = Path(tempfile.mkdtemp(prefix="sewd-test-"))
    try:
        corpus = Corpus(folder)
        corpus.become(states[0])
        stored = first(corpus.inputs, limit=limit)
        used = set(ids(stored))
        for number, state in enumerate(states[1:], 1):
            corpus.become(state)
            updated = again(stored, corpus.inputs, number, limit=limit)
            assert rows(updated.table) == rows(first(corpus.inputs, limit=limit))
            new = ids(updated.table)[updated.kept :]
            assert set(ids(updated.table)[: updated.kept]) <= set(ids(stored))
            assert len(set(ids(updated.table))) == len(updated.table)
            assert not used & set(new), "nothing is done under an id that was used before"
            assert updated.has_changes or set(ids(stored)) == set(ids(updated.table))
            used.update(new)
            stored = updated.table
            assert not again(stored, corpus.inputs, number + 1, limit=limit).has_changes
    finally:
        shutil.rmtree(folder)


# -------------------------------------------------------------------------------------------------- what is done again
def write_all(folder: Path, *names: str, content: str = "0") -> Path:
    for name in names:
        write(folder / name, content.ljust(10))
    return folder


def test_files_between_others_are_new_parts_and_nothing_is_done_again(tmp_path):
    folder = write_all(tmp_path / "in", *(f"{i}.wav" for i in range(9)))
    stored = first([folder])
    write_all(folder, "2b.wav", "5b.wav")
    updated = again(stored, [folder])
    assert ids(updated.table)[: updated.kept] == ids(stored)
    assert [[item["utt_id"] for item in part["items"]] for part in updated.table.to_pylist()][updated.kept :] == [
        ["2b", "5b"]
    ]
    assert updated.added == (f"{folder}/2b.wav", f"{folder}/5b.wav")
    assert (updated.changed, updated.removed) == ((), ())


def test_of_a_file_that_changed_or_left_only_the_part_is_done_again(tmp_path):
    folder = write_all(tmp_path / "in", *(f"{i}.wav" for i in range(9)))  # parts of three
    stored = first([folder])
    write_all(folder, "1.wav", content="other")
    (folder / "8.wav").unlink()
    updated = again(stored, [folder])
    assert updated.kept == 1
    assert (updated.added, updated.changed, updated.removed) == ((), (f"{folder}/1.wav",), (f"{folder}/8.wav",))
    done_again = [item["utt_id"] for part in updated.table.to_pylist()[1:] for item in part["items"]]
    assert done_again == ["0", "1", "2", "6", "7"]


def test_a_reference_that_changes_or_comes_is_a_change(tmp_path):
    folder = write_all(tmp_path / "in", "a.wav", "a.txt", "b.wav", "c.wav", "d.wav")
    stored = first([folder])
    write(folder / "a.txt", "another text")
    write(folder / "d.txt", "a first text")
    assert again(stored, [folder]).changed == (f"{folder}/a.wav", f"{folder}/d.wav")


def test_references_of_a_plan_that_does_not_know_their_versions_count_as_unchanged(tmp_path):
    folder = write_all(tmp_path / "in", "a.wav", "a.txt", "b.wav")
    stored = first([folder])
    items = [[{**item, "reference_version": None} for item in part] for part in stored["items"].to_pylist()]
    column = stored.schema.get_field_index("items")
    stored = stored.set_column(column, stored.schema.field(column), pa.array(items, stored.schema.field(column).type))
    write(folder / "a.txt", "another text")
    updated = again(stored, [folder])
    assert not updated.has_changes
    assert updated.kept == len(stored)
    write(folder / "a.txt", "a third text")
    assert again(updated.table, [folder]).changed == (f"{folder}/a.wav",), "from now on they are known"


def test_an_id_that_is_taken_by_a_new_file_before_it_is_done_again(tmp_path):
    folder = write_all(tmp_path / "in", "b.wav", "c.wav")
    stored = first([folder])
    write_all(folder, "b.flac")
    updated = again(stored, [folder])
    assert (updated.kept, updated.added, updated.changed) == (0, (f"{folder}/b.flac",), (f"{folder}/b.wav",))
    assert rows(updated.table) == rows(first([folder]))


def test_rows_behind_those_of_a_manifest_are_new_parts(tmp_path):
    values = [{"audio_filepath": f"{i}.wav"} for i in range(8)]
    path = manifest(tmp_path / "m.jsonl", *values[:4])
    stored = first([path])
    manifest(path, *values)
    updated = again(stored, [path])
    assert ids(updated.table)[: updated.kept] == ids(stored)
    assert updated.changed == (f"{path}",)
    manifest(path, values[0], {"audio_filepath": "new.wav"}, *values[1:])
    moved = again(updated.table, [path], 2)
    assert moved.kept == 0, "what is behind the new row has moved, and the first part had three rows"


def test_a_row_of_a_manifest_that_changes_in_place_costs_its_part(tmp_path):
    values = [{"audio_filepath": f"{i}.wav"} for i in range(9)]
    path = manifest(tmp_path / "m.jsonl", *values)
    stored = first([path])
    manifest(path, *values[:4], {"audio_filepath": "x.wav"}, *values[5:])
    assert again(stored, [path]).kept == 2


def test_rows_of_a_table_may_move(tmp_path):
    table = write(tmp_path / "t.csv", "path\n" + "".join(f"{i}.wav\n" for i in range(9)))
    stored = first([table])
    table.write_text("path\nnew.wav\n" + "".join(f"{i}.wav\n" for i in range(9)))
    updated = again(stored, [table])
    assert ids(updated.table)[: updated.kept] == ids(stored)
    (new,) = parts_of(updated.table)[updated.kept :]
    assert (new.rows, new.start, new.end, new.bytes) == (1, 0, 1, 10)
    assert rows(updated.table) == rows(first([table]))


def test_a_table_with_another_version_and_the_same_rows_has_not_changed(tmp_path):
    table = write(tmp_path / "t.csv", "path\na.wav\n")
    stored = first([table])
    table.write_text("path\n\na.wav\n")
    assert not again(stored, [table]).has_changes


@pytest.mark.parametrize("change", ["part size", "number of shards"])
def test_shards_stay_also_if_they_would_be_cut_in_another_way(tmp_path, monkeypatch, change):
    (tmp_path / "in").mkdir()
    tar_of(tmp_path / "in" / "a.tar", *(f"{i}.wav" for i in range(9)))
    parquet_of_bytes(tmp_path / "in" / "p.parquet", 6, row_group=1)
    inputs = [str(tmp_path / "in")]
    stored = plan(inputs, 1000)
    assert len(stored) > 3
    tar_of(tmp_path / "in" / "b.tar", "0.wav")
    if change == "number of shards":
        monkeypatch.setattr(tar_layout, "CUT_SHARDS", 1)
    part_bytes = 1000 if change == "number of shards" else 10_000
    updated = update_plan(parts_of(stored), plan_parts(inputs, part_bytes), part_bytes, 1)
    assert updated.kept == len(stored)
    assert len(updated.table) == len(stored) + 1
    assert updated.added == (f"{tmp_path}/in/b.tar",)


def test_what_was_left_out_is_that_of_the_new_listing(tmp_path):
    folder = write_all(tmp_path / "in", "a.wav", "x.foo")
    stored = first([folder])
    write_all(folder, "b.wav", "y.foo")
    assert json.loads(again(stored, [folder]).table.schema.metadata[b"sewd.left_out"])["files"] == {"foo": 2}
