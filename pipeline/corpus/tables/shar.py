"""lhotse's Shar: `cuts.000000.jsonl.gz` with the audio of its cuts in `recording.000000.tar`, and so on.

The format: lhotse/shar/writers/shar.py. Every field of the cuts has a file of its own. Audio and its manifest are
neighbouring members `CUT_ID.flac` and `CUT_ID.json`; a cut without audio has `CUT_ID.nodata`. Fields that are no audio
are `FIELD.000000.jsonl.gz`, with `cut_id` and the value; of the others only `recording` is read.
"""

from __future__ import annotations

import json
import posixpath
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

from pipeline.corpus.tables.json_lines import objects_of
from pipeline.corpus.tables.lhotse import NOT_CUSTOM, cut_values
from pipeline.corpus.tables.shards import ListDirectory, MemberRow, ShardKind, stem_key
from pipeline.errors import AudioError, ErrorCode, UsageError
from pipeline.storage.reads import Object

_EQUAL_S = 0.001
FILE = re.compile(r"(?P<field>[^/.]+)(?P<number>(?:\.[^/]*?)?)\.(?:(?P<tar>tar)|jsonl)(?:\.gz)?")


def _recognises(manifest: Object, head: bytes) -> bool:
    """Whether a cut among the first lines has its recording in a shard."""
    if _file(posixpath.basename(manifest.uri))["field"] != "cuts":
        return False
    for line in head.split(b"\n"):
        try:
            cut = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(cut, dict) and _is_in_shard(cut.get("recording")):
            return True
    return False


def _is_in_shard(recording: object) -> bool:
    sources = recording.get("sources") if isinstance(recording, dict) else None
    return isinstance(sources, list) and any(isinstance(one, dict) and one.get("type") == "shar" for one in sources)


def _rows(manifest: Object, list_directory: ListDirectory) -> Iterator[MemberRow]:
    directory, name = posixpath.split(manifest.uri)
    number = _file(name)["number"]
    listed = [(_file(posixpath.basename(item.uri)), item) for item in list_directory(directory)]
    recordings = {found["number"]: item for found, item in listed if found["field"] == "recording" and found["tar"]}
    if not recordings:
        raise UsageError(
            f"{manifest.uri} holds cuts of a lhotse Shar, and {directory}/recording{number}.tar is missing"
        )
    fields: dict[str, dict[str, Any]] = defaultdict(dict)
    for found, item in listed:
        is_value = not found["tar"] and found["field"] not in {"", "cuts", *NOT_CUSTOM}
        if found["number"] == number and is_value:
            for row in objects_of(item.uri):
                if isinstance(row, dict) and isinstance(value := row.get(found["field"]), str | int | float):
                    fields[str(row.get("cut_id"))][found["field"]] = value
    for cut in objects_of(manifest.uri):
        yield _member_row(cut, recordings.get(number), fields)


def _file(name: str) -> Mapping[str, str]:
    """The field, the number with its dot, and `tar` of the name of a file in a Shar; empty for another file."""
    found = FILE.fullmatch(name)
    return dict.fromkeys(("field", "number", "tar"), "") if found is None else found.groupdict(default="")


def _member_row(
    cut: dict[str, Any] | AudioError, shard: Object | None, fields: Mapping[str, Mapping[str, Any]]
) -> MemberRow:
    values = cut_values(cut)
    if isinstance(values, AudioError) or isinstance(cut, AudioError):
        return MemberRow(values)
    recording, cut_id = cut["recording"], values["utt_id"]
    if shard is None:
        return MemberRow(AudioError(ErrorCode.MISSING, f"{cut_id}: the tar shard of its recordings is missing"))
    if not _is_in_shard(recording):
        return MemberRow(AudioError(ErrorCode.UNSUPPORTED, f"{cut_id}: its recording is not in the shard"))
    row = {**fields.get(cut_id, {}), **values, "audio_filepath": cut_id, "duration": cut.get("duration")}
    if not _is_whole(cut, recording):
        row["offset"] = cut.get("start")
    return MemberRow(row, shard, (stem_key(cut_id),))


def _is_whole(cut: Mapping[str, Any], recording: Mapping[str, Any]) -> bool:
    """Whether a cut is all of the audio in the shard, as lhotse writes it."""
    start, duration, whole = cut.get("start"), cut.get("duration"), recording.get("duration")
    if not isinstance(duration, int | float) or not isinstance(whole, int | float):
        return start == 0
    return start == 0 and abs(duration - whole) < _EQUAL_S


SHAR = ShardKind(key="shar", name="lhotse Shar", recognises=_recognises, rows=_rows)
