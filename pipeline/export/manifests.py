"""Data sets for training, with transcripts as pseudo-labels: a directory in the layout of a toolkit.

NeMo: docs.nvidia.com/nemo-framework, "Datasets". Kaldi: https://kaldi-asr.org/doc/data_prep.html. lhotse:
https://lhotse.readthedocs.io/en/latest/cuts.html. WebDataset: https://github.com/webdataset/webdataset. datasets:
https://huggingface.co/docs/datasets/audio_load. `sewd transcribe` and `sewd finetune` read all of them, too.
"""

from __future__ import annotations

import contextlib
import functools
import gzip
import heapq
import io
import itertools
import json
import tarfile
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO, Final

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.audio.decode import Header
from pipeline.corpus.headers import header, is_mono
from pipeline.errors import UsageError
from pipeline.export.clips import RATE, Clip
from pipeline.export.names import file_name
from pipeline.export.texts import safe_name
from pipeline.storage import objects, uris

SHARD_BYTES: Final = 1 << 30
"""A shard of WebDataset or a Parquet file is closed when it is this large."""

_ROWS: Final = 64  # of a Parquet file that are written together
_SORTED_LINES: Final = 1 << 17  # that are sorted in memory
_HEADERS: Final = 1 << 12  # that are remembered


def _nemo(clips: Iterable[Clip], output: str, left_out: Counter[str]) -> int:
    del left_out
    files = 1
    mono = functools.lru_cache(_HEADERS)(is_mono)
    with _object(uris.join(output, "manifest.jsonl")) as file:
        for clip in clips:
            row: dict[str, Any] = {"audio_filepath": clip.uri, "offset": clip.start_s, "duration": clip.duration_s}
            if clip.flac is not None:
                row = {"audio_filepath": _stored(clip, output, relative=True), "duration": clip.duration_s}
                files += 1
            elif clip.channel is not None and not mono(clip.uri):
                raise _one_channel("nemo", clip)
            _write_json(file, {**row, "text": clip.text, "utt_id": clip.utt_id, **_known(clip)})
    return files


def _kaldi(clips: Iterable[Clip], output: str, left_out: Counter[str]) -> int:
    """Sorted as Kaldi asks for: by the bytes of the ids. Where no speaker is named, each utterance is its own."""
    del left_out
    names = ("wav.scp", "segments", "text", "utt2spk", "spk2utt")
    files = {name: _SortedLines() for name in names}
    mono = functools.lru_cache(_HEADERS)(is_mono)
    stored = 0
    for clip in clips:
        utt_id = safe_name(clip.utt_id)
        speaker = safe_name(clip.speaker) if clip.speaker else utt_id
        if clip.flac is not None:
            files["wav.scp"].add(f"{utt_id} {_stored(clip, output)}")
            stored += 1
        elif clip.channel is not None and not mono(clip.uri):
            raise _one_channel("kaldi", clip)
        else:
            recording, end_s = safe_name(clip.recording), clip.start_s + clip.duration_s
            files["wav.scp"].add(f"{recording} {clip.uri}")
            files["segments"].add(f"{utt_id} {recording} {clip.start_s:.6f} {end_s:.6f}")
        files["text"].add(f"{utt_id} {clip.text}".rstrip())
        files["utt2spk"].add(f"{utt_id} {speaker}")
        files["spk2utt"].add(f"{speaker} {utt_id}")
    if stored:
        del files["segments"]
    for name, lines in files.items():
        with _object(uris.join(output, name)) as file:
            found = (line.decode() for line in lines.unique())
            file.writelines(f"{line}\n".encode() for line in (_joined(found) if name == "spk2utt" else found))
    return stored + len(files)


def _joined(lines: Iterable[str]) -> Iterator[str]:
    """The lines that begin with the same word as one."""
    for key, group in itertools.groupby((line.split(" ", 1) for line in lines), lambda line: line[0]):
        yield " ".join([key, *(line[1] for line in group)])


def _lhotse(clips: Iterable[Clip], output: str, left_out: Counter[str]) -> int:
    files = 1
    header_of = functools.lru_cache(_HEADERS)(header)
    with _object(uris.join(output, "cuts.jsonl.gz")) as file, gzip.GzipFile("", "wb", fileobj=file, mtime=0) as lines:
        for clip in clips:
            if clip.flac is not None:
                recording = _recording(clip.utt_id, _stored(clip, output), Header(RATE, 1, clip.duration_s), clip)
                _write_json(lines, _cut(clip, recording, 0.0, 0))
                files += 1
                continue
            found = header_of(clip.uri)
            if isinstance(found, str):
                left_out[found] += 1
                continue
            channels = 0 if found.channels == 1 else list(range(found.channels))
            channel = channels if clip.channel is None else clip.channel
            recording = _recording(clip.recording, clip.uri, found, clip)
            _write_json(lines, _cut(clip, recording, clip.start_s, channel))
    return files


def _recording(name: str, uri: str, found: Header, clip: Clip) -> dict[str, Any]:
    channels = list(range(found.channels))
    duration_s = found.duration_s if found.duration_s is not None else clip.start_s + clip.duration_s
    return {
        "id": name,
        "sources": [{"type": "url" if "://" in uri else "file", "channels": channels, "source": uri}],
        "sampling_rate": found.rate,
        "num_samples": round(duration_s * found.rate),
        "duration": duration_s,
        "channel_ids": channels,
    }


def _cut(clip: Clip, recording: Mapping[str, Any], start_s: float, channel: int | list[int]) -> dict[str, Any]:
    duration_s = min(clip.duration_s, recording["duration"] - start_s)  # resampling may round it up
    known = _known(clip)
    confidence = known.pop("confidence", None)
    supervision = {
        "id": clip.utt_id,
        "recording_id": recording["id"],
        "start": 0.0,
        "duration": duration_s,
        "channel": channel,
        "text": clip.text,
        **known,
        **({} if confidence is None else {"custom": {"confidence": confidence}}),
    }
    return {
        "id": clip.utt_id,
        "start": start_s,
        "duration": duration_s,
        "channel": channel,
        "supervisions": [supervision],
        "recording": recording,
        "type": "MonoCut" if isinstance(channel, int) else "MultiCut",
    }


def _webdataset(clips: Iterable[Clip], output: str, left_out: Counter[str]) -> int:
    """Shards with `KEY.flac`, `KEY.txt` and `KEY.json`; keys are numbers, since a dot in a key would end it."""
    del left_out
    files, numbered = 0, iter(enumerate(clips))
    for first in numbered:
        with (
            _object(uris.join(output, f"shard-{files:06d}.tar")) as file,
            tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as shard,
        ):
            for number, clip in itertools.chain([first], numbered):
                values = {"utt_id": clip.utt_id, "text": clip.text, "duration": clip.duration_s, **_known(clip)}
                members = {"flac": clip.flac or b"", "txt": clip.text.encode(), "json": _json(values)}
                for kind, data in members.items():
                    member = tarfile.TarInfo(f"{number:09d}.{kind}")
                    member.size = len(data)
                    shard.addfile(member, io.BytesIO(data))
                if file.tell() >= SHARD_BYTES:
                    break
        files += 1
    return files


_FEATURES: Final[Mapping[str, tuple[pa.DataType, Mapping[str, Any]]]] = MappingProxyType(
    {
        "audio": (
            pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
            {"sampling_rate": RATE, "_type": "Audio"},
        ),
        **{name: (pa.string(), {"dtype": "string", "_type": "Value"}) for name in ("utt_id", "text", "speaker")},
        "confidence": (pa.float32(), {"dtype": "float32", "_type": "Value"}),
        "duration_s": (pa.float64(), {"dtype": "float64", "_type": "Value"}),
    }
)
_DATASET: Final = pa.schema(
    {name: kind for name, (kind, _) in _FEATURES.items()},
    {"huggingface": json.dumps({"info": {"features": {name: feature for name, (_, feature) in _FEATURES.items()}}})},
)


def _datasets(clips: Iterable[Clip], output: str, left_out: Counter[str]) -> int:
    """Parquet files that `datasets.load_dataset` reads, with the audio of each row in it."""
    del left_out
    files, rest = 0, iter(clips)
    batches = iter(lambda: list(itertools.islice(rest, _ROWS)), [])
    for first in itertools.chain([next(batches, [])], batches):  # an export of no rows is one file
        with (
            _object(uris.join(output, f"train-{files:05d}.parquet")) as file,
            pq.ParquetWriter(file, _DATASET, compression="zstd") as writer,
        ):
            for batch in itertools.chain([first], batches):
                rows = [
                    {"audio": {"bytes": clip.flac, "path": f"{clip.utt_id}.flac"}, **clip._asdict()} for clip in batch
                ]
                writer.write_table(pa.Table.from_pylist(rows, _DATASET))
                if file.tell() >= SHARD_BYTES:
                    break
        files += 1
    return files


Writer = Callable[[Iterable[Clip], str, Counter[str]], int]
"""(clips, URI of the directory, where clips are counted that cannot be named, by the reason) -> number of files."""

NAMED: Final[Mapping[str, Writer]] = MappingProxyType({"nemo": _nemo, "kaldi": _kaldi, "lhotse": _lhotse})
"""Formats that name audio, or have it beside them if it was cut out."""

HOLDING: Final[Mapping[str, Writer]] = MappingProxyType({"webdataset": _webdataset, "datasets": _datasets})
"""Formats that hold the audio."""


def _known(clip: Clip) -> dict[str, Any]:
    values = {"speaker": clip.speaker, "confidence": None if clip.confidence is None else round(clip.confidence, 6)}
    return {name: value for name, value in values.items() if value is not None}


def _json(values: Mapping[str, Any]) -> bytes:
    return json.dumps(values, ensure_ascii=False).encode()


def _write_json(file: Any, values: Mapping[str, Any]) -> None:
    file.write(_json(values) + b"\n")


def _stored(clip: Clip, output: str, *, relative: bool = False) -> str:
    """Store the audio of a clip beside its manifest, and return where it is."""
    name = uris.join("audio", file_name(clip.utt_id, ".flac"))
    objects.put(uris.join(output, name), clip.flac or b"")
    return name if relative else uris.join(output, name)


def _one_channel(kind: str, clip: Clip) -> UsageError:
    return UsageError(
        f"{clip.utt_id} is one channel of {clip.uri}, which a {kind} manifest cannot name: use --audio cut"
    )


@contextlib.contextmanager
def _object(uri: str) -> Iterator[BinaryIO]:
    """A file on local disk that becomes the object when it is complete."""
    with tempfile.TemporaryDirectory(prefix="sewd-export-") as folder:
        path = Path(folder, "object")
        with path.open("wb") as file:
            yield file
        objects.put_file(uri, path)


class _SortedLines:
    """Lines that are sorted by their bytes, most of them on disk."""

    def __init__(self) -> None:
        self._lines: list[bytes] = []
        self._files: list[BinaryIO] = []

    def add(self, line: str) -> None:
        self._lines.append(line.encode())
        if len(self._lines) >= _SORTED_LINES:
            file = tempfile.TemporaryFile()  # noqa: SIM115 - it is read, and closed, when all are merged
            file.writelines(line + b"\n" for line in sorted(set(self._lines)))
            file.seek(0)
            self._files.append(file)
            self._lines = []

    def unique(self) -> Iterator[bytes]:
        """The lines in order, without repetitions; once."""
        with contextlib.ExitStack() as stack:
            spilled = [map(_without_end, stack.enter_context(file)) for file in self._files]
            for line, _ in itertools.groupby(heapq.merge(sorted(set(self._lines)), *spilled)):
                yield line


def _without_end(line: bytes) -> bytes:
    return line.removesuffix(b"\n")
