"""Phrases in posteriors and in transcripts: every place is found, as by trying each."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.alignment.search import Keyword, _sound_times, search_posteriors, search_texts
from pipeline.audio.silence import LEVEL_S
from pipeline.errors import UsageError
from sewd_model import Word
from sewd_model.posteriors import keep
from tests.support.command import sewd_in_process
from tests.support.posteriors import ACOUSTICS, FRAME_S, TOKENIZER, frames_of, posteriors_of, spoken_run
from tests.support.runs import transcripts, write_run

DELIMITER = TOKENIZER.ids["|"]


def best_ends(relative: np.ndarray, ids: list[int]) -> list[float]:
    """For each number of frames, the score of the best path of the ids that ends with them, each start tried."""
    states = [0] * (2 * len(ids) - 1)
    states[::2] = ids
    found = []
    for end in range(1, len(relative) + 1):
        best = -math.inf
        for start in range(end):
            scores = [relative[start, states[0]], *[-math.inf] * (len(states) - 1)]
            for frame in range(start + 1, end):
                after = []
                for state, token in enumerate(states):
                    options = [scores[state], scores[state - 1] if state else -math.inf]
                    if state > 1 and state % 2 == 0 and token != states[state - 2]:
                        options.append(scores[state - 2])
                    after.append(max(options) + relative[frame, token])
                scores = after
            best = max(best, scores[-1])
        found.append(best)
    return found


@given(st.integers(0, 2**32 - 1), st.lists(st.integers(0, 6), min_size=1, max_size=3), st.integers(1, 3))
def test_scores_are_the_best_of_all_starts(seed: int, lengths: list[int], letters: int) -> None:
    random = np.random.default_rng(seed)
    if not any(lengths):
        return
    ids = random.integers(6, 8, letters).tolist()
    clips = []
    for length in lengths:
        logits = random.standard_normal((length, ACOUSTICS.num_tokens)) * 3
        clips.append(keep(logits, ACOUSTICS.blank))
    clips.sort(key=lambda clip: -clip.num_frames)
    keyword = Keyword(tuple(ids), ACOUSTICS)
    ends = keyword._ends([keyword._relative(clip) for clip in clips])
    for column, clip in enumerate(clips):
        dense = clip.log_probabilities(ACOUSTICS.num_tokens, ACOUSTICS.blank)
        relative = dense - clip.best(ACOUSTICS.blank)[1][:, None]
        free = np.full((1, ACOUSTICS.num_tokens), -1e6)  # outside of the clip: the delimiter, and nothing else
        free[0, DELIMITER] = 0.0
        around = np.concatenate([free, relative, free])
        expected = best_ends(around, [DELIMITER, *ids, DELIMITER])[1:]
        found = (ends[: clip.num_frames + 1, column] >> 24) / 1024
        for one, other in zip(found, expected, strict=True):
            assert one == pytest.approx(other, abs=0.05) or (one < -1e4 and other < -1e4)


SAID = ["turn the lights off in the kitchen", "the party was at the art house", "art", "turn left and turn left again"]


def places(hits) -> list[tuple[str, float, float]]:
    return [(hit["utt_id"], round(hit["start_s"], 2), round(hit["end_s"], 2)) for hit in hits]


def said(phrase: str, texts=SAID) -> list[tuple[str, float, float]]:
    wanted, found = phrase.upper().split(), []
    for index, text in enumerate(texts):
        words = frames_of(text)[1]
        for first in range(len(words)):
            if [word for word, _, _ in words[first : first + len(wanted)]] == wanted:
                end = words[first + len(wanted) - 1][2]
                found.append((f"u{index}", round(words[first][1] * FRAME_S, 2), round(end * FRAME_S, 2)))
    return found


@pytest.mark.parametrize("phrase", ["turn", "art", "the lights", "turn left", "again", "party was", "house art"])
def test_phrases_in_posteriors(tmp_path: Path, phrase: str) -> None:
    run = spoken_run(tmp_path / "run", [{"spoken": text} for text in SAID])
    hits = sorted(search_posteriors(run, phrase, 0.5), key=lambda hit: (hit["utt_id"], hit["start_s"]))
    assert len(hits) == len(said(phrase))
    for one, other in zip(places(hits), said(phrase), strict=True):
        assert one[0] == other[0]
        assert one[1:] == pytest.approx(other[1:], abs=1.01 * FRAME_S)
    assert all(hit["score"] == pytest.approx(1.0, abs=0.02) for hit in hits)


def test_phrase_that_the_model_has_not_written(tmp_path: Path) -> None:
    frames, _ = frames_of("kitchen")
    logits = np.eye(ACOUSTICS.num_tokens)[frames] * 8
    other = TOKENIZER.ids["D"]
    logits[np.array(frames) == TOKENIZER.ids["T"], other] = 8.5  # the best path is KIDCHEN
    kept = keep(logits, ACOUSTICS.blank)
    ((_, _, place),) = Keyword.of("kitchen", ACOUSTICS).places(kept, np.array([len(frames)]), 0.3)
    assert 0.5 < place.score < 1.0
    assert not list(Keyword.of("chicken", ACOUSTICS).places(kept, np.array([len(frames)]), 0.3))


def test_utterances_do_not_depend_on_their_neighbours() -> None:
    texts = ["the art of turning left now", "turn left", ""]
    clips = [posteriors_of(frames_of(text)[0]) for text in texts]
    keyword = Keyword.of("left", ACOUSTICS)
    together = keyword._ends([keyword._relative(clip) for clip in clips])
    for column, clip in enumerate(clips):
        alone = keyword._ends([keyword._relative(clip)])[:, 0]
        assert together[: len(alone), column].tolist() == alone.tolist()


@settings(max_examples=25)
@given(
    st.lists(st.lists(st.sampled_from(["a", "b", "A,"]), max_size=5), max_size=6), st.sampled_from(["a", "a b", "a a"])
)
def test_phrases_in_texts(tmp_path_factory: pytest.TempPathFactory, texts: list[list[str]], phrase: str) -> None:
    rows = [
        {
            "text": " ".join(words),
            "words": [
                {"word": word, "start_s": float(index), "end_s": index + 0.5, "confidence": 0.5}
                for index, word in enumerate(words)
            ],
        }
        for words in texts
    ]
    run = write_run(tmp_path_factory.mktemp("run") / "run", transcripts(rows))
    wanted = phrase.split()
    expected = [
        (f"u{row:06d}", float(first), first + len(wanted) - 0.5)
        for row, words in enumerate(texts)
        for first in range(len(words))
        if [word.lower().strip(",") for word in words[first : first + len(wanted)]] == wanted
    ]
    assert places(search_texts(run, phrase)) == expected


def test_verb_prints_and_writes_hits(tmp_path: Path) -> None:
    run = spoken_run(tmp_path / "run", [{"spoken": text} for text in SAID])
    done = sewd_in_process("search", run.uri, "turn left", "-o", tmp_path / "hits.parquet", "--limit", 1)
    assert done.returncode == 0, done.stderr
    assert "2 hits in the posteriors of 4 utterances" in done.stdout
    assert pq.read_table(tmp_path / "hits.parquet").num_rows == 2
    assert "0 hits in the text of 4 utterances" in sewd_in_process("search", run.uri, "turn", "--in", "text").stdout
    for phrase, message in (("—", "cannot spell"), ("route 66", "no letters or digits for 66")):
        refused = sewd_in_process("search", run.uri, phrase)
        assert refused.returncode == 2
        assert message in refused.stderr
    with pytest.raises(UsageError, match="no word"):
        list(search_texts(run, "—"))


@pytest.mark.parametrize(("others", "end_s"), [([], 0.9), ([Word("next", 0.72, 0.85, 1.0)], 0.65)])
def test_a_hit_lasts_as_long_as_its_sound_and_not_into_the_next_word(others, end_s):
    levels = np.full(round(1.5 / LEVEL_S), -90, np.int8)
    levels[round(0.4 / LEVEL_S) : round(0.9 / LEVEL_S)] = -20
    levels[round(0.65 / LEVEL_S) : round(0.7 / LEVEL_S)] = -50  # a closure within a word, or a pause before the next
    assert _sound_times(0.5, 0.6, others, levels) == pytest.approx((0.4, end_s), abs=LEVEL_S)
