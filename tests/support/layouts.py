"""A few utterances in every input layout, as objects by name."""

from __future__ import annotations

import csv
import gzip
import io
import json
import tarfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from tests.support.corpora import add_member
from tests.support.shards import json_lines, shar, shar_cut, tar_bytes


class Said(NamedTuple):
    """An utterance: its text, speaker, audio file, and the duration of that in seconds."""

    text: str
    speaker: str | None
    audio: bytes
    seconds: float = 1.0


Utterances = Mapping[str, Said]


def word(utt_id: str) -> str:
    """Ids of Kaldi hold no spaces."""
    return utt_id.replace(" ", "_")


def _rows(
    said: Utterances, path: str = "audio_filepath", text: str = "text", speaker: str = "speaker", key: str = "id"
) -> Iterator[dict[str, Any]]:
    for utt_id, (words, who, *_) in said.items():
        yield {key: utt_id, path: f"audio/{utt_id}.wav", text: words, **({speaker: who} if who else {})}


def _table(said: Utterances, delimiter: str, **names: str) -> bytes:
    file = io.StringIO()
    found = list(_rows(said, **names))
    writer = csv.DictWriter(file, list(found[0]), delimiter=delimiter, restval="")
    writer.writeheader()
    writer.writerows(found)
    return file.getvalue().encode()


def _shard(said: Utterances, compress: Callable[[bytes], bytes] = bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for utt_id, (words, who, audio, _) in said.items():
            add_member(archive, f"{utt_id}.wav", audio)
            add_member(archive, f"{utt_id}.txt", words.encode())
            add_member(archive, f"{utt_id}.json", json.dumps({"speaker": who}).encode())
    return compress(buffer.getvalue())


def _parquet(said: Utterances, audio: Callable[[str, bytes], Any], kind: Any = None, column: str = "audio") -> bytes:
    values = {"id": list(said), "text": [one.text for one in said.values()]}
    values["speaker"] = [one.speaker for one in said.values()]
    values[column] = pa.array([audio(utt_id, one.audio) for utt_id, one in said.items()], kind)
    buffer = io.BytesIO()
    pq.write_table(pa.table(values), buffer)
    return buffer.getvalue()


def _kaldi(said: Utterances) -> dict[str, bytes]:
    lines = {
        "wav.scp": [f"{word(i)} audio/{i}.wav" for i in said],
        "text": [f"{word(i)} {words}" for i, (words, *_) in said.items()],
        "utt2spk": [f"{word(i)} {who}" for i, (_, who, *_) in said.items() if who],
    }
    return {f"kaldi/{name}": "".join(line + "\n" for line in found).encode() for name, found in lines.items()}


def _lhotse(said_by_id: Utterances) -> dict[str, bytes]:
    recordings, supervisions, cuts = [], [], []
    for utt_id, (words, who, _, seconds) in said_by_id.items():
        source = {"type": "file", "channels": [0], "source": f"audio/{utt_id}.wav"}
        recording = {"id": f"r-{utt_id}", "sources": [source], "sampling_rate": 16_000, "duration": seconds}
        said = {"id": utt_id, "recording_id": recording["id"], "start": 0.0, "duration": seconds, "text": words}
        said |= {"speaker": who} if who else {}
        recordings.append(recording)
        supervisions.append(said)
        cut = {"id": utt_id, "start": 0.0, "duration": seconds, "channel": 0, "type": "MonoCut"}
        cuts.append({**cut, "recording": recording, "supervisions": [said]})
    return {
        "recordings.jsonl.gz": gzip.compress(json_lines(recordings)),
        "supervisions.jsonl.gz": gzip.compress(json_lines(supervisions)),
        "cuts.jsonl.gz": gzip.compress(json_lines(cuts)),
    }


def _shar(said: Utterances) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    half = len(said) // 2
    for index, ids in enumerate((list(said)[:half], list(said)[half:])):
        cuts = [shar_cut(i, said[i].text, said[i].seconds, speaker=said[i].speaker) for i in ids]
        files |= shar(cuts, {utt_id: said[utt_id].audio for utt_id in ids}, f".{index:06d}")
    return {f"shar/{name}": data for name, data in files.items()}


def _nemo_tarred(said: Utterances) -> dict[str, bytes]:
    """As NeMo's script names members, but for the ids, which it would make of their paths."""
    rows: list[dict[str, Any]] = []
    shards: dict[int, list[tuple[str, bytes]]] = {}
    for index, (utt_id, (words, who, audio, seconds)) in enumerate(said.items()):
        shards.setdefault(index % 2, []).append((f"{utt_id}.wav", audio))
        rows.append({"audio_filepath": f"{utt_id}.wav", "duration": seconds, "text": words, "shard_id": index % 2})
        rows[-1] |= {"speaker": who} if who else {}
    return {
        "nemo/tarred_audio_manifest.json": json_lines(rows),
        **{f"nemo/audio_{number}.tar": tar_bytes(members) for number, members in shards.items()},
    }


def objects_of(said: Utterances) -> dict[str, bytes]:
    """The objects of a corpus that holds the utterances in every layout, by name."""
    return {
        **{f"audio/{utt_id}.wav": data for utt_id, (_, _, data, _) in said.items()},
        "m.jsonl": json_lines(_rows(said)),
        "m.jsonl.gz": gzip.compress(json_lines(_rows(said))),
        "t.csv": _table(said, ","),
        "t.tsv": _table(said, "\t", path="path", text="sentence", speaker="speaker_id", key="utt_id"),
        "t.csv.gz": gzip.compress(_table(said, ",", path="file_name", text="transcription")),
        "s.tar": _shard(said),
        "s.tar.gz": _shard(said, gzip.compress),
        "s.tar.zst": _shard(said, lambda data: pa.compress(data, codec="zstd", asbytes=True)),
        "bytes.parquet": _parquet(said, lambda utt_id, data: {"bytes": data, "path": f"{utt_id}.wav"}),
        "paths.parquet": _parquet(said, lambda utt_id, data: {"bytes": None, "path": f"audio/{utt_id}.wav"}),
        "speech.parquet": _parquet(
            said,
            lambda utt_id, data: {"bytes": data, "path": None},
            pa.struct({"bytes": pa.large_binary(), "path": pa.large_string()}),
            "speech",
        ),
        "manifest.parquet": _parquet(said, lambda utt_id, data: f"audio/{utt_id}.wav", pa.string(), "audio_filepath"),
        "names.parquet": _parquet(said, lambda utt_id, data: f"audio/{utt_id}.wav"),
        **_kaldi(said),
        **_lhotse(said),
        **_shar(said),
        **_nemo_tarred(said),
        **{f"folder/{utt_id}.wav": data for utt_id, (_, _, data, _) in said.items()},
        "folder/metadata.jsonl": json_lines(
            {**row, "file_name": row["file_name"].removeprefix("audio/")} for row in _rows(said, path="file_name")
        ),
    }


def inputs_of(objects: Mapping[str, bytes]) -> list[str]:
    """What to name as INPUT, of the objects of `objects_of`."""
    found = [name for name in objects if "/" not in name]
    return [*found, "kaldi", "folder", "shar", "shar/cuts.*.jsonl.gz", "nemo", "nemo/tarred_audio_manifest.json"]
