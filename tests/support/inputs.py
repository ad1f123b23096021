"""INPUTs in every layout, whose files are not audio: for tests of planning and reading, which decode nothing."""

from __future__ import annotations

import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.corpus.parts import Item, Part
from pipeline.corpus.read import read_part
from pipeline.corpus.utterances import Utterance
from pipeline.errors import AudioError
from tests.support.corpora import add_member, parts_of, write_manifest


def write(path: Path, data: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def write_files(folder: Path, *names: str, size: int = 10) -> Path:
    """Files of `size` bytes, each with another content."""
    for name in names:
        write(folder / name, name.encode().ljust(size, b".")[:size])
    return folder


def manifest(path: Path, *rows: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_manifest(path, list(rows))


def tar(path: Path, *members: tuple[Any, ...], mode: str = "w", **options: Any) -> Path:
    """A shard of (name, data) or (name, data, fields of its TarInfo)."""
    with tarfile.open(path, mode, **options) as archive:
        for name, data, *fields in members:
            add_member(archive, name, data, **(fields[0] if fields else {}))
    return path


def tar_of(path: Path, *names: str) -> Path:
    """A shard of members of three bytes."""
    return tar(path, *((name, b"abc") for name in names))


def parquet(path: Path, rows: list[dict[str, Any]], row_group: int | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = {name: [row.get(name) for row in rows] for name in dict.fromkeys(name for row in rows for name in row)}
    pq.write_table(pa.table(columns), path, row_group_size=row_group)
    return path


def parquet_of_bytes(path: Path, count: int = 4, row_group: int | None = None) -> Path:
    return parquet(path, [{"audio": {"bytes": b"x" * 10, "path": f"{i}.wav"}} for i in range(count)], row_group)


def items(*inputs: Path | str, **options: Any) -> list[Item]:
    return [item for part in parts_of(*inputs, **options) for item in part.items]


def ids(*inputs: Path | str, **options: Any) -> list[str]:
    return [item.utt_id for item in items(*inputs, **options)]


def ranges(found: list[Part]) -> list[tuple[int | None, int | None]]:
    return [(part.start, part.end) for part in found]


def read(*inputs: Path | str, **options: Any) -> list[Utterance]:
    return [utterance for part in parts_of(*inputs, **options) for utterance in read_part(part)]


def outcome(utterance: Utterance) -> tuple[str, bytes | str]:
    """(utt_id, the bytes of the audio, or the error code)."""
    if utterance.problem is not None:
        return utterance.utt_id, utterance.problem.code.value
    try:
        audio = utterance.open()
    except AudioError as error:
        return utterance.utt_id, error.code.value
    return utterance.utt_id, audio if isinstance(audio, bytes) else audio.read()


def outcomes(*inputs: Path | str, **options: Any) -> list[tuple[str, bytes | str]]:
    return [outcome(utterance) for utterance in read(*inputs, **options)]
