"""The same utterances in every layout and on every store: the same ids, references and audio."""

import csv
import gzip
import io
import json
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.storage import objects, uris
from tests.support import s3
from tests.support.corpora import add_member, parts_of
from tests.support.inputs import read
from tests.support.shards import json_lines, shar, shar_cut, tar_bytes

UTTERANCES = {
    "u/a": ("hello world", "ann", b"RIFF-a"),
    "u/b": ('she said "no", twice', "bob", b"RIFF-b"),
    "caf\u00e9": ("", "ann", b"RIFF-c"),
    "with space": ("tab and\u2028line", None, b"RIFF-d"),
}


def rows(path="audio_filepath", text="text", speaker="speaker", key="id"):
    for utt_id, (words, who, _) in UTTERANCES.items():
        yield {key: utt_id, path: f"audio/{utt_id}.wav", text: words, **({speaker: who} if who else {})}


def table(delimiter, **names):
    file = io.StringIO()
    found = list(rows(**names))
    writer = csv.DictWriter(file, list(found[0]), delimiter=delimiter, restval="")
    writer.writeheader()
    writer.writerows(found)
    return file.getvalue().encode()


def shard(compress=bytes):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for utt_id, (words, who, audio) in UTTERANCES.items():
            add_member(archive, f"{utt_id}.wav", audio)
            add_member(archive, f"{utt_id}.txt", words.encode())
            add_member(archive, f"{utt_id}.json", json.dumps({"speaker": who}).encode())
    return compress(buffer.getvalue())


def parquet(audio, kind=None, column="audio"):
    values = {"id": list(UTTERANCES), "text": [words for words, _, _ in UTTERANCES.values()]}
    values["speaker"] = [who for _, who, _ in UTTERANCES.values()]
    values[column] = pa.array([audio(utt_id, data) for utt_id, (_, _, data) in UTTERANCES.items()], kind)
    buffer = io.BytesIO()
    pq.write_table(pa.table(values), buffer)
    return buffer.getvalue()


def kaldi():
    lines = {
        "wav.scp": [f"{_word(i)} audio/{i}.wav" for i in UTTERANCES],
        "text": [f"{_word(i)} {words}" for i, (words, _, _) in UTTERANCES.items()],
        "utt2spk": [f"{_word(i)} {who}" for i, (_, who, _) in UTTERANCES.items() if who],
    }
    return {f"kaldi/{name}": "".join(line + "\n" for line in found).encode() for name, found in lines.items()}


def _word(utt_id):
    """Ids of Kaldi hold no spaces."""
    return utt_id.replace(" ", "_")


def lhotse():
    recordings, supervisions, cuts = [], [], []
    for utt_id, (words, who, _) in UTTERANCES.items():
        source = {"type": "file", "channels": [0], "source": f"audio/{utt_id}.wav"}
        recording = {"id": f"r-{utt_id}", "sources": [source], "sampling_rate": 16_000, "duration": 1.0}
        said = {"id": utt_id, "recording_id": recording["id"], "start": 0.0, "duration": 1.0, "text": words}
        said |= {"speaker": who} if who else {}
        recordings.append(recording)
        supervisions.append(said)
        cut = {"id": utt_id, "start": 0.0, "duration": 1.0, "channel": 0, "type": "MonoCut"}
        cuts.append({**cut, "recording": recording, "supervisions": [said]})
    return {
        "recordings.jsonl.gz": gzip.compress(json_lines(recordings)),
        "supervisions.jsonl.gz": gzip.compress(json_lines(supervisions)),
        "cuts.jsonl.gz": gzip.compress(json_lines(cuts)),
    }


def shar_shards():
    files = {}
    for index, utt_ids in enumerate((("u/a", "u/b"), ("caf\u00e9", "with space"))):
        cuts = [shar_cut(utt_id, UTTERANCES[utt_id][0], speaker=UTTERANCES[utt_id][1]) for utt_id in utt_ids]
        files |= shar(cuts, {utt_id: UTTERANCES[utt_id][2] for utt_id in utt_ids}, f".{index:06d}")
    return {f"shar/{name}": data for name, data in files.items()}


def nemo_tarred():
    """As NeMo's script names members, but for the ids, which it would make of their paths."""
    rows, shards = [], {}
    for index, (utt_id, (words, who, audio)) in enumerate(UTTERANCES.items()):
        shards.setdefault(index % 2, []).append((f"{utt_id}.wav", audio))
        rows.append({"audio_filepath": f"{utt_id}.wav", "duration": 1.0, "text": words, "shard_id": index % 2})
        rows[-1] |= {"speaker": who} if who else {}
    return {
        "nemo/tarred_audio_manifest.json": json_lines(rows),
        **{f"nemo/audio_{number}.tar": tar_bytes(members) for number, members in shards.items()},
    }


OBJECTS = {
    **{f"audio/{utt_id}.wav": data for utt_id, (_, _, data) in UTTERANCES.items()},
    "m.jsonl": json_lines(rows()),
    "m.jsonl.gz": gzip.compress(json_lines(rows())),
    "t.csv": table(","),
    "t.tsv": table("\t", path="path", text="sentence", speaker="speaker_id", key="utt_id"),
    "t.csv.gz": gzip.compress(table(",", path="file_name", text="transcription")),
    "s.tar": shard(),
    "s.tar.gz": shard(gzip.compress),
    "s.tar.zst": shard(lambda data: pa.compress(data, codec="zstd", asbytes=True)),
    "bytes.parquet": parquet(lambda utt_id, data: {"bytes": data, "path": f"{utt_id}.wav"}),
    "paths.parquet": parquet(lambda utt_id, data: {"bytes": None, "path": f"audio/{utt_id}.wav"}),
    "speech.parquet": parquet(
        lambda utt_id, data: {"bytes": data, "path": None},
        pa.struct({"bytes": pa.large_binary(), "path": pa.large_string()}),
        "speech",
    ),
    "manifest.parquet": parquet(lambda utt_id, data: f"audio/{utt_id}.wav", pa.string(), "audio_filepath"),
    "names.parquet": parquet(lambda utt_id, data: f"audio/{utt_id}.wav"),
    **kaldi(),
    **lhotse(),
    **shar_shards(),
    **nemo_tarred(),
    **{f"folder/{utt_id}.wav": data for utt_id, (_, _, data) in UTTERANCES.items()},
    "folder/metadata.jsonl": json_lines(
        {**row, "file_name": row["file_name"].removeprefix("audio/")} for row in rows(path="file_name")
    ),
}
INPUTS = [name for name in OBJECTS if "/" not in name]
INPUTS += ["kaldi", "folder", "shar", "shar/cuts.*.jsonl.gz", "nemo", "nemo/tarred_audio_manifest.json"]


@pytest.fixture(scope="module", params=["local", "rclone", "moto"])
def corpus(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    server = {"rclone": lambda: s3.rclone_server(folder), "moto": s3.moto_server}.get(request.param)
    if server is None:
        yield _filled(str(folder))
    else:
        with server():
            yield _filled(s3.make_bucket("corpus"))


def _filled(base):
    for name, data in OBJECTS.items():
        objects.put(uris.join(base, name), data)
    return base


@pytest.mark.parametrize("name", INPUTS)
def test_every_layout_has_the_same_utterances(corpus, name):
    found = {u.utt_id: (u.meta.text, u.meta.speaker, u.open()) for u in read(uris.join(corpus, name))}
    expected = {_word(utt_id) if name == "kaldi" else utt_id: row for utt_id, row in UTTERANCES.items()}
    assert found == expected
    assert sum(part.rows or 0 for part in parts_of(uris.join(corpus, name), limit=3)) == 3
