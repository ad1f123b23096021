"""NIST's STM files: reference texts of recordings in segments with channel, speaker and times.

    ;; a comment
    call_17 1 anna 0.00 4.20 <o,f0,female> good morning
    call_17 2 ben 3.90 6.00 <o,f0,male> morning
    call_17 1 inter_segment_gap 4.20 9.00 <o,f0,female>
    call_17 1 excluded_region 9.00 12.00 <o,f0,female> IGNORE_TIME_SEGMENT_IN_SCORING

Source: SCTK, doc/infmts.htm. A segment without words says that nothing was said: words recognised in it are errors.
What is recognised in an ignored segment is not scored. Channels are letters, or numbers from 1 (from 0 where the file
has a channel 0). Of alternatives, `{ a / b }`, the first is the reference, and `@` stands for no word. Words that
NIST's tools may leave out, fragments (`wo-`) and optional words (`(um)`), are words like others.
"""

from __future__ import annotations

import math
import re
from typing import Final, NamedTuple

_IGNORED: Final = "ignore_time_segment_in_scoring"
_NO_SPEAKERS: Final = frozenset({"inter_segment_gap", "excluded_region"})
_LABEL: Final = re.compile(r"<[^<>]*>")
_ALTERNATIVES: Final = re.compile(r"\{([^{}/]*)[^{}]*\}")
_MAX_CHANNELS: Final = 64


class ReferenceSegment(NamedTuple):
    """A part of the reference of a recording.

    Attributes:
        text: what was said; None: what is recognised in it is not scored.
        start_s: where it begins in the recording; None where the reference has no times.
        end_s: where it ends.
        channel: from 0; None where the reference names none.
        speaker: who speaks; None where the reference names nobody.
    """

    text: str | None
    start_s: float | None = None
    end_s: float | None = None
    channel: int | None = None
    speaker: str | None = None


def parse_stm(content: str) -> dict[str, tuple[ReferenceSegment, ...]]:
    """The segments of each recording, in the order of their starts.

    Raises:
        ValueError: a line is not one of an STM file; the message names it.
    """
    lines = [(number, line.split(None, 5)) for number, line in enumerate(content.split("\n"), 1)]
    lines = [(number, fields) for number, fields in lines if fields and not fields[0].startswith(";;")]
    first = 0 if any(fields[1:2] == ["0"] for _, fields in lines) else 1
    recordings: dict[str, list[ReferenceSegment]] = {}
    for number, fields in lines:
        try:
            recordings.setdefault(fields[0], []).append(_segment(fields, first))
        except (ValueError, IndexError) as error:
            expected = "recording, channel, speaker, start, end, words"
            raise ValueError(f"line {number} is not one of an STM file ({expected}): {' '.join(fields)}") from error
    return {
        name: tuple(sorted(found, key=lambda segment: segment.start_s or 0.0)) for name, found in recordings.items()
    }


def _segment(fields: list[str], first_channel: int) -> ReferenceSegment:
    _, channel, speaker, start, end, *rest = fields
    start_s, end_s = float(start), float(end)
    if not 0 <= start_s <= end_s < math.inf:
        raise ValueError("times")
    text = rest[0].strip() if rest else ""
    label = _LABEL.match(text)
    text = text[label.end() :].strip() if label else text
    while text != (chosen := _ALTERNATIVES.sub(r"\1", text)):  # alternatives may be nested
        text = chosen
    words = [word for word in text.split() if word != "@"]
    return ReferenceSegment(
        None if text.lower() == _IGNORED else " ".join(words),
        start_s,
        end_s,
        _channel(channel, first_channel),
        None if speaker.lower() in _NO_SPEAKERS else speaker,
    )


def _channel(name: str, first: int) -> int:
    letter = name.upper()
    if not name.isdecimal() and len(letter) != 1:
        raise ValueError("channel")
    number = int(name) - first if name.isdecimal() else ord(letter) - ord("A")
    if not 0 <= number < _MAX_CHANNELS:
        raise ValueError("channel")
    return number
