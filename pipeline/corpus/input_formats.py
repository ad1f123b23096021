"""The names of `--input-format`, and how the content of an object shows that it is of one."""

from __future__ import annotations

import posixpath
import tarfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from pipeline.corpus.layout import Layout
from pipeline.corpus.layouts.files import FILES
from pipeline.corpus.layouts.manifest import MANIFEST
from pipeline.corpus.layouts.parquet import PARQUET
from pipeline.corpus.layouts.table import TABLE
from pipeline.corpus.layouts.tar import TAR
from pipeline.corpus.layouts.tar_rows import TAR_ROWS
from pipeline.corpus.layouts.tar_rows import kind_of as shard_kind_of
from pipeline.corpus.tables.csv_files import CSV
from pipeline.corpus.tables.json_lines import objects_in
from pipeline.corpus.tables.kaldi import KALDI
from pipeline.corpus.tables.kind import head_of, table_name
from pipeline.corpus.tables.lhotse import LHOTSE
from pipeline.corpus.tables.nemo_tarred import NEMO_TARRED
from pipeline.corpus.tables.shar import SHAR
from pipeline.corpus.unknown import is_text, magic_of
from pipeline.errors import UsageError
from pipeline.storage import objects
from pipeline.storage.reads import Object

_HEAD_BYTES: Final = 2**16
_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"


@dataclass(frozen=True)
class InputFormat:
    """What INPUTs are, where the user says it.

    Attributes:
        layout: how they are planned and read.
        is_one: whether the content of an object is of this format. Only its first bytes are looked at.
        in_directories: whether an object with this URI is read where it is found below a directory.
        kind: the kind of its tables or manifests; empty for other layouts.
    """

    layout: Layout
    is_one: Callable[[Object], bool]
    in_directories: Callable[[str], bool]
    kind: str = ""


def _head(item: Object) -> bytes:
    return objects.fetch(item.uri, 0, min(item.size, _HEAD_BYTES)) if item.size else b""


def _is_audio(item: Object) -> bool:
    head = _head(item)
    return not magic_of(head) and not is_text(head)


def _is_tar(item: Object) -> bool:
    head = _head(item)
    if head[:4] == _ZSTD:
        return True
    try:
        plain = zlib.decompressobj(wbits=31).decompress(head, tarfile.BLOCKSIZE) if head[:2] == _GZIP else head
        tarfile.TarInfo.frombuf(plain[: tarfile.BLOCKSIZE], "utf-8", "surrogateescape")
    except (zlib.error, tarfile.HeaderError):
        return False
    return True


def _is_json_lines(item: Object) -> bool:
    return isinstance(next(objects_in(head_of(item.uri, item.size)), None), dict)


def _is_manifest(item: Object) -> bool:
    return _is_json_lines(item) and shard_kind_of(item) is None


def _is_lhotse(item: Object) -> bool:
    return LHOTSE.recognises(".jsonl", head_of(item.uri, item.size)) and shard_kind_of(item) is not SHAR


def _is_table_text(item: Object) -> bool:
    return is_text(head_of(item.uri, item.size)) and not _is_json_lines(item)


def _is_kaldi(item: Object) -> bool:
    lines = head_of(item.uri, item.size).decode(errors="replace").split("\n")
    return _is_table_text(item) and len(lines[0].split(maxsplit=1)) == 2


FORMATS: Final[Mapping[str, InputFormat]] = MappingProxyType(
    {
        "audio": InputFormat(FILES, _is_audio, FILES.claims),
        "manifest": InputFormat(
            MANIFEST, _is_manifest, lambda uri: table_name(uri).endswith((".jsonl", ".ndjson", ".json")), "manifest"
        ),
        "csv": InputFormat(TABLE, _is_table_text, lambda uri: table_name(uri).endswith((".csv", ".tsv")), CSV.key),
        "kaldi": InputFormat(TABLE, _is_kaldi, lambda uri: posixpath.basename(uri) == "wav.scp", KALDI.key),
        "lhotse": InputFormat(
            TABLE,
            _is_lhotse,
            lambda uri: False,  # recordings, supervisions and cuts in one directory are the same utterances
            LHOTSE.key,
        ),
        "shar": InputFormat(TAR_ROWS, lambda item: shard_kind_of(item) is SHAR, lambda uri: False, SHAR.key),
        "nemo-tarred": InputFormat(
            TAR_ROWS, lambda item: shard_kind_of(item) is NEMO_TARRED, lambda uri: False, NEMO_TARRED.key
        ),
        "webdataset": InputFormat(TAR, _is_tar, TAR.claims),
        "parquet": InputFormat(PARQUET, lambda item: _head(item)[:4] == b"PAR1", PARQUET.claims),
    }
)


def check_format(named: Object, name: str) -> InputFormat:
    """The format `name`, of which the object is.

    Raises:
        UsageError: its content is not of this format.
        StorageError: it could not be read.
    """
    chosen = FORMATS[name]
    if not chosen.is_one(named):
        raise UsageError(
            f"{named.uri} is not of the format {name}, which --input-format asks for; without the option sewd plan "
            "says what it is"
        )
    return chosen
