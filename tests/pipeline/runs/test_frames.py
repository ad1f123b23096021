"""The rows of a run in other libraries: the same before and after compaction, and joined on their key."""

from __future__ import annotations

import sys

import pyarrow as pa
import pytest

from pipeline.errors import UsageError
from pipeline.runs.run import Run
from pipeline.schemas import TABLES
from tests.support import runs

TRANSCRIPTS = runs.transcripts([{"text": f"text {i}", "reference": f"text {i % 2}"} for i in range(5)])
LABELS = runs.labels([{"scores": {"yes": 0.7, "no": 0.3}} for _ in range(5)])
ERRORS = runs.errors([{"code": "MISSING"}, {"code": "TRUNCATED", "utt_id": "u000004#9000-9500"}])


@pytest.fixture(params=["running", "compacted"])
def run(request, tmp_path):
    made = runs.write_run(tmp_path / "run", TRANSCRIPTS, LABELS, ERRORS, chunk_rows=2)
    return runs.compact(made) if request.param == "compacted" else made


def sorted_rows(table: pa.Table) -> list:
    return table.sort_by("utt_id").to_pylist()


def test_every_form_has_the_committed_rows(run):
    for name, rows in (("transcripts", TRANSCRIPTS), ("labels", LABELS), ("errors", ERRORS)):
        expected = sorted_rows(rows)
        assert sorted_rows(run.dataset(name).to_table()) == expected
        assert sorted_rows(run.to_arrow(name)) == expected
        frame = run.to_pandas(name)
        assert list(frame.columns) == TABLES[name].names
        assert sorted(frame["utt_id"]) == [row["utt_id"] for row in expected]
        assert sorted_rows(run.to_polars(name).select("utt_id", "uri").to_arrow()) == [
            {key: row[key] for key in ("utt_id", "uri")} for row in expected
        ]
        found = run.duckdb().sql(f"SELECT * FROM {name}").to_arrow_table()
        assert sorted_rows(found.select(["utt_id", "uri", "part_id", "chunk"])) == [
            {key: row[key] for key in ("utt_id", "uri", "part_id", "chunk")} for row in expected
        ]


def test_some_columns_are_read_alone(run):
    assert run.to_arrow(columns=["utt_id", "text"]).column_names == ["utt_id", "text"]
    assert run.to_arrow(columns="text").column_names == ["text"]
    assert list(run.to_pandas("labels", ["label"]).columns) == ["label"]
    assert run.to_polars("errors", ["code"])["code"].to_list() == ["MISSING", "TRUNCATED"]


def test_tables_are_joined_by_utterance(run):
    connection = run.duckdb()
    joined = "SELECT utt_id, text, label FROM transcripts JOIN labels USING (utt_id) ORDER BY utt_id"
    expected = [(row["utt_id"], row["text"], "yes") for row in sorted_rows(TRANSCRIPTS)]
    assert connection.sql(joined).fetchall() == expected
    frame = run.to_pandas().merge(run.to_pandas("labels")[["utt_id", "label"]], on="utt_id")
    assert sorted(zip(frame["utt_id"], frame["text"], frame["label"], strict=True)) == expected
    outcomes = """
        SELECT utt_id, text, NULL AS code FROM transcripts
        UNION ALL SELECT utt_id, NULL, code FROM errors ORDER BY utt_id
    """
    rows = connection.sql(outcomes).fetchall()
    assert len(rows) == TRANSCRIPTS.num_rows + ERRORS.num_rows
    assert [row[0] for row in rows if row[2]] == ["broken0", "u000004#9000-9500"]


def test_views_are_of_one_moment(tmp_path, monkeypatch):
    """The last chunk, with all labels, is committed while the connection is being opened, after the first listing."""
    run = runs.write_run(tmp_path / "run", TRANSCRIPTS, LABELS, chunk_rows=2)
    last = max((tmp_path / "run" / "commits").rglob("*.json"))
    data, listed = last.read_bytes(), Run.files
    last.unlink()

    def files(self):
        found = listed(self)
        last.write_bytes(data)
        return found

    monkeypatch.setattr(Run, "files", files)
    counts = "SELECT (SELECT count(*) FROM transcripts), (SELECT count(*) FROM labels)"
    assert run.duckdb().sql(counts).fetchall() == [(4, 0)]
    assert run.duckdb().sql(counts).fetchall() == [(5, 5)]


def test_tables_without_rows_have_their_columns(tmp_path):
    run = runs.write_run(tmp_path / "run", TRANSCRIPTS)
    assert run.to_arrow("labels").schema.names == TABLES["labels"].names
    assert run.duckdb().sql("SELECT count(*) FROM errors").fetchall() == [(0,)]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda run: run.to_pandas("transcript"),
            "a run has no table 'transcript': it has transcripts, labels, errors",
        ),
        (lambda run: run.dataset("words"), "no table 'words'"),
        (lambda run: run.to_polars(columns=["txt"]), "transcripts has no column txt"),
    ],
    ids=["table", "dataset", "column"],
)
def test_what_a_run_does_not_have_is_bad_usage(run, call, message):
    with pytest.raises(UsageError, match=message):
        call(run)


@pytest.mark.parametrize(
    ("library", "call"),
    [
        ("pandas", lambda run: run.to_pandas()),
        ("polars", lambda run: run.to_polars()),
        ("duckdb", lambda run: run.duckdb()),
    ],
    ids=["pandas", "polars", "duckdb"],
)
def test_a_library_that_is_missing_is_named(run, library, call, monkeypatch):
    monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.setattr(Run, "files", lambda _: pytest.fail("rows are read only for a library that is there"))
    with pytest.raises(UsageError, match=rf"{library} is not installed: pip install 'sewd-pipeline\[frames\]'"):
        call(run)
