"""Kaldi's data directories: `wav.scp`, and beside it `segments`, `text`, `utt2spk`, `utt2lang`, `reco2dur`, `utt2dur`.

The format: https://kaldi-asr.org/doc/data_prep.html. `wav.scp` may hold commands, whose output Kaldi reads; they are
never run.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Mapping

from pipeline.corpus.tables.kind import Row, TableKind, read_text
from pipeline.errors import AudioError, ErrorCode, UsageError
from pipeline.storage import objects, uris

KALDI_FILES = frozenset(
    [
        "segments",
        "text",
        "utt2spk",
        "spk2utt",
        "utt2lang",
        "utt2dur",
        "reco2dur",
        "spk2gender",
        "utt2num_frames",
        "reco2file_and_channel",
        "feats.scp",
        "cmvn.scp",
        "frame_shift",
    ]
)
"""Names of files beside `wav.scp` that are no audio."""


def _rows(uri: str) -> Iterator[Row]:
    directory = posixpath.dirname(uri)
    recordings = {key: _recording(key, path) for key, path in _pairs(uri)}
    if recordings and all(isinstance(path, AudioError) for path in recordings.values()):
        first = next(iter(recordings.values()))
        raise UsageError(f"{uri} names no audio file: {first.message if isinstance(first, AudioError) else first}")
    text = _optional(directory, "text")
    speakers = _optional(directory, "utt2spk")
    languages = _optional(directory, "utt2lang")
    durations = _optional(directory, "utt2dur") or _optional(directory, "reco2dur")
    segments = _optional(directory, "segments")
    for utt_id, segment in (segments or dict.fromkeys(recordings, "")).items():
        span = _span(segment) if segments else {}
        recording = span.pop("recording", utt_id) if isinstance(span, dict) else utt_id
        path = recordings.get(str(recording))
        if isinstance(span, AudioError):
            yield span
        elif path is None:
            yield AudioError(ErrorCode.MISSING, f"{utt_id}: wav.scp has no recording {recording}")
        elif isinstance(path, AudioError):
            yield path
        else:
            row: dict[str, object] = {"utt_id": utt_id, "audio_filepath": path, **span}
            if not segments and utt_id in durations:
                row["duration"] = durations[utt_id]
            for key, values in (("text", text), ("speaker", speakers), ("lang", languages)):
                if utt_id in values:
                    row[key] = values[utt_id]
            yield row


def _pairs(uri: str) -> Iterator[tuple[str, str]]:
    """The first word of each line, and the rest."""
    for line in read_text(uri).split("\n"):
        key, _, rest = line.strip().replace("\t", " ", 1).partition(" ")
        if key:
            yield key, rest.strip()


def _optional(directory: str, name: str) -> Mapping[str, str]:
    uri = uris.join(directory, name)
    return dict(_pairs(uri)) if objects.exists(uri) else {}


def _recording(key: str, path: str) -> str | AudioError:
    if path.endswith("|") or path.startswith("|"):
        message = f"{key}: wav.scp has a command, which is never run: {path}; name the audio file itself"
        return AudioError(ErrorCode.UNSUPPORTED, message)
    if not path or path == "-":
        return AudioError(ErrorCode.BAD_ROW, f"{key}: wav.scp names no file")
    name, colon, offset = path.rpartition(":")
    if colon and offset.isdigit() and name.lower().endswith(".ark"):
        message = f"{key}: wav.scp leads into an archive of Kaldi, which is not read: {path}"
        return AudioError(ErrorCode.UNSUPPORTED, message)
    return path


def _span(segment: str) -> dict[str, object] | AudioError:
    """A line of `segments`: the recording, start and end in seconds; an end of -1 is that of the recording."""
    try:
        recording, start, end, *_ = segment.split()
        offset_s, end_s = float(start), float(end)
    except ValueError:
        return AudioError(ErrorCode.BAD_ROW, f"not a line of `segments` (recording, start, end): {segment}")
    found: dict[str, object] = {"recording": recording, "offset": offset_s}
    return found if end_s < 0 else {**found, "duration": end_s - offset_s}


KALDI = TableKind(
    key="kaldi",
    name="Kaldi data directory",
    recognises=lambda name, head: name == "wav.scp",
    rows=_rows,
)
