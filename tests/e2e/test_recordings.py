"""Calls of two speakers, a channel each, with an STM, as a user scores them: counts of jiwer and meeteval."""

from __future__ import annotations

import itertools
import random
from collections import defaultdict

import jiwer
import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile

import pipeline
from pipeline.evaluation.settings import EvaluationSettings
from pipeline.scoring.counts import ErrorCounts
from pipeline.scoring.normalize import normalize
from pipeline.scoring.rules import Scoring
from tests.support.command import sewd_in_process
from tests.support.oracle import samples

CALLS, TURNS = 2, 8


@pytest.fixture(scope="module")
def calls(tmp_path_factory, librispeech, librispeech_rows):
    """The folder of the calls, `calls.stm`, and the turns (start, end, text) of each call and channel."""
    folder = tmp_path_factory.mktemp("calls")
    by_speaker = defaultdict(list)
    for row in librispeech_rows:
        by_speaker[row["speaker"]].append(row)
    rng = random.Random(0)
    turns = defaultdict(list)
    lines = []
    for number in range(CALLS):
        name, pair = f"call_{number}", rng.sample(sorted(by_speaker), 2)
        clips, now = [], 0.5
        for turn in range(TURNS):
            row, channel = rng.choice(by_speaker[pair[turn % 2]]), turn % 2
            audio = samples(librispeech / row["audio_filepath"])
            start_s = max(0.0, now + rng.uniform(-0.4, 0.8))
            now = start_s + len(audio) / 16_000
            clips.append((channel, round(start_s * 16_000), audio))
            turns[name, channel].append((start_s, now, normalize(row["text"])))
            lines.append(f"{name} {'AB'[channel]} {pair[channel]} {start_s!r} {now!r} <o,f0,x> {row['text']}\n")
        signal = np.zeros((round((now + 1) * 16_000), 2), np.float32)
        for channel, start, audio in clips:
            signal[start : start + len(audio), channel] += audio
        (folder / "in").mkdir(exist_ok=True)
        soundfile.write(folder / "in" / f"{name}.wav", signal, 16_000, subtype="PCM_16")
    (folder / "calls.stm").write_text("".join(lines))
    return folder, turns


def test_two_channels_with_a_speaker_each_are_scored_as_jiwer_and_meeteval_do(calls, local_ray):
    folder, turns = calls
    config = pipeline.RunConfig(
        inputs=(str(folder / "in"),), output=str(folder / "run"), channels="split", max_segment_s=20
    )
    run = pipeline.transcribe(config)
    stm = str(folder / "calls.stm")
    evaluation = pipeline.evaluate_run(run, EvaluationSettings(Scoring("basic", (stm,)), by=("speaker",)))

    assert sewd_in_process("recordings", run.uri).returncode == 0
    rows = pq.read_table(folder / "run" / "recordings.parquet").to_pylist()
    joined = {(row["recording"], row["channel"]): row for row in rows}
    assert joined.keys() == turns.keys()
    assert min(len(row["segments"]) for row in rows) > 1
    keys = sorted(turns)
    references = [" ".join(text for *_, text in turns[key]) for key in keys]
    output = jiwer.process_words(references, [normalize(joined[key]["text"]) for key in keys])
    counts = ErrorCounts(output.hits, output.substitutions, output.deletions, output.insertions)
    assert evaluation.figures.words == counts
    assert counts.hits > 0.3 * counts.reference
    assert (evaluation.coverage, evaluation.recordings.coverage, evaluation.recordings.scored) == (1.0, 1.0, len(keys))
    by_speaker = [group.figures.words for group in evaluation.groupings[0].groups]
    assert len(by_speaker) > 2
    assert sum(by_speaker) == counts

    wer = pytest.importorskip("meeteval.wer", reason="needs meeteval")
    io = pytest.importorskip("meeteval.io", reason="needs meeteval")
    expected = 0
    for key in keys:
        spoken = [{"words": text, "start_time": start, "end_time": end} for start, end, text in turns[key]]
        heard = [
            {"words": normalize(word["word"]), "start_time": word["start_s"], "end_time": word["end_s"]}
            for word in joined[key]["words"]
        ]
        sides = io.SegLST(spoken), io.SegLST(heard)
        expected += wer.time_constrained_siso_word_error_rate(*sides, collar=5).errors
    assert evaluation.recordings.timed.errors == expected
    words = itertools.chain.from_iterable(row["words"] for row in rows)
    assert all(word["start_s"] <= word["end_s"] for word in words)
