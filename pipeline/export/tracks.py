"""A recording as the formats of texts see it: tracks of segments and words, one for each channel and speaker."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Final, NamedTuple

from pipeline.export.cues import TimedWord
from pipeline.runs.recordings import IDENTITY, RecordingRows, recording_ids

COLUMNS: Final = (*IDENTITY, "text", "words", "confidence", "speaker")
"""The columns of `transcripts` that a track is made of."""


class Segment(NamedTuple):
    """A row of `transcripts`.

    Attributes:
        utterance: its id without what the pipeline appended for segments and channels.
        text: with single spaces.
    """

    utt_id: str
    utterance: str
    start_s: float
    end_s: float
    text: str
    confidence: float | None


@dataclass(frozen=True)
class Track:
    """What one speaker says in one channel of a recording.

    Attributes:
        channel: from 0; None where channels have no rows of their own.
        speaker: as the source names the speaker; None if it names none.
        name: the speaker; else the channel, as `channel 1`; empty where the recording has neither.
        segments: in order of time.
        words: in order of time.
    """

    channel: int | None
    speaker: str | None
    name: str
    segments: tuple[Segment, ...]
    words: tuple[TimedWord, ...]


@dataclass(frozen=True)
class RecordingTracks:
    """A recording: its id, the object that holds its audio, and its tracks, by channel and speaker."""

    recording: str
    uri: str
    tracks: tuple[Track, ...]

    @property
    def end_s(self) -> float:
        """The end of its last segment."""
        return max(segment.end_s for track in self.tracks for segment in track.segments)


def tracks_of(rows: RecordingRows, selected: str | None = None) -> RecordingTracks | None:
    """The tracks of a recording; None if no row is selected.

    Args:
        rows: with `COLUMNS`.
        selected: a column that says which rows to take; None: all.
    """
    table = rows.transcripts if selected is None else rows.transcripts.filter(rows.transcripts[selected])
    if not table.num_rows:
        return None
    found: dict[tuple[int | None, str | None], tuple[list[Segment], list[TimedWord]]] = {}
    for row, utterance in zip(table.select(COLUMNS).to_pylist(), recording_ids(table), strict=True):
        segments, words = found.setdefault((row["channel"], row["speaker"]), ([], []))
        end_s = row["start_s"] + row["duration_s"]
        text = " ".join(row["text"].split())
        segments.append(Segment(row["utt_id"], utterance, row["start_s"], end_s, text, row["confidence"]))
        for word in row["words"]:
            if written := " ".join(word["word"].split()):
                words.append(TimedWord(written, word["start_s"], word["end_s"], word["confidence"]))
    names = Counter(speaker for _, speaker in found if speaker)
    tracks = []
    for (channel, speaker), (segments, words) in sorted(found.items(), key=_by_channel_and_speaker):
        name = speaker or ""
        if channel is not None and (not name or names[name] > 1):
            name = f"{name} channel {channel + 1}".strip()
        words.sort(key=lambda word: word.start_s)
        tracks.append(Track(channel, speaker, name, tuple(segments), tuple(words)))
    return RecordingTracks(rows.recording, table["uri"][0].as_py(), tuple(tracks))


def _by_channel_and_speaker(item: tuple[tuple[int | None, str | None], object]) -> tuple[int, str]:
    channel, speaker = item[0]
    return -1 if channel is None else channel, speaker or ""
