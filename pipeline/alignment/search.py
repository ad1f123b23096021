"""Where a phrase was said in a run: by CTC scores of the phrase in kept posteriors, or by the words of transcripts."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.alignment.texts import text_words
from pipeline.decoding.acoustics import Acoustics
from pipeline.decoding.rows import joined_posteriors, unpacked_levels
from pipeline.errors import UsageError
from pipeline.runs.recordings import IDENTITY
from pipeline.runs.run import Run
from pipeline.schemas import field
from pipeline.scoring.normalize import normalize
from pipeline.stages.word_ends import sound_ends, sound_starts
from sewd_model import Word
from sewd_model.ctc import GreedyPath, greedy_paths, words
from sewd_model.forced_alignment import align
from sewd_model.posteriors import Posteriors, split

HITS: Final = pa.schema(
    [
        field("utt_id", pa.string(), "id of the utterance", nullable=False),
        field("uri", pa.string(), "file or object that holds the audio", nullable=False),
        field("channel", pa.int32(), "channel, from 0, where channels have rows of their own; else null"),
        field("start_s", pa.float64(), "start of the phrase in the recording", "s", nullable=False),
        field("end_s", pa.float64(), "end of the phrase in the recording", "s", nullable=False),
        field(
            "score",
            pa.float32(),
            "in posteriors: the probability of the phrase relative to the best of all paths, per token; in texts: "
            "geometric mean of the confidences of its words",
            "0..1",
            nullable=False,
        ),
        field("text", pa.string(), "transcript of the utterance; in posteriors, the greedy one", nullable=False),
        field("speaker", pa.string(), "speaker, as the source names it"),
    ],
    metadata={"sewd.table": "hits"},
)

DEFAULT_MIN_SCORE: Final = 0.4

_SCAN: Final = {"batch_size": 512, "batch_readahead": 2, "fragment_readahead": 1}
_TEXT_SCAN: Final = {"batch_size": 1 << 14, "batch_readahead": 4, "fragment_readahead": 2}
# A score in fixed point above the frame that it began with, in one integer: the best of several keeps its own start.
_START_BITS: Final = 24
_UNIT: Final = 1 << 10  # of a nat
_NEVER: Final = -(1 << 60)
_OUTSIDE: Final = -1e6  # nats


def search_texts(run: Run, phrase: str, on_rows: Callable[[int], None] = lambda _: None) -> Iterator[dict[str, Any]]:
    """Find the words of a phrase, one after the other, in the transcripts of a run; words as `basic` normalises them.

    Yields:
        Rows of `HITS`, in the order of the run.

    Raises:
        UsageError: the phrase has no word.
        StorageError: storage errors last longer than the retries.
    """
    wanted = normalize(phrase).split()
    if not wanted:
        raise UsageError("search: the phrase has no word")
    columns = [*IDENTITY, "text", "words", "speaker"]
    for batch in run.dataset("transcripts").to_batches(columns=columns, **_TEXT_SCAN):
        on_rows(batch.num_rows)
        for row, first in _matches(batch["words"], wanted):
            values = batch.slice(row, 1).to_pylist()[0]
            words = values["words"][first : first + len(wanted)]
            logs = [math.log(max(word["confidence"], 1e-30)) for word in words]
            yield _hit(
                values, words[0]["start_s"], words[-1]["end_s"], math.exp(math.fsum(logs) / len(logs)), values["text"]
            )


def _matches(words: pa.ListArray, wanted: Sequence[str]) -> Iterator[tuple[int, int]]:
    """The row, and the position of the first word in it, of each place where the wanted words follow each other."""
    flat = words.flatten().field("word").dictionary_encode()
    codes = np.array(
        [wanted.index(word) if word in wanted else -1 for word in map(normalize, flat.dictionary.to_pylist())], np.int64
    )
    found = codes[flat.indices.to_numpy(zero_copy_only=False)] if len(flat) else np.zeros(0, np.int64)
    ends = np.cumsum(pc.list_value_length(words).to_numpy(zero_copy_only=False)).astype(np.int64)
    places = np.arange(max(0, len(found) - len(wanted) + 1))
    is_match = np.ones(len(places), np.bool_)
    for index, word in enumerate(wanted):
        is_match &= found[index : index + len(places)] == wanted.index(word)
    firsts = places[is_match]
    rows = np.searchsorted(ends, firsts, side="right")
    starts = np.append(0, ends)[rows]
    inside = firsts + len(wanted) <= ends[rows] if len(ends) else np.zeros(0, np.bool_)
    yield from zip(rows[inside].tolist(), (firsts - starts)[inside].tolist(), strict=True)


def _hit(row: dict[str, Any], start_s: float, end_s: float, score: float, text: str) -> dict[str, Any]:
    own = {"start_s": start_s, "end_s": end_s, "score": score, "text": text}
    return {**{name: row[name] for name in ("utt_id", "uri", "channel", "speaker")}, **own}


def search_posteriors(
    run: Run, phrase: str, min_score: float, on_rows: Callable[[int], None] = lambda _: None
) -> Iterator[dict[str, Any]]:
    """Find where the model may have heard a phrase, whatever it has written.

    The phrase stands between word delimiters, or at the ends of an utterance; hits of an utterance do not overlap.

    Args:
        run: with kept posteriors.
        phrase: words; letters that the vocabulary lacks are left out.
        min_score: of a hit, above 0.
        on_rows: called with the number of rows that were read.

    Yields:
        Rows of `HITS`, in the order of the run.

    Raises:
        UsageError: the run has no posteriors, or the vocabulary cannot spell the phrase.
        StorageError: storage errors last longer than the retries.
    """
    acoustics = run.acoustics
    keyword = Keyword.of(phrase, acoustics)
    columns = [*IDENTITY, "counts", "tokens", "costs", "levels", "speaker"]
    for batch in run.dataset("posteriors").to_batches(columns=columns, **_SCAN):
        on_rows(batch.num_rows)
        rows = pa.Table.from_batches([batch])
        if not rows.num_rows:
            continue
        joined, num_frames = joined_posteriors(rows)
        for index, posteriors, place in keyword.places(joined, num_frames, min_score):
            own = rows.slice(index, 1)
            row = own.select([*IDENTITY, "speaker"]).to_pylist()[0]
            path = _greedy_path(posteriors, acoustics)
            levels = unpacked_levels(own["levels"].combine_chunks()).to_pylist()[0]
            start_s, end_s = place.start * acoustics.frame_s, place.end * acoustics.frame_s
            if levels is not None:
                others = words(path, acoustics.tokenizer, acoustics.frame_s)
                start_s, end_s = _sound_times(start_s, end_s, others, np.frombuffer(levels, np.int8))
            offset_s, text = row["start_s"] or 0.0, acoustics.tokenizer.text(path.token_ids)
            yield _hit(row, offset_s + start_s, offset_s + end_s, place.score, text)


def _greedy_path(posteriors: Posteriors, acoustics: Acoustics) -> GreedyPath:
    best, log_probabilities = posteriors.best(acoustics.blank)
    (path,) = greedy_paths(best, log_probabilities, [len(best)], acoustics.blank, acoustics.tokenizer.drop_ids)
    return path


def _sound_times(start_s: float, end_s: float, others: Sequence[Word], levels: NDArray[np.int8]) -> tuple[float, float]:
    """Start and end of the sound of a phrase (`pipeline.stages.word_ends`), between the words beside it."""
    before = [word for word in others if word.end_s <= start_s][-1:]
    found = [*before, Word("", start_s, end_s, 1.0), *[word for word in others if word.start_s >= end_s][:1]]
    starts_s = sound_starts(found, levels)
    found = [replace(word, start_s=start) for word, start in zip(found, starts_s, strict=True)]
    return starts_s[len(before)], sound_ends(found, levels)[len(before)]


class Place(NamedTuple):
    """Where a phrase may be in a clip.

    Attributes:
        start: its first frame.
        end: one past its last frame.
        score: its probability relative to the best of all paths, per token.
    """

    start: int
    end: int
    score: float


class Keyword(NamedTuple):
    """A phrase as tokens.

    Attributes:
        ids: its tokens, with delimiters between words.
        acoustics: of the model.
    """

    ids: tuple[int, ...]
    acoustics: Acoustics

    @staticmethod
    def of(phrase: str, acoustics: Acoustics) -> Keyword:
        """Spell a phrase.

        Raises:
            UsageError: the vocabulary cannot spell a word of it.
        """
        words = [word for word in text_words(phrase, acoustics.tokenizer) if word.ids or not word.is_spelled]
        lacking = [word.word for word in words if not word.is_spelled]
        if lacking or not words:
            what = f"has no letters or digits for {', '.join(lacking)}" if lacking else "cannot spell it"
            raise UsageError(f"search: {phrase!r}: the vocabulary of the model {what}")
        delimiter = acoustics.tokenizer.delimiter_id
        between = () if delimiter is None else (delimiter,)
        ids = itertools.chain.from_iterable((*between, *word.ids) for word in words)
        return Keyword(tuple(ids)[len(between) :], acoustics)

    def places(
        self, joined: Posteriors, num_frames: NDArray[np.int64], min_score: float
    ) -> Iterator[tuple[int, Posteriors, Place]]:
        """The places in clips whose posteriors are joined: the position of the clip, its posteriors, and the place."""
        least = math.log(min_score) * len(self.ids)
        scores = self._relative(joined)
        edges = np.append(0, np.cumsum(num_frames))
        possible = self._possible(scores, edges, least)
        if not len(possible):
            return
        longest_first = possible[np.argsort(-num_frames[possible], kind="stable")]
        ends = self._ends([scores[edges[clip] : edges[clip + 1]] for clip in longest_first.tolist()])
        clips = split(joined, num_frames)
        columns = np.flatnonzero((ends >> _START_BITS >= least * _UNIT).any(axis=0))
        for column in columns[np.argsort(longest_first[columns])].tolist():
            clip = int(longest_first[column])
            for start, end, score in _apart(ends[: num_frames[clip] + 1, column], least):
                yield clip, clips[clip], self._place(clips[clip], start, end, score)

    @property
    def _columns(self) -> list[int]:
        """The tokens whose scores are needed: the blank, the delimiter or the blank, and those of the phrase."""
        acoustics = self.acoustics
        delimiter = acoustics.tokenizer.delimiter_id
        return list(dict.fromkeys([acoustics.blank, *([] if delimiter is None else [delimiter]), *self.ids]))

    def _relative(self, posteriors: Posteriors) -> NDArray[np.float32]:
        """`(T, columns)`: log-probabilities less that of the best token of the frame."""
        acoustics = self.acoustics
        best = posteriors.best(acoustics.blank)[1]
        return posteriors.log_probabilities(acoustics.num_tokens, acoustics.blank, self._columns) - best[:, None]

    def _possible(self, scores: NDArray[np.float32], edges: NDArray[np.int64], least: float) -> NDArray[np.int64]:
        """The clips in which each token of the phrase is probable enough somewhere."""
        clips = np.flatnonzero(np.diff(edges))
        if not len(clips):
            return clips
        best = np.maximum.reduceat(scores, edges[clips], axis=0)  # (clips, columns)
        used = [self._columns.index(token) for token in self.ids]
        return np.asarray(clips[best[:, used].sum(axis=1) >= least])

    def _ends(self, clips: Sequence[NDArray[np.float32]]) -> NDArray[np.int64]:
        """`(frames + 1, clips)`: the score and the start of the best path of the phrase that has ended at each frame.

        The delimiter behind the phrase is free behind the end of a clip, as is that before it at the start.

        Args:
            clips: scores as `_relative` gives them, the longest clip first.
        """
        has_delimiter = self.acoustics.tokenizer.delimiter_id is not None
        columns = self._columns
        around = [1] if has_delimiter else []
        tokens = [*around, *(columns.index(token) for token in self.ids), *around]
        states = np.zeros(2 * len(tokens) - 1, np.int64)  # the column of each state; between two tokens the blank, 0
        states[::2] = tokens
        same = np.array([one == other for one, other in itertools.pairwise(tokens)], np.bool_)
        skips = np.where(same, _NEVER, 0)[:, None]
        lengths = np.array([len(clip) for clip in clips])
        frames = int(lengths[0]) + 1
        scores = np.full((frames, len(columns), len(clips)), _OUTSIDE, np.float32)
        for position, clip in enumerate(clips):
            scores[: len(clip), :, position] = clip
            if has_delimiter:
                scores[len(clip), 1, position] = 0.0
        steps = np.rint(scores * _UNIT).astype(np.int64) << _START_BITS
        before = np.full((len(states), len(clips)), _NEVER, np.int64)
        if has_delimiter:
            before[0] = 0
        found = np.full((frames, len(clips)), _NEVER, np.int64)
        for frame in range(frames):
            active = int(
                np.searchsorted(-lengths, -frame, side="right")
            )  # the clips that have this frame, or end there
            before = before[:, :active]
            after = before.copy()
            np.maximum(after[1:], before[:-1], out=after[1:])
            np.maximum(after[2::2], before[:-2:2] + skips, out=after[2::2])
            np.maximum(after[0], frame, out=after[0])  # begins here, with the score 0
            after += steps[frame, states, :active]
            np.maximum(after, _NEVER, out=after)
            found[frame, :active] = after[-1]
            before = after
        return found

    def _place(self, clip: Posteriors, start: int, end: int, score: float) -> Place:
        """The place without the delimiters around the phrase, from that with them."""
        acoustics = self.acoustics
        end = min(end, clip.num_frames)
        _, frames, _ = split(clip, [start, end - start, clip.num_frames - end])
        window = frames.log_probabilities(acoustics.num_tokens, acoustics.blank)
        if acoustics.tokenizer.delimiter_id is not None:  # a delimiter at the ends is a blank here
            np.maximum(
                window[:, acoustics.blank],
                window[:, acoustics.tokenizer.delimiter_id],
                out=window[:, acoustics.blank],
            )
        path = align(window, self.ids, acoustics.blank)
        first, last = int(path.start_frames[0]), int(path.end_frames[-1])
        return Place(start + first, start + last, math.exp(score / len(self.ids)))


def _apart(ends: NDArray[np.int64], least: float) -> Iterator[tuple[int, int, float]]:
    """Start, end and score of the paths that end anywhere, the best first, without those that overlap a better one."""
    scores = (ends >> _START_BITS) / _UNIT
    taken: list[tuple[int, int]] = []
    candidates = np.flatnonzero(scores >= least)
    for frame in candidates[np.argsort(-scores[candidates], kind="stable")].tolist():
        start, end = int(ends[frame]) & ((1 << _START_BITS) - 1), frame + 1
        if all(end <= other_start or start >= other_end for other_start, other_end in taken):
            taken.append((start, end))
            yield start, end, float(scores[frame])
