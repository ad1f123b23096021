"""Subtitles for people: words with times become cues of a few short lines that can be read in their time.

The default limits are those that broadcasters' guidelines agree on within a little: two lines of 42 characters, 20
characters a second, 5/6 to 7 seconds, and two frames between cues (Netflix's Timed Text Style Guide; the BBC's
Subtitle Guidelines ask for shorter lines). Words are never dropped or changed: where speech is faster than the
reading speed, the cue takes the time that there is.
"""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from pipeline.errors import UsageError

_SENTENCE_ENDS: Final = (".", "?", "!", "…", "。", "？", "！")
_CLAUSE_ENDS: Final = (",", ";", ":", "、", "，")
_SENTENCE_S: Final = 2.0  # a mark at the end of a word counts as much as a pause of this length
_CLAUSE_S: Final = 0.5


class TimedWord(NamedTuple):
    """A word with its times in the recording, in seconds, and its confidence."""

    word: str
    start_s: float
    end_s: float
    confidence: float


class Cue(NamedTuple):
    """Lines that are shown together, from `start_s` to `end_s`."""

    start_s: float
    end_s: float
    lines: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class CueSettings:
    """The limits of a cue.

    Attributes:
        line_chars: most characters in a line; a longer word has a line of its own.
        lines: most lines.
        chars_per_s: most characters a second: a cue is shown that long if the next one leaves the time.
        shortest_s: a cue is shown at least this long if the next one leaves the time.
        longest_s: a cue is shown at most this long, unless it is a single word.
        gap_s: time without a cue between two.
        pause_s: a pause of at least this length ends a cue.

    Raises:
        UsageError: a limit is not positive, or the shortest cue is longer than the longest.
    """

    line_chars: int = 42
    lines: int = 2
    chars_per_s: float = 20.0
    shortest_s: float = 5 / 6
    longest_s: float = 7.0
    gap_s: float = 2 / 24
    pause_s: float = 1.0

    def __post_init__(self) -> None:
        if self.line_chars < 1 or self.lines < 1 or not self.chars_per_s > 0 or not self.pause_s > 0:
            raise UsageError("cues: characters, lines, reading speed and pause must be greater than 0")
        if not 0 <= self.shortest_s <= self.longest_s or not self.gap_s >= 0:
            raise UsageError("cues: the shortest is at most as long as the longest, and the gap is not negative")


def cues(words: Sequence[TimedWord], settings: CueSettings, prefix: str = "") -> list[Cue]:
    """The cues of the words of one speaker.

    Args:
        words: in order of time; each ends at or before the start of the next.
        settings: the limits.
        prefix: put in front of each cue, such as the name of the speaker; it counts as characters.
    """
    groups = [group for run in _runs(words, settings.pause_s) for group in _split(run, settings, prefix)]
    groups = _without_short(groups, settings, prefix)
    found = []
    for index, group in enumerate(groups):
        limit = groups[index + 1][0].start_s - settings.gap_s if index + 1 < len(groups) else float("inf")
        text = _text(group, prefix)
        wanted = max(settings.shortest_s, len(text) / settings.chars_per_s)
        end_s = max(group[-1].end_s, min(group[0].start_s + min(wanted, settings.longest_s), limit))
        last = group[-1]
        end_s = min(
            end_s, max(limit, (last.start_s + last.end_s) / 2)
        )  # the gap is taken from the end of the last word
        found.append(Cue(group[0].start_s, end_s, tuple(_lines(text, settings))))
    return found


def _runs(words: Sequence[TimedWord], pause_s: float) -> Iterator[Sequence[TimedWord]]:
    """The words between long pauses."""
    start = 0
    for index in range(1, len(words) + 1):
        if index == len(words) or words[index].start_s - words[index - 1].end_s >= pause_s:
            yield words[start:index]
            start = index


def _split(words: Sequence[TimedWord], settings: CueSettings, prefix: str) -> Iterator[Sequence[TimedWord]]:
    """Pieces that fit into a cue each, cut where a pause or a mark is, and near the middle."""
    stack = [words]
    while stack:
        group = stack.pop()
        if _fits(group, settings, prefix):
            yield group
            continue
        third = len(group) // 3
        places = range(max(1, third), min(len(group), len(group) - third + 1))
        middle = len(group) / 2
        place = max(places, key=lambda k: (_pause(group[k - 1], group[k]), -abs(k - middle)))
        stack += [group[place:], group[:place]]


def _pause(word: TimedWord, following: TimedWord) -> float:
    mark = _SENTENCE_S if word.word.endswith(_SENTENCE_ENDS) else _CLAUSE_S if word.word.endswith(_CLAUSE_ENDS) else 0.0
    return round(following.start_s - word.end_s + mark, 3)


def _without_short(
    groups: Sequence[Sequence[TimedWord]], settings: CueSettings, prefix: str
) -> list[Sequence[TimedWord]]:
    """The groups; one that would be shown too shortly is joined with the one before or behind it, if they fit."""
    found: list[Sequence[TimedWord]] = []
    for group, following in itertools.zip_longest(groups, groups[1:]):
        if found:
            before = found[-1]
            shown_s = group[0].start_s - before[0].start_s
            if following is not None:
                shown_s = min(shown_s, following[0].start_s - group[0].start_s)
            is_short = shown_s < settings.shortest_s + settings.gap_s
            joined = [*before, *group]
            if is_short and _pause_s(before, group) < settings.pause_s and _fits(joined, settings, prefix):
                found[-1] = joined
                continue
        found.append(group)
    return found


def _pause_s(words: Sequence[TimedWord], following: Sequence[TimedWord]) -> float:
    return following[0].start_s - words[-1].end_s


def _text(words: Sequence[TimedWord], prefix: str) -> str:
    return prefix + " ".join(word.word for word in words)


def _fits(words: Sequence[TimedWord], settings: CueSettings, prefix: str) -> bool:
    if len(words) == 1:
        return True
    if words[-1].end_s - words[0].start_s > settings.longest_s:
        return False
    text = _text(words, prefix)
    if len(text) > settings.lines * (settings.line_chars + 1):
        return False
    lines = _wrapped(text, settings.line_chars)
    return len(lines) <= settings.lines and max(map(len, lines)) <= settings.line_chars


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False)


def _lines(text: str, settings: CueSettings) -> list[str]:
    """The text in as few lines as it takes, of about the same length."""
    fewest = len(_wrapped(text, settings.line_chars))
    narrow = min(-(-len(text) // fewest), settings.line_chars)
    wrapped = (_wrapped(text, width) for width in range(narrow, settings.line_chars + 1))
    return next(lines for lines in wrapped if len(lines) <= fewest)
