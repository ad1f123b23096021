"""Recordings become utterances: nothing is lost, no segment reaches into another, cuts are in pauses."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from pipeline.alignment.align import AlignedWord, Alignment
from pipeline.alignment.segment import Segment, SegmentSettings, segments
from pipeline.alignment.texts import TextWord
from pipeline.errors import UsageError
from tests.pipeline.alignment.test_align import SENTENCES, recording
from tests.support.command import sewd_in_process
from tests.support.posteriors import spoken_run

LENGTH_S = 0.3


def word(text: str, start_s: float | None, loss: float = 0.0, end_s: float | None = None) -> AlignedWord:
    letters = sum(map(str.isalpha, text))
    spelled = TextWord(text, tuple(range(5, 5 + letters)), not any(map(str.isdigit, text)))
    if start_s is None or not spelled.ids:
        return AlignedWord(spelled)
    return AlignedWord(spelled, start_s, start_s + LENGTH_S if end_s is None else end_s, 0.9, loss)


def alignment(words: Sequence[AlignedWord], duration_s: float, extra=(), uri: str = "/audio/talk.wav") -> Alignment:
    identity = {"utt_id": "talk", "uri": uri, "start_s": 0.0, "duration_s": duration_s, "channel": None, "speaker": "s"}
    return Alignment(identity, " ".join(each.text.word for each in words), tuple(words), 0.9, tuple(extra))


def spoken(texts: Sequence[str], pauses: Sequence[float]) -> tuple[list[AlignedWord], float]:
    words, time_s = [], 0.5
    for text, pause_s in zip(texts, pauses, strict=True):
        words.append(word(text, time_s))
        time_s += LENGTH_S + pause_s
    return words, time_s + 0.5


def kept(found: Sequence[Segment]) -> list[Segment]:
    return [segment for segment in found if segment.left_out is None]


words_and_pauses = st.lists(
    st.tuples(st.sampled_from(["word", "end.", "42", "—", "gone"]), st.sampled_from([0.0, 0.05, 0.2, 0.5, 1.5, 3.0])),
    max_size=60,
)


@given(words_and_pauses, st.sampled_from([1.0, 2.0]), st.sampled_from([3.0, 8.0]), st.booleans())
def test_nothing_is_lost_and_nothing_overlaps(items, min_s: float, max_s: float, has_extra: bool) -> None:
    texts, pauses = [text for text, _ in items], [pause for _, pause in items]
    words, duration_s = spoken(texts, pauses)
    words = [AlignedWord(each.text) if each.text.word == "gone" else each for each in words]
    extra = [(-2.0, -1.0)] if has_extra else []
    settings = SegmentSettings(min_s=min_s, max_s=max_s)
    found = list(segments(alignment(words, duration_s, extra), settings))
    assert [segment for segment in found if segment.text is None] == [
        Segment(*passage, None, None, "not in the text") for passage in extra
    ]
    texts_found = " ".join(segment.text for segment in found if segment.text is not None).split()
    punctuation_first = list(itertools.takewhile(lambda text: text == "—", texts))
    assert texts_found == texts[len(punctuation_first) :]
    for segment in kept(found):
        assert min_s <= segment.end_s - segment.start_s <= max_s
        assert not {"42", "gone"} & set(segment.text.split())
    timed = [segment for segment in found if segment.start_s is not None and segment.text is not None]
    for one, other in itertools.pairwise(timed):
        assert one.end_s <= other.start_s + 1e-9
    starts = [each.start_s for each in words if each.start_s is not None]
    for segment in timed:
        inside = [start for start in starts if segment.start_s <= start < segment.end_s]
        assert len(inside) == sum(each.isalpha() or each == "end." for each in segment.text.split())


def test_cuts_are_in_the_longest_pauses_and_at_ends_of_sentences() -> None:
    texts = ["a", "b", "c.", "d", "e", "f", "g", "h"]
    words, duration_s = spoken(texts, [0.1, 0.1, 0.6, 0.1, 0.7, 0.1, 0.1, 0.0])
    settings = SegmentSettings(min_s=0.5, max_s=3.0)
    found = list(segments(alignment(words, duration_s), settings))
    assert [segment.text for segment in found] == ["a b c.", "d e f g h"]
    words[2] = word("c", words[2].start_s)
    found = list(segments(alignment(words, duration_s), settings))
    assert [segment.text for segment in found] == ["a b c d e", "f g h"]


def test_margins_are_half_of_a_pause_at_most() -> None:
    words = [word("a", 1.0), word("b", 1.5), word("c", 5.0)]
    found = list(segments(alignment(words, 9.0), SegmentSettings(min_s=0.0)))
    assert [(segment.start_s, segment.end_s) for segment in found] == [
        pytest.approx((0.8, 2.0)),
        pytest.approx((4.8, 5.5)),
    ]
    near = [word("a", 1.0), word("b", 3.6)]
    found = list(segments(alignment(near, 9.0, extra=[(1.4, 3.5)]), SegmentSettings(min_s=0.0)))
    assert [(segment.start_s, segment.end_s) for segment in found] == [
        (1.4, 3.5),
        pytest.approx((0.8, 1.35)),
        pytest.approx((3.55, 4.1)),
    ]


def test_what_does_not_fit_is_left_out_with_a_reason() -> None:
    words = [word("good", 1.0), word("bad", 5.0, loss=20.0), word("short", 9.0, end_s=9.05)]
    words += [word("x", 12.0 + LENGTH_S * index) for index in range(20)]
    found = list(segments(alignment(words, 30.0), SegmentSettings(min_s=0.5, max_s=4.0)))
    assert [segment.left_out for segment in found] == [
        None,
        "score below 0.2",
        "shorter than 0.5 s",
        "longer than 4 s, without a pause",
    ]


def test_only_what_a_manifest_can_name_is_kept(tmp_path: Path) -> None:
    words, _ = spoken(["a"] * 8, [0.1] * 8)
    for channels in (1, 2):
        soundfile.write(tmp_path / f"{channels}.wav", np.zeros((1600, channels)), 16000)
    mono, stereo = (alignment(words, 4.0, uri=str(tmp_path / f"{channels}.wav")) for channels in (1, 2))
    split = dataclasses.replace(stereo, identity={**stereo.identity, "channel": 1})
    assert all(segment.left_out is None for segment in segments(stereo, SegmentSettings()))  # all channels were heard
    assert all(segment.left_out is None for segment in segments(mono, SegmentSettings(), "split"))
    for found in (segments(split, SegmentSettings(), "split"), segments(stereo, SegmentSettings(), 1)):
        assert [segment.left_out for segment in found] == ["a manifest cannot name one channel of several"]
    shard = alignment(words, 30.0, uri="/audio/shard-000.tar")
    (only,) = segments(shard, SegmentSettings())
    assert only.left_out == "a manifest cannot name audio in a shard"


def test_verb_writes_a_manifest(tmp_path: Path) -> None:
    run = spoken_run(tmp_path / "run", recording(SENTENCES, " ".join([*SENTENCES, *["42", "forever"] * 9]), gap_s=3.0))
    output = tmp_path / "corpus.jsonl"
    done = sewd_in_process("segment", run.uri, "-o", output, "--min", 1)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert [row["text"] for row in rows] == SENTENCES
    assert rows[0]["audio_filepath"] == "/audio/talk.wav"
    assert (
        rows[0]["utt_id"]
        == f"talk#{round(rows[0]['offset'] * 1000)}-{round((rows[0]['offset'] + rows[0]['duration']) * 1000)}"
    )
    left = [json.loads(line) for line in (tmp_path / "corpus.left-out.jsonl").read_text().splitlines()]
    assert {row["left_out"] for row in left} == {
        "letters or digits that the model's vocabulary lacks",
        "not in the audio",
    }
    assert "left out: 9" in done.stdout
    refused = sewd_in_process("segment", run.uri, "-o", output, "--min-score", 2)
    assert refused.returncode == 2
    assert "min-score" in refused.stderr


def test_no_utterance_is_longer_than_the_longest_and_shorter_than_the_shortest() -> None:
    with pytest.raises(UsageError, match="5 s is longer than max, 2 s"):
        SegmentSettings(min_s=5.0, max_s=2.0)
