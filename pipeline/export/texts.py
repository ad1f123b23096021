"""Subtitles, and the text formats of scoring and annotation: from the tracks of a recording to a text.

SubRip has no standard. WebVTT: https://www.w3.org/TR/webvtt1/. CTM, STM and TRN: NIST's SCTK, doc/infmts.htm.
RTTM: NIST's evaluation plan of Rich Transcription 2009, appendix A. TextGrid: Praat's manual, "TextGrid file formats".

Names must not hold white space in NIST's formats: such characters, and `%`, are written as `%XX`, as in addresses.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final
from urllib.parse import quote

from pipeline.export.cues import Cue, CueSettings, TimedWord, cues
from pipeline.export.tracks import RecordingTracks, Track

_UNSAFE: Final = re.compile(r"[\s%\x00-\x1f\x7f()]|^;")


@dataclass(frozen=True)
class TextSettings:
    """How recordings become texts.

    Attributes:
        cues: the limits of subtitles.
        turn_gap_s: RTTM: a pause of at least this length ends a turn.
    """

    cues: CueSettings = field(default_factory=CueSettings)
    turn_gap_s: float = 0.5


def _srt(recording: RecordingTracks, settings: TextSettings) -> str:
    blocks = []
    for number, (cue, _) in enumerate(_cues(recording, settings.cues, prefixed=True), 1):
        times = f"{_clock(cue.start_s, ',')} --> {_clock(cue.end_s, ',')}"
        blocks.append("\n".join((str(number), times, *cue.lines)) + "\n")
    return "\n".join(blocks)


def _vtt(recording: RecordingTracks, settings: TextSettings) -> str:
    blocks = ["WEBVTT\n"]
    for cue, name in _cues(recording, settings.cues, prefixed=False):
        text = "\n".join(map(_vtt_text, cue.lines))
        voice = f"<v {_vtt_text(name)}>" if name else ""
        blocks.append(f"{_clock(cue.start_s, '.')} --> {_clock(cue.end_s, '.')}\n{voice}{text}\n")
    return "\n".join(blocks)


def _vtt_text(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _cues(recording: RecordingTracks, settings: CueSettings, *, prefixed: bool) -> list[tuple[Cue, str]]:
    """The cues of all tracks, with the name of the track if there are several, by time."""
    found = []
    for track in recording.tracks:
        name = " ".join(track.name.split()) if len(recording.tracks) > 1 else ""
        prefix = f"{name}: " if name and prefixed else ""
        found += [(cue, name) for cue in cues(track.words, settings, prefix)]
    return sorted(found, key=lambda item: (item[0].start_s, item[0].end_s))


def _clock(seconds: float, point: str) -> str:
    """Hours, minutes, seconds and milliseconds."""
    whole, thousandths = divmod(round(seconds * 1000), 1000)
    return f"{whole // 3600:02d}:{whole // 60 % 60:02d}:{whole % 60:02d}{point}{thousandths:03d}"


def safe_name(text: str) -> str:
    """A name without white space, as formats of lines of words need it."""
    return _UNSAFE.sub(lambda match: quote(match[0], safe=""), text) or "%00"


def _channel(track: Track) -> str:
    return str((track.channel or 0) + 1)


def _speaker(track: Track) -> str:
    return safe_name(track.name or "unknown")


def _ctm(recording: RecordingTracks, settings: TextSettings) -> str:
    del settings
    return "".join(
        f"{safe_name(recording.recording)} {channel} {start:.3f} {end - start:.3f} {written} {word.confidence:.4f}\n"
        for channel, track in _by_channel(recording)
        for word, written, start, end in _parts(track)
    )


def _by_channel(recording: RecordingTracks) -> Iterator[tuple[str, list[TimedWord]]]:
    """The words of each channel, by time, whoever speaks."""
    channels: dict[str, list[TimedWord]] = {}
    for track in recording.tracks:
        channels.setdefault(_channel(track), []).extend(track.words)
    for channel, words in channels.items():
        yield channel, sorted(words, key=lambda word: word.start_s)


def _parts(words: list[TimedWord]) -> Iterator[tuple[TimedWord, str, float, float]]:
    """Words, and the pieces of those that hold white space, with start and end in whole milliseconds."""
    for word in words:
        pieces = word.word.split()
        length = (word.end_s - word.start_s) / len(pieces)
        for index, piece in enumerate(pieces):
            start = word.start_s + index * length
            yield word, piece, round(start, 3), round(start + length, 3)


def _stm(recording: RecordingTracks, settings: TextSettings) -> str:
    del settings
    return "".join(
        f"{safe_name(recording.recording)} {_channel(track)} {_speaker(track)} "
        f"{segment.start_s:.3f} {segment.end_s:.3f} {segment.text}".rstrip()
        + "\n"
        for track in recording.tracks
        for segment in track.segments
    )


def _trn(recording: RecordingTracks, settings: TextSettings) -> str:
    """A line for each utterance of the source: its segments are joined, its channels are not."""
    del settings
    texts: dict[str, list[str]] = {}
    for track in recording.tracks:
        for segment in track.segments:
            name = segment.utterance if track.channel is None else f"{segment.utterance}#c{track.channel}"
            texts.setdefault(name, []).append(segment.text)
    return "".join(
        f"{' '.join(filter(None, text))} ({safe_name(name)})".lstrip() + "\n" for name, text in texts.items()
    )


def _rttm(recording: RecordingTracks, settings: TextSettings) -> str:
    lines = []
    for track in recording.tracks:
        for start_s, end_s in _turns(track, settings.turn_gap_s):
            start, length = round(start_s, 3), round(end_s, 3) - round(start_s, 3)
            lines.append(
                f"SPEAKER {safe_name(recording.recording)} {_channel(track)} {start:.3f} {length:.3f} <NA> <NA> "
                f"{_speaker(track)} <NA> <NA>\n"
            )
    return "".join(lines)


def _turns(track: Track, gap_s: float) -> list[tuple[float, float]]:
    turns: list[tuple[float, float]] = []
    for word in track.words:
        if turns and word.start_s - turns[-1][1] < gap_s:
            turns[-1] = (turns[-1][0], max(turns[-1][1], word.end_s))
        else:
            turns.append((word.start_s, word.end_s))
    return turns


def _textgrid(recording: RecordingTracks, settings: TextSettings) -> str:
    """Two tiers for each track: its segments and its words."""
    del settings
    end_s = max([recording.end_s, *(word.end_s for track in recording.tracks for word in track.words)])
    tiers = []
    for track in recording.tracks:
        suffix = f" ({track.name})" if track.name else ""
        spans = [(segment.text, segment.start_s, segment.end_s) for segment in track.segments]
        tiers.append((f"segments{suffix}", _intervals(spans, end_s)))
        tiers.append((f"words{suffix}", _intervals([word[:3] for word in track.words], end_s)))
    lines = ['File type = "ooTextFile"', 'Object class = "TextGrid"', ""]
    lines += ["xmin = 0", f"xmax = {end_s:.6f}", "tiers? <exists>", f"size = {len(tiers)}", "item []:"]
    for number, (name, intervals) in enumerate(tiers, 1):
        lines += [f"    item [{number}]:", '        class = "IntervalTier"', f"        name = {_quoted(name)}"]
        lines += ["        xmin = 0", f"        xmax = {end_s:.6f}", f"        intervals: size = {len(intervals)}"]
        for index, (text, start, end) in enumerate(intervals, 1):
            lines += [
                f"        intervals [{index}]:",
                f"            xmin = {start:.6f}",
                f"            xmax = {end:.6f}",
            ]
            lines += [f"            text = {_quoted(text)}"]
    return "\n".join(lines) + "\n"


def _intervals(spans: list[tuple[str, float, float]], end_s: float) -> list[tuple[str, float, float]]:
    """Intervals from 0 to the end without a gap: empty ones between the spans, which end where the next begins."""
    found: list[tuple[str, float, float]] = []
    last = 0.0
    limits = [*(start_s for _, start_s, _ in spans[1:]), end_s]
    for (text, start_s, stop_s), limit_s in zip(spans, limits, strict=False):
        start = max(round(start_s, 6), last)
        end = max(round(min(stop_s, limit_s), 6), round(start + 1e-6, 6))
        if start > last:
            found.append(("", last, start))
        found.append((text, start, end))
        last = end
    if last < round(end_s, 6):
        found.append(("", last, round(end_s, 6)))
    return found


def _quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"'


def _jsonl(recording: RecordingTracks, settings: TextSettings) -> str:
    """A line for each track."""
    del settings
    return "".join(
        json.dumps(
            {
                "recording": recording.recording,
                "uri": recording.uri,
                "channel": track.channel,
                "speaker": track.speaker,
                "text": " ".join(segment.text for segment in track.segments if segment.text),
                "words": [word._asdict() for word in track.words],
                "segments": [
                    {
                        "utt_id": segment.utt_id,
                        "start_s": segment.start_s,
                        "end_s": segment.end_s,
                        "text": segment.text,
                        "confidence": segment.confidence,
                    }
                    for segment in track.segments
                ],
            },
            ensure_ascii=False,
        )
        + "\n"
        for track in recording.tracks
    )


Writer = Callable[[RecordingTracks, TextSettings], str]

OF_A_RECORDING: Final[Mapping[str, Writer]] = MappingProxyType({"srt": _srt, "vtt": _vtt, "textgrid": _textgrid})
"""Formats with a file for each recording."""

OF_ALL: Final[Mapping[str, Writer]] = MappingProxyType(
    {"ctm": _ctm, "stm": _stm, "trn": _trn, "rttm": _rttm, "jsonl": _jsonl}
)
"""Formats with one file of all recordings, which is that of each, one behind the other."""

SUFFIXES: Final[Mapping[str, str]] = MappingProxyType({"srt": ".srt", "vtt": ".vtt", "textgrid": ".TextGrid"})
