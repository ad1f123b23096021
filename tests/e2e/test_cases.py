"""Inputs that failed for outsiders, in ../shared/cases: tables, shards, names. Those of audio: test_damaged_audio."""

from __future__ import annotations

import shutil

import pytest

import pipeline
from pipeline.errors import UsageError
from pipeline.scoring.references import load_references
from tests.conftest import SHARED
from tests.support import corpora

CASES = SHARED.parent / "cases"
pytestmark = pytest.mark.skipif(not CASES.is_dir(), reason="no ../shared/cases beside the repository")
ORDER = "brew a dark roast latte"


@pytest.fixture
def case(tmp_path, local_ray, small_ctc):
    """A function that transcribes inputs of a case, copied so that they can be changed: its run and its changes."""

    def run(name, *inputs, output="run"):
        folder = tmp_path / name
        if not folder.exists():
            shutil.copytree(CASES / name, folder, copy_function=shutil.copyfile)
            for path in (folder, *folder.rglob("*")):
                path.chmod(0o755)
        changes: list[str] = []
        config = pipeline.RunConfig(
            inputs=tuple(str(folder / each) for each in inputs),
            output=str(tmp_path / output),
            model=str(small_ctc),
            threads=1,
        )
        made = pipeline.transcribe(config, on_changes=lambda found: changes.append(found.line))
        return made, corpora.rows_of(made), changes

    return run


def references(rows):
    return {row["utt_id"].rpartition("/")[2]: row["reference"] for row in rows}


def test_a_corpus_that_grew_is_named_with_numbers(case, tmp_path):
    case("corpus-grew", "in")
    shutil.copy(tmp_path / "corpus-grew" / "later" / "b.wav", tmp_path / "corpus-grew" / "in")
    _, rows, changes = case("corpus-grew", "in")
    assert len(rows) == 1
    assert len(changes) == 1
    assert "1 added" in changes[0] or "added: 1" in changes[0] or "b.wav" in changes[0]


@pytest.mark.parametrize(("table", "text"), [("train.csv", "brew a dark roast latte"), ("m.jsonl.gz", None)])
def test_a_table_of_utterances_is_read(case, table, text):
    """When the case was found, these were one UNDECODABLE row each; since then tables are read."""
    _, rows, _ = case("input-is-a-table", table)
    assert [row["reference"] for row in rows] == [text]


def test_a_list_that_is_no_input_is_refused(case, tmp_path):
    with pytest.raises(UsageError, match=r"list\.txt"):
        case("input-is-a-table", "list.txt")
    assert not (tmp_path / "run").exists()


def test_nan_is_no_reference_and_no_speaker(case):
    _, rows, _ = case("nan-text", "m.jsonl")
    assert [(row["reference"], row["speaker"]) for row in rows] == [(None, None)]


def test_a_table_beside_audio_is_passed_over_and_named(case):
    run, rows, _ = case("parquet-beside-audio", "in")
    assert len(rows) == 1
    assert any("metadata.parquet" in line for line in run.record.left_out.lines)


def test_base_names_in_parquet_are_no_ids(case):
    run, rows, _ = case("parquet-one-name-for-all", "x.parquet")
    assert len(rows) == len({row["utt_id"] for row in rows}) == 3
    assert run.record.totals.errors == 0


def test_shards_without_audio_are_no_silent_success(case):
    run, rows, _ = case("shards-without-audio", "x.tar", "y.tar")
    assert not rows
    assert {row["code"] for row in corpora.rows_of(run, "errors")} == {"MISSING"}


def test_texts_in_any_case_and_by_key_are_references_and_texts_without_audio_are_named(case):
    run, rows, _ = case("side-cars-lost", "in", "key.tar", "apart.tar")
    found = references(rows)
    assert found["A"] == ORDER
    assert sum(text is not None for text in found.values()) >= 2
    errors = corpora.rows_of(run, "errors")
    assert [("apart.tar" in row["uri"], "a.txt" in row["message"]) for row in errors] == [(True, True)]


def test_files_with_rare_suffixes_are_read(case):
    _, rows, _ = case("suffixes-passed-over", "in")
    assert len(rows) == 9


def test_tables_that_quote_nothing_keep_every_line():
    found = {}
    for name in ("two-open.tsv", "speech.tsv"):
        loaded = load_references(str(CASES / "tsv-with-quotes" / name))
        found[name] = {utt_id: loaded.texts[row] for utt_id, row in loaded.index.items()}
    assert found["speech.tsv"] == {"a": '"Brew," he said', "b": "brew a triple shot espresso"}
    assert found["two-open.tsv"] == {
        "a": f'"{ORDER}',
        "b": 'brew a triple shot espresso"',
        "c": "can i get a house coffee",
        "d": ORDER,
    }
