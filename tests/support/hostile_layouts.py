"""A corpus of bad recordings and bad rows in every input layout, with the error row that each must become."""

from __future__ import annotations

import gzip
import io
import itertools
import json
import os
import tarfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import ErrorCode as E
from tests.support.corpora import add_member
from tests.support.hostile import Bad, bad_files, sndfile
from tests.support.inputs import tar, write

Codes = set[E]

LONG = "x" * 5000  # a name that no file system can have
NESTED = "[" * 100_000
SPARE = 3  # of the recordings in each layout that are good


@dataclass
class Corpus:
    """What was written.

    Attributes:
        inputs: the INPUTs.
        bad: the codes that each error row may have, by utt_id.
        good: ids of the recordings that are good.
    """

    inputs: list[Path] = field(default_factory=list)
    bad: dict[str, Codes] = field(default_factory=dict)
    good: set[str] = field(default_factory=set)

    def expect(self, utt_id: str, codes: Codes | None) -> None:
        """An utterance, which is good where `codes` is None."""
        assert utt_id not in self.bad | dict.fromkeys(self.good), utt_id
        if codes is None:
            self.good.add(utt_id)
        else:
            self.bad[utt_id] = codes


class _Sample:
    """Bad recordings and some good ones for one layout: every `step`-th of the bad ones, others for each layout."""

    def __init__(self, step: int = 10) -> None:
        self._bad, self._step, self._first = bad_files(), step, itertools.count()
        self._good = sndfile("FLAC")

    def all(self) -> list[tuple[str, bytes, Codes | None]]:
        return self._with_good(self._bad)

    def next(self) -> list[tuple[str, bytes, Codes | None]]:
        return self._with_good(self._bad[next(self._first) % self._step :: self._step])

    def _with_good(self, bad: Iterable[Bad]) -> list[tuple[str, bytes, Codes | None]]:
        return [*bad, *((f"good-{i}.wav", self._good, None) for i in range(SPARE))]


def write_corpus(folder: Path) -> Corpus:
    """Write it; some of it cannot be stored outside a local file system: pipes, devices, links."""
    corpus, sample = Corpus(), _Sample()
    _files(folder / "files", corpus, sample)
    _manifest(folder / "lists" / "m.jsonl", corpus, sample)
    _json_lines(folder / "lists" / "m.jsonl.gz", corpus, sample)
    for name, delimiter in (("t.csv", ","), ("t.tsv", "\t"), ("audiofolder/metadata.csv", ",")):
        _table(folder / "lists" / name, delimiter, corpus, sample)
    _kaldi(folder / "kaldi", corpus, sample)
    for name in ("cuts.jsonl", "recordings.jsonl.gz"):
        _lhotse(folder / "lhotse" / name, corpus, sample)
    _shards(folder / "shards", corpus, sample)
    _nemo(folder / "nemo", corpus, sample)
    _shar(folder / "shar", corpus, sample)
    _parquet(folder / "parquet", corpus, sample)
    return corpus


# ---- Files


def _files(folder: Path, corpus: Corpus, sample: _Sample) -> None:
    for name, data, codes in sample.all():
        write(folder / name, data)
        corpus.expect(name.rpartition(".")[0], codes)
    good = sndfile("WAV")
    (folder / "dangling.wav").symlink_to("nowhere")
    (folder / "loop.wav").symlink_to("loop.wav")
    (folder / "device.wav").symlink_to("/dev/zero")
    (folder / "outside.wav").symlink_to("/etc/passwd")
    os.mkfifo(folder / "pipe.wav")
    for name in ("dangling", "loop", "device", "pipe"):
        corpus.expect(name, {E.MISSING})
    corpus.expect("outside", {E.UNDECODABLE})
    texts: dict[str, Callable[[Path], Any]] = {
        "text-not-utf8": lambda path: path.write_bytes(b"\xff\xfe\xfd"),
        "text-dangling": lambda path: path.symlink_to("nowhere"),
        "text-device": lambda path: path.symlink_to("/dev/zero"),
        "text-of-4-gib": lambda path: (path.touch(), os.truncate(path, 4 * 2**30)),
    }
    for name, make in texts.items():
        write(folder / f"{name}.wav", good)
        make(folder / f"{name}.txt")
        corpus.expect(name, {E.BAD_ROW})
    corpus.inputs.append(folder)


# ---- Manifests and tables


def _stored(folder: Path, prefix: str, corpus: Corpus, sample: _Sample) -> Iterator[tuple[str, str]]:
    """(id, path) of recordings that are written below `folder`."""
    for name, data, codes in sample.next():
        write(folder / prefix / name, data)
        corpus.expect(f"{prefix}/{name}", codes)
        yield f"{prefix}/{name}", f"{prefix}/{name}"


def _bad_paths(prefix: str) -> dict[str, tuple[str, Codes]]:
    """Rows whose audio cannot be read, with an id each."""
    return {
        f"{prefix}/missing": ("nowhere/a.wav", {E.MISSING}),
        f"{prefix}/directory": (".", {E.MISSING}),
        f"{prefix}/long": (LONG, {E.MISSING}),
        f"{prefix}/device": ("/dev/zero", {E.MISSING}),
        f"{prefix}/etc": ("/etc/passwd", {E.UNDECODABLE}),
        f"{prefix}/above": ("../" * 30 + "etc/passwd", {E.UNDECODABLE}),
        f"{prefix}/scheme": ("nosuch://host/a.wav", {E.BAD_ROW}),
        f"{prefix}/chained": ("simplecache::s3://bucket/a.wav", {E.BAD_ROW}),
        f"{prefix}/metadata-service": ("http://169.254.169.254/latest/meta-data/", {E.BAD_ROW}),
    }


def _bad_values(path: str, prefix: str) -> dict[str, tuple[dict[str, Any], Codes]]:
    """Rows with values that cannot be, of a recording of half a second at `path`, with an id each."""
    rows: dict[str, tuple[dict[str, Any], Codes]] = {
        "negative-offset": ({"offset": -1.0}, {E.OUT_OF_RANGE}),
        "late-offset": ({"offset": 7.0}, {E.OUT_OF_RANGE}),
        "huge-offset": ({"offset": 1e300}, {E.OUT_OF_RANGE}),
        "negative-duration": ({"offset": 0.0, "duration": -1.0}, {E.OUT_OF_RANGE}),
        "no-duration": ({"offset": 0.0, "duration": 0.0}, {E.OUT_OF_RANGE, E.TOO_SHORT, E.NO_SAMPLES}),
        "huge-duration": ({"offset": 0.0, "duration": 1e300}, {E.OUT_OF_RANGE}),
    }
    return {
        f"{prefix}/{what}": ({"audio_filepath": path, "id": f"{prefix}/{what}", **row}, codes)
        for what, (row, codes) in rows.items()
    }


def _bad_lines(path: str) -> list[str]:
    """Lines of a manifest that are no rows: BAD_ROW, at the place of the line."""
    good = json.dumps({"audio_filepath": path})
    return [
        "not json",
        good[:-5],
        good + good,
        "[]",
        "null",
        "17",
        "{}",
        NESTED,
        '{"a":' * 50_000,
        json.dumps({"audio_filepath": None}),
        json.dumps({"audio_filepath": ""}),
        json.dumps({"audio_filepath": "a\0.wav"}),
        json.dumps({"audio_filepath": {"bytes": "x"}}),
        json.dumps({"audio_filepath": [path]}),
        json.dumps({"audio_filepath": path, "duration": "long"}),
        json.dumps({"audio_filepath": path, "offset": float("nan")}),
        json.dumps({"audio_filepath": path, "offset": float("inf")}),
        json.dumps({"audio_filepath": path, "text": {"a": 1}}),
        json.dumps({"audio_filepath": path, "id": "\0"}),
        '{"audio_filepath": "' + path + '", "offset": ' + "9" * 5000 + "}",
    ]


def _manifest(path: Path, corpus: Corpus, sample: _Sample) -> None:
    rows = [
        json.dumps({"audio_filepath": audio, "id": key})
        for key, audio in _stored(path.parent, "manifest", corpus, sample)
    ]
    for key, (audio, codes) in _bad_paths("manifest").items():
        rows.append(json.dumps({"audio_filepath": audio, "id": key}))
        corpus.expect(key, codes)
    good = "manifest/good-0.wav"
    for key, (values, codes) in _bad_values(good, "manifest").items():
        rows.append(json.dumps(values))
        corpus.expect(key, codes)
    lines = [row.encode() for row in rows]
    start = sum(len(line) + 1 for line in lines)
    for line in [*(line.encode() for line in _bad_lines(good)), b'{"audio_filepath": "\xff.wav"}', b"\xff\xfe"]:
        corpus.expect(f"{path}[{start}:{start + len(line)}]", {E.BAD_ROW})
        lines.append(line)
        start += len(line) + 1
    write(path, b"\n".join(lines) + b"\n")
    corpus.inputs.append(path)


def _json_lines(path: Path, corpus: Corpus, sample: _Sample) -> None:
    rows = [json.dumps({"path": audio, "id": key}) for key, audio in _stored(path.parent, "json-lines", corpus, sample)]
    for key, (audio, codes) in _bad_paths("json-lines").items():
        rows.append(json.dumps({"path": audio, "id": key}))
        corpus.expect(key, codes)
    for line in _bad_lines("json-lines/good-0.wav"):
        corpus.expect(f"{path}[{len(rows)}]", {E.BAD_ROW})
        rows.append(line)
    write(path, gzip.compress("".join(row + "\n" for row in rows).encode()))
    corpus.inputs.append(path)


def _table(path: Path, delimiter: str, corpus: Corpus, sample: _Sample) -> None:
    prefix = path.name.replace(".", "-")
    rows = [[audio, key, "", ""] for key, audio in _stored(path.parent, prefix, corpus, sample)]
    for key, (audio, codes) in _bad_paths(prefix).items():
        rows.append([audio, key, "", ""])
        corpus.expect(key, codes)
    good = f"{prefix}/good-0.wav"
    for key, (values, codes) in _bad_values(good, prefix).items():
        rows.append([good, key, str(values["offset"]), str(values.get("duration", ""))])
        corpus.expect(key, codes)
    for fields in (["", "", "", ""], [good, "", "x", ""], [good, "", "nan", ""], [good, "", "", "", "", "surplus"]):
        corpus.expect(f"{path}[{len(rows)}]", {E.BAD_ROW})
        rows.append(fields)
    text = "".join(delimiter.join(row) + "\n" for row in [["path", "id", "offset", "duration"], *rows])
    write(path, text)
    corpus.inputs.append(path.parent if path.name.startswith("metadata") else path)


def _kaldi(folder: Path, corpus: Corpus, sample: _Sample) -> None:
    scp, segments = [], []
    for key, audio in _stored(folder, "kaldi", corpus, sample):
        scp.append(f"{key} {audio}")
        segments.append(f"{key} {key} 0 -1")
    for key, (audio, codes) in _bad_paths("kaldi").items():
        scp.append(f"{key} {audio}")
        segments.append(f"{key} {key} 0 -1")
        corpus.expect(key, codes)
    rows = len(segments)
    commands = ("touch run |", "| touch run", "cat /etc/passwd|", "feats.ark:100", "-", "")
    for number, command in enumerate(commands):
        scp.append(f"command-{number} {command}")
        segments.append(f"command-{number} command-{number} 0 1")
    good = "kaldi/good-0.wav"
    segments += ["words few", f"words {good} one two", "lost nowhere 0 1", f"only {good}"]
    bad: list[Codes] = [*[{E.UNSUPPORTED, E.BAD_ROW}] * len(commands), {E.BAD_ROW}, {E.MISSING}, {E.BAD_ROW}]
    # Of two lines with one id the last counts, as in Kaldi.
    for codes in bad:
        corpus.expect(f"{folder / 'wav.scp'}[{rows}]", codes)
        rows += 1
    for key, span, codes in (
        ("nan", "nan 1", {E.BAD_ROW}),
        ("late", "7 8", {E.OUT_OF_RANGE}),
        ("backwards", "0.4 0.1", {E.OUT_OF_RANGE}),
        ("huge", "0 1e300", {E.OUT_OF_RANGE}),
    ):
        segments.append(f"kaldi/{key} {good} {span}")
        corpus.expect(f"kaldi/{key}" if codes != {E.BAD_ROW} else f"{folder / 'wav.scp'}[{rows}]", codes)
        rows += 1
    write(folder / "wav.scp", "".join(line + "\n" for line in scp))
    write(folder / "segments", "".join(line + "\n" for line in segments))
    corpus.inputs.append(folder)


def _lhotse(path: Path, corpus: Corpus, sample: _Sample) -> None:
    cuts = path.name.startswith("cuts")
    prefix = path.name.partition(".")[0]
    rows: list[Any] = []

    def add(key: str, sources: Any, **values: Any) -> None:
        recording = {"id": key, "sources": sources, "sampling_rate": 16_000, "duration": 1.0}
        cut = {"id": key, "type": "MonoCut", "start": 0.0, "channel": 0, "recording": recording, "supervisions": []}
        rows.append({**(cut if cuts else recording), **values})

    def source(audio: str, kind: str = "file") -> list[dict[str, Any]]:
        return [{"type": kind, "channels": [0], "source": audio}]

    for key, audio in _stored(path.parent, prefix, corpus, sample):
        add(key, source(audio))
    for key, (audio, codes) in _bad_paths(prefix).items():
        add(key, source(audio))
        corpus.expect(key, codes)
    cases: list[tuple[Any, dict[str, Any]]] = [
        (source("touch run", "command"), {}),
        (source("AAAA", "memory"), {}),
        ([], {}),
        ("a.wav", {}),
        (17, {}),
        ([None], {}),
        (source("a.wav") * 2, {}),
    ]
    if cuts:
        cases += [
            (source("a.wav"), {"type": "MixedCut", "tracks": []}),
            (source("a.wav"), {"type": "PaddingCut"}),
            (source("a.wav"), {"recording": None}),
            (source("a.wav"), {"recording": "r"}),
            (source("a.wav"), {"start": "now"}),
            (source("a.wav"), {"channel": {"a": 1}, "recording": {"sources": [{"channels": 5, "type": "file"}]}}),
        ]
    else:
        cases += [(source("a.wav"), {"duration": "long"})]
    lines = ["not json", "[]", NESTED]
    # Of recordings the lines that are none come first.
    first = 0 if cuts else len(lines)
    for sources, values in cases:
        corpus.expect(f"{path}[{first + len(rows)}]", {E.UNSUPPORTED, E.MISSING, E.BAD_ROW})
        add(f"{prefix}/bad-{len(rows)}", sources, **values)
    for number in range(len(lines)):
        corpus.expect(f"{path}[{len(rows) + number if cuts else number}]", {E.BAD_ROW})
    if cuts:  # what is said of a cut may be anything: its audio is what counts
        for what, said in (("number", 17), ("mixed", [{"start": "x"}, {"start": 1, "text": {"a": 1}}])):
            add(f"{prefix}/said-{what}", source("nowhere.wav"), supervisions=said)
            lines.append(json.dumps(rows.pop()))
            corpus.expect(f"{prefix}/said-{what}", {E.MISSING})
    data = "".join(line + "\n" for line in [*map(json.dumps, rows), *lines]).encode()
    write(path, gzip.compress(data) if path.name.endswith(".gz") else data)
    corpus.inputs.append(path)


# ---- Shards


def _shards(folder: Path, corpus: Corpus, sample: _Sample) -> None:
    compressions = {"tar": bytes, "tar.gz": gzip.compress, "tar.zst": _zstd}
    for name, compress in compressions.items():
        prefix = name.replace(".", "-")
        write(folder / f"{prefix}.{name}", compress(_members(prefix, corpus, sample)))
        good = _tar_bytes((f"{prefix}-cut-good.wav", sndfile("WAV")), (f"{prefix}-cut.wav", _noise(400_000)))
        corpus.expect(f"{prefix}-cut-good", None)
        whole = compress(good)
        write(folder / f"{prefix}-cut.{name}", whole[: len(whole) - 15_000])
        # The id is the shard's; in a compressed one only the last extension is not part of it.
        corpus.expect(
            f"{prefix}-cut" + name.removesuffix(name.rpartition(".")[2]).rstrip(".").replace("tar", ".tar"),
            {E.BAD_ARCHIVE},
        )
    for what, data in {
        "empty": b"",
        "html": b"<html>" * 200,
        "noise": _noise(4000),
        "gzip-of-noise": gzip.compress(_noise(4000)),
        "zstd-header": b"\x28\xb5\x2f\xfd\xff\xff\xff\xff",
    }.items():
        write(folder / f"shard-{what}.tar", data)
        corpus.expect(f"shard-{what}", {E.BAD_ARCHIVE})
    write(folder / "shard-no-members.tar", _tar_bytes())
    corpus.expect("shard-no-members", {E.MISSING})
    write(folder / "shard-texts.tar", _tar_bytes(("a.txt", b"a"), ("b.txt", b"b")))
    corpus.expect("shard-texts", {E.MISSING})
    for what, members in _bad_headers().items():
        tar(folder / f"shard-{what}.tar", (f"good-{what}.wav", sndfile("WAV")), *members)
        corpus.expect(f"good-{what}", None)
        corpus.expect(f"shard-{what}", {E.BAD_ARCHIVE})
    for name in ("tar.gz", "tar.zst"):
        write(folder / f"bomb.{name}", _bomb(name.replace(".", "-"), compressions[name]))
        corpus.expect(f"{name.replace('.', '-')}-bomb", {E.TOO_LARGE})
        corpus.expect(f"{name.replace('.', '-')}-behind", None)
    corpus.inputs.append(folder)


def _noise(size: int) -> bytes:
    """What cannot be compressed."""
    return np.random.default_rng(size).bytes(size)


def _zstd(data: bytes) -> bytes:
    return bytes(pa.compress(data, codec="zstd", asbytes=True))


def _bomb(prefix: str, compress: Callable[[bytes], bytes]) -> bytes:
    """A shard of a few kilobytes, with a member of over 2 GiB, in pieces that are compressed alike."""
    info = tarfile.TarInfo(f"{prefix}-bomb.wav")
    info.size = 2**31 + 2**24
    piece = compress(bytes(2**24))
    behind = _tar_bytes((f"{prefix}-behind.wav", sndfile("WAV")))
    return compress(info.tobuf()) + piece * (info.size >> 24) + compress(behind)


def _tar_bytes(*members: tuple[Any, ...]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, data, *fields in members:
            add_member(archive, name, data, **(fields[0] if fields else {}))
    return buffer.getvalue()


def _members(prefix: str, corpus: Corpus, sample: _Sample) -> bytes:
    members: list[tuple[Any, ...]] = []
    for name, data, codes in sample.next():
        members.append((f"{prefix}/{name}", data))
        corpus.expect(f"{prefix}/{name.rpartition('.')[0]}", codes)
    good = sndfile("WAV")
    for what, kind in (
        ("hard-link", tarfile.LNKTYPE),
        ("link", tarfile.SYMTYPE),
        ("character-device", tarfile.CHRTYPE),
        ("block-device", tarfile.BLKTYPE),
        ("pipe", tarfile.FIFOTYPE),
    ):
        fields = {"type": kind, "linkname": "/etc/passwd", "devmajor": 1, "devminor": 5}
        members.append((f"{prefix}/{what}.wav", b"", fields))
        corpus.expect(f"{prefix}/{what}", {E.UNSUPPORTED})
    # Names are ids: nothing is unpacked to disk.
    for name in (f"/etc/{prefix}-absolute.wav", f"../../{prefix}-above.wav"):
        members.append((name, b"not audio"))
        corpus.expect(name.rpartition(".")[0].lstrip("/"), {E.UNDECODABLE})
    for what, text in (("text", b"\xff\xfe\xfd"), ("nul", b"\xff\0")):
        members += [(f"{prefix}/{what}.wav", good), (f"{prefix}/{what}.txt", text)]
        corpus.expect(f"{prefix}/{what}", {E.BAD_ROW})
    for what, meta in (("json", b"{"), ("nested", NESTED.encode()), ("offset", b'{"offset": "x"}'), ("list", b"[]")):
        members += [(f"{prefix}/meta-{what}.wav", good), (f"{prefix}/meta-{what}.json", meta)]
        corpus.expect(f"{prefix}/meta-{what}", {E.BAD_ROW})
    sparse = {"GNU.sparse.major": "0", "GNU.sparse.minor": "1", "GNU.sparse.map": f"0,1,{2**40},0"}
    sparse |= {"GNU.sparse.name": f"{prefix}/sparse.wav", "GNU.sparse.size": str(2**40)}
    members.append((f"{prefix}/sparse.wav", b"x", {"pax_headers": sparse}))
    corpus.expect(f"{prefix}/sparse", {E.TOO_LARGE})
    return _tar_bytes(*members)


def _bad_headers() -> dict[str, list[tuple[Any, ...]]]:
    """Members behind which a shard cannot be read on."""

    def pax(key: str, value: str) -> list[tuple[Any, ...]]:
        body = f" {key}={value}\n".encode()
        size = len(body) + len(str(len(body) + 4))
        size = next(n for n in range(size, size + 5) if len(str(n)) + len(body) == n)
        return [("pax", str(size).encode() + body, {"type": tarfile.XHDTYPE}), ("x.txt", b"x")]

    return {
        "pax-size": pax("size", "9" * 400),
        "pax-digits": [("pax", b"1" * 900_000, {"type": tarfile.XHDTYPE})],
        "pax-negative": pax("size", "-4096"),
        "pax-sparse": pax("GNU.sparse.size", "9" * 4000),
        "pax-of-2-mb": [("pax", bytes(2 << 20), {"type": tarfile.XHDTYPE})],
        "long-name": [("name", b"x" * (2 << 20), {"type": tarfile.GNUTYPE_LONGNAME})],
        "names-in-names": [("name", b"x", {"type": tarfile.GNUTYPE_LONGNAME})] * 3000,
    }


# ---- Rows with their audio in shards


def _nemo(folder: Path, corpus: Corpus, sample: _Sample) -> None:
    rows, members = [], []
    for name, data, codes in sample.next():
        members.append((name, data))
        rows.append({"audio_filepath": name, "id": f"nemo/{name}", "shard_id": 0, "duration": 0.5})
        corpus.expect(f"nemo/{name}", codes)
    for what, values, codes in (
        ("lost", {"audio_filepath": "lost.wav", "shard_id": 0}, {E.MISSING}),
        ("above", {"audio_filepath": "../../etc/passwd", "shard_id": 0}, {E.MISSING}),
        ("absolute", {"audio_filepath": "/etc/passwd", "shard_id": 0}, {E.MISSING}),
        ("behind-damage", {"audio_filepath": "z.wav", "shard_id": 1}, {E.BAD_ARCHIVE}),
        ("no-shard", {"audio_filepath": "good-0.wav", "shard_id": 7}, {E.MISSING}),
        ("negative-shard", {"audio_filepath": "good-0.wav", "shard_id": -1}, {E.MISSING}),
        ("text-shard", {"audio_filepath": "good-0.wav", "shard_id": "0"}, {E.BAD_ROW}),
        ("huge-shard", {"audio_filepath": "good-0.wav", "shard_id": 2**80}, {E.MISSING}),
        ("list-shard", {"audio_filepath": "good-0.wav", "shard_id": [0]}, {E.BAD_ROW}),
        ("no-name", {"audio_filepath": None, "shard_id": 0}, {E.BAD_ROW}),
    ):
        is_read = values["shard_id"] in (0, 1) and values["audio_filepath"]
        corpus.expect(f"nemo/{what}" if is_read else f"{folder / 'tarred_audio_manifest.json'}[{len(rows)}]", codes)
        rows.append({"id": f"nemo/{what}", **values})
    lines = [json.dumps(row) for row in rows]
    for line in ("not json", "[]", NESTED):
        corpus.expect(f"{folder / 'tarred_audio_manifest.json'}[{len(lines)}]", {E.BAD_ROW})
        lines.append(line)
    write(folder / "audio_0.tar", _tar_bytes(*members))
    write(folder / "audio_1.tar", _tar_bytes(("a.wav", b"a"), ("z.wav", bytes(5000)))[:2000])
    write(folder / "tarred_audio_manifest.json", "".join(line + "\n" for line in lines))
    corpus.inputs.append(folder)


def _shar(folder: Path, corpus: Corpus, sample: _Sample) -> None:
    rows: list[Any] = []
    members: list[tuple[Any, ...]] = []

    def add(key: str, **values: Any) -> None:
        source = {"type": "shar", "channels": [0], "source": ""}
        recording = {"id": key, "sources": [source], "sampling_rate": 16_000, "duration": 0.5}
        cut = {"id": key, "type": "MonoCut", "start": 0.0, "duration": 0.5, "channel": 0, "supervisions": []}
        rows.append({**cut, "recording": recording, **values})

    for name, data, codes in sample.next():
        key = f"shar-{name.rpartition('.')[0]}"
        add(key)
        members += [(f"{key}.wav", data), (f"{key}.json", b"{")]
        corpus.expect(key, codes)
    add("shar-nodata")
    members += [("shar-nodata.nodata", b""), ("shar-nodata.json", b"{}")]
    add("shar-lost")
    add("shar-link")
    members.append(("shar-link.wav", b"", {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}))
    for key, codes in (("shar-nodata", {E.MISSING}), ("shar-lost", {E.MISSING}), ("shar-link", {E.UNSUPPORTED})):
        corpus.expect(key, codes)
    path = folder / "cuts.000000.jsonl.gz"
    for number, values in enumerate(
        (
            {"recording": None},
            {"recording": {"sources": [{"type": "file", "source": "/etc/passwd"}]}},
            {"type": "MixedCut", "tracks": []},
            {"start": "now", "duration": "long"},
        )
    ):
        corpus.expect(f"{path}[{len(rows)}]", {E.MISSING, E.UNSUPPORTED, E.BAD_ROW})
        add(f"shar-bad-{number}", **values)
    lines = [json.dumps(row) for row in rows]
    for line in ("not json", "[]", NESTED):
        corpus.expect(f"{path}[{len(lines)}]", {E.BAD_ROW})
        lines.append(line)
    write(path, gzip.compress("".join(line + "\n" for line in lines).encode()))
    write(folder / "recording.000000.tar", _tar_bytes(*members))
    corpus.inputs.append(folder)


# ---- Parquet


def _parquet(folder: Path, corpus: Corpus, sample: _Sample) -> None:
    rows: list[dict[str, Any]] = []
    for name, data, codes in sample.next():
        rows.append({"id": f"parquet/{name}", "audio": {"bytes": data, "path": name}})
        corpus.expect(f"parquet/{name}", codes)
    for what, audio in (("null", None), ("nothing", {"bytes": None, "path": None})):
        rows.append({"id": f"parquet/{what}", "audio": audio})
        corpus.expect(f"parquet/{what}", {E.MISSING})
    for key, (path, codes) in _bad_paths("parquet").items():
        rows.append({"id": key, "audio": {"bytes": None, "path": path}})
        corpus.expect(key, codes)
    _write_parquet(folder / "bytes.parquet", rows)
    good = sndfile("WAV")
    # Columns of other types than those of a manifest.
    for what, column in {
        "offset-text": pa.array(["x"]),
        "offset-list": pa.array([[1.0]]),
        "duration-bytes": pa.array([b"\xff"]),
        "text-struct": pa.array([{"a": 1}]),
        "id-nul": pa.array(["\0"]),
    }.items():
        name = what.partition("-")[0]
        table = pa.table({"audio": [{"bytes": good, "path": "a.wav"}], name: column})
        folder.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, folder / f"{what}.parquet")
        corpus.expect(f"{what}/0", {E.BAD_ROW})
    # Samples as arrays.
    for what, audio in {
        "array-no-rate": {"array": [0.0] * 100, "sampling_rate": None},
        "array-rate-of-0": {"array": [0.0] * 100, "sampling_rate": 0},
        "array-4-ghz": {"array": [0.0] * 100, "sampling_rate": 4_000_000_000},
        "array-nan": {"array": [float("nan")] * 16_000, "sampling_rate": 16_000},
        "array-empty": {"array": [], "sampling_rate": 16_000},
        "array-texts": {"array": ["x"], "sampling_rate": 16_000},
    }.items():
        _write_parquet(folder / f"{what}.parquet", [{"audio": audio}])
        corpus.expect(f"{what}/0", {E.BAD_ROW, E.TOO_LARGE, E.NON_FINITE, E.NO_SAMPLES})
    # Files that Arrow cannot read.
    whole = _parquet_bytes([{"id": f"parquet-lost/{i}", "audio": {"bytes": good, "path": "a.wav"}} for i in range(9)])
    for what, data in {
        "empty": b"",
        "magic-only": b"PAR1",
        "html": b"<html>" * 200,
        "cut": whole[: len(whole) // 2],
        "footer-of-4-gb": whole[:-8] + b"\xff\xff\xff\x7fPAR1",
        "footer-of-noise": whole[:-400] + _noise(392) + whole[-8:],
    }.items():
        write(folder / f"parquet-{what}.parquet", data)
        corpus.expect(f"parquet-{what}", {E.BAD_ARCHIVE})
    pages = bytearray(whole)
    pages[4:60] = bytes(56)
    write(folder / "parquet-pages.parquet", bytes(pages))
    corpus.expect("parquet-pages", {E.BAD_ARCHIVE})
    corpus.inputs.append(folder)


def _parquet_bytes(rows: list[dict[str, Any]]) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), buffer)
    return buffer.getvalue()


def _write_parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    write(path, _parquet_bytes(rows))
