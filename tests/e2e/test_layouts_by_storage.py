"""Sixty utterances of LibriSpeech in every layout on every storage: one table, printed by `pytest -rP`.

On the local storage each layout is transcribed. On S3 the decoded samples, ids and references are compared with the
local ones: what the model is given is the same.
"""

from __future__ import annotations

import hashlib
import io

import numpy as np
import pytest
import soundfile

import pipeline
from pipeline.audio.decode import AudioSettings
from pipeline.stages.rows import RowSettings, utterance_rows
from pipeline.storage import objects, uris
from tests.support import corpora, s3
from tests.support.inputs import read
from tests.support.layouts import Said, inputs_of, objects_of

UTTERANCES = 60
RATE = 16_000


@pytest.fixture(scope="module")
def said(librispeech, librispeech_rows):
    """The shortest utterances, as FLAC that ends at a hundredth of a second: every layout can state its duration."""
    found = {}
    for row in sorted(librispeech_rows, key=lambda row: row["duration"])[:UTTERANCES]:
        samples, rate = soundfile.read(librispeech / row["audio_filepath"], dtype="int16")
        assert rate == RATE
        samples = samples[: len(samples) // 160 * 160]
        file = io.BytesIO()
        soundfile.write(file, samples, RATE, format="FLAC")
        utt_id = row["audio_filepath"].removeprefix("audio/").removesuffix(".mp3")
        found[utt_id] = Said(row["text"], row["speaker"], file.getvalue(), len(samples) / RATE)
    return found


@pytest.fixture(scope="module")
def stored(said):
    beside = {f"files/{utt_id}.flac": one.audio for utt_id, one in said.items()}
    return objects_of(said) | beside | {f"files/{utt_id}.txt": one.text.encode() for utt_id, one in said.items()}


def filled(base, stored):
    for name, data in stored.items():
        objects.put(uris.join(base, name), data)
    return base


def read_rows(uri):
    """(reference, digest of the samples) by utt_id."""
    settings = RowSettings(AudioSettings(), 720)
    rows = {}
    for row in (row for utterance in read(uri) for row in utterance_rows(utterance, settings)):
        assert row.error is None, row.error
        assert row.utt_id not in rows
        rows[row.utt_id] = row.reference, hashlib.sha256(np.ascontiguousarray(row.samples).tobytes()).hexdigest()
    return rows


@pytest.mark.slow
def test_every_layout_on_every_storage_gives_the_same_ids_references_and_transcripts(said, stored, tmp_path, local_ray):
    names = [*inputs_of(objects_of(dict(list(said.items())[:2]))), "files"]
    cells: dict[tuple[str, str], dict] = {}
    transcripts: dict[str, list[dict]] = {}
    (tmp_path / "local").mkdir()
    local = filled(str(tmp_path / "local"), stored)
    for name in names:
        cells[name, "local"] = read_rows(uris.join(local, name))
        run = pipeline.transcribe(
            pipeline.RunConfig(
                inputs=(uris.join(local, name),), output=str(tmp_path / f"run-{len(transcripts)}"), threads=1
            )
        )
        kept = ("utt_id", "text", "reference", "duration_s", "word_errors")
        transcripts[name] = [{key: row.get(key) for key in kept} for row in corpora.rows_of(run)]
    (tmp_path / "buckets").mkdir()
    for server in ("rclone", "moto"):
        with s3.rclone_server(tmp_path / "buckets") if server == "rclone" else s3.moto_server():
            base = filled(s3.make_bucket("corpus"), stored)
            for name in names:
                cells[name, server] = read_rows(uris.join(base, name))

    expected = {utt_id: one.text for utt_id, one in said.items()}
    samples = {utt_id: digest for utt_id, (_, digest) in cells["m.jsonl", "local"].items()}
    wrong = []
    lines = [f"{'':32}{'local':>12}{'rclone S3':>12}{'moto S3':>12}"]
    for name in names:
        line = f"{name:32}"
        for storage in ("local", "rclone", "moto"):
            found = cells[name, storage]
            same = {utt_id: text for utt_id, (text, _) in found.items()} == expected
            same &= {utt_id: digest for utt_id, (_, digest) in found.items()} == samples
            same &= storage != "local" or transcripts[name] == transcripts["m.jsonl"]
            line += f"{f'{len(found)} same' if same else f'{len(found)} DIFFER':>12}"
            if not same:
                wrong.append((name, storage))
        lines.append(line)
    print("\n".join([f"Ids, references, samples and (local) transcripts of {UTTERANCES} utterances", *lines]))  # noqa: T201
    assert wrong == []
    assert len(transcripts["m.jsonl"]) == UTTERANCES
    assert sum(bool(row["text"]) for row in transcripts["m.jsonl"]) > 0.9 * UTTERANCES
