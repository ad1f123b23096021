import random
import statistics
import weakref

import jiwer
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import evaluate as evaluate_module
from pipeline.counts import ErrorCounts, score_columns
from pipeline.errors import UsageError
from pipeline.evaluate import METRICS_SCHEMA, Evaluation, evaluate, metrics_table, required_columns
from pipeline.normalize import normalize

TEXT = st.lists(st.sampled_from(["a", "A", "b.", "ab", "it's", "—"]), max_size=7).map(" ".join)
ROWS = st.lists(st.tuples(TEXT, st.none() | TEXT), max_size=30)  # (text, reference)


def transcripts(rows, normalizer="basic"):
    texts, references = [text for text, _ in rows], [reference for _, reference in rows]
    columns = {"text": pa.array(texts, pa.string()), "reference": pa.array(references, pa.string())}
    return pa.table(columns | score_columns(texts, references, normalizer))


def random_rows(seed, n):
    rng = random.Random(seed)
    vocabulary = ["".join(rng.choices("abcdef", k=rng.randint(1, 4))) for _ in range(30)]
    rows = []
    for _ in range(n):
        reference = rng.choices(vocabulary, k=rng.randint(1, 40))
        text = [rng.choice([w, w, w.upper(), rng.choice(vocabulary), f"{w}, {w}", ""]) for w in reference]
        rows.append((" ".join(text), " ".join(reference)))
    return rows


def stored(rows, num_errors=0):
    return evaluate([transcripts(rows)], num_errors, normalizer="basic", stored_normalizer="basic")


@pytest.mark.parametrize("normalizer", ["basic", "none"])
@pytest.mark.parametrize("stored_normalizer", ["basic", "none", None])
@pytest.mark.parametrize("seed", range(3))
def test_wer_and_cer_equal_jiwers_over_the_normalised_texts(normalizer, stored_normalizer, seed):
    rows = random_rows(seed, 200)
    table = transcripts(rows, stored_normalizer or "basic")
    found = evaluate([table], 0, normalizer=normalizer, stored_normalizer=stored_normalizer)
    texts = [normalize(text, normalizer) for text, _ in rows]
    references = [normalize(reference, normalizer) for _, reference in rows]
    assert found.wer == jiwer.wer(references, texts)
    assert found.cer == jiwer.cer(references, texts)
    wrong = sum(text != reference for text, reference in zip(texts, references, strict=True))
    assert found.ser == wrong / 200
    assert found.normalizer == normalizer


def test_a_rate_is_a_ratio_of_sums_and_not_a_mean_of_rates():
    rows = [("x", "a"), (" ".join("b" * 99), " ".join("b" * 99))]
    rates = [stored([row]).wer for row in rows]
    assert rates == [1.0, 0.0]
    assert stored(rows).wer == 0.01 != statistics.mean(rates)


@given(rows=ROWS, cuts=st.lists(st.integers(0, 30), max_size=4))
def test_batches_order_and_path_do_not_matter(rows, cuts):
    expected = stored(rows, num_errors=3)
    table = transcripts(rows)
    edges = [0, *sorted(cuts), len(rows)]
    pieces = [table.slice(a, max(b - a, 0)) for a, b in zip(edges, [*edges[1:], len(rows)], strict=True)][:-1]
    reordered = [batch for piece in reversed(pieces) for batch in piece.to_batches()]
    for stored_normalizer in ("basic", "none"):
        for batches in (pieces, reordered):
            again = evaluate(iter(batches), 3, normalizer="basic", stored_normalizer=stored_normalizer)
            assert again == expected


@given(rows=ROWS)
def test_a_sentence_is_wrong_where_the_normalised_texts_differ(rows):
    found = stored(rows)
    pairs = [(normalize(t, "basic"), normalize(r, "basic")) for t, r in rows if r is not None]
    assert found.sentence_errors == sum(t != r for t, r in pairs)
    assert found.sentences == found.scored == len(pairs)
    assert found.no_reference == len(rows) - len(pairs)


def test_unscored_and_failed_rows_lower_the_coverage_and_touch_no_rate():
    scored = [("a b", "a c"), ("d", "d")]
    alone = stored(scored)
    among = stored([*scored, ("x", None), ("", None)], num_errors=4)
    assert (alone.coverage, among.coverage) == (1.0, 0.25)
    assert (among.words, among.chars, among.ser) == (alone.words, alone.chars, 0.5)
    assert (among.scored, among.no_reference, among.failed) == (2, 2, 4)


@pytest.mark.parametrize("stored_normalizer", ["basic", None])
@pytest.mark.parametrize("batches", [[], [transcripts([])], [transcripts([("x", None)])]])
def test_nothing_scored_gives_no_rates(batches, stored_normalizer):
    found = evaluate(batches, 0, normalizer="basic", stored_normalizer=stored_normalizer)
    assert (found.wer, found.cer, found.ser) == (None, None, None)
    assert found.coverage == (0.0 if found.no_reference else None)
    assert found.words == found.chars == ErrorCounts.zero()


def test_insertions_against_empty_references_stay_in_the_numerator():
    rows = [("talks over silence", ""), ("", ""), ("a b c", "a b c")]
    found = stored(rows)
    assert found.wer == 1.0 == jiwer.wer([r for _, r in rows], [t for t, _ in rows])
    assert (found.sentences, found.sentence_errors) == (3, 1)
    only_silence = stored(rows[:2])
    assert only_silence.wer is None
    assert (only_silence.words.insertions, only_silence.ser) == (3, 0.5)


@pytest.mark.parametrize("stored_normalizer", ["basic", "none", None])
def test_the_required_columns_are_enough(stored_normalizer):
    table = transcripts(random_rows(0, 20))
    columns = list(required_columns("basic", stored_normalizer))
    found = evaluate([table.select(columns)], 0, normalizer="basic", stored_normalizer=stored_normalizer)
    assert found.wer == stored(random_rows(0, 20)).wer
    for missing in columns:
        with pytest.raises(KeyError, match=missing):
            evaluate(
                [table.select(columns).drop_columns([missing])],
                0,
                normalizer="basic",
                stored_normalizer=stored_normalizer,
            )


def test_stored_counts_are_taken_as_they_are_and_other_ones_are_not():
    table = transcripts([("a", "a")])
    row = table.schema.get_field_index("insertions")
    marked = table.set_column(row, "insertions", pa.array([7], pa.int32()))
    assert evaluate([marked], 0, normalizer="basic", stored_normalizer="basic").words.insertions == 7
    assert evaluate([marked], 0, normalizer="basic", stored_normalizer=None).words.insertions == 0
    assert evaluate([marked], 0, normalizer="none", stored_normalizer="basic").words.insertions == 0


def test_rescoring_cuts_a_large_batch(monkeypatch):
    sizes = []

    def spy(texts, references, normalizer):
        sizes.append(len(texts))
        return score_columns(texts, references, normalizer)

    monkeypatch.setattr(evaluate_module, "score_columns", spy)
    monkeypatch.setattr(evaluate_module, "_ROWS_PER_SCORING", 8)
    rows = random_rows(1, 20)
    found = evaluate([transcripts(rows)], 0, normalizer="basic", stored_normalizer=None)
    assert sizes == [8, 8, 4]
    assert found == stored(rows)


@pytest.mark.parametrize("stored_normalizer", ["basic", None])
def test_batches_are_let_go_as_the_next_one_comes(stored_normalizer):
    handed_over, most_alive = [], 0

    def batches():
        nonlocal most_alive
        for seed in range(6):
            table = transcripts(random_rows(seed, 3))
            handed_over.append(weakref.ref(table))
            most_alive = max(most_alive, sum(ref() is not None for ref in handed_over))
            yield table

    found = evaluate(batches(), 0, normalizer="basic", stored_normalizer=stored_normalizer)
    assert found.sentences == 18
    assert most_alive <= 2


def test_half_filled_columns_are_refused():
    table = transcripts([("a", "a"), ("b", None)])
    hits = table.schema.get_field_index("char_hits")
    for wrong in ([None, None], [None, 1]):
        broken = table.set_column(hits, "char_hits", pa.array(wrong, pa.int32()))
        with pytest.raises(ValueError, match="not filled in the same rows"):
            evaluate([broken], 0, normalizer="basic", stored_normalizer="basic")
    references = table.set_column(1, "reference", pa.array(["a", "b"]))
    with pytest.raises(ValueError, match="reference"):
        evaluate([references], 0, normalizer="basic", stored_normalizer="basic")
    assert evaluate([references], 0, normalizer="basic", stored_normalizer=None).scored == 2


def test_counts_that_contradict_their_reference_length_are_refused():
    table = transcripts([("a b", "a b")])
    broken = table.set_column(table.schema.get_field_index("ref_words"), "ref_words", pa.array([3], pa.int32()))
    with pytest.raises(ValueError, match="ref_words come to 3"):
        evaluate([broken], 0, normalizer="basic", stored_normalizer="basic")


def test_sums_do_not_overflow_the_stored_type():
    big = 2**31 - 1
    table = transcripts([("a", "a")] * 3)
    for name in ("ref_words", "hits"):
        table = table.set_column(table.schema.get_field_index(name), name, pa.array([big] * 3, pa.int32()))
    assert evaluate([table], 0, normalizer="basic", stored_normalizer="basic").words.hits == 3 * big


@pytest.mark.parametrize("stored_normalizer", ["nope", "basic", None])
def test_an_unknown_normalizer_is_refused_even_if_stored_under_that_name(stored_normalizer):
    with pytest.raises(UsageError, match="basic, none"):
        evaluate([], 0, normalizer="nope", stored_normalizer=stored_normalizer)


def test_a_run_of_an_unknown_normalizer_can_be_scored_under_a_known_one():
    rows = [("a b", "a c")]
    assert evaluate([transcripts(rows)], 0, normalizer="basic", stored_normalizer="later").wer == 0.5


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ((1, 2, 0, 0), "wrong than there are"),
        ((-1, 0, 0, 0), "negative"),
        ((0, 0, -1, 0), "negative"),
        ((0, 0, 0, -1), "negative"),
    ],
)
def test_impossible_evaluations_are_refused(numbers, message):
    with pytest.raises(ValueError, match=message):
        Evaluation(ErrorCounts.zero(), ErrorCounts.zero(), *numbers, normalizer="basic")


def test_metrics_table_holds_counts_and_rates_of_the_corpus():
    found = stored([("a b x", "a c"), ("d", "d"), ("e", None)], num_errors=2)
    table = metrics_table(found)
    assert table.schema.equals(METRICS_SCHEMA, check_metadata=True)
    table.validate(full=True)
    rows = {row["metric"]: row for row in table.to_pylist()}
    assert list(rows) == ["wer", "cer", "ser"]
    assert rows["wer"] == {
        "scope": "corpus",
        "key": None,
        "metric": "wer",
        "errors": 2,
        "hits": 2,
        "substitutions": 1,
        "deletions": 0,
        "insertions": 1,
        "reference": 3,
        "rate": 2 / 3,
        "ci_low": None,
        "ci_high": None,
        "sentences": 2,
        "scored": 2,
        "no_reference": 1,
        "failed": 2,
        "normalizer": "basic",
    }
    assert rows["cer"]["rate"] == found.cer
    assert {name: rows["ser"][name] for name in ("errors", "hits", "substitutions", "reference", "rate")} == {
        "errors": 1,
        "hits": 1,
        "substitutions": 1,
        "reference": 2,
        "rate": 0.5,
    }
    for row in rows.values():
        assert row["errors"] == row["substitutions"] + row["deletions"] + row["insertions"]
        assert row["reference"] == row["hits"] + row["substitutions"] + row["deletions"]


def test_metrics_table_has_null_rates_where_nothing_was_scored():
    table = metrics_table(stored([], num_errors=1))
    assert table["rate"].to_pylist() == [None, None, None]
    assert table["failed"].to_pylist() == [1, 1, 1]


def test_metrics_fields_tell_their_meaning():
    assert all(field.metadata[b"meaning"] for field in METRICS_SCHEMA)
    assert METRICS_SCHEMA.metadata[b"sewd.table"] == b"metrics"
    assert METRICS_SCHEMA.metadata[b"sewd.schema_version"]
