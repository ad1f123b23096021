"""Recordings scored as wholes: against jiwer and meeteval on the joined texts, through all that an evaluation makes."""

from __future__ import annotations

import json
import random

import jiwer
import pyarrow.parquet as pq
import pytest

import pipeline
from pipeline.evaluation.compare import compare_runs
from pipeline.evaluation.evaluate import evaluate_run
from pipeline.evaluation.examples import rows_by_id, wrong_rows
from pipeline.evaluation.gate import gate_figures
from pipeline.evaluation.settings import EvaluationSettings
from pipeline.report.content import build_report
from pipeline.scoring.counts import ErrorCounts, char_counts, word_counts
from pipeline.scoring.rules import Scoring
from tests.support.runs import WORDS, compact, errors, transcripts, write_run

STEP_S = 0.4  # between the starts of two words


def spoken(rng, number):
    return [rng.choice(WORDS) for _ in range(number)]


def recognized(rng, words):
    found = []
    for word in words:
        kind = rng.random()
        found += [] if kind < 0.05 else [rng.choice(WORDS)] if kind < 0.15 else [word]
        found += ["um"] if kind > 0.97 else []
    return found


def segments(name, words, *, per=10, channel=None, **more):
    """The rows of a recording: `words` one after another, `per` of them in each segment."""
    rows = []
    suffix = "" if channel is None else f"#c{channel}"
    for start in range(0, len(words), per):
        piece = words[start : start + per]
        start_s, end_s = start * STEP_S, (start + per) * STEP_S
        times = [
            {"word": w, "start_s": start_s + i * STEP_S, "end_s": start_s + (i + 0.8) * STEP_S, "confidence": 0.5}
            for i, w in enumerate(piece)
        ]
        rows.append(
            {
                "utt_id": f"{name}{suffix}#{round(start_s * 1000)}-{round((start_s + (end_s - start_s)) * 1000)}",
                "uri": f"calls/{name}.wav",
                "start_s": start_s,
                "duration_s": end_s - start_s,
                "channel": channel,
                "text": " ".join(piece),
                "words": times,
            }
            | more
        )
    return rows


def with_reference(rows, reference):
    rows[0]["recording_reference"] = reference
    return rows


@pytest.fixture(scope="module")
def corpus():
    """Twelve recordings as (name, reference words, recognised words)."""
    rng = random.Random(0)
    found = []
    for number in range(12):
        said = spoken(rng, 40 + 10 * number)
        found.append((f"r{number:02d}", said, recognized(rng, said)))
    return found


def jiwer_counts(corpus):
    output = jiwer.process_words([" ".join(said) for _, said, _ in corpus], [" ".join(heard) for *_, heard in corpus])
    return ErrorCounts(output.hits, output.substitutions, output.deletions, output.insertions)


def run_of(path, corpus, *, stored=True, per=10):
    rows = [
        row
        for name, said, heard in corpus
        for row in with_reference(segments(name, heard, per=per), " ".join(said) if stored else None)
    ]
    rows.append({"utt_id": "short", "uri": "calls/short.wav", "text": "one two", "reference": "one too"})
    return write_run(path, transcripts(rows), chunk_rows=7)


def scored(run, *refs, **settings):
    scoring = Scoring(
        "basic", tuple(map(str, refs)), **{k: settings.pop(k) for k in ("collar_s", "compounds") if k in settings}
    )
    return evaluate_run(run, EvaluationSettings(scoring if refs or scoring.compounds else None, **settings))


def test_stored_references_of_recordings_are_counted_as_jiwer_counts_them(tmp_path, corpus):
    run = run_of(tmp_path / "run", corpus)
    for each in (run, compact(run)):
        evaluation = evaluate_run(each, EvaluationSettings(num_worst=3))
        assert evaluation.figures.words == jiwer_counts(corpus) + ErrorCounts(1, 1, 0, 0)
        chars = [char_counts(" ".join(said), " ".join(heard)) for _, said, heard in corpus]
        assert evaluation.figures.chars == sum(chars, start=char_counts("one too", "one two"))
        figures = evaluation.recordings
        assert (figures.scored, figures.coverage, figures.timed) == (12, 1.0, None)
        assert figures.reference_words == sum(len(said) for _, said, _ in corpus)
        assert (evaluation.coverage, evaluation.no_reference) == (1.0, 0)
        assert evaluation.unit == "recording"
        assert evaluation.intervals["wer"].units == 13
    worst = rows_by_id(run, evaluation.worst_utterances, ["uri"], evaluation.scoring)
    assert worst["utt_id"].to_pylist() == list(evaluation.worst_utterances)
    texts = {text.utt_id: text for text in wrong_rows(run, evaluation.scoring, 10_000)}
    assert "short" in texts
    assert evaluation.figures.words.errors == sum(word_counts(t.reference, t.hypothesis).errors for t in texts.values())
    assert evaluation.figures.sentence_errors == len(texts)


FORMS = {
    "kaldi.txt": lambda corpus: "".join(f"{name} {' '.join(said)}\n" for name, said, _ in corpus),
    "manifest.jsonl": lambda corpus: "".join(
        json.dumps({"audio_filepath": f"{name}.wav", "text": " ".join(said)}) + "\n" for name, said, _ in corpus
    ),
    "by_path.csv": lambda corpus: (
        "path,text\n" + "".join(f"/elsewhere/calls/{name}.flac,{' '.join(said)}\n" for name, said, _ in corpus)
    ),
    "refs.stm": lambda corpus: "".join(
        f"{name} 1 {name}-speaker {start * STEP_S:.3f} {(start + 20) * STEP_S:.3f} <o,f0,x> "
        f"{' '.join(said[start : start + 20])}\n"
        for name, said, _ in reversed(corpus)
        for start in range(0, len(said), 20)
    ),
}


@pytest.mark.parametrize("name", FORMS)
def test_files_of_references_name_recordings(tmp_path, corpus, name):
    run = run_of(tmp_path / "run", corpus, stored=False)
    assert evaluate_run(run).recordings is None
    (tmp_path / name).write_text(FORMS[name](corpus))
    evaluation = scored(run, tmp_path / name)
    assert evaluation.figures.words == jiwer_counts(corpus)
    assert evaluation.recordings.scored == 12
    assert evaluation.problems.unknown.total == 0
    assert evaluation.problems.missing.examples == ("short",)
    is_stm = name.endswith("stm")
    assert (evaluation.recordings.timed is not None) == is_stm
    assert evaluation.unit == ("speaker" if is_stm else "recording")


def test_time_constrained_counts_are_meetevals(tmp_path, corpus):
    wer = pytest.importorskip("meeteval.wer", reason="needs meeteval")
    io = pytest.importorskip("meeteval.io", reason="needs meeteval")
    shifted = [(name, said, ["oh"] * 9 + heard) for name, said, heard in corpus]  # 3.6 s late
    run = run_of(tmp_path / "run", shifted, stored=False)
    (tmp_path / "refs.stm").write_text(FORMS["refs.stm"](corpus))
    for collar_s in (0.5, 5.0):
        expected = 0
        for name, said, heard in shifted:
            reference = [
                {"words": " ".join(said[i : i + 20]), "start_time": i * STEP_S, "end_time": (i + 20) * STEP_S}
                for i in range(0, len(said), 20)
            ]
            words = [word for row in segments(name, heard) for word in row["words"]]
            hypothesis = [{"words": w["word"], "start_time": w["start_s"], "end_time": w["end_s"]} for w in words]
            sides = io.SegLST(reference), io.SegLST(hypothesis)
            expected += wer.time_constrained_siso_word_error_rate(*sides, collar=collar_s).errors
        evaluation = scored(run, tmp_path / "refs.stm", collar_s=collar_s)
        assert evaluation.recordings.timed.errors == expected
        assert evaluation.tcwer > (evaluation.wer if collar_s == 0.5 else 0)
        assert evaluation.recordings.collar_s == collar_s


def two_channels(tmp_path, *, split):
    said = {0: ["one", "two", "three", "four"], 1: ["five", "six", "seven", "eight"]}
    heard = {0: ["one", "two", "three", "for"], 1: ["five", "six", "eight"]}
    rows = [row for c in (0, 1) for row in segments("call", heard[c], per=2, channel=c if split else None)]
    run = write_run(tmp_path / "run", transcripts(rows if split else rows[:2]))
    lines = [f"call {'AB'[c]} s{c} 0 1.6 {' '.join(said[c])}\n" for c in said]
    (tmp_path / "call.stm").write_text("".join(lines))
    return run, tmp_path / "call.stm"


def test_each_channel_has_its_own_reference(tmp_path):
    run, refs = two_channels(tmp_path, split=True)
    evaluation = scored(run, refs, by=("speaker", "channel"))
    assert evaluation.figures.words == ErrorCounts(6, 1, 1, 0)
    by_speaker, by_channel = evaluation.groupings
    for groups, keys in ((by_speaker.groups, ["s0", "s1"]), (by_channel.groups, ["0", "1"])):
        assert [group.key for group in groups] == keys
        assert [group.figures.words for group in groups] == [ErrorCounts(3, 1, 0, 0), ErrorCounts(3, 0, 1, 0)]
    assert [each.name for each in evaluation.recordings.worst] == ["call#c0", "call#c1"]


def test_a_mixed_recording_has_the_references_of_all_channels(tmp_path):
    run, refs = two_channels(tmp_path, split=False)
    assert scored(run, refs).figures.words.reference == 8


def test_a_reference_that_names_no_channel_is_not_scored_against_two(tmp_path):
    rows = [row for c in (0, 1) for row in segments("call", ["one", "two"], per=1, channel=c)]
    run = write_run(tmp_path / "run", transcripts(with_reference(rows, "one two three")))
    evaluation = evaluate_run(run)
    assert (evaluation.scored, evaluation.recordings.scored) == (0, 0)
    assert evaluation.recordings.unscored.examples == ("call#c0", "call#c1")
    assert (evaluation.recordings.reference_words, evaluation.recordings.coverage) == (3, 0.0)
    (tmp_path / "text").write_text("call#c0 one two\ncall#c1 two two\n")
    assert scored(run, tmp_path / "text").figures.words == ErrorCounts(3, 1, 0, 0)


def test_ignored_times_and_gaps(tmp_path):
    heard = ["one", "two", "noise", "noise", "three", "um"]
    run = write_run(tmp_path / "run", transcripts(segments("talk", heard, per=3)))
    (tmp_path / "x.stm").write_text(
        "talk 1 s 0 0.8 one two\n"
        "talk 1 excluded_region 0.8 1.6 IGNORE_TIME_SEGMENT_IN_SCORING\n"
        "talk 1 s 1.6 2.0 three\n"
        "talk 1 inter_segment_gap 2.0 9 <o,,>\n"
    )
    evaluation = scored(run, tmp_path / "x.stm")
    assert evaluation.figures.words == evaluation.recordings.timed == ErrorCounts(3, 0, 0, 1)


def test_recordings_that_failed_or_are_missing_lower_the_coverage(tmp_path):
    failed = errors([{"utt_id": "gone", "uri": "calls/gone.wav"}, {"utt_id": "part", "uri": "calls/part.wav"}])
    rows = [*segments("whole", ["one", "two"]), *segments("part", ["one"])]
    run = write_run(tmp_path / "run", transcripts(rows), errors=failed)
    (tmp_path / "text").write_text("whole one two\npart one two three\n")
    (tmp_path / "x.stm").write_text("".join(f"{n} 1 s 0 9 one two three\n" for n in ("whole", "part", "gone", "never")))
    evaluation = scored(run, tmp_path / "x.stm")
    assert evaluation.figures.words == ErrorCounts(3, 0, 3, 0)
    assert (evaluation.recordings.scored_words, evaluation.recordings.reference_words) == (6, 12)
    assert evaluation.recordings.unscored.examples == ("gone",)
    assert evaluation.problems.unknown.examples == ("never",)
    assert gate_figures(evaluation, [])["reference_coverage"] == 50.0
    alternatives = scored(run, tmp_path / "x.stm", tmp_path / "text")  # of each the reference with the fewest errors
    assert alternatives.figures.words == ErrorCounts(3, 0, 2, 0)


def test_one_recording_in_two_runs_is_one_pair_however_it_is_cut(tmp_path, corpus):
    rng = random.Random(1)
    better = [
        (name, said, [w if rng.random() < 0.5 else s for w, s in zip(heard, said, strict=False)])
        for name, said, heard in corpus
    ]
    run, baseline = run_of(tmp_path / "a", better, per=7), run_of(tmp_path / "b", corpus, per=10)
    comparison = compare_runs(run, baseline)
    assert (comparison.utterances, comparison.unit) == (13, "recording")
    words = jiwer_counts(corpus) + ErrorCounts(1, 1, 0, 0)
    assert comparison.rates["wer"].baseline == words.error_rate
    report = build_report(run, baseline)
    assert report.recordings.scored == 12
    assert report.comparison.paired.utterances == 13


def test_compounds_of_recordings(tmp_path):
    rows = with_reference(
        segments("talk", ["one", "ice", "cream", "and", "a", "milk", "shake"], per=3), "one icecream and a milkshake"
    )
    run = write_run(tmp_path / "run", transcripts(rows))
    assert evaluate_run(run).figures.words.errors == 4
    assert scored(run, compounds=True).figures.words.errors <= 2


def test_figures_are_stored(tmp_path, corpus):
    run = run_of(tmp_path / "run", corpus, stored=False)
    (tmp_path / "refs.stm").write_text(FORMS["refs.stm"](corpus))
    evaluation = scored(run, tmp_path / "refs.stm")
    metrics = pq.read_table(pipeline.write_metrics(run, evaluation)).to_pylist()
    stored = {row["metric"]: row for row in metrics if row["scope"] == "corpus"}
    assert stored["tcwer"]["rate"] == evaluation.tcwer
    assert stored["wer"]["errors"] == jiwer_counts(corpus).errors


def parts_of(name, *texts, step_s=5.0):
    """Rows of parts of one audio that a manifest names by ids of their own."""
    return [
        {"utt_id": f"u{n}", "uri": f"calls/{name}.wav", "start_s": n * step_s, "duration_s": step_s, "text": text}
        for n, text in enumerate(texts)
    ]


def test_parts_with_ids_of_their_own_are_scored_by_them(tmp_path):
    texts = ["one two", "three", "four five", "six"]
    run = write_run(tmp_path / "run", transcripts(parts_of("x", *texts)))
    (tmp_path / "text").write_text("".join(f"u{n} {text}\n" for n, text in enumerate(texts)))
    evaluation = scored(run, tmp_path / "text")
    assert (evaluation.figures.words, evaluation.recordings) == (ErrorCounts(6, 0, 0, 0), None)
    assert evaluation.problems.unknown.total == 0
    (tmp_path / "one").write_text("u2 four\n")
    evaluation = scored(run, tmp_path / "one")
    assert (evaluation.figures.words, evaluation.problems.missing.total) == (ErrorCounts(1, 0, 0, 1), 3)
    (tmp_path / "whole").write_text("x one two three four five\n")  # the audio
    evaluation = scored(run, tmp_path / "whole")
    assert (evaluation.figures.words, evaluation.recordings.scored) == (ErrorCounts(5, 0, 0, 1), 1)


@pytest.mark.parametrize("offset_s", [0.0, 0.5])
def test_one_audio_under_two_ids_has_a_reference_for_each(tmp_path, offset_s):
    rows = []
    for name in ("a", "b"):
        for row in segments(name, ["one", "two", "three"], per=2):
            start_s, end_s = row["start_s"] + offset_s, row["start_s"] + offset_s + row["duration_s"]
            utt_id = f"{name}#{round(start_s * 1000)}-{round(end_s * 1000)}"
            rows.append(row | {"utt_id": utt_id, "uri": "calls/x.wav", "start_s": start_s})
    run = write_run(tmp_path / "run", transcripts(rows))
    (tmp_path / "text").write_text("a one two three\nb one too three\n")
    evaluation = scored(run, tmp_path / "text")
    assert evaluation.figures.words == ErrorCounts(5, 1, 0, 0)
    assert evaluation.recordings.reference_words == 6


def test_stored_references_of_parts_are_their_own(tmp_path):
    def long_part(name, start, words):
        rows = segments(name, ["-"] * start + words, per=2)[start // 2 :]
        return with_reference([row | {"uri": "calls/x.wav"} for row in rows], " ".join(words))

    first, second = long_part("p1", 0, ["one", "two", "three"]), long_part("p2", 8, ["four", "five", "six"])
    short = [{"utt_id": "p0", "uri": "calls/x.wav", "duration_s": 0.5, "text": "a b", "reference": "a c"}]
    evaluation = evaluate_run(write_run(tmp_path / "long", transcripts([*first, *second])))
    assert (evaluation.figures.words, evaluation.recordings.scored) == (ErrorCounts(6, 0, 0, 0), 2)
    evaluation = evaluate_run(write_run(tmp_path / "mixed", transcripts([*short, *second])))
    assert (evaluation.figures.words, evaluation.recordings.scored) == (ErrorCounts(4, 1, 0, 0), 1)


def test_a_missing_recording_counts_once_whatever_the_alternatives(tmp_path):
    run = write_run(tmp_path / "run", transcripts(segments("talk", ["one", "two"])))
    for name, missing in (("a", "three four"), ("b", "three four five")):
        (tmp_path / f"{name}.stm").write_text(f"talk 1 s 0 9 one two\nnever 1 s 0 9 {missing}\n")
    evaluation = scored(run, tmp_path / "a.stm", tmp_path / "b.stm")
    assert evaluation.recordings.reference_words == 2 + 3


def test_numbers_of_several_words_keep_their_time_under_whisper_s_normalizer(tmp_path):
    pytest.importorskip("whisper_normalizer")
    heard = ["it's", "twenty", "five", "uh", "dollars", "colour", "two"]
    run = write_run(tmp_path / "run", transcripts(segments("talk", heard, per=7)))
    times = run.to_arrow()["words"][0].as_py()
    lines = [("it is", 0, 0), ("25 dollars", 1, 4), ("color 2", 5, 6)]
    (tmp_path / "x.stm").write_text(
        "".join(f"talk 1 s {times[i]['start_s']} {times[k]['end_s']} {text}\n" for text, i, k in lines)
    )
    scoring = Scoring("english", (str(tmp_path / "x.stm"),), collar_s=0.5)
    evaluation = evaluate_run(run, EvaluationSettings(scoring))
    assert evaluation.figures.words == evaluation.recordings.timed == ErrorCounts(5, 0, 0, 0)  # it is $25 color 2
