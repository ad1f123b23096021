"""lhotse's manifests in JSON lines: recordings with supervisions beside them, or cuts.

The formats: https://lhotse.readthedocs.io/en/latest/corpus.html and cuts.html. A row is a supervision, which is an
utterance; a recording without supervisions; or a cut, whose supervisions are joined.
"""

from __future__ import annotations

import json
import posixpath
from collections.abc import Iterator, Mapping
from typing import Any, Final

from pipeline.corpus.tables.json_lines import SUFFIXES, objects_of
from pipeline.corpus.tables.kind import CHANNEL, Row, TableKind, read_text
from pipeline.errors import AudioError, ErrorCode, UsageError
from pipeline.storage import objects, uris

_CUTS = ("MonoCut", "MultiCut")
_OTHER_CUTS = ("MixedCut", "PaddingCut")
NOT_CUSTOM: Final = frozenset({"utt_id", "id", "offset", "duration", "audio_filepath"})  # have a meaning in a row


def _kind(head: bytes) -> str:
    """`recordings`, `supervisions` or `cuts` by the first line of a file; empty for anything else."""
    try:
        first = json.loads(head.lstrip(b"\xef\xbb\xbf").split(b"\n", 1)[0])
    except (ValueError, RecursionError):
        return ""
    if not isinstance(first, dict):
        return ""
    if first.get("type") in (*_CUTS, *_OTHER_CUTS):
        return "cuts"
    if {"id", "sources", "sampling_rate"} <= first.keys():
        return "recordings"
    return "supervisions" if {"id", "recording_id", "start", "duration"} <= first.keys() else ""


def _rows(uri: str) -> Iterator[Row]:
    kind = _kind(read_text(uri)[: 1 << 20].encode())
    if kind == "cuts":
        yield from map(_of_cut, objects_of(uri))
        return
    recordings_uri = uri if kind == "recordings" else _beside(uri, "supervisions", "recordings")
    if recordings_uri is None:
        raise UsageError(
            f"{uri} holds lhotse's supervisions, and the recordings beside it are missing: the file that has "
            "`recordings` in its name where this one has `supervisions`"
        )
    supervisions_uri = uri if kind == "supervisions" else _beside(uri, "recordings", "supervisions")
    recordings: dict[str, dict[str, Any]] = {}
    for found in objects_of(recordings_uri):
        if isinstance(found, AudioError):
            yield found
        else:
            recordings[str(found.get("id"))] = found
    named = set()
    for supervision in objects_of(supervisions_uri) if supervisions_uri else ():
        if isinstance(supervision, AudioError):
            yield supervision
            continue
        recording_id = str(supervision.get("recording_id"))
        named.add(recording_id)
        yield _of_supervision(supervision, recordings.get(recording_id))
    for key, recording in recordings.items():
        if key not in named:
            yield _audio_of(recording, {"utt_id": key, "duration": recording.get("duration")})


def _beside(uri: str, name: str, other: str) -> str | None:
    """The file beside `uri` that has `other` in its name for `name`, compressed or not."""
    directory, base = posixpath.split(uri)
    if name not in base:
        return None
    plain = base.replace(name, other).removesuffix(".gz")
    found = (uris.join(directory, plain + end) for end in ("", ".gz"))
    return next(filter(objects.exists, found), None)


def _of_supervision(supervision: Mapping[str, Any], recording: Mapping[str, Any] | None) -> Row:
    utt_id = str(supervision.get("id"))
    if recording is None:
        message = f"{utt_id}: there is no recording {supervision.get('recording_id')}"
        return AudioError(ErrorCode.MISSING, message)
    span = {"offset": supervision.get("start"), "duration": supervision.get("duration")}
    return _audio_of(recording, {"utt_id": utt_id, **span, **_said(supervision)}, supervision.get("channel"))


def _of_cut(cut: Row) -> Row:
    values = cut_values(cut)
    if isinstance(values, AudioError) or isinstance(cut, AudioError):
        return values
    span = {"offset": cut.get("start"), "duration": cut.get("duration")}
    return _audio_of(cut["recording"], {**values, **span}, cut.get("channel"))


def cut_values(cut: Row) -> Row:
    """What a cut says about its utterance, without its audio and its span; an error for a cut that is not read."""
    if isinstance(cut, AudioError):
        return cut
    utt_id = str(cut.get("id"))
    if cut.get("type") in _OTHER_CUTS:
        return AudioError(
            ErrorCode.UNSUPPORTED, f"{utt_id}: a {cut['type']} is made of several recordings: save its audio"
        )
    if not isinstance(cut.get("recording"), dict):
        return AudioError(ErrorCode.MISSING, f"{utt_id}: the cut has no recording")
    supervisions = [found for found in _list(cut.get("supervisions")) if isinstance(found, dict)]
    supervisions.sort(key=_start)
    texts = [str(found["text"]) for found in supervisions if found.get("text") is not None]
    said = _said(supervisions[0]) if supervisions else {}
    if len({str(found.get("speaker")) for found in supervisions}) > 1:
        said.pop("speaker", None)
    if texts:
        said["text"] = " ".join(texts)
    return {**_custom(cut), "utt_id": utt_id, **said}


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _start(supervision: Mapping[str, Any]) -> float:
    start = supervision.get("start")
    return start if isinstance(start, int | float) else 0.0


def _said(supervision: Mapping[str, Any]) -> dict[str, Any]:
    names = {"text": "text", "speaker": "speaker", "language": "lang", "gender": "gender"}
    values = {ours: supervision.get(theirs) for theirs, ours in names.items()}
    return {**_custom(supervision), **{key: value for key, value in values.items() if value is not None}}


def _custom(item: Mapping[str, Any]) -> dict[str, Any]:
    """The plain values that users added to a cut or supervision. Arrays and recordings among them are not read."""
    custom = item.get("custom")
    values = custom.items() if isinstance(custom, dict) else ()
    return {key: value for key, value in values if isinstance(value, str | int | float) and key not in NOT_CUSTOM}


def _audio_of(recording: Mapping[str, Any], values: dict[str, Any], channel: object = None) -> Row:
    """A row of the recording's source that has the channel, which is a file or a URL."""
    sources = [source for source in _list(recording.get("sources")) if isinstance(source, dict)]
    wanted = channel if isinstance(channel, list) else [] if channel is None else [channel]
    if len(sources) > 1 and wanted:
        sources = [source for source in sources if all(one in _list(source.get("channels")) for one in wanted)]
    if len(sources) != 1:
        message = f"{values['utt_id']}: the recording {recording.get('id')} has {len(sources)} sources, and one is read"
        return AudioError(ErrorCode.UNSUPPORTED, message)
    (source,) = sources
    if source.get("type") not in ("file", "url"):
        message = f"{values['utt_id']}: a source of type {source.get('type')} is not read: save the audio as files"
        return AudioError(ErrorCode.UNSUPPORTED, message)
    channels = _list(source.get("channels"))
    if len(channels) > 1 and wanted and sorted(map(str, wanted)) != sorted(map(str, channels)):
        if len(wanted) > 1 or wanted[0] not in channels:
            message = f"{values['utt_id']}: channels {channel} of a source with the channels {channels} are not read"
            return AudioError(ErrorCode.UNSUPPORTED, message)
        values[CHANNEL] = channels.index(wanted[0])
    return {
        key: value for key, value in {**values, "audio_filepath": source.get("source")}.items() if value is not None
    }


LHOTSE = TableKind(
    key="lhotse",
    name="lhotse manifest",
    recognises=lambda name, head: name.endswith(SUFFIXES) and bool(_kind(head)),
    rows=_rows,
)
