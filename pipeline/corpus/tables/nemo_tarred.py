"""NeMo's tarred data sets: rows that name members of `audio_0.tar`, `audio_1.tar`, ... and their number, `shard_id`.

As NeMo's scripts/speech_recognition/convert_to_tarred_audio_dataset.py writes them: `tarred_audio_manifest.json` beside
the shards, and the same rows by shard in `sharded_manifests/manifest_0.json`, ... Several rows may be parts of one
member: `a.wav`, `a-sub1.wav`, `a-sub2.wav` with an offset each are parts of `a.wav`.
"""

from __future__ import annotations

import contextlib
import json
import posixpath
import re
from collections.abc import Iterator, Mapping
from typing import Any

from pipeline.corpus.named_paths import check_named
from pipeline.corpus.naming import resolve
from pipeline.corpus.tables.json_lines import SUFFIXES, objects_in, objects_of
from pipeline.corpus.tables.kind import table_name
from pipeline.corpus.tables.shards import ListDirectory, MemberRow, ShardKind, name_key
from pipeline.errors import AudioError, ErrorCode, UsageError
from pipeline.storage import objects, uris
from pipeline.storage.reads import Object

MANIFEST_NAME = "tarred_audio_manifest.json"
SHARD = re.compile(r"audio[^/]*_([0-9]+)[^/]*\.(tar|tar\.gz|tgz)$")
SHARD_MANIFEST = re.compile(r"manifest[^/]*_([0-9]+)[^/]*\.jsonl?(\.gz)?$")
_SUB = re.compile(r"-sub[0-9]+(?=\.[^./]*$|$)")


def _recognises(manifest: Object, head: bytes) -> bool:
    """Whether the first row has a shard, and its audio is no file."""
    if not table_name(manifest.uri).endswith(SUFFIXES):
        return False
    first = next((row for row in objects_in(head) if isinstance(row, dict)), {})
    if "shard_id" not in first or not isinstance(first.get("audio_filepath"), str):
        return False
    audio = resolve(first["audio_filepath"], posixpath.dirname(manifest.uri))
    with contextlib.suppress(uris.UnknownSchemeError, AudioError):
        check_named(audio, manifest.uri)
        return not objects.exists(audio)
    return False


def _rows(manifest: Object, list_directory: ListDirectory) -> Iterator[MemberRow]:
    own = posixpath.dirname(manifest.uri)
    # The rows by shard are in a directory of their own, below the shards.
    shards = _shards_in(own, list_directory) or _shards_in(posixpath.dirname(own), list_directory)
    if not shards:
        raise UsageError(
            f"{manifest.uri} is the manifest of a NeMo tarred data set, and there are no shards audio_0.tar, "
            "audio_1.tar, ... beside it or in the directory above"
        )
    for row in objects_of(manifest.uri):
        yield MemberRow(row) if isinstance(row, AudioError) else _member_row(row, shards)


def _shards_in(directory: str, list_directory: ListDirectory) -> Mapping[int, Object]:
    shards: dict[int, Object] = {}
    for item in list_directory(directory):
        if found := SHARD.search(posixpath.basename(item.uri)):
            number = int(found[1])
            if number in shards:
                raise UsageError(f"{shards[number].uri} and {item.uri} are both shard {number} of a NeMo data set")
            shards[number] = item
    return shards


def _member_row(row: dict[str, Any], shards: Mapping[int, Object]) -> MemberRow:
    name, number = row.get("audio_filepath"), row.get("shard_id")
    if not isinstance(name, str) or not name:
        return MemberRow(AudioError(ErrorCode.BAD_ROW, "it has no audio_filepath"))
    if isinstance(number, bool) or not isinstance(number, int):
        return MemberRow(AudioError(ErrorCode.BAD_ROW, f"shard_id is {json.dumps(number)[:100]}, not a number"))
    if number not in shards:
        return MemberRow(AudioError(ErrorCode.MISSING, f"{name}: there is no shard audio_{number}.tar"))
    keys = [name_key(name)]
    if row.get("offset") is not None:  # a part of a member
        keys.append(name_key(_SUB.sub("", name)))
    values = {key: value for key, value in row.items() if key != "shard_id"}
    return MemberRow(values, shards[number], tuple(dict.fromkeys(keys)))


NEMO_TARRED = ShardKind(key="nemo-tarred", name="NeMo tarred data set", recognises=_recognises, rows=_rows)
