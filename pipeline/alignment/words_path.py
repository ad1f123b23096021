"""The best path of a text through a recording of any length, where either may have passages that the other lacks.

The lattice is that of CTC (`sewd_model.forced_alignment`) over the tokens of the words, with three changes at each
border between words:

* its blank may also be the word delimiter: at a cut between segments the model writes none;
* its frames may be speech that is not in the text (the star): the best token of each, at a cost;
* from the border that is most probable at a frame, the text may be continued at any later border, at a cost: the words
  between them are not in the audio.

Log-probabilities are taken relative to the best token of their frame. So the score of a path is its distance from the
best of all paths, and the costs of the star do not depend on how sure the model is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Ids = NDArray[np.int64]

BAND: Final = 1 << 15  # tokens of the text that are considered at a time: about half an hour of speech
_BEHIND: Final = 3  # a third of them before the most probable place
_BLOCK: Final = 1024  # frames between two checkpoints
_WHOLE: Final = 1 << 22  # tokens times frames up to which every score is kept
_NEVER: Final = np.float32(-np.inf)


@dataclass(frozen=True)
class Costs:
    """Of what only one of the two has, in nats. Infinite: there is no such thing.

    Attributes:
        star: of each passage that is not in the text.
        star_frame: of each of its frames.
        skip: of each passage of the text that is not in the audio.
    """

    star: float = np.inf
    star_frame: float = np.inf
    skip: float = np.inf


STRICT: Final = Costs()
"""All of the text is in the audio, and nothing else."""

LENIENT: Final = Costs(star=40.0, star_frame=0.7, skip=60.0)
"""Measured with the bundled model on readers that it knows and does not know: passages of a minute were taken out of
texts and of audio, and no other word moved or was lost; with lower costs, words that the model does not hear are."""


@dataclass(frozen=True, eq=False)
class WordsPath:
    """Where the words of a text are.

    Attributes:
        start_frames: `(words,)`, the first frame of a word; -1: it is not in the audio.
        end_frames: one past its last frame; -1.
        log_probabilities: the mean over the frames of its tokens, in nats.
        losses: how much less probable its frames are than with the best tokens, in nats, up to the next word or star.
        lengths: the number of these frames.
        stars: `(num_frames,)` bool, frames of speech that is not in the text.
    """

    start_frames: Ids
    end_frames: Ids
    log_probabilities: Floats
    losses: Floats
    lengths: Ids
    stars: NDArray[np.bool_]


class NoPathError(ValueError):
    """A text has no path through the frames of a recording: it is too long for it."""


def words_path(
    log_probabilities: NDArray[np.floating[Any]],
    words: Sequence[Sequence[int]],
    blank: int,
    delimiter: int | None,
    costs: Costs,
) -> WordsPath:
    """Find the words of a text in a recording.

    Exact for texts of up to `BAND` tokens; of longer ones, the path stays within so many tokens around the place that
    is most probable so far. Memory: the log-probabilities twice, and about 0.5 kB for each frame.

    Args:
        log_probabilities: `(T, V)`.
        words: the tokens of each word, at least one, without the delimiter.
        blank: id of the blank.
        delimiter: id of the word delimiter; None: the model has none.
        costs: of what only one of the two has.

    Raises:
        NoPathError: the text does not fit into the frames.
        ValueError: a word has no tokens.
    """
    lengths = np.fromiter(map(len, words), np.int64, len(words))
    if not lengths.all():
        msg = "a word has no tokens"
        raise ValueError(msg)
    text = _Text.of(np.concatenate([np.zeros(0, np.int64), *words]).astype(np.int64), lengths)
    log_probabilities = np.asarray(log_probabilities, np.float32)
    scores = _Scores.of(log_probabilities, blank, delimiter)
    return _words(_Lattice(text, scores, costs).path(), text, log_probabilities, scores)


class _Text(NamedTuple):
    """A text or a part of it.

    Attributes:
        ids: `(n,)`, tokens.
        skips: `(n - 1,)`: 0 where a token may follow the one before without a blank, else `-inf`.
        borders: `(b,)`, the blank, of `n + 1`, at each border between words.
    """

    ids: Ids
    skips: Floats
    borders: Ids

    @staticmethod
    def of(ids: Ids, lengths: Ids) -> _Text:
        skips = np.where(ids[1:] == ids[:-1], _NEVER, np.float32(0.0))
        return _Text(ids, skips, np.append(0, np.cumsum(lengths)))

    def part(self, start: int, stop: int) -> tuple[_Text, int]:
        """The tokens from `start` up to, without, `stop`, and the number of borders before them."""
        first, last = np.searchsorted(self.borders, [start, stop + 1]).tolist()
        skips = self.skips[start : max(start, stop - 1)]
        return _Text(self.ids[start:stop], skips, self.borders[first:last] - start), first


class _Scores(NamedTuple):
    """Log-probabilities less those of the best tokens: of tokens `(T, V)`, of blanks and pauses `(T,)`."""

    tokens: Floats
    blank: Floats
    pause: Floats

    @staticmethod
    def of(log_probabilities: Floats, blank: int, delimiter: int | None) -> _Scores:
        tokens = log_probabilities - log_probabilities.max(axis=1, keepdims=True)
        pause = tokens[:, blank] if delimiter is None else np.maximum(tokens[:, blank], tokens[:, delimiter])
        return _Scores(tokens, tokens[:, blank].copy(), pause.copy())


class _State(NamedTuple):
    """The best score that ends in each token `(n,)`, each blank `(n + 1,)` and the star of each border `(b,)`.

    In several rows: of the state before the first frame and after each.
    """

    tokens: Floats
    blanks: Floats
    stars: Floats

    @staticmethod
    def rows(text: _Text, number: int) -> _State:
        sizes = (len(text.ids), len(text.ids) + 1, len(text.borders))
        return _State(*(np.full((number, size), _NEVER, np.float32) for size in sizes))

    def row(self, index: int) -> _State:
        return _State(self.tokens[index], self.blanks[index], self.stars[index])

    def set_row(self, index: int, state: _State) -> None:
        for rows, values in zip(self, state, strict=True):
            rows[index] = values


class _Jump(NamedTuple):
    """From the best border of a frame, by its number, to any later one; the score there."""

    border: int
    score: np.float32


class _Steps:
    """The recursion over the frames for a part of a text."""

    def __init__(self, text: _Text, first_border: int, costs: Costs) -> None:
        self.text, self.first_border = text, first_border
        self.star, self.star_frame = np.float32(costs.star), np.float32(costs.star_frame)
        self.skip = np.float32(costs.skip)
        self.has_stars, self.has_jumps = np.isfinite(self.star), np.isfinite(self.skip)
        self._skipped, self._emitted = np.empty_like(text.skips), np.empty(len(text.ids), np.float32)
        self._at = np.empty(len(text.borders), np.float32)

    def step(
        self, before: _State, after: _State, scores: Floats, blank: np.float32, pause: np.float32, jump: _Jump | None
    ) -> _Jump | None:
        """Write the state after a frame; return its jump, which is `jump` if that is given."""
        text, at = self.text, self._at
        tokens, blanks, stars = after
        np.maximum(before.tokens, before.blanks[:-1], out=tokens)
        np.add(before.tokens[:-1], text.skips, out=self._skipped)
        np.maximum(tokens[1:], self._skipped, out=tokens[1:])
        np.take(scores, text.ids, out=self._emitted, mode="clip")  # clip: without a copy of the output
        np.add(tokens, self._emitted, out=tokens)
        blanks[0] = before.blanks[0]
        np.maximum(before.blanks[1:], before.tokens, out=blanks[1:])
        np.take(blanks, text.borders, out=at, mode="clip")
        np.add(blanks, blank, out=blanks)
        if self.has_stars:
            np.subtract(at, self.star, out=stars)
            np.maximum(stars, before.stars, out=stars)
            np.subtract(stars, self.star_frame, out=stars)
        np.add(at, pause, out=at)
        if self.has_stars:
            np.maximum(at, stars, out=at)
        if self.has_jumps and len(at):
            if jump is None:
                best = int(at.argmax())
                jump = _Jump(self.first_border + best, at[best] - self.skip)
            later = at[max(0, jump.border + 1 - self.first_border) :]
            np.maximum(later, jump.score, out=later)
        blanks[text.borders] = at
        return jump


class _Place(NamedTuple):
    """A state of the lattice: a token, the blank before it, or the star at that blank."""

    kind: int
    position: int


_TOKEN, _BLANK, _STAR = 0, -1, -2


class _Checkpoint(NamedTuple):
    """The state before a block of frames: of the tokens from `start` on, and of the borders from `border` on."""

    start: int
    border: int
    state: _State

    def part(self, text: _Text, start: int, stop: int) -> tuple[_Text, int, _State]:
        """A part of the text that is in the checkpoint, the number of borders before it, and its state."""
        part, first = text.part(start, stop)
        tokens, blanks, stars = self.state
        low, border = start - self.start, first - self.border
        state = _State(
            tokens[low : low + len(part.ids)],
            blanks[low : low + len(part.ids) + 1],
            stars[border : border + len(part.borders)],
        )
        return part, first, state


class _Lattice:
    """Scores of frame after frame, and the way back.

    Of long recordings only the state of every `_BLOCK` frames is kept. A path moves by at most one token in a frame, so
    the few states that it can have come through are computed again, block by block from the last. Where it has jumped
    to a later border, it came from the border that was the best at that frame, which is kept for each.
    """

    def __init__(self, text: _Text, scores: _Scores, costs: Costs) -> None:
        self.text, self.scores, self.costs = text, scores, costs
        self.num_frames, self.num_tokens = len(scores.blank), len(text.ids)
        self.border_of = np.full(self.num_tokens + 1, -1, np.int64)  # of a blank
        self.border_of[text.borders] = np.arange(len(text.borders))
        self.jumps: list[_Jump | None] = [None] * self.num_frames
        self.found = np.full(self.num_frames, _BLANK, np.int64)

    def path(self) -> Ids:
        """What each frame has, `(T,)`: the index of a token, `_BLANK` or `_STAR`."""
        rows = self.num_frames + 1
        if rows > 4 * _BLOCK or rows * self.num_tokens > _WHOLE:
            self._long()
            return self.found
        every = _State.rows(self.text, rows)
        every.set_row(0, self._start(self.text))
        self._fill(_Steps(self.text, 0, self.costs), every, 0)
        place, frame = self._end(every.row(-1), 0), self.num_frames
        while frame:
            place, frame = self._back(every, place, frame, 0, 0, 0)
        return self.found

    def _start(self, text: _Text) -> _State:
        state = _State.rows(text, 1).row(0)
        state.blanks[text.borders] = np.float32(-self.costs.skip)
        state.blanks[0] = 0.0
        return state

    def _end(self, state: _State, start: int) -> _Place:
        """The best last state of the text; of a part that does not have its end, the best border."""
        if start + len(state.tokens) < self.num_tokens:
            borders = np.flatnonzero(self.border_of[start : start + len(state.blanks)] >= 0)
            place = _Place(_BLANK, int(borders[state.blanks[borders].argmax()]) + start)
        else:
            place = _Place(_BLANK, self.num_tokens)
            if self.num_tokens and state.tokens[-1] > state.blanks[-1]:
                place = _Place(_TOKEN, self.num_tokens - 1)
        score = (state.blanks if place.kind == _BLANK else state.tokens)[place.position - start]
        if not np.isfinite(score):
            msg = f"a text of {self.num_tokens} tokens does not fit into {self.num_frames} frames"
            raise NoPathError(msg)
        return place

    def _fill(self, steps: _Steps, rows: _State, first_frame: int) -> None:
        """Compute all rows from the first."""
        tokens, blank, pause = self.scores
        for index in range(len(rows.tokens) - 1):
            frame = first_frame + index
            self.jumps[frame] = steps.step(
                rows.row(index), rows.row(index + 1), tokens[frame], blank[frame], pause[frame], self.jumps[frame]
            )

    def _long(self) -> None:
        checkpoints, place = self._forward()
        frame = self.num_frames
        while frame:
            checkpoint = checkpoints[(frame - 1) // _BLOCK]
            first_frame = (frame - 1) // _BLOCK * _BLOCK
            start = max(checkpoint.start, place.position - (frame - first_frame))
            stop = min(place.position + 1, checkpoint.start + len(checkpoint.state.tokens))
            part, border, state = checkpoint.part(self.text, start, stop)
            rows = _State.rows(part, frame - first_frame + 1)
            rows.set_row(0, state)
            self._fill(_Steps(part, border, self.costs), rows, first_frame)
            place, frame = self._back(rows, place, frame, first_frame, start, border)

    def _forward(self) -> tuple[list[_Checkpoint], _Place]:
        """The state before each block, and the last place of the path."""
        tokens, blank, pause = self.scores
        part, border = self.text.part(0, min(BAND, self.num_tokens))
        start = 0
        state = self._start(part)
        steps = _Steps(part, border, self.costs)
        checkpoints = []
        for first_frame in range(0, self.num_frames, _BLOCK):
            if len(part.ids) < self.num_tokens:
                start, border, state, part = self._moved(start, border, state)
                steps = _Steps(part, border, self.costs)
            best = max(state.blanks.max(), state.tokens.max(initial=_NEVER))
            if not np.isfinite(best):
                break
            state = _State(*(values - best for values in state))  # float32 has few digits
            checkpoints.append(_Checkpoint(start, border, state))
            before, after = _State(*map(np.copy, state)), _State(*map(np.copy, state))
            for frame in range(first_frame, min(first_frame + _BLOCK, self.num_frames)):
                self.jumps[frame] = steps.step(before, after, tokens[frame], blank[frame], pause[frame], None)
                before, after = after, before
            state = before
        return checkpoints, self._end(state, start)

    def _moved(self, start: int, border: int, state: _State) -> tuple[int, int, _State, _Text]:
        """The part of the text around the place that is most probable now, and its state."""
        place = start + int(state.blanks.argmax())
        after = max(start, min(place - BAND // _BEHIND, self.num_tokens - BAND))
        part, first = self.text.part(after, after + BAND)
        moved = _State.rows(part, 1).row(0)
        for values, old, shift in zip(moved, state, (after - start, after - start, first - border), strict=True):
            values[: len(old) - shift] = old[shift:]
        return after, first, moved, part

    def _back(
        self, rows: _State, place: _Place, frame: int, first_frame: int, start: int, border: int
    ) -> tuple[_Place, int]:
        """Follow the path from its place after `frame` frames to the first row, or to where it has jumped from."""
        tokens, blanks, stars = rows
        kind, index = place[0], place[1] - start
        while frame > first_frame:
            row = frame - first_frame
            if kind == _BLANK:
                number = int(self.border_of[start + index])
                value = blanks[row, index]
                jump = self.jumps[frame - 1]
                if number >= 0 and jump is not None and value == jump.score and jump.border < number:
                    return _Place(_BLANK, int(self.text.borders[jump.border])), frame
                if number >= 0 and np.isfinite(self.costs.star) and value == stars[row, number - border]:
                    kind = _STAR
            frame, row = frame - 1, row - 1
            if kind == _TOKEN:
                self.found[frame] = start + index
                best = tokens[row, index]
                before = index
                if blanks[row, index] > best:
                    kind, best = _BLANK, blanks[row, index]
                if index and tokens[row, index - 1] > best and self.text.skips[start + index - 1] == 0.0:
                    kind, before = _TOKEN, index - 1
                index = before
                continue
            self.found[frame] = kind
            from_token = tokens[row, index - 1] if index else _NEVER
            best = max(blanks[row, index], from_token)
            if kind == _STAR:
                number = int(self.border_of[start + index])
                if stars[row, number - border] >= best - np.float32(self.costs.star):
                    continue
                kind = _BLANK
            if from_token > blanks[row, index]:
                kind, index = _TOKEN, index - 1
        return _Place(kind, index + start), frame


def _words(found: Ids, text: _Text, log_probabilities: Floats, scores: _Scores) -> WordsPath:
    """The words of a path."""
    num_words = len(text.borders) - 1
    frames = np.flatnonzero(found >= 0)
    tokens = found[frames]  # in ascending order, and all of a word or none
    words = np.searchsorted(text.borders, tokens, side="right") - 1
    starts, ends = np.full(num_words, -1, np.int64), np.full(num_words, -1, np.int64)
    starts[words[::-1]] = frames[::-1]
    ends[words] = frames + 1

    # The mean over the tokens of a word of the mean over the frames of a token.
    _, token_of, counts = np.unique(tokens, return_inverse=True, return_counts=True)
    weights = 1.0 / counts[token_of] / np.diff(text.borders)[words]
    means = np.bincount(words, log_probabilities[frames, text.ids[tokens]] * weights, num_words)

    # A frame without a token belongs to the word before it, or to the first; between two words it may be a pause.
    at = np.maximum(np.searchsorted(frames, np.arange(len(found)), side="right") - 1, 0)
    losses: NDArray[np.float64] = np.zeros(num_words)
    lengths: Ids = np.zeros(num_words, np.int64)
    if len(frames):
        numbers = np.arange(len(found))
        word_of, next_word = words[at], words[np.minimum(at + 1, len(frames) - 1)]
        is_border = (word_of != next_word) | (frames[at] > numbers) | (at == len(frames) - 1)
        of_frames = -np.where(is_border, scores.pause, scores.blank)
        of_frames[frames] = -scores.tokens[frames, text.ids[tokens]]
        counted = found != _STAR
        lengths = np.bincount(word_of[counted], minlength=num_words).astype(np.int64)
        losses = np.bincount(word_of[counted], of_frames[counted], num_words).astype(np.float64)
    return WordsPath(starts, ends, means.astype(np.float32), losses.astype(np.float32), lengths, found == _STAR)
