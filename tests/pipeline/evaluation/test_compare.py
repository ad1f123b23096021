import jiwer
import numpy as np
import pytest
from scipy import stats

from pipeline.errors import UsageError
from pipeline.evaluation import reading
from pipeline.evaluation.compare import compare_runs
from pipeline.evaluation.intervals import paired_bootstrap
from pipeline.scoring.rules import Scoring
from tests.support import runs

ROWS = 240
RATES = {"wer": (0, 2), "cer": (1, 3), "ser": (4, 5)}


def edits(reference, text):
    """Word errors, character errors, words, characters, sentence errors, sentences of one utterance, from jiwer."""
    words, chars = jiwer.process_words(reference, text), jiwer.process_characters(reference, text)
    errors = [o.substitutions + o.deletions + o.insertions for o in (words, chars)]
    return np.array([*errors, len(reference.split()), len(reference), float(errors[0] > 0), 1.0])


def paired(seed, speakers=20, wrong=(0.3, 0.4), number=ROWS):
    """Rows of two models for the same references."""
    run, baseline = (runs.random_rows(number, seed, speakers=speakers, wrong=w) for w in wrong)
    rng = np.random.default_rng(seed)
    for a, b in zip(run, baseline, strict=True):
        heard = [w for w in a["reference"].split() for _ in range(int(rng.choice([0, 1, 1, 1, 1, 2])))]
        b.update({"reference": a["reference"], "text": " ".join(heard)})
        b.update({"speaker": a["speaker"]} if speakers else {})
    return run, baseline


def written(path, rows, **settings):
    return runs.write_run(path, runs.transcripts(rows, settings.get("normalizer", "basic")), **settings)


@pytest.fixture(scope="module", params=[0, 1, 2])
def pair(request, tmp_path_factory):
    """Two runs and their rows: with speakers, without, and with different files and order of rows."""
    rows = paired(request.param, speakers=20 if request.param != 1 else 0)
    folder = tmp_path_factory.mktemp("pair")
    named = [[{"utt_id": f"u{i:06d}"} | row for i, row in enumerate(side)] for side in rows]
    if request.param == 2:
        named[1] = named[1][::-1]
    run = written(folder / "here", named[0], chunk_rows=50)
    return run, written(folder / "baseline", named[1], chunk_rows=1000), rows


@pytest.fixture(scope="module")
def comparison(pair):
    return compare_runs(pair[0], pair[1], examples=10)


def measured(rows):
    return np.array([[edits(row["reference"], row["text"]) for row in side] for side in rows])


def test_rates_and_changes_match_brute_force(pair, comparison):
    a, b = measured(pair[2])
    change = a[:, 0] - b[:, 0]
    for metric, (errors, length) in RATES.items():
        expected = (a[:, errors].sum() / a[:, length].sum(), b[:, errors].sum() / b[:, length].sum())
        assert comparison.rates[metric] == pytest.approx(expected)
        assert comparison.bootstraps[metric].difference == pytest.approx(expected[0] - expected[1])
    assert (comparison.better, comparison.worse) == ((change < 0).sum(), (change > 0).sum())
    assert comparison.better > 0 < comparison.worse
    ids = [f"u{index:06d}" for index in range(ROWS)]
    by_gain = sorted(range(ROWS), key=lambda i: (change[i], i))
    by_loss = sorted(range(ROWS), key=lambda i: (-change[i], i))
    assert list(comparison.most_improved) == [ids[i] for i in by_gain[:10] if change[i] < 0]
    assert list(comparison.most_worsened) == [ids[i] for i in by_loss[:10] if change[i] > 0]
    assert (
        comparison.utterances,
        comparison.only_in_run,
        comparison.only_in_baseline,
        comparison.reference_differs,
    ) == (ROWS, 0, 0, 0)


def test_significance_tests_match_scipy(pair, comparison):
    a, b = measured(pair[2])
    segments, sentences = comparison.tests
    student = stats.ttest_rel(a[:, 0], b[:, 0])
    assert segments.statistic == pytest.approx(student.statistic)
    assert segments.p_value == pytest.approx(2 * stats.norm.sf(abs(student.statistic)))
    assert segments.n == ROWS
    only_a = int(((a[:, 0] == 0) & (b[:, 0] > 0)).sum())
    only_b = int(((b[:, 0] == 0) & (a[:, 0] > 0)).sum())
    assert sentences.p_value == pytest.approx(stats.binomtest(only_a, only_a + only_b).pvalue)
    assert sentences.n == only_a + only_b > 0


@pytest.mark.parametrize("metric", RATES)
def test_bootstraps_resample_the_units(pair, comparison, metric):
    rows = pair[2]
    a, b = measured(rows)
    units = [row.get("speaker") or index for index, row in enumerate(rows[0])]
    assert comparison.unit == ("speaker" if "speaker" in rows[0][0] else "utterance")
    sums: dict = {}
    errors, length = RATES[metric]
    for unit, run_edits, baseline_edits in zip(units, a, b, strict=True):
        triple = np.array([run_edits[errors], baseline_edits[errors], run_edits[length]])
        sums[unit] = sums.get(unit, 0) + triple
    expected = paired_bootstrap(*np.array(list(sums.values())).T)
    bootstrap = comparison.bootstraps[metric]
    assert bootstrap.units == expected.units == len(set(units))
    assert bootstrap.interval.low == pytest.approx(expected.interval.low)
    assert bootstrap.interval.high == pytest.approx(expected.interval.high)
    assert bootstrap.probability_of_improvement == pytest.approx(expected.probability_of_improvement)


def test_swapping_the_runs_mirrors_everything(pair, comparison):
    swapped = compare_runs(pair[1], pair[0], examples=10)
    assert (swapped.better, swapped.worse, swapped.most_improved, swapped.most_worsened) == (
        comparison.worse,
        comparison.better,
        comparison.most_worsened,
        comparison.most_improved,
    )
    assert (swapped.utterances, swapped.unit) == (comparison.utterances, comparison.unit)
    for metric, bootstrap in comparison.bootstraps.items():
        mirrored = swapped.bootstraps[metric]
        assert swapped.rates[metric] == comparison.rates[metric][::-1]
        assert mirrored.difference == pytest.approx(-bootstrap.difference)
        assert (mirrored.interval.low, mirrored.interval.high) == pytest.approx(
            (-bootstrap.interval.high, -bootstrap.interval.low)
        )
        assert mirrored.probability_of_improvement == pytest.approx(1 - bootstrap.probability_of_improvement)
    assert swapped.tests[0].statistic == pytest.approx(-comparison.tests[0].statistic)
    for swapped_test, test in zip(swapped.tests, comparison.tests, strict=True):
        assert swapped_test.p_value == pytest.approx(test.p_value)


def test_batches_and_compaction_do_not_matter(pair, comparison, monkeypatch):
    monkeypatch.setattr(reading, "BATCH_ROWS", 7)
    assert compare_runs(pair[0], runs.compact(pair[1]), examples=10) == comparison


def test_a_run_does_not_differ_from_itself(pair):
    comparison = compare_runs(pair[0], pair[0])
    assert (
        comparison.utterances,
        comparison.better,
        comparison.worse,
        comparison.most_improved,
        comparison.most_worsened,
    ) == (
        ROWS,
        0,
        0,
        (),
        (),
    )
    for metric, bootstrap in comparison.bootstraps.items():
        assert comparison.rates[metric][0] == comparison.rates[metric][1]
        assert (bootstrap.difference, bootstrap.probability_of_improvement) == (0, 0.5)
        assert bootstrap.interval is None
    assert [test.p_value for test in comparison.tests] == [1.0, 1.0]


# Pairing


def rows_by_id(**texts):
    """utt_id=(reference, text)"""
    return [{"utt_id": utt_id, "reference": r, "text": t} for utt_id, (r, t) in texts.items()]


def test_utterances_that_cannot_be_paired_are_counted_and_left_out(tmp_path):
    run = rows_by_id(both=("a b", "a"), mine=("c", "c"), other=("d e", "d e"), none=(None, "x"), half=("y", "y"))
    baseline = rows_by_id(both=("A, b", "a b"), its=("f", "x"), one=("g", "g"), other=("d", "d"), none=(None, "x"))
    baseline += rows_by_id(half=(None, "y"))
    comparison = compare_runs(written(tmp_path / "a", run), written(tmp_path / "b", baseline))
    assert (
        comparison.utterances,
        comparison.only_in_run,
        comparison.only_in_baseline,
        comparison.reference_differs,
    ) == (1, 2, 2, 1)
    assert comparison.rates["wer"] == (0.5, 0.0)
    assert (comparison.better, comparison.worse, comparison.most_worsened) == (0, 1, ("both",))
    assert comparison.bootstraps["wer"].interval is None


def test_empty_references_are_paired_but_have_no_rate(tmp_path):
    pair = [written(tmp_path / name, rows_by_id(u=("", text))) for name, text in (("a", "x"), ("b", "x y"))]
    comparison = compare_runs(*pair)
    assert comparison.rates == {"wer": (None, None), "cer": (None, None), "ser": (1.0, 1.0)}
    assert (comparison.bootstraps["wer"].difference, comparison.better) == (None, 1)


@pytest.mark.parametrize("baseline_rows", [rows_by_id(other=("a", "a")), rows_by_id(u=("b", "a"))])
def test_runs_with_nothing_in_common_are_refused(tmp_path, baseline_rows):
    run, baseline = written(tmp_path / "a", rows_by_id(u=("a", "a"))), written(tmp_path / "b", baseline_rows)
    with pytest.raises(UsageError, match=r"share no scored utterance .*same reference"):
        compare_runs(run, baseline)


@pytest.mark.parametrize("rows", [[], rows_by_id(u=(None, "a"))])
def test_runs_without_scored_utterances_are_refused(tmp_path, rows):
    scored, not_scored = written(tmp_path / "a", rows_by_id(u=("a", "a"))), written(tmp_path / "b", rows)
    for run, baseline in ((scored, not_scored), (not_scored, scored)):
        with pytest.raises(UsageError, match=r"/b has no scored utterance"):
            compare_runs(run, baseline)


def test_repeated_ids_are_refused(tmp_path):
    once = written(tmp_path / "a", rows_by_id(u=("a", "a")))
    twice = written(tmp_path / "b", [*rows_by_id(u=("a", "a")), *rows_by_id(v=("a", "a"), u=("a", "b"))])
    for run, baseline in ((once, twice), (twice, once)):
        with pytest.raises(UsageError, match=r"/b must be unique .* 1 of them are repeated"):
            compare_runs(run, baseline)


# Scoring rules


def test_runs_under_different_normalizers_need_an_explicit_one(tmp_path):
    rows = rows_by_id(u=("A b!", "a B"), v=("c", "C"))
    run = written(tmp_path / "a", rows, normalizer="none")
    baseline = written(tmp_path / "b", rows, normalizer="basic")
    with pytest.raises(UsageError, match="none and basic: choose one by --normalizer"):
        compare_runs(run, baseline)
    assert compare_runs(run, baseline, Scoring("basic")).rates["wer"] == (0.0, 0.0)
    assert compare_runs(run, baseline, Scoring("none")).rates["wer"] == (1.0, 1.0)


def test_reference_files_replace_the_references_of_both_runs(tmp_path):
    run = written(tmp_path / "a", rows_by_id(u=("x", "a b"), v=("y", "c")))
    baseline = written(tmp_path / "b", rows_by_id(u=("z", "a"), v=(None, "c d")))
    (tmp_path / "text").write_text("u a b\nv c d\nw e\n")
    comparison = compare_runs(run, baseline, Scoring("basic", (str(tmp_path / "text"),)))
    assert comparison.rates["wer"] == (0.25, 0.25)
    assert (
        comparison.utterances,
        comparison.better,
        comparison.worse,
        comparison.most_improved,
        comparison.most_worsened,
    ) == (
        2,
        1,
        1,
        ("u",),
        ("v",),
    )


def test_reference_files_with_labels_only_replace_no_text(tmp_path):
    run = written(tmp_path / "a", rows_by_id(u=("x", "x"), v=("y", "c")))
    baseline = written(tmp_path / "b", rows_by_id(u=("x", "a"), v=("y", "y")))
    (tmp_path / "labels.csv").write_text("utt_id,label\nu,yes\n")
    comparison = compare_runs(run, baseline, Scoring("basic", (str(tmp_path / "labels.csv"),)))
    assert comparison.utterances == 2
    assert comparison.rates == compare_runs(run, baseline, Scoring("basic")).rates


def test_different_best_alternatives_of_the_runs_count_as_the_same_reference(tmp_path):
    run = written(tmp_path / "a", rows_by_id(u=(None, "color"), v=(None, "a")))
    baseline = written(tmp_path / "b", rows_by_id(u=(None, "colour"), v=(None, "a")))
    files = []
    for word in ("color", "colour"):
        (tmp_path / word).write_text(f"u {word}\nv a\n")
        files.append(str(tmp_path / word))
    comparison = compare_runs(run, baseline, Scoring("basic", tuple(files)))
    assert (comparison.utterances, comparison.reference_differs) == (2, 0)
    assert comparison.rates["wer"] == (0.0, 0.0)


def test_the_compounds_rule_applies_to_both_runs(tmp_path):
    run = written(tmp_path / "a", rows_by_id(u=("ice cream", "icecream")))
    baseline = written(tmp_path / "b", rows_by_id(u=("ice cream", "ice dream")))
    assert compare_runs(run, baseline).rates["wer"] == (1.0, 0.5)
    assert compare_runs(run, baseline, Scoring("basic", compounds=True)).rates["wer"] == (0.0, 0.5)


def test_the_unit_can_be_chosen(pair):
    comparison = compare_runs(pair[0], pair[1], unit="utterance")
    assert (comparison.unit, comparison.bootstraps["wer"].units) == ("utterance", ROWS)
    narrow = compare_runs(pair[0], pair[1], unit="utterance", level=0.5).bootstraps["wer"].interval
    wide = comparison.bootstraps["wer"].interval
    assert wide.low < narrow.low < narrow.high < wide.high
