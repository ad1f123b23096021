"""Audio and corpora in three input layouts, and comparison of the rows of runs."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import soundfile

import pipeline
from pipeline.corpus.parts import Part
from pipeline.corpus.plan import plan

LARGE = 1 << 40  # a part size that no corpus of the tests reaches


def noise_bursts(seconds: float, seed: int, rate: int = 16_000) -> np.ndarray:
    """Bursts of noise and tones, never the same twice: float32 (num_samples,)."""
    generator = np.random.default_rng(seed)
    time = np.arange(int(seconds * rate)) / rate
    loudness = 0.5 + 0.5 * np.sin(2 * np.pi * generator.uniform(1.5, 3) * time + generator.uniform(0, 6))
    tone = np.sin(2 * np.pi * generator.uniform(100, 300) * time + 3 * np.sin(2 * np.pi * 4 * time))
    return (0.2 * loudness * (tone + 0.5 * generator.standard_normal(len(time)))).astype(np.float32)


def write_audio(path: Path, seconds: float = 1.0, seed: int = 0, rate: int = 16_000, **options) -> Path:
    """Write a file of noise bursts; returns its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, noise_bursts(seconds, seed, rate), rate, **options)
    return path


def write_manifest(path: Path, rows: list[dict]) -> Path:
    """Write a JSONL manifest; returns its path."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def librispeech_manifest(path: Path, folder: Path, rows: list[dict]) -> Path:
    """Write a manifest next to a link to the audio, so that the relative paths stay valid; returns the manifest."""
    path.mkdir(parents=True)
    (path / "audio").symlink_to(folder / "audio")
    return write_manifest(path / "manifest.jsonl", rows)


def librispeech_directory(path: Path, folder: Path, rows: list[dict]) -> Path:
    """Write LibriSpeech's own layout: `audio/SPEAKER/.../ID.mp3` next to `SPEAKER-CHAPTER.trans.txt`."""
    transcripts: dict[Path, list[str]] = {}
    for row in rows:
        target = path / row["audio_filepath"]
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(folder / row["audio_filepath"])
        chapter = target.with_name(target.stem.rpartition("-")[0] + ".trans.txt")
        transcripts.setdefault(chapter, []).append(f"{target.stem} {row['text']}\n")
    for chapter, lines in transcripts.items():
        chapter.write_text("".join(lines))
    return path


def librispeech_shards(path: Path, folder: Path, rows: list[dict], shards: int) -> Path:
    """Write WebDataset shards, with `KEY.mp3` and `KEY.txt` for each row."""
    path.mkdir(parents=True)
    for index in range(shards):
        with tarfile.open(path / f"shard-{index:05d}.tar", "w") as tar:
            for row in rows[index * len(rows) // shards : (index + 1) * len(rows) // shards]:
                key = row["audio_filepath"].removesuffix(".mp3")
                add_member(tar, f"{key}.mp3", (folder / row["audio_filepath"]).read_bytes())
                add_member(tar, f"{key}.txt", row["text"].encode())
    return path


def add_member(tar: tarfile.TarFile, name: str, data: bytes = b"", **fields: object) -> None:
    """Add a member to a tar archive; `fields` are attributes of its TarInfo."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for field, value in fields.items():
        setattr(info, field, value)
    tar.addfile(info, io.BytesIO(data))


def parts_of(*inputs: Path | str, part_bytes: int = LARGE, limit: int | None = None) -> list[Part]:
    """The parts of a corpus, as the plan stores them."""
    table = plan([str(uri) for uri in inputs], part_bytes, limit)
    return [Part.from_row(row) for row in table.to_pylist()]


def rows_of(run: pipeline.Run | Path | str, table: str = "transcripts", drop: tuple[str, ...] = ()) -> list[dict]:
    """The committed rows of a run, ordered by utt_id, without the columns in `drop`."""
    opened = run if isinstance(run, pipeline.Run) else pipeline.Run.open(str(run))
    rows = opened.dataset(table).to_table().drop_columns(list(drop)).to_pylist()
    return sorted(rows, key=lambda row: (row["utt_id"], row.get("task", "")))


def assert_same_transcripts(rows: list[dict], expected: list[dict]) -> None:
    """Rows are equal; confidences up to rounding, which depends on the other clips in a packed batch."""
    assert [_without_confidence(row) for row in rows] == [_without_confidence(row) for row in expected]
    for row, other in zip(rows, expected, strict=True):
        assert _confidences(row) == pytest.approx(_confidences(other), rel=1e-4)


def _confidences(row: dict) -> list[float | None]:
    return [row["confidence"], *(word["confidence"] for word in row["words"])]


def _without_confidence(row: dict) -> dict:
    words = [{key: value for key, value in word.items() if key != "confidence"} for word in row["words"]]
    return {key: value for key, value in row.items() if key != "confidence"} | {"words": words}
