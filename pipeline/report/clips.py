"""Audio of utterances for a page: short clips in Ogg Opus, or links to the objects.

An utterance is found by the object, the times and the channel of its row; one of a shard by its id, in the part that it
was read from. What cannot be found or decoded is left out, and counted by the reason.
"""

from __future__ import annotations

import base64
import contextlib
import io
import itertools
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Final
from urllib.parse import quote

import av
import numpy as np

from pipeline.audio.decode import AudioSettings, LastRecording, read_segments
from pipeline.audio.samples import Samples, to_float32
from pipeline.corpus.parts import Part
from pipeline.corpus.read import read_part
from pipeline.corpus.utterances import open_object
from pipeline.errors import AudioError, DamagedRunError, InputChangedError, StorageError
from pipeline.report.model import AudioMode, Clip
from pipeline.runs.run import Run
from pipeline.secrets import has_secret

CLIPS: Final = 50  # utterances that a clip is made for
CLIP_S: Final = 20.0  # of a longer utterance, this much from its beginning
PAGE_BYTES: Final = 2 * 2**20  # of all clips, before base64
SHARD_BYTES: Final = 2 * 2**30  # of all shards that are searched: they are read from their beginning
TIME_S: Final = 120.0  # no further object is opened after this time

_RATE: Final = 16_000
_BIT_RATE: Final = 24_000
_TOO_LATE: Final = f"not decoded within {TIME_S:g} s"
_CONTAINERS: Final = frozenset({"tar", "parquet"})

Row = Mapping[str, Any]
COLUMNS: Final = ("utt_id", "uri", "start_s", "duration_s", "channel", "part_id")
"""Columns of `transcripts` that a clip needs."""


@dataclass
class Clips:
    """The clips by utt_id, and how many utterances have none, by the reason."""

    by_id: dict[str, Clip] = field(default_factory=dict)
    left_out: Counter[str] = field(default_factory=Counter)


def clips_of(run: Run, rows: Sequence[Row], mode: AudioMode) -> Clips:
    """The clips of utterances, as many as the limits of a page allow.

    Args:
        run: the run.
        rows: utterances, with `COLUMNS`, the most important first.
        mode: `embed` decodes and embeds them, `link` only names the objects, which are not opened.
    """
    if mode == "none":
        return Clips()
    parts = _parts_of(run, rows)
    return _linked(rows, parts) if mode == "link" else _embedded(run, rows, parts)


def _parts_of(run: Run, rows: Sequence[Row]) -> dict[str, Part]:
    try:
        return {part.part_id: part for part in run.parts({row["part_id"] for row in rows})}
    except DamagedRunError:  # the plan is lost or damaged; objects that are no shards are found without it
        return {}


def _in_shard(row: Row, parts: Mapping[str, Part]) -> bool:
    part = parts.get(row["part_id"])
    return part is not None and part.kind in _CONTAINERS and part.uri == row["uri"]


# --- Links


def _linked(rows: Sequence[Row], parts: Mapping[str, Part]) -> Clips:
    clips = Clips()
    for row in rows:
        if _in_shard(row, parts):
            clips.left_out["inside a shard"] += 1
        elif has_secret(row["uri"]):
            clips.left_out["at an address that holds a secret"] += 1
        elif (address := _address(row["uri"])) is None:
            clips.left_out["stored where no browser can open it"] += 1
        else:
            start_s, duration_s = row["start_s"] or 0.0, row["duration_s"]
            end = "" if duration_s is None else f",{start_s + duration_s:.3f}"
            clips.by_id[row["utt_id"]] = Clip(f"{address}#t={start_s:.3f}{end}", duration_s)
    return clips


def _address(uri: str) -> str | None:
    """The address under which a browser finds an object; None if it cannot."""
    scheme, separator, path = uri.partition("://")
    if not separator:
        return "file://" + quote(uri)
    if scheme == "file":
        return "file://" + quote(path)
    return uri if scheme in {"http", "https"} else None


# --- Embedded clips


def _embedded(run: Run, rows: Sequence[Row], parts: Mapping[str, Part]) -> Clips:
    encoded: dict[str, bytes | str] = {}  # by utt_id: the clip, or why there is none
    heard: dict[str, float] = {}
    until = time.monotonic() + TIME_S
    for utt_id, samples in _decoded(rows, parts, _channels_of(run), until):
        if isinstance(samples, str):
            encoded.setdefault(utt_id, samples)
        else:
            encoded[utt_id] = _opus(samples)
            heard[utt_id] = len(samples) / _RATE
    clips, size = Clips(), 0
    for row in rows:
        utt_id = row["utt_id"]
        data = encoded.get(utt_id, "not found again")
        if isinstance(data, bytes) and size + len(data) > PAGE_BYTES:
            data = "over the size of a page"
        if isinstance(data, str):
            clips.left_out[data] += 1
        else:
            size += len(data)
            source = "data:audio/ogg;base64," + base64.b64encode(data).decode()
            clips.by_id[utt_id] = Clip(source, heard[utt_id])
    return clips


def _channels_of(run: Run) -> Any:
    """The channels that the run transcribed; rows of split channels have their own."""
    channels = run.record.config.get("channels", "mix")
    return "mix" if channels == "split" else channels


def _decoded(
    rows: Sequence[Row], parts: Mapping[str, Part], channels: Any, until: float
) -> Iterator[tuple[str, Samples | str]]:
    """The samples of each utterance, or why there are none. Each object is opened once."""
    unreachable: set[str] = set()  # stores: each retries for a while, which is enough once
    budget = SHARD_BYTES
    by_object: dict[str, list[Row]] = {}
    for row in rows:
        by_object.setdefault(row["part_id"] if _in_shard(row, parts) else row["uri"], []).append(row)
    for wanted in by_object.values():
        part, uri = parts.get(wanted[0]["part_id"]), wanted[0]["uri"]
        store = uri.split("/")[:3][-1] if "://" in uri else ""
        problem = ""
        try:
            if store in unreachable:
                problem = "in storage that cannot be reached"
            elif time.monotonic() > until:
                problem = _TOO_LATE
            elif part is not None and _in_shard(wanted[0], parts):
                budget -= part.bytes
                if budget < 0:
                    problem = "in shards that are too large to search"
                else:
                    yield from _from_shard(part, wanted, channels, until)
            else:
                yield from _from_object(uri, part, wanted, channels, until)
        except AudioError as error:
            problem = error.code.value
        except InputChangedError:
            problem = "changed since they were transcribed"
        except StorageError:
            unreachable.add(store)
            problem = "in storage that cannot be reached"
        if problem:
            yield from ((row["utt_id"], problem) for row in wanted)


def _from_object(
    uri: str, part: Part | None, rows: Sequence[Row], channels: Any, until: float
) -> Iterator[tuple[str, Samples | str]]:
    versions = {} if part is None else {item.uri: item.version for item in part.items}
    with _closing(open_object(uri, versions.get(uri))) as audio, contextlib.closing(LastRecording()) as last:
        for row in sorted(rows, key=lambda row: row["start_s"] or 0.0):
            in_time = time.monotonic() <= until  # a format without seeking is decoded from its beginning
            yield row["utt_id"], _samples_or_reason(audio, row, channels, last) if in_time else _TOO_LATE


def _from_shard(part: Part, rows: Sequence[Row], channels: Any, until: float) -> Iterator[tuple[str, Samples | str]]:
    """Read a shard up to the last utterance that is wanted."""
    wanted = {row["utt_id"]: row for row in rows}
    for utterance in read_part(part):
        if time.monotonic() > until:
            yield from ((utt_id, _TOO_LATE) for utt_id in wanted)
            return
        # A segment or a channel of the utterance has its id with `#...` behind.
        own = [i for i in wanted if i == utterance.utt_id or i.startswith(utterance.utt_id + "#")]
        if own and utterance.problem is None:
            with _closing(utterance.open()) as audio:
                for utt_id in own:
                    yield utt_id, _samples_or_reason(audio, wanted.pop(utt_id), channels)
        if not wanted:
            return


@contextlib.contextmanager
def _closing(audio: bytes | BinaryIO) -> Iterator[bytes | BinaryIO]:
    with contextlib.nullcontext() if isinstance(audio, bytes) else contextlib.closing(audio):
        yield audio


def _samples_or_reason(
    audio: bytes | BinaryIO, row: Row, channels: Any, last: LastRecording | None = None
) -> Samples | str:
    settings = AudioSettings(_RATE, channels if row["channel"] is None else row["channel"])
    duration_s = CLIP_S if row["duration_s"] is None else min(row["duration_s"], CLIP_S)
    try:
        segments = read_segments(audio, settings, offset_s=row["start_s"] or 0.0, duration_s=duration_s, last=last)
        return np.concatenate([to_float32(segment.samples) for segment in segments])
    except AudioError as error:
        return error.code.value


def _opus(samples: Samples) -> bytes:
    """Ogg Opus of mono samples at `_RATE`."""
    buffer = io.BytesIO()
    scaled = np.rint(np.clip(samples, -1, 1) * 32767).astype(np.int16)
    with av.open(buffer, "w", format="ogg") as container:
        stream = container.add_stream("libopus", rate=_RATE, layout="mono", bit_rate=_BIT_RATE)
        frame = av.AudioFrame.from_ndarray(scaled[None], format="s16", layout="mono")
        frame.sample_rate = _RATE
        frame.pts = 0  # else FFmpeg counts the delay of the encoder twice, and the last page ends after the audio
        for packet in itertools.chain(stream.encode(frame), stream.encode(None)):
            container.mux(packet)
    return buffer.getvalue()
