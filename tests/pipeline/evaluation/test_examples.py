from itertools import pairwise

import pytest

from pipeline.errors import UsageError
from pipeline.evaluation.examples import rows_by_id, sampled_rows, wrong_rows
from pipeline.runs import compact as compact_module
from pipeline.scoring.normalize import normalize
from pipeline.scoring.rules import Scoring
from tests.support import runs

ROWS, CHUNK = 1000, 100
BASIC = Scoring("basic")


@pytest.fixture(scope="module")
def rows():
    made = runs.random_rows(ROWS, wrong=0.3)
    for row in made[::7]:
        row["reference"] = None
    return made


@pytest.fixture(scope="module", params=["many files", "compacted"])
def run(request, rows, tmp_path_factory):
    """A run with the same rows in ten files, or in one file of ten row groups."""
    written = runs.write_run(tmp_path_factory.mktemp("run") / "run", runs.transcripts(rows), chunk_rows=CHUNK)
    if request.param == "compacted":
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(compact_module, "ROW_GROUP_ROWS", CHUNK)
            runs.compact(written)
        assert len(written.dataset("transcripts").files) == 1
    return written


def ids(result):
    return result["utt_id"].to_pylist()


# Samples


@pytest.mark.parametrize("number", [0, 1, 99, 100, 101, 250, 999])
def test_a_sample_has_the_requested_number_of_distinct_rows(run, number):
    result, total = sampled_rows(run, "transcripts", ["utt_id", "text"], number)
    assert (result.num_rows, total) == (number, ROWS)
    assert result.column_names == ["utt_id", "text"]
    assert len(set(ids(result))) == number


@pytest.mark.parametrize("number", [1000, 1001, 10**9])
def test_a_sample_larger_than_the_run_is_the_whole_run(run, rows, number):
    result, total = sampled_rows(run, "transcripts", ["text", "utt_id"], number)
    assert (result.num_rows, total) == (ROWS, ROWS)
    assert dict(zip(ids(result), result["text"].to_pylist(), strict=True)) == {
        f"u{index:06d}": row["text"] for index, row in enumerate(rows)
    }


def test_a_sample_depends_on_its_seed(run):
    samples = [ids(sampled_rows(run, "transcripts", ["utt_id"], 150, seed)[0]) for seed in range(6)]
    assert samples[0] == ids(sampled_rows(run, "transcripts", ["utt_id"], 150, 0)[0])
    assert len({tuple(sample) for sample in samples}) > 3


def test_every_part_of_the_run_can_be_sampled(run):
    drawn = {ids(sampled_rows(run, "transcripts", ["utt_id"], 1, seed)[0])[0][:5] for seed in range(60)}
    assert len(drawn) >= 8  # of ten


def test_a_sample_does_not_consist_of_neighbouring_rows(run):
    result, _ = sampled_rows(run, "transcripts", ["utt_id"], 2 * CHUNK)
    assert len({utt_id[:5] for utt_id in ids(result)}) == 10
    numbers = [int(utt_id[1:]) for utt_id in ids(result)]
    assert sum(b - a == 1 for a, b in pairwise(numbers)) < CHUNK


def test_a_sample_reads_a_limited_number_of_row_groups(rows, tmp_path):
    run = runs.write_run(tmp_path / "run", runs.transcripts(rows), chunk_rows=10)
    result, _ = sampled_rows(run, "transcripts", ["utt_id"], 32)
    assert len({utt_id[:6] for utt_id in ids(result)}) == 16


def test_row_groups_of_unequal_size_fill_a_sample(rows, tmp_path):
    run = runs.write_run(tmp_path / "run", runs.transcripts(rows[:501]), chunk_rows=500)
    for number in (1, 400, 501, 1000):
        result, _ = sampled_rows(run, "transcripts", ["utt_id"], number)
        assert len(set(ids(result))) == min(number, 501)


def test_a_sample_of_an_empty_table_is_empty(run):
    result, total = sampled_rows(run, "labels", ["utt_id", "task"], 10)
    assert (result.num_rows, total, result.column_names) == (0, 0, ["utt_id", "task"])


# Wrong rows


def expected_wrong(rows, normalizer="basic"):
    texts = {
        f"u{i:06d}": (normalize(row["reference"], normalizer), normalize(row["text"], normalizer))
        for i, row in enumerate(rows)
        if row["reference"] is not None
    }
    return {(utt_id, *pair) for utt_id, pair in texts.items() if pair[0] != pair[1]}


@pytest.mark.parametrize("normalizer", ["basic", "none"])
def test_wrong_rows_are_exactly_the_utterances_with_errors(run, rows, normalizer):
    result = wrong_rows(run, Scoring(normalizer), ROWS)
    assert len(result) == len(set(result))
    assert set(result) == expected_wrong(rows, normalizer)
    assert 100 < len(result) < 900


@pytest.mark.parametrize("number", [0, 1, 50, 120])
def test_a_sample_of_wrong_rows_has_the_requested_size_and_is_seeded(run, rows, number):
    result = wrong_rows(run, BASIC, number, seed=3)
    assert len(result) == number
    assert set(result) <= expected_wrong(rows)
    assert result == wrong_rows(run, BASIC, number, seed=3)
    assert number < 50 or result != wrong_rows(run, BASIC, number, seed=4)


def test_wrong_rows_are_found_by_reference_files(run, tmp_path):
    (tmp_path / "text").write_text("u000000 nothing like it\nu000999 neither is this\nother x\n")
    result = wrong_rows(run, Scoring("basic", (str(tmp_path / "text"),)), ROWS)
    assert {(utt_id, wanted) for utt_id, wanted, _ in result} == {
        ("u000000", "nothing like it"),
        ("u000999", "neither is this"),
    }


def test_compounds_are_not_errors_under_the_compounds_rule(tmp_path):
    rows = [{"text": "ice cream", "reference": "icecream"}, {"text": "ice x", "reference": "icey"}]
    run = runs.write_run(tmp_path / "run", runs.transcripts(rows))
    assert [row[0] for row in wrong_rows(run, BASIC, 9)] == ["u000000", "u000001"]
    assert [row[0] for row in wrong_rows(run, Scoring("basic", compounds=True), 9)] == ["u000001"]


def test_a_run_without_rows_has_no_examples(tmp_path):
    run = runs.write_run(tmp_path / "run", runs.transcripts([]))
    assert wrong_rows(run, BASIC, 9) == []
    assert sampled_rows(run, "transcripts", ["text"], 9)[0].num_rows == 0
    assert rows_by_id(run, ["u000000"], ["speaker"], BASIC).num_rows == 0


# Rows by id


@pytest.mark.parametrize("scoring", [BASIC, Scoring("none"), Scoring("basic", compounds=True)])
def test_rows_by_id_are_in_the_order_of_the_ids(run, rows, scoring):
    names = ["u000999", "nobody", "u000001", "u000500", "u000501"]
    result = rows_by_id(run, names, ["speaker", "duration_s"], scoring)
    known = [name for name in names if name != "nobody"]
    assert ids(result) == known
    for row, name in zip(result.to_pylist(), known, strict=True):
        source = rows[int(name[1:])]
        assert (row["speaker"], row["text"]) == (source["speaker"], source["text"])
        assert row["duration_s"] == source["duration_s"]
        reference = source["reference"]
        assert row["normalized_reference"] == (None if reference is None else normalize(reference, scoring.normalizer))
        assert (row["hits"] is None) == (reference is None)


def test_rows_by_id_are_scored_against_reference_files(run, tmp_path):
    (tmp_path / "text").write_text("u000003 a b c\n")
    result = rows_by_id(run, ["u000003", "u000001"], [], Scoring("basic", (str(tmp_path / "text"),)))
    assert (result["utt_id"].to_pylist(), result["ref_words"].to_pylist()) == (["u000003"], [3])
    with pytest.raises(UsageError, match="no references"):
        rows_by_id(run, ["u000003"], [], Scoring("basic", (str(tmp_path / "none"),)))


def test_no_ids_return_no_rows(run):
    assert rows_by_id(run, [], [], BASIC).num_rows == 0
