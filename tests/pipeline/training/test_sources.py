"""From INPUTs to clips: every layout of a run, and a typed row for each utterance that cannot be used."""

from __future__ import annotations

import json
import os
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from pipeline.errors import RunFailedError, UsageError
from pipeline.training.sources import (
    ERRORS,
    ClipSet,
    check_error_rate,
    check_inputs,
    describe_errors,
    error_table,
    read_set,
)
from tests.support.tones import RATE, synthesize, write_corpus


def read(*uris: Path, weight: float = 1.0) -> ClipSet:
    return read_set("train", [(str(uri), weight) for uri in uris])


def write_rows(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def contents(found: ClipSet) -> list[tuple]:
    clips = enumerate(found.store.clips)
    return sorted((clip.text, clip.label, clip.speaker, found.store.samples(i).tobytes()) for i, clip in clips)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("tones"), 6)


# ------------------------------------------------------------------------------------------------ what can be read
def test_a_manifest_is_read_with_its_weight(corpus):
    found = read(corpus, weight=2.0)
    assert [clip.label for clip in found.store.clips] == ["one", "two"] * 3
    assert [clip.speaker for clip in found.store.clips] == ["a", "b"] * 3
    assert all(clip.weight == 2.0 for clip in found.store.clips)
    assert all(clip.text == clip.text.lower() for clip in found.store.clips)
    assert not found.errors


def test_durations_are_measured_whatever_the_manifest_says(corpus, tmp_path):
    rows = [json.loads(line) for line in corpus.read_text().splitlines()]
    durations = [row.pop("duration") for row in rows]
    rows[0]["duration"] = 99.0
    for row in rows:
        row["audio_filepath"] = str(corpus.parent / row["audio_filepath"])
    found = read(write_rows(tmp_path / "m.jsonl", rows))
    assert [clip.duration_s for clip in found.store.clips] == pytest.approx(durations)


def test_a_clip_has_the_samples_of_its_range(tmp_path):
    samples = (np.arange(-200, 200) * 100).astype(np.int16)
    soundfile.write(tmp_path / "a.wav", samples, RATE)
    row = {"audio_filepath": "a.wav", "text": "a"}
    part = row | {"offset": 100 / RATE, "duration": 50 / RATE}
    found = read(write_rows(tmp_path / "m.jsonl", [row, part]))
    np.testing.assert_array_equal(found.store.samples(0), samples)
    np.testing.assert_array_equal(found.store.samples(1), samples[100:150])


def _rows(corpus: Path) -> list[dict]:
    return [json.loads(line) for line in corpus.read_text().splitlines()]


def _directory(corpus: Path, to: Path) -> Path:
    """Audio with `NAME.txt` beside it."""
    (to / "sub").mkdir(parents=True)
    for row in _rows(corpus):
        shutil.copy(corpus.parent / row["audio_filepath"], to / "sub")
        (to / "sub" / f"{Path(row['audio_filepath']).stem}.txt").write_text(row["text"])
    return to


def _glob(corpus: Path, to: Path) -> Path:
    return _directory(corpus, to) / "sub" / "*.wav"


def _librispeech(corpus: Path, to: Path) -> Path:
    to.mkdir()
    lines = []
    for row in _rows(corpus):
        name = f"19-198-{Path(row['audio_filepath']).stem}"
        shutil.copy(corpus.parent / row["audio_filepath"], to / f"{name}.wav")
        lines.append(f"{name} {row['text'].upper()}\n")
    (to / "19-198.trans.txt").write_text("".join(lines))
    return to


def _tar(corpus: Path, to: Path) -> Path:
    to.mkdir()
    with tarfile.open(to / "shard-0.tar", "w") as shard:
        for row in _rows(corpus):
            path = to / row["audio_filepath"]
            shutil.copy(corpus.parent / row["audio_filepath"], path)
            meta = path.with_suffix(".json")
            meta.write_text(json.dumps({key: row[key] for key in ("text", "label", "speaker")}))
            shard.add(path, path.name)
            shard.add(meta, meta.name)
    return to / "shard-0.tar"


def _parquet(corpus: Path, to: Path) -> Path:
    to.mkdir()
    rows = [
        {"audio": {"bytes": (corpus.parent / row["audio_filepath"]).read_bytes(), "path": row["audio_filepath"]}}
        | {key: row[key] for key in ("text", "label", "speaker")}
        for row in _rows(corpus)
    ]
    pq.write_table(pa.Table.from_pylist(rows), to / "t.parquet")
    return to / "t.parquet"


@pytest.mark.parametrize("layout", [_directory, _glob, _librispeech, _tar, _parquet])
def test_every_layout_of_a_run_gives_the_clips_of_the_manifest(corpus, tmp_path, layout):
    found = read(layout(corpus, tmp_path / "in"))
    assert not found.errors
    wanted = contents(read(corpus))
    if layout in (_tar, _parquet):
        assert contents(found) == wanted
    else:  # these have texts only
        assert [(text, samples) for text, *_, samples in contents(found)] == [(t, s) for t, *_, s in wanted]


def test_the_other_keys_of_a_text_are_read_too(corpus, tmp_path):
    row = {"audio_filepath": str(corpus.parent / "00.wav")}
    keys = ("text", "transcription", "transcript", "sentence")
    found = read(write_rows(tmp_path / "m.jsonl", [row | {key: "Ab, cab!"} for key in keys]))
    assert [clip.text for clip in found.store.clips] == ["ab cab"] * 4


def test_a_row_that_is_listed_twice_is_two_clips(corpus):
    rows = read(corpus, corpus)
    assert len(rows.store) == 12
    assert not rows.errors


# -------------------------------------------------------------------------------------------- what cannot be read
def _broken(directory: Path, corpus: Path) -> dict[str, dict]:
    """A manifest row for each fault, by name of the fault."""
    sound = (corpus.parent / "00.wav").read_bytes()
    files = {
        "empty": b"",
        "noise": os.urandom(3000),
        "riff": b"RIFF nothing",
        "cut": sound[: len(sound) // 2],
        "text": b"this is no audio at all\n" * 40,
    }
    rows: dict[str, dict] = {}
    for name, content in files.items():
        (directory / f"{name}.wav").write_bytes(content)
        rows[name] = {"audio_filepath": f"{name}.wav", "text": "ab"}
    soundfile.write(directory / "nan.wav", np.full(4000, np.nan, np.float32), RATE, subtype="FLOAT")
    soundfile.write(directory / "none.wav", np.zeros(0, np.float32), RATE)
    os.mkfifo(directory / "pipe.wav")
    (directory / "dangling.wav").symlink_to(directory / "nowhere.wav")
    (directory / "folder.wav").mkdir()
    rows |= {name: {"audio_filepath": f"{name}.wav", "text": "ab"} for name in ("nan", "none", "pipe", "dangling")}
    rows["missing"] = {"audio_filepath": "missing.wav", "text": "ab"}
    rows["folder"] = {"audio_filepath": "folder.wav", "text": "ab"}
    rows["outside"] = {"audio_filepath": str(corpus.parent / "00.wav"), "text": "ab", "offset": 50.0, "duration": 1.0}
    rows["nothing to learn"] = {"audio_filepath": str(corpus.parent / "00.wav")}
    rows["no audio"] = {"text": "ab"}
    rows["wrong type"] = {"audio_filepath": str(corpus.parent / "00.wav"), "text": ["ab"]}
    rows["scheme"] = {"audio_filepath": "nosuch://x/y.wav", "text": "ab"}
    return rows


CODES = {
    "empty": {"EMPTY_FILE"},
    "noise": {"UNDECODABLE", "UNSUPPORTED"},
    "riff": {"UNDECODABLE", "TRUNCATED"},
    "cut": {"TRUNCATED"},
    "text": {"UNDECODABLE", "UNSUPPORTED"},
    "nan": {"NON_FINITE"},
    "none": {"NO_SAMPLES"},
    "pipe": {"MISSING", "UNSUPPORTED"},
    "dangling": {"MISSING"},
    "missing": {"MISSING"},
    "folder": {"MISSING"},
    "outside": {"OUT_OF_RANGE"},
    "nothing to learn": {"BAD_ROW"},
    "no audio": {"BAD_ROW"},
    "wrong type": {"BAD_ROW"},
    "scheme": {"BAD_ROW"},
}


def test_each_fault_is_one_typed_row_and_the_other_rows_are_used(corpus, tmp_path):
    broken = _broken(tmp_path, corpus)
    assert set(broken) == set(CODES)
    sound = {"audio_filepath": str(corpus.parent / "01.wav"), "text": "cab"}
    rows = [row for fault in broken.values() for row in (fault, sound)]
    manifest = write_rows(tmp_path / "m.jsonl", rows)
    with manifest.open("a") as file:
        file.write('{"audio_filepath": "half\n')
    found = read(manifest)
    assert len(found.store) == len(broken)
    assert found.rows == 2 * len(broken) + 1
    assert len(found.errors) == len(broken) + 1
    for (fault, expected), row in zip(CODES.items(), found.errors, strict=False):
        assert row["code"] in expected, (fault, row)
        assert row["message"]
        assert row["set"] == "train"
    assert found.errors[-1]["code"] == "BAD_ROW"
    assert f"{len(broken) + 1} of {found.rows} rows cannot be used" in describe_errors(found)
    table = pq.read_table(pa.BufferReader(error_table([found])))
    assert table.schema.equals(ERRORS)
    assert table.num_rows == len(broken) + 1
    assert set(table["stage"].to_pylist()) <= {"plan", "read", "decode"}


def test_broken_members_and_rows_of_containers_are_rows_too(corpus, tmp_path):
    shard = _tar(corpus, tmp_path / "in")
    with tarfile.open(shard, "a") as file:
        (tmp_path / "bad.wav").write_bytes(b"nothing")
        (tmp_path / "bad.txt").write_text("ab")
        file.add(tmp_path / "bad.wav", "bad.wav")
        file.add(tmp_path / "bad.txt", "bad.txt")
    found = read(shard)
    assert (len(found.store), len(found.errors)) == (6, 1)
    table = pq.read_table(_parquet(corpus, tmp_path / "tables"))
    rows = table.to_pylist()
    rows[2]["audio"] = {"bytes": b"nothing", "path": None}
    rows[4]["audio"] = {"bytes": None, "path": None}
    pq.write_table(pa.Table.from_pylist(rows, table.schema), tmp_path / "t.parquet")
    found = read(tmp_path / "t.parquet")
    assert (len(found.store), len(found.errors)) == (4, 2)
    whole = shard.read_bytes()
    (tmp_path / "cut.tar").write_bytes(whole[: len(whole) // 2])
    found = read(tmp_path / "cut.tar")
    assert found.store.clips
    assert "BAD_ARCHIVE" in found.error_codes


def test_errors_are_in_the_order_of_the_input_however_many_parts_it_has(tmp_path):
    rng = np.random.default_rng(0)
    rows = []
    for number in range(60):
        soundfile.write(tmp_path / f"{number:02}.wav", synthesize("ab", rng), RATE)
        stated_s = 60.0  # so that four rows fill a part
        rows.append({"audio_filepath": f"{number:02}.wav", "text": "ab", "duration": stated_s})
        rows.append({"audio_filepath": f"none-{number:02}.wav", "text": "ab", "duration": stated_s})
    found = read(write_rows(tmp_path / "m.jsonl", rows))
    assert [clip.utt_id for clip in found.store.clips] == [f"{number:02}" for number in range(60)]
    assert [row["utt_id"] for row in found.errors] == [f"none-{number:02}" for number in range(60)]
    assert len({row["part_id"] for row in found.errors}) > 5


# ---------------------------------------------------------------------------------------------------- the limit
def failed(rows: int, errors: int) -> ClipSet:
    row = {"code": "MISSING", "uri": "a.wav", "message": "no such object"}
    sound = read_set_of(rows - errors)
    return ClipSet("train", sound, [row] * errors)


def read_set_of(number: int):
    from pipeline.training.data import Clip, ClipStore

    return ClipStore([Clip("a", 1.0, "a", None, None)] * number, [np.zeros(1, np.int16)] * number)


@pytest.mark.parametrize(
    ("rows", "errors", "limit", "fails"),
    [
        (999, 998, None, False),
        (1000, 50, None, False),
        (1000, 51, None, True),
        (10, 1, 0.1, False),
        (10, 2, 0.1, True),
        (10, 1, 0.0, True),
        (10, 0, 0.0, False),
        (5000, 4999, 1.0, False),
    ],
)
def test_a_set_with_too_many_errors_fails(rows, errors, limit, fails):
    found = failed(rows, errors)
    if not fails:
        check_error_rate(found, limit)
        return
    with pytest.raises(RunFailedError, match=rf"{errors} of {rows} rows failed.*max-error-rate.*MISSING {errors}"):
        check_error_rate(found, limit)


def test_inputs_without_a_usable_row_are_a_usage_error_with_the_first_reason(corpus, tmp_path):
    bare = tmp_path / "bare"
    bare.mkdir()
    shutil.copy(corpus.parent / "00.wav", bare)
    with pytest.raises(UsageError, match="a text, a label, or both"):
        read(bare)
    with pytest.raises(UsageError, match=r"MISSING 2.*no such object"):
        read(write_rows(tmp_path / "m.jsonl", [{"audio_filepath": f"{n}.wav", "text": "a"} for n in range(2)]))


@pytest.mark.parametrize("content", [None, ""])
def test_an_input_that_is_missing_or_empty_is_a_usage_error(tmp_path, content):
    path = tmp_path / "manifest.jsonl"
    if content is not None:
        path.write_text(content)
    for check in (lambda: read(path), lambda: check_inputs([str(path)])):
        with pytest.raises(UsageError, match=r"manifest\.jsonl"):
            check()
