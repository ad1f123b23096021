"""From aligned recordings to short utterances for training: cut in pauses, of bounded length, with a score each."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Final, NamedTuple

from pydantic import Field, NonNegativeFloat, PositiveFloat
from pydantic.dataclasses import dataclass

from pipeline.alignment.align import AlignedWord, Alignment, score_of
from pipeline.corpus.headers import is_mono
from pipeline.errors import UsageError
from pipeline.runs.recordings import is_shard

MARGIN_S: Final = 0.2  # of a segment before its first word and behind its last one, in a pause that is long enough
_LONG_PAUSE_S: Final = 2.0  # no segment has a longer one
_BEST_PAUSE_S: Final = 1.0  # for a cut; longer ones are no better
_SENTENCE_BONUS_S: Final = 0.3  # the end of a sentence is worth a pause that is so much longer
_SENTENCE_END: Final = (".", "?", "!", "。", "？", "！", "…")
_CLOSING: Final = "\"'”’»)]"
_TOO_SHORT, _TOO_LONG = 3.0, 100.0  # what such a segment costs, in the worst cuts


@dataclass(frozen=True)
class SegmentSettings:
    """How recordings are cut.

    Attributes:
        min_s: of a segment.
        max_s: of a segment.
        min_pause_s: a cut is in a pause of at least this length.
        min_score: of a segment that is kept, see `pipeline.alignment.align.ALIGNMENTS`.

    Raises:
        UsageError: no length is between the shortest and the longest.
    """

    min_s: NonNegativeFloat = 2.0
    max_s: PositiveFloat = 15.0
    min_pause_s: NonNegativeFloat = 0.1
    min_score: Annotated[float, Field(ge=0.0, le=1.0)] = 0.2

    def __post_init__(self) -> None:
        if self.min_s > self.max_s:
            raise UsageError(f"min: {self.min_s:g} s is longer than max, {self.max_s:g} s: no utterance would be left")


class Segment(NamedTuple):
    """A piece of a recording, of its text, or of both.

    Attributes:
        start_s: start in the recording; None: the text is not in the audio.
        end_s: end in the recording.
        text: its words, as the text has them; None: the audio is not in the text.
        score: see `pipeline.alignment.align.ALIGNMENTS`.
        left_out: why it is no utterance; None: it is one.
    """

    start_s: float | None
    end_s: float | None
    text: str | None
    score: float | None
    left_out: str | None

    def to_row(self, alignment: Alignment) -> dict[str, Any]:
        """As a row of a manifest, with the keys of `pipeline.corpus.metadata`."""
        identity = alignment.identity
        row = {"utt_id": identity["utt_id"], "audio_filepath": identity["uri"]}
        if self.start_s is not None and self.end_s is not None:
            start, stop = round(self.start_s * 1000), round(self.end_s * 1000)
            row["utt_id"] += f"#{start}-{stop}"
            row |= {"offset": start / 1000, "duration": (stop - start) / 1000}
        row |= {"text": self.text, "score": None if self.score is None else round(self.score, 4)}
        row |= {name: identity[name] for name in ("channel", "speaker")} | {"left_out": self.left_out}
        return {key: value for key, value in row.items() if value is not None}


def segments(alignment: Alignment, settings: SegmentSettings, channels: str | int = "mix") -> Iterator[Segment]:
    """Cut an aligned text into utterances; yields all of the text and of the audio's speech, also what is left out.

    Args:
        alignment: the text.
        settings: how it is cut.
        channels: what the run has transcribed, as `RunConfig.channels`.
    """
    identity = alignment.identity
    start_s = identity["start_s"] or 0.0
    end_s = start_s + (identity["duration_s"] or 0.0)
    problem = alignment.problem or _not_named(identity["uri"], identity["channel"] is not None or channels != "mix")
    if problem is not None:
        yield Segment(start_s, end_s, alignment.text, alignment.score, problem)
        return
    for passage_start_s, passage_end_s in alignment.extra:
        yield Segment(passage_start_s, passage_end_s, None, None, "not in the text")
    rooms = _Rooms(alignment, start_s, end_s)
    for why, words in _pieces(alignment, rooms):
        if why is not None:
            yield _segment(words, rooms, why)
            continue
        for first, last in itertools.pairwise(_cuts(words, rooms, settings)):
            yield _checked(_segment(words[first:last], rooms, None), settings)


def _not_named(uri: str, is_channel: bool) -> str | None:
    """Why a manifest cannot name the audio; None: it can."""
    if is_shard(uri):
        return "a manifest cannot name audio in a shard"
    if is_channel and not is_mono(uri):
        return "a manifest cannot name one channel of several"
    return None


class _SpelledWord(NamedTuple):
    """A word with the punctuation that stands by itself behind it."""

    text: str
    word: AlignedWord

    @property
    def why_left_out(self) -> str | None:
        if not self.word.text.is_spelled:
            return "letters or digits that the model's vocabulary lacks"
        return "not in the audio" if self.word.start_s is None else None


class _Rooms:
    """The room that a segment has before its first word and behind its last: to the next word or speech."""

    def __init__(self, alignment: Alignment, start_s: float, end_s: float) -> None:
        found = [(_start(word), _end(word)) for word in alignment.words if word.start_s is not None]
        taken = sorted([*found, *alignment.extra])
        self._starts = [*(start for start, _ in taken), end_s]
        self._ends = [start_s, *(end for _, end in taken)]

    def before(self, time_s: float) -> float:
        """The length of the pause before a word that begins at a time."""
        return max(0.0, time_s - self._ends[bisect.bisect_left(self._starts, time_s)])

    def after(self, start_s: float, end_s: float) -> float:
        """The length of the pause behind a word."""
        return max(0.0, self._starts[bisect.bisect_right(self._starts, start_s)] - end_s)


def _pieces(alignment: Alignment, rooms: _Rooms) -> Iterator[tuple[str | None, list[_SpelledWord]]]:
    """The words of a text in pieces: those that cannot be used, and why, and those between them."""
    words: list[_SpelledWord] = []
    for word in alignment.words:
        if word.text.ids or not word.text.is_spelled:
            words.append(_SpelledWord(word.text.word, word))
        elif words:
            words[-1] = words[-1]._replace(text=f"{words[-1].text} {word.text.word}")
    for why, group in itertools.groupby(words, lambda each: each.why_left_out):
        piece: list[_SpelledWord] = []
        for each in group:
            if piece and why is None and _is_apart(piece[-1].word, each.word, rooms):
                yield why, piece
                piece = []
            piece.append(each)
        yield why, piece


def _is_apart(before: AlignedWord, after: AlignedWord, rooms: _Rooms) -> bool:
    """Whether there is a long pause or speech without text between two words."""
    pause_s = _pause(before, after)
    return pause_s > _LONG_PAUSE_S or rooms.before(_start(after)) < pause_s - 1e-6


def _start(word: AlignedWord) -> float:
    return word.start_s or 0.0


def _end(word: AlignedWord) -> float:
    return word.end_s or 0.0


def _pause(before: AlignedWord, after: AlignedWord) -> float:
    return _start(after) - _end(before)


def _cuts(words: Sequence[_SpelledWord], rooms: _Rooms, settings: SegmentSettings) -> list[int]:
    """Where to cut a piece: positions of words, from 0 to the number of words; few cuts, in long pauses.

    A cut costs 1 less its pause in seconds; the sum is the least that is possible.
    """
    pauses = [_pause(one.word, other.word) for one, other in itertools.pairwise(words)]
    places = [0, *(i for i, pause_s in enumerate(pauses, 1) if pause_s >= settings.min_pause_s), len(words)]
    best = [0.0]
    cut_before = [0]
    for number, place in enumerate(places[1:], 1):
        options = []
        for earlier in range(number - 1, -1, -1):
            start_s, end_s = _span(words[places[earlier] : place], rooms)
            length_s = end_s - start_s
            cost = (_TOO_SHORT if length_s < settings.min_s else 0.0) + (
                _TOO_LONG if length_s > settings.max_s else 0.0
            )
            options.append((best[earlier] + cost, earlier))
            if length_s > settings.max_s:
                break
        cost, earlier = min(options)
        value = 0.0
        if place < len(words):
            is_sentence_end = words[place - 1].text.rstrip(_CLOSING).endswith(_SENTENCE_END)
            value = pauses[place - 1] + (_SENTENCE_BONUS_S if is_sentence_end else 0.0)
        best.append(cost + 1.0 - min(value, _BEST_PAUSE_S))
        cut_before.append(earlier)
    cuts, number = [len(words)], len(places) - 1
    while number:
        number = cut_before[number]
        cuts.append(places[number])
    return cuts[::-1]


def _span(words: Sequence[_SpelledWord], rooms: _Rooms) -> tuple[float, float]:
    """Start and end of a segment, with its margins: half of each pause at most."""
    first, last = words[0].word, words[-1].word
    start_s, end_s = _start(first), _end(last)
    before_s, after_s = rooms.before(start_s), rooms.after(_start(last), end_s)
    return start_s - min(MARGIN_S, before_s / 2), end_s + min(MARGIN_S, after_s / 2)


def _segment(words: Sequence[_SpelledWord], rooms: _Rooms, why: str | None) -> Segment:
    text = " ".join(word.text for word in words)
    found = [word for word in words if word.word.start_s is not None]
    if not found:
        return Segment(None, None, text, None, why)
    return Segment(*_span(found, rooms), text, score_of([word.word for word in found]), why)


def _checked(segment: Segment, settings: SegmentSettings) -> Segment:
    """The segment, left out if it is too short, too long or not well scored."""
    length_s = (segment.end_s or 0.0) - (segment.start_s or 0.0)
    why = None
    if length_s < settings.min_s:
        why = f"shorter than {settings.min_s:g} s"
    elif length_s > settings.max_s:
        why = f"longer than {settings.max_s:g} s, without a pause"
    elif segment.score is None or segment.score < settings.min_score:
        why = f"score below {settings.min_score:g}"
    return segment._replace(left_out=why)
