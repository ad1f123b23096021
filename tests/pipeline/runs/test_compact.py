"""Compaction: the same rows in few large files, also if it is killed at any point."""

import dataclasses
import hashlib
from itertools import pairwise

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

import pipeline
from pipeline.runs import compact as compact_module
from pipeline.runs.commit import DataFile, remove_orphans
from pipeline.runs.compact import (
    COMPACTION,
    Compaction,
    compact_group,
    compaction_groups,
    read_compaction,
    write_compaction,
)
from pipeline.runs.ledger import read_commits
from pipeline.schemas import TABLES
from tests.support import runs

ROWS = 330
CHUNK = 25


def committed_files(run):
    return [file for commit in read_commits(run.uri) for file in commit.files]


def files_of(run, table):
    return [file for file in read_compaction(run.uri).files if file.table == table]


def write_run(path, rows=ROWS, chunk=CHUNK):
    labels = [{"scores": {"yes": 0.8, "no": 0.2}, "reference_label": "yes"} for _ in range(7)]
    tables = (runs.transcripts(runs.random_rows(rows)), runs.labels(labels), runs.errors([{}, {"code": "TRUNCATED"}]))
    return runs.write_run(path, *tables, chunk_rows=chunk)


@pytest.fixture
def run(tmp_path):
    return write_run(tmp_path / "run")


def read_tables(run):
    """The rows of each table that a reader sees who opens the run now."""
    opened = pipeline.Run.open(run.uri)
    return {name: opened.dataset(name).to_table() for name in TABLES}


def on_disk(run, path):
    return sorted(str(file.relative_to(path)) for name in TABLES for file in (path / name).rglob("*"))


@pytest.mark.parametrize("file_bytes", [1, 20_000, 1 << 28])
def test_rows_are_unchanged_and_in_the_order_of_their_commits(run, monkeypatch, file_bytes):
    monkeypatch.setattr(compact_module, "FILE_BYTES", file_bytes)
    before = read_tables(run)
    ids = before["transcripts"]["utt_id"].to_pylist()
    assert ids == [f"u{index:06d}" for index in range(ROWS)]
    runs.compact(run)
    after = read_tables(run)
    for name, schema in TABLES.items():
        assert after[name].equals(before[name])
        assert after[name].schema.equals(schema, check_metadata=True)
        assert run.rows(name) == before[name].num_rows


def test_few_files_replace_many(run):
    assert [len(files) for files in run.files().values()] == [14, 1, 1, 0]
    runs.compact(run)
    assert [len(files) for files in run.files().values()] == [1, 1, 1, 0]


@pytest.mark.parametrize("file_bytes", [20_000, 30_000])
def test_the_size_of_a_file_is_bounded(run, monkeypatch, file_bytes):
    monkeypatch.setattr(compact_module, "FILE_BYTES", file_bytes)
    sources = {file.path: file for file in committed_files(run)}
    runs.compact(run)
    found = files_of(run, "transcripts")
    assert 1 < len(found) < len(sources)
    assert all(file.size <= file_bytes for file in found)


def test_row_groups_are_large_enough_to_be_read_fast(run, monkeypatch):
    monkeypatch.setattr(compact_module, "ROW_GROUP_ROWS", 60)
    runs.compact(run)
    (file,) = files_of(run, "transcripts")
    metadata = pq.read_metadata(f"{run.uri}/{file.path}")
    sizes = [metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)]
    assert sum(sizes) == ROWS
    assert len(sizes) > 1
    assert all(60 <= size < 120 for size in sizes[:-1])


def test_a_small_run_is_one_row_group(run):
    runs.compact(run)
    (file,) = files_of(run, "transcripts")
    assert pq.read_metadata(f"{run.uri}/{file.path}").num_row_groups == 1


def test_compaction_json_describes_its_files(run, tmp_path):
    runs.compact(run)
    for file in read_compaction(run.uri).files:
        data = (tmp_path / "run" / file.path).read_bytes()
        assert (file.size, file.sha256) == (len(data), hashlib.sha256(data).hexdigest())
        assert file.path == f"{file.table}/all-{file.sha256[:16]}.parquet"
        assert pq.read_metadata(pa.BufferReader(data)).num_rows == file.rows


def test_compacting_again_makes_the_same_files(run):
    runs.compact(run)
    first = read_compaction(run.uri)
    runs.compact(run)
    assert read_compaction(run.uri) == first


def test_commits_are_not_changed(run, tmp_path):
    before = {path: path.read_bytes() for path in (tmp_path / "run/commits").rglob("*.json")}
    runs.compact(run)
    remove_orphans(run.uri, read_compaction(run.uri).files)
    assert {path: path.read_bytes() for path in (tmp_path / "run/commits").rglob("*.json")} == before


# Killed at any point


@pytest.mark.parametrize("done", range(4))
def test_readers_of_a_run_killed_before_compaction_json_see_the_rows_of_the_commits(run, tmp_path, done):
    before, files = read_tables(run), on_disk(run, tmp_path / "run")
    for group in list(compaction_groups(committed_files(run)))[:done]:
        compact_group(run.uri, *group)
    assert read_compaction(run.uri) is None
    after = read_tables(run)
    assert all(after[name].equals(before[name]) for name in TABLES)
    assert remove_orphans(run.uri, committed_files(run)) == done
    assert on_disk(run, tmp_path / "run") == files


def test_readers_of_a_run_killed_after_compaction_json_see_every_row_once(run, tmp_path):
    before, small = read_tables(run), len(committed_files(run))
    runs.compact(run)
    for orphans in (small, 0):
        assert all(read_tables(run)[name].equals(before[name]) for name in TABLES)
        assert remove_orphans(run.uri, read_compaction(run.uri).files) == orphans
    assert all(read_tables(run)[name].equals(before[name]) for name in TABLES)
    assert on_disk(run, tmp_path / "run") == sorted(file.path for file in read_compaction(run.uri).files)


def test_compaction_json_is_put_after_the_last_file(run, tmp_path, monkeypatch):
    """Wherever a compaction is killed, compaction.json exists only if its files do."""
    order = []
    put = compact_module.objects.put
    monkeypatch.setattr(compact_module.objects, "put", lambda uri, data: (order.append(uri), put(uri, data)))
    runs.compact(run)
    assert [uri.rpartition("/")[2] == COMPACTION for uri in order] == [False] * 3 + [True]


# Edges


def test_a_run_without_rows(tmp_path):
    run = runs.write_run(tmp_path / "run", runs.transcripts([]))
    assert read_compaction(run.uri) is None
    runs.compact(run)
    assert read_compaction(run.uri).files == ()
    assert all(table.num_rows == 0 and table.schema.equals(TABLES[name]) for name, table in read_tables(run).items())


def test_a_source_file_with_another_number_of_rows_is_refused(run, tmp_path):
    group = [file for file in committed_files(run) if file.table == "transcripts"]
    files = on_disk(run, tmp_path / "run")
    wrong = [*group[:-1], dataclasses.replace(group[-1], rows=group[-1].rows + 1)]
    with pytest.raises(RuntimeError, match=f"hold {ROWS} rows, but their commits name {ROWS + 1}"):
        compact_group(run.uri, "transcripts", wrong)
    assert on_disk(run, tmp_path / "run") == files


def test_a_missing_source_file_is_an_error(run, tmp_path):
    group = [file for file in committed_files(run) if file.table == "transcripts"]
    (tmp_path / "run" / group[3].path).unlink()
    with pytest.raises(pipeline.UsageError, match=f"{group[3].path} is lost"):
        compact_group(run.uri, "transcripts", group)


FILES = st.lists(
    st.builds(
        DataFile,
        table=st.sampled_from(list(TABLES)),
        path=st.uuids().map(str),
        rows=st.integers(1, 9),
        size=st.integers(1, 150),
        sha256=st.just(""),
    ),
    max_size=30,
)


@hypothesis_settings(max_examples=100)
@given(files=FILES)
def test_groups_split_the_files_of_each_table_in_order_and_are_as_large_as_allowed(files):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compact_module, "FILE_BYTES", 100)
        groups = list(compaction_groups(files))
    for table in TABLES:
        of_table = [group.files for group in groups if group.table == table]
        assert [file for group in of_table for file in group] == [file for file in files if file.table == table]
        for group in of_table:
            assert len(group) == 1 or sum(file.size for file in group) <= 100
        for group, following in pairwise(of_table):
            assert sum(file.size for file in group) + following[0].size > 100


def test_compaction_json_is_read_as_it_was_written(tmp_path):
    files = [DataFile("errors", "errors/all-1.parquet", 3, 99, "f" * 64), DataFile("labels", "labels/ü", 1, 2, "0")]
    write_compaction(str(tmp_path), iter(files))
    assert read_compaction(str(tmp_path)) == Compaction(tuple(files))
