import dataclasses
import json
import math
import random
import statistics
import weakref

import jiwer
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from pipeline.errors import DamagedRunError, UsageError
from pipeline.evaluation import context, reading, summary, tallies
from pipeline.evaluation import evaluate as evaluate_module
from pipeline.evaluation.evaluate import evaluate_run
from pipeline.evaluation.intervals import rate_interval
from pipeline.evaluation.results import Figures
from pipeline.evaluation.settings import EvaluationSettings
from pipeline.evaluation.summary import evaluation_from_tallies
from pipeline.evaluation.tables import METRICS_SCHEMA, metrics_table, write_metrics
from pipeline.evaluation.tallies import required_columns, tally_batches
from pipeline.runs.commit import remove_orphans
from pipeline.runs.compact import read_compaction
from pipeline.scoring.counts import ErrorCounts
from pipeline.scoring.normalize import normalize
from pipeline.scoring.rules import Scoring
from tests.support import runs

TEXT = st.lists(st.sampled_from(["a", "A", "b.", "ab", "it's", "—"]), max_size=7).map(" ".join)
SPEAKER = st.none() | st.sampled_from(["s1", "s2", "s3"])
ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "text": TEXT,
            "reference": st.none() | TEXT,
            "speaker": SPEAKER,
            "utt_id": st.sampled_from(["x", "rec#0-100", "rec#100-200", "tape#c0"]),
            "duration_s": st.sampled_from([0.5, 3.0, 12.0, 99.0]),
        }
    ),
    max_size=30,
)
BASIC = Scoring("basic")


def evaluated(tables, settings=None, failed=0, scoring=BASIC, stored="basic"):
    settings = settings or EvaluationSettings()
    batches = [batch for table in tables for batch in table.to_batches()]
    return evaluation_from_tallies(tally_batches(batches, settings, scoring, stored), failed, settings, scoring)


def of(rows, settings=None, failed=0):
    return evaluated([runs.transcripts(rows)], settings, failed)


def pairs(*texts):
    return [{"text": text, "reference": reference} for text, reference in texts]


def random_pairs(seed, n):
    rng = random.Random(seed)
    vocabulary = ["".join(rng.choices("abcdef", k=rng.randint(1, 4))) for _ in range(30)]
    rows = []
    for _ in range(n):
        reference = rng.choices(vocabulary, k=rng.randint(1, 40))
        text = [rng.choice([w, w, w.upper(), rng.choice(vocabulary), f"{w}, {w}", ""]) for w in reference]
        rows.append({"text": " ".join(text), "reference": " ".join(reference)})
    return rows


@pytest.mark.parametrize("normalizer", ["basic", "none"])
@pytest.mark.parametrize("stored", ["basic", "none", None])
@pytest.mark.parametrize("seed", range(3))
def test_every_rate_equals_jiwers_over_the_normalised_texts(normalizer, stored, seed):
    rows = random_pairs(seed, 200)
    evaluation = evaluated([runs.transcripts(rows, stored or "basic")], scoring=Scoring(normalizer), stored=stored)
    texts = [normalize(row["text"], normalizer) for row in rows]
    references = [normalize(row["reference"], normalizer) for row in rows]
    words = jiwer.process_words(references, texts)
    assert evaluation.rates["wer"] == evaluation.wer == words.wer
    assert evaluation.rates["mer"] == pytest.approx(words.mer, abs=1e-15)
    assert evaluation.rates["wil"] == pytest.approx(words.wil, abs=1e-15)
    assert evaluation.cer == jiwer.cer(references, texts)
    assert evaluation.ser == sum(a != b for a, b in zip(texts, references, strict=True)) / 200


def test_a_rate_is_a_ratio_of_sums_and_not_a_mean_of_rates():
    rows = pairs(("x", "a"), (" ".join("b" * 99), " ".join("b" * 99)))
    rates = [of([row]).wer for row in rows]
    assert rates == [1.0, 0.0]
    assert of(rows).wer == 0.01 != statistics.mean(rates)


@pytest.mark.parametrize("unit", ["auto", "speaker", "recording", "utterance"])
@hypothesis_settings(max_examples=25)
@given(rows=ROWS, cuts=st.lists(st.integers(0, 30), max_size=4))
def test_batches_order_and_stored_counts_do_not_matter(unit, rows, cuts):
    settings = EvaluationSettings(by=("speaker", "duration", "channel"), unit=unit, num_worst=3)
    table = runs.transcripts(rows)
    expected = evaluated([table], settings, 3)
    edges = [0, *sorted(cuts), len(rows)]
    pieces = [table.slice(a, max(b - a, 0)) for a, b in zip(edges, [*edges[1:], len(rows)], strict=True)][:-1]
    for stored in ("basic", "none"):
        for tables in (pieces, pieces[::-1]):
            assert same(evaluated(tables, settings, 3, stored=stored), expected)


def same(evaluation, expected):
    """Whether they are equal except for the order in which floats (seconds, confidences) were added."""
    a, b = (
        [e.figures, *(g.figures for grouping in e.groupings for g in grouping.groups)] for e in (evaluation, expected)
    )
    for figures, expected_figures in zip(a, b, strict=True):
        assert math.isclose(figures.audio_s, expected_figures.audio_s)
        assert math.isclose(figures.confidence_sum, expected_figures.confidence_sum)
        counts, expected_counts = (
            dataclasses.replace(each, audio_s=0, confidence_sum=0) for each in (figures, expected_figures)
        )
        assert counts == expected_counts
    return (evaluation.intervals, evaluation.unit, evaluation.worst_utterances, evaluation.rate_histogram) == (
        expected.intervals,
        expected.unit,
        expected.worst_utterances,
        expected.rate_histogram,
    )


@given(rows=ROWS)
def test_tallies_of_parts_add_up_to_the_tallies_of_all_rows(rows):
    settings = EvaluationSettings(by=("speaker",), num_worst=2)
    table = runs.transcripts(rows)
    halves = [tally_batches(t.to_batches(), settings, BASIC, "basic") for t in (table.slice(0, 11), table.slice(11))]
    assert same(evaluation_from_tallies(halves[0] + halves[1], 0, settings, BASIC), evaluated([table], settings))


@given(rows=ROWS)
def test_the_groups_of_a_grouping_add_up_to_the_corpus(rows):
    evaluation = of(rows, EvaluationSettings(by=("speaker", "duration", "confidence", "utt_id")))
    for grouping in evaluation.groupings:
        figures = [group.figures for group in grouping.groups]
        assert sum((f.words for f in figures), start=ErrorCounts.zero()) == evaluation.figures.words
        assert sum((f.chars for f in figures), start=ErrorCounts.zero()) == evaluation.figures.chars
        assert sum(f.utterances for f in figures) == evaluation.figures.utterances == len(rows)
        assert sum(f.sentence_errors for f in figures) == evaluation.figures.sentence_errors
    assert sum(evaluation.rate_histogram) == sum(
        bool(row["reference"] and normalize(row["reference"], "basic")) for row in rows
    )


def test_groups_have_the_figures_of_their_rows():
    rows = runs.random_rows(400, speakers=7, tags=json.dumps({"lang": "en", "take": 2}))
    for index in range(0, 400, 5):
        rows[index] |= {"tags": None, "speaker": None}
    settings = EvaluationSettings(by=("speaker", "tags.lang", "tags.take", "tags.none", "channel"))
    evaluation = of(rows, settings)
    for grouping, key in zip(evaluation.groupings[:3], ("speaker", "lang", "take"), strict=True):
        by_key: dict = {}
        for row in rows:
            tags = json.loads(row["tags"] or "{}")
            value = row["speaker"] if key == "speaker" else tags.get(key)
            by_key.setdefault(None if value is None else str(value), []).append(row)
        assert {group.key for group in grouping.groups} == set(by_key)
        for group in grouping.groups:
            expected = of(by_key[group.key])
            assert group.figures.words == expected.figures.words
            assert group.figures.scored == expected.scored
    assert [group.key for group in evaluation.groupings[3].groups] == [None]
    assert [group.key for group in evaluation.groupings[4].groups] == [None]


def test_duration_bins_include_their_lower_end():
    seconds = [0.0, 0.99, 1.0, 4.99, 5.0, 59.9, 60.0, 1e5, None]
    evaluation = of(
        [{"text": "a", "reference": "a", "duration_s": s} for s in seconds], EvaluationSettings(by=("duration",))
    )
    counts = {group.key: group.figures.utterances for group in evaluation.groupings[0].groups}
    assert counts == {"0-1 s": 2, "1-2 s": 1, "2-5 s": 1, "5-10 s": 1, "30-60 s": 1, "60 s and more": 2, None: 1}


def test_confidences_are_grouped_by_decile(tmp_path):
    rng = np.random.default_rng(0)
    values = rng.beta(8, 1, 5000)
    rows = [{"text": "a", "reference": "a", "confidence": float(v)} for v in values]
    rows += [{"text": "", "reference": "a", "confidence": None}] * 7
    run = runs.write_run(tmp_path / "run", runs.transcripts(rows))
    (grouping,) = evaluate_run(run, EvaluationSettings(by=("confidence",))).groupings
    deciles = [group for group in grouping.groups if group.key is not None]
    assert len(deciles) == 10
    assert grouping.ordered
    for group, tenth in zip(deciles, range(10), strict=True):
        assert group.figures.utterances == 500
        low, high = np.quantile(values, [tenth / 10, (tenth + 1) / 10])
        assert [float(end) for end in group.key.split("-")] == pytest.approx([low, high], abs=0.0006)
        assert low < group.figures.mean_confidence < high
    assert [group.figures.utterances for group in grouping.groups if group.key is None] == [7]


def test_deciles_with_close_ends_have_distinct_names(tmp_path):
    values = 1 - np.random.default_rng(0).beta(1, 3000, 500)
    rows = [{"text": "a", "reference": "a", "confidence": float(v)} for v in values]
    run = runs.write_run(tmp_path / "run", runs.transcripts(rows))
    (grouping,) = evaluate_run(run, EvaluationSettings(by=("confidence",))).groupings
    assert len({group.key for group in grouping.groups}) == 10


@pytest.mark.parametrize("confidence", [0.0, 0.5, 1.0])
def test_equal_confidences_are_in_one_bin(tmp_path, confidence):
    rows = [{"text": "a", "reference": "a", "confidence": confidence}] * 20
    run = runs.write_run(tmp_path / "run", runs.transcripts(rows))
    (grouping,) = evaluate_run(run, EvaluationSettings(by=("confidence",))).groupings
    assert [group.figures.utterances for group in grouping.groups] == [20]


# Units of intervals


def by_unit(rows, key):
    """(errors, reference words) of each unit, by brute force."""
    units: dict = {}
    for row in rows:
        words = jiwer.process_words(row["reference"], row["text"])
        errors = words.substitutions + words.deletions + words.insertions
        before = units.get(key(row), (0, 0))
        units[key(row)] = (before[0] + errors, before[1] + len(row["reference"].split()))
    return tuple(zip(*sorted(units.values()), strict=True))


def test_the_unit_is_the_speaker_where_known():
    rows = runs.random_rows(300, speakers=25)
    evaluation = of(rows)
    assert evaluation.unit == "speaker"
    assert evaluation.intervals["wer"] == rate_interval(*by_unit(rows, lambda row: row["speaker"]))
    assert evaluation.intervals["wer"].units == 25


def test_pieces_of_a_recording_are_one_unit_where_speakers_are_unknown():
    rows = runs.random_rows(300, speakers=0)
    for index, row in enumerate(rows):
        row["utt_id"] = f"tapes/{index % 30}#c{index % 2}#{index * 10}-{index * 10 + 9}"
    evaluation = of(rows)
    assert (evaluation.unit, evaluation.intervals["wer"].units) == ("recording", 30)
    assert evaluation.intervals["wer"] == rate_interval(*by_unit(rows, lambda row: row["utt_id"].split("#")[0]))
    plain = of(rows, EvaluationSettings(unit="utterance"))
    assert (plain.unit, plain.intervals["wer"].units) == ("utterance", 300)


@pytest.mark.parametrize("suffix", ["tar", "tar.gz", "tgz", "tar.zst", "TAR", "parquet"])
def test_pieces_of_one_object_in_a_manifest_are_one_unit_unless_it_is_a_shard(tmp_path, suffix):
    rows = runs.random_rows(300, speakers=0)
    for index, row in enumerate(rows):
        row |= {"utt_id": f"own-{index}", "uri": f"tapes/{index % 30}.wav", "start_s": float(index // 30)}
    evaluation = evaluate_run(runs.write_run(tmp_path / "a", runs.transcripts(rows), chunk_rows=50))
    assert (evaluation.unit, evaluation.intervals["wer"].units) == ("recording", 30)
    assert evaluation.intervals["wer"] == rate_interval(*by_unit(rows, lambda row: row["uri"]))
    for row in rows:
        row["uri"] = f"shards/0.{suffix}"
    evaluation = evaluate_run(runs.write_run(tmp_path / "b", runs.transcripts(rows)))
    assert (evaluation.unit, evaluation.intervals["wer"].units) == ("utterance", 300)


def test_an_empty_name_is_not_a_speaker():
    evaluation = of([row | {"speaker": ""} for row in runs.random_rows(50)])
    assert (evaluation.unit, evaluation.intervals["wer"].units) == ("utterance", 50)


def test_single_utterances_are_units_counted_by_multiplicity():
    rows = runs.random_rows(300, speakers=0)
    for index, row in enumerate(rows):
        row["utt_id"] = f"take#{index}"  # not the suffix that the pipeline appends to pieces of a recording
    evaluation = of(rows)
    assert evaluation.unit == "utterance"
    numbers = iter(range(1000))
    expected = rate_interval(*by_unit(rows, lambda _: next(numbers)))
    assert evaluation.intervals["wer"].units == 300
    assert evaluation.intervals["wer"].low == pytest.approx(expected.low, rel=1e-9)


def test_mixed_kinds_of_units_are_described():
    rows = runs.random_rows(60, speakers=12)
    for index in range(0, 60, 4):
        rows[index] |= {"speaker": None, "utt_id": f"r{index // 8}#{index}-{index + 1}"}
    for index in range(2, 60, 4):
        rows[index] |= {"speaker": None}
    evaluation = of(rows)
    assert evaluation.unit == "speaker or recording or utterance"
    assert evaluation.intervals["wer"].units == 12 + 8 + 15


def test_within_one_speaker_the_unit_is_the_utterance():
    (grouping,) = of(runs.random_rows(300, speakers=5), EvaluationSettings(by=("speaker",))).groupings
    assert grouping.unit == "utterance"
    assert [group.interval.units for group in grouping.groups] == [g.figures.scored for g in grouping.groups]


def test_too_few_units_have_no_interval():
    evaluation = of(runs.random_rows(300, speakers=9))
    assert set(evaluation.intervals.values()) == {None}
    assert evaluation.wer is not None


def test_rows_without_a_reference_are_not_units():
    rows = [*runs.random_rows(40, speakers=12), *({"text": "x", "speaker": f"other{i}"} for i in range(50))]
    assert of(rows).intervals["wer"].units == 12


def test_groups_beyond_the_limit_have_no_interval(monkeypatch):
    monkeypatch.setattr(tallies, "MAX_INTERVALS", 3)
    monkeypatch.setattr(summary, "MAX_INTERVALS", 3)
    (grouping,) = of(runs.random_rows(300, speakers=4), EvaluationSettings(by=("speaker",))).groupings
    assert [group.interval for group in grouping.groups] == [None] * 4


# Worst utterances


def test_the_worst_utterances_are_those_with_the_most_word_errors():
    rows = runs.random_rows(200)
    evaluation = of(rows, EvaluationSettings(num_worst=10))
    errors = {}
    for index, row in enumerate(rows):
        words = jiwer.process_words(row["reference"], row["text"])
        errors[f"u{index:06d}"] = words.substitutions + words.deletions + words.insertions
    assert (
        list(evaluation.worst_utterances)
        == sorted((i for i in errors if errors[i]), key=lambda i: (-errors[i], i))[:10]
    )
    assert of(pairs(("a", "a")), EvaluationSettings(num_worst=10)).worst_utterances == ()


# Coverage


def test_unscored_and_failed_rows_lower_the_coverage_but_change_no_rate():
    scored = pairs(("a b", "a c"), ("d", "d"))
    only_scored = of(scored)
    mixed = of([*scored, *pairs(("x", None), ("", None))], failed=4)
    assert (only_scored.coverage, mixed.coverage) == (1.0, 0.25)
    assert (mixed.figures.words, mixed.figures.chars) == (only_scored.figures.words, only_scored.figures.chars)
    assert mixed.ser == 0.5
    assert (mixed.scored, mixed.no_reference, mixed.failed) == (2, 2, 4)


@pytest.mark.parametrize("stored", ["basic", None])
@pytest.mark.parametrize("rows", [[], pairs(("x", None))])
def test_without_scored_rows_there_are_no_rates(rows, stored):
    settings = EvaluationSettings(by=("speaker", "confidence", "duration"), num_worst=4)
    evaluation = evaluated([runs.transcripts(rows)], settings, stored=stored)
    assert set(evaluation.rates.values()) == {None}
    assert set(evaluation.intervals.values()) == {None}
    assert evaluation.coverage == (0.0 if rows else None)
    assert evaluation.figures.words == evaluation.figures.chars == ErrorCounts.zero()
    assert sum(evaluation.rate_histogram) == 0


def test_insertions_against_empty_references_stay_in_the_numerator():
    rows = pairs(("talks over silence", ""), ("", ""), ("a b c", "a b c"))
    evaluation = of(rows)
    assert evaluation.wer == 1.0 == jiwer.wer([r["reference"] for r in rows], [r["text"] for r in rows])
    assert (evaluation.scored, evaluation.figures.sentence_errors) == (3, 1)
    only_silence = of(rows[:2])
    assert only_silence.wer is None
    assert (only_silence.figures.words.insertions, only_silence.ser) == (3, 0.5)


def test_the_rate_histogram_counts_utterances_by_their_own_rate():
    rows = pairs(("a", "a"), ("x " * 1 + "a " * 19, "a " * 20), ("a x", "a b"), ("x y", "a"), ("x", ""), ("x", None))
    spread = of(rows).rate_histogram
    assert (spread[0], spread[1], spread[10], spread[20], sum(spread)) == (1, 1, 1, 1, 4)


# Reading and validation


@pytest.mark.parametrize("stored", ["basic", "none", None])
def test_the_required_columns_are_sufficient_and_necessary(stored):
    settings = EvaluationSettings(by=("speaker", "duration", "tags.x"), num_worst=2)
    table = runs.transcripts(random_pairs(0, 20))
    columns = required_columns(settings, BASIC, stored)
    assert same(evaluated([table.select(columns)], settings, stored=stored), evaluated([table], settings))
    for missing in columns:
        with pytest.raises(KeyError, match=missing):
            evaluated([table.drop_columns([missing])], settings, stored=stored)


def replaced(table, name, values):
    at = table.schema.get_field_index(name)
    return table.set_column(at, table.schema.field(name), pa.array(values, table.schema.field(name).type))


def test_stored_counts_are_used_only_under_the_same_rules():
    marked = replaced(runs.transcripts(pairs(("a", "a"))), "insertions", [7])
    assert evaluated([marked]).figures.words.insertions == 7
    assert evaluated([marked], stored=None).figures.words.insertions == 0
    assert evaluated([marked], scoring=Scoring("none")).figures.words.insertions == 0


def test_a_batch_is_released_before_the_next_but_one_is_read():
    handed_over, most_alive = [], 0

    def batches():
        nonlocal most_alive
        for seed in range(6):
            batch = runs.transcripts(random_pairs(seed, 3)).to_batches()[0]
            handed_over.append(weakref.ref(batch))
            most_alive = max(most_alive, sum(ref() is not None for ref in handed_over))
            yield batch

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "BATCH_ROWS", 3)
        total = tally_batches(batches(), EvaluationSettings(), BASIC, "basic")
    assert evaluation_from_tallies(total, 0, EvaluationSettings(), BASIC).scored == 18
    assert most_alive <= 2


def test_partially_filled_count_columns_are_refused():
    table = runs.transcripts(pairs(("a", "a"), ("b", None)))
    for wrong in ([None, None], [1, 1]):
        with pytest.raises(ValueError, match="not filled in the same rows"):
            evaluated([replaced(table, "char_hits", wrong)])


def test_counts_that_contradict_their_reference_length_are_refused_even_if_their_sums_agree():
    table = runs.transcripts(pairs(("a b", "a b"), ("a b", "a b")))
    with pytest.raises(ValueError, match="contradict each other: ref_words"):
        evaluated([replaced(table, "ref_words", [1, 3])])


def test_sums_do_not_overflow_the_stored_type():
    big = 2**31 - 1
    table = runs.transcripts(pairs(*[("a", "a")] * 3))
    for name in ("ref_words", "hits"):
        table = replaced(table, name, [big] * 3)
    assert evaluated([table]).figures.words.hits == 3 * big


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (lambda: Scoring("nope"), "basic, none"),
        (lambda: EvaluationSettings(unit="word"), "auto, speaker, recording, utterance"),
        (lambda: EvaluationSettings(level=1.0), "at least 0.5"),
        (lambda: EvaluationSettings(num_worst=-1), "negative"),
    ],
)
def test_invalid_settings_are_refused(settings, message):
    with pytest.raises(UsageError, match=message):
        settings()


def test_inconsistent_figures_are_refused():
    zero = ErrorCounts.zero()
    for numbers in ((1, 2, 0), (2, 1, 2), (1, 1, -1)):
        with pytest.raises(ValueError, match="must ascend from 0"):
            Figures(*numbers, zero, zero, 0.0, 0, 0.0)


# Runs in storage


def test_a_run_is_evaluated_from_its_files(tmp_path):
    rows = runs.random_rows(500, speakers=20)
    table = runs.transcripts(rows)
    run = runs.write_run(tmp_path / "run", table, errors=runs.errors([{}, {}, {}]), chunk_rows=30)
    settings = EvaluationSettings(by=("speaker", "duration"), num_worst=5)
    evaluation = evaluate_run(run, settings)
    assert same(evaluation, evaluated([table], settings, 3))
    assert evaluation.failed == 3
    assert evaluation.scoring == Scoring("basic")
    assert same(evaluate_run(runs.compact(run), settings), evaluation)


def test_ray_tasks_give_the_same_figures(tmp_path, local_ray, monkeypatch):
    monkeypatch.setattr(evaluate_module, "TASK_ROWS", 160)
    rows = runs.random_rows(500, speakers=20)
    refs = tmp_path / "refs.jsonl"
    refs.write_text("".join(json.dumps({"id": f"u{i:06d}", "text": "one two"}) + "\n" for i in range(10, 510)))
    run = runs.write_run(tmp_path / "run", runs.transcripts(rows), chunk_rows=40)
    for scoring in (None, Scoring("none", (str(refs),), compounds=True)):
        settings = EvaluationSettings(scoring, by=("speaker", "confidence"), num_worst=5)
        local, distributed = evaluate_run(run, settings), evaluate_run(run, settings, "auto")
        assert same(distributed, local)
        assert distributed.problems == local.problems


def test_reference_files_replace_the_stored_references(tmp_path):
    rows = pairs(("a b c", "x"), ("d", "d"), ("e", "e"))
    refs = tmp_path / "refs.txt"
    refs.write_text("u000000 a b\nu000001 d\nu000001 d\nbroken0 z\nstranger y\n")
    run = runs.write_run(tmp_path / "run", runs.transcripts(rows), errors=runs.errors([{}]))
    evaluation = evaluate_run(run, EvaluationSettings(Scoring("basic", (str(refs),))))
    assert (evaluation.scored, evaluation.no_reference, evaluation.failed) == (2, 1, 1)
    assert evaluation.figures.words == ErrorCounts(hits=3, substitutions=0, deletions=0, insertions=1)
    assert evaluation.problems.missing == (1, ("u000002",))
    assert evaluation.problems.unknown == (1, ("stranger",))
    assert evaluation.problems.duplicate == (1, ("u000001",))


def test_reference_files_with_only_labels_leave_the_stored_references(tmp_path):
    refs = tmp_path / "labels.csv"
    refs.write_text("utt_id,label\nu000000,yes\n")
    run = runs.write_run(tmp_path / "run", runs.transcripts(pairs(("a b", "a c"))))
    assert evaluate_run(run, EvaluationSettings(Scoring("basic", (str(refs),)))).wer == 0.5


def test_unknown_references_are_listed_for_a_run_without_transcripts(tmp_path, local_ray):
    refs = tmp_path / "refs.txt"
    refs.write_text("broken0 a\nother b\n")
    run = runs.write_run(tmp_path / "run", runs.transcripts([]), errors=runs.errors([{}]))
    for address in (None, "auto"):
        evaluation = evaluate_run(run, EvaluationSettings(Scoring("basic", (str(refs),))), address)
        assert (evaluation.failed, evaluation.problems.unknown) == (1, (1, ("other",)))


def test_a_run_that_is_compacted_during_the_evaluation_is_read_again(tmp_path):
    run = runs.write_run(tmp_path / "run", runs.transcripts(runs.random_rows(60)), chunk_rows=10)
    calls = []

    def read(files):
        calls.append(len(files["transcripts"]))
        if len(calls) == 1:
            runs.compact(run)
            remove_orphans(run.uri, read_compaction(run.uri).files)
        return reading.open_files(run.uri, "transcripts", [f.path for f in files["transcripts"]]).count_rows()

    assert run.read(read) == 60
    assert calls == [6, 1]
    (tmp_path / "run" / run.files()["transcripts"][0].path).unlink()
    with pytest.raises(DamagedRunError, match="is lost; `sewd repair"):
        run.read(lambda files: read(files) and context.confidence_deciles(run, files["transcripts"]))


# The table of metrics


def test_metrics_have_counts_rates_and_intervals_of_corpus_and_groups(tmp_path):
    rows = runs.random_rows(300, speakers=12)
    run = runs.write_run(tmp_path / "run", runs.transcripts([*rows, {"text": "x"}]), errors=runs.errors([{}] * 2))
    evaluation = evaluate_run(run, EvaluationSettings(by=("speaker", "duration")))
    table = metrics_table(evaluation)
    assert table.schema.equals(METRICS_SCHEMA, check_metadata=True)
    table.validate(full=True)
    stored = table.to_pylist()
    assert [row["metric"] for row in stored if row["scope"] == "corpus"] == ["wer", "cer", "ser"]
    corpus = stored[0]
    assert (corpus["rate"], corpus["errors"], corpus["reference"]) == (
        evaluation.wer,
        evaluation.figures.words.errors,
        evaluation.figures.words.reference,
    )
    assert (corpus["ci_low"], corpus["ci_high"]) == (evaluation.intervals["wer"].low, evaluation.intervals["wer"].high)
    assert (corpus["utterances"], corpus["scored"], corpus["failed"], corpus["ci_units"]) == (301, 300, 2, 12)
    assert corpus["ci_low"] < corpus["rate"] < corpus["ci_high"]
    assert {row["key"] for row in stored if row["scope"] == "speaker"} == {None, *(f"s{i:02d}" for i in range(12))}
    for row in stored:
        assert row["errors"] == row["substitutions"] + row["deletions"] + row["insertions"]
        assert row["reference"] == row["hits"] + row["substitutions"] + row["deletions"]
    uri = write_metrics(run, evaluation)
    assert pa.parquet.read_table(uri).equals(table)
    assert uri.endswith("metrics/basic.parquet")
    other = evaluate_run(run, EvaluationSettings(Scoring("none", compounds=True)))
    assert write_metrics(run, other).endswith("metrics/none-compounds.parquet")


def test_metrics_have_null_rates_where_nothing_was_scored():
    table = metrics_table(of([], failed=1))
    assert table["rate"].to_pylist() == [None, None, None]
    assert table["failed"].to_pylist() == [1, 1, 1]


def test_metrics_fields_have_a_description():
    assert all(field.metadata[b"meaning"] for field in METRICS_SCHEMA)
    assert METRICS_SCHEMA.metadata[b"sewd.table"] == b"metrics"
    assert METRICS_SCHEMA.metadata[b"sewd.schema_version"]


@pytest.mark.parametrize(
    ("by", "expected"),
    [
        ("lang", {"en": 3, None: 1}),  # a key of the source
        ("tags.lang", {"en": 3, None: 1}),
        ("words", {"2": 1, None: 3}),  # not the column of that name, which holds lists
        ("channel", {None: 4}),  # the column
        ("tags.channel", {"left": 1, None: 3}),
        ("speaker_id", {"ann": 2, "bob": 1, "b-17": 1}),  # a source with `speaker` has `speaker_id` as a tag
        ("speaker", {"ann": 2, "bob": 2}),
        ("audio_filepath", {f"audio/u{i:06d}.wav": 1 for i in range(4)}),
        ("transcript", {"a": 4}),
    ],
)
def test_a_key_of_the_source_groups_under_its_own_name(tmp_path, by, expected):
    tags = [{"lang": "en"}, {"lang": "en", "words": 2}, {"lang": "en", "speaker_id": "b-17"}, {"channel": "left"}]
    speakers = ["ann", "ann", "bob", "bob"]
    made = [
        {"text": "a", "reference": "a", "speaker": speaker, "tags": json.dumps(each)}
        for speaker, each in zip(speakers, tags, strict=True)
    ]
    run = runs.write_run(tmp_path / "run", runs.transcripts(made))
    [grouping] = evaluate_run(run, EvaluationSettings(by=(by,))).groupings
    assert {group.key: group.figures.scored for group in grouping.groups} == expected


def test_a_key_that_no_utterance_has_is_refused_with_those_that_there_are(tmp_path):
    made = [{"text": "a", "reference": "a", "tags": json.dumps({"lang": "en", "room": 3})}]
    run = runs.write_run(tmp_path / "run", runs.transcripts(made))
    with pytest.raises(UsageError, match=r"cannot group by 'langs': no utterance has it. Choose .*\(lang, room\)"):
        evaluate_run(run, EvaluationSettings(by=("langs",)))
    assert (
        evaluate_run(runs.write_run(tmp_path / "none", runs.transcripts([])), EvaluationSettings(by=("x",))).scored == 0
    )
