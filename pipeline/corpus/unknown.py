"""INPUTs that are a table, a list or an archive of a kind that is not read: refused before anything starts.

Without this an unknown INPUT is taken for one audio file, and becomes a run with one UNDECODABLE row.
"""

from __future__ import annotations

import codecs
import posixpath

from pipeline.errors import UsageError
from pipeline.storage import objects
from pipeline.storage.reads import Object

_MANIFEST = "write a .jsonl manifest: one JSON object a line, with audio_filepath, and text where there is one"
_HEAD_BYTES = 4096

_TABLES = "psv txt text scp lst list tab json5 xml yaml yml toml ini md rst html htm pdf xls xlsx ods odt docx"
_DATA = (
    "arrow feather orc avro pkl pickle npy npz pt pth h5 hdf5 mat db sqlite sqlite3 duckdb lmdb mdb tfrecord msgpack"
)
_ANNOTATIONS = "stm ctm rttm textgrid eaf trs srt vtt sbv ass lab mlf trn segments utt2spk spk2utt m3u m3u8 pls cue"
_ARCHIVES = "zip rar 7z bz2 xz zst lz4 lzma gz tbz tbz2 txz tzst"
_KIND_OF = {
    **dict.fromkeys(_TABLES.split(), "a table or list"),
    **dict.fromkeys(_DATA.split(), "a data file"),
    **dict.fromkeys(_ANNOTATIONS.split(), "a list or annotation"),
    **dict.fromkeys(_ARCHIVES.split(), "a compressed file or archive"),
}
_ADVICE = {
    "a table or list": _MANIFEST,
    "a data file": f"convert it to .parquet with a column `audio`, or {_MANIFEST}",
    "a list or annotation": _MANIFEST,
    "a compressed file or archive": "unpack it, or pack its files as .tar, .tar.gz or .tar.zst",
}
_MAGIC = (
    (0, b"PK\x03\x04", "zip"),
    (0, b"PK\x05\x06", "zip"),
    (0, b"Rar!", "rar"),
    (0, b"7z\xbc\xaf\x27\x1c", "7z"),
    (0, b"BZh", "bz2"),
    (0, b"\xfd7zXZ\0", "xz"),
    (0, b"\x28\xb5\x2f\xfd", "zst"),
    (0, b"\x1f\x8b", "gz"),
    (0, b"ARROW1", "arrow"),
    (0, b"\x89HDF", "h5"),
    (0, b"SQLite format 3", "sqlite"),
    (0, b"\x93NUMPY", "npy"),
    (0, b"%PDF", "pdf"),
    (0, b"PAR1", ".parquet"),
    (257, b"ustar", ".tar"),
)
_AUDIO_TEXT_HEADERS = (b"NIST_1A", b"#!AMR")
_TEXT_SUFFIXES = frozenset({"jsonl", "json", "ndjson"})


def check_known(named: Object) -> str:
    """Refuse an INPUT that no layout claims by its name, unless it may be audio, or its content is of a layout.

    Args:
        named: the object that INPUT names.

    Returns:
        The suffix of the layout that its content is of, `.tar` or `.parquet`; empty for what may be audio.

    Raises:
        UsageError: its name or its first bytes show a table, a list or an archive. The message says what to do.
        StorageError: it could not be read.
    """
    name = posixpath.basename(named.uri).lower()
    *_, last = name.rpartition(".")
    inner = posixpath.splitext(name.rpartition(".")[0])[1].removeprefix(".")
    if "." in name and last in _KIND_OF:
        if inner in _TEXT_SUFFIXES and last != "gz":
            raise UsageError(f"{named.uri}: manifests are read plain or compressed by gzip: compress it as .{inner}.gz")
        if inner == "tar":
            raise UsageError(f"{named.uri}: tar archives are read plain, in gzip or in zstd: repack it as .tar.gz")
        raise _refusal(named.uri, last)
    if not named.size:
        return ""
    head = objects.fetch(named.uri, 0, min(named.size, _HEAD_BYTES))
    kind = magic_of(head)
    if kind and not kind.startswith("."):
        raise _refusal(named.uri, kind)
    if is_text(head):
        raise UsageError(f"{named.uri} is a text, not audio: {_MANIFEST}")
    return kind


def _refusal(uri: str, kind: str) -> UsageError:
    what = _KIND_OF[kind]
    return UsageError(f"{uri} is {what} (.{kind}), which is not read as an INPUT: {_ADVICE[what]}")


def magic_of(head: bytes) -> str:
    """The suffix of a known kind of file that is no audio, by its first bytes: with a dot if it is read; else empty."""
    return next((kind for offset, magic, kind in _MAGIC if head[offset : offset + len(magic)] == magic), "")


def is_text(head: bytes) -> bool:
    """Whether the first bytes of a file are a text, and not the header of audio that begins with one."""
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(head)  # the last character may be cut
    except UnicodeDecodeError:
        return False
    if head.startswith(_AUDIO_TEXT_HEADERS):
        return False
    return bool(text.strip()) and all(c.isprintable() or c in "\ufeff\t\n\r\f" for c in text)
