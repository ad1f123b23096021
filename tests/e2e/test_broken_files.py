"""A broken file becomes one error row and changes nothing else."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile

import pipeline
from pipeline.errors import ErrorCode
from tests.support import corpora
from tests.support.command import sewd

# A complete PNG of one pixel.
PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de0000000c4944415408d763f8cfc000000301010018dd8db0"
    "0000000049454e44ae426082"
)


def audio_bytes(kind: str, samples: np.ndarray | None = None, **options) -> bytes:
    buffer = io.BytesIO()
    samples = corpora.noise_bursts(1.0, seed=7) if samples is None else samples
    soundfile.write(buffer, samples, 16_000, format=kind, **options)
    return buffer.getvalue()


def broken_files() -> dict[str, tuple[bytes, set[ErrorCode]]]:
    """The content of twenty broken files, and the error codes that each may get."""
    with_nan = corpora.noise_bursts(1.0, seed=8)
    with_nan[5000:5010] = np.nan
    with_infinity = corpora.noise_bursts(1.0, seed=9)
    with_infinity[0] = np.inf
    wav, flac, ogg = audio_bytes("WAV"), audio_bytes("FLAC"), audio_bytes("OGG")
    cut = {ErrorCode.TRUNCATED, ErrorCode.UNDECODABLE}
    text = {ErrorCode.UNDECODABLE}
    return {
        "truncated-a.wav": (wav[: len(wav) // 2], {ErrorCode.TRUNCATED}),
        "truncated-b.wav": (wav[:-2], {ErrorCode.TRUNCATED}),
        "truncated-c.wav": (wav[:20], cut),
        "truncated-d.flac": (flac[: len(flac) // 2], {ErrorCode.TRUNCATED}),
        "truncated-e.flac": (flac[: len(flac) // 10], cut),
        "truncated-f.ogg": (ogg[: len(ogg) // 2], cut),
        "truncated-g.ogg": (ogg[:-10], cut),
        "empty-a.wav": (b"", {ErrorCode.EMPTY_FILE}),
        "empty-b.flac": (b"", {ErrorCode.EMPTY_FILE}),
        "empty-c.mp3": (b"", {ErrorCode.EMPTY_FILE}),
        "text-a.wav": (b"this is no audio\n" * 40, text),
        "text-b.mp3": (b"<html><body>404 not found</body></html>\n" * 40, text),
        "text-c.ogg": (b'{"error": "AccessDenied"}', text),
        "no-frames-a.wav": (audio_bytes("WAV", np.zeros(0, np.float32)), {ErrorCode.NO_SAMPLES}),
        "no-frames-b.aiff": (audio_bytes("AIFF", np.zeros(0, np.float32)), {ErrorCode.NO_SAMPLES}),
        "nan.wav": (audio_bytes("WAV", with_nan, subtype="FLOAT"), {ErrorCode.NON_FINITE}),
        "infinite.wav": (audio_bytes("WAV", with_infinity, subtype="FLOAT"), {ErrorCode.NON_FINITE}),
        "image-a.flac": (PNG, text),
        "image-b.wav": (PNG, text),
        "short.wav": (audio_bytes("WAV", with_nan[:300]), {ErrorCode.TOO_SHORT}),
    }


def write_broken(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, (data, _) in broken_files().items():
        (folder / name).write_bytes(data)
    return folder


@pytest.fixture(scope="module")
def intact(tmp_path_factory) -> Path:
    """A directory of a hundred intact files."""
    folder = tmp_path_factory.mktemp("intact")
    for index in range(100):
        kind = ("wav", "flac", "ogg")[index % 3]
        corpora.write_audio(folder / f"{index:03d}.{kind}", seconds=0.3 + index / 100, seed=index)
    return folder


def test_twenty_broken_files_among_a_hundred_intact_ones_become_twenty_error_rows(
    intact, tmp_path, small_ctc, local_ray
):
    folder = write_broken(tmp_path / "corpus")
    for path in intact.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())

    done = sewd(
        "transcribe", folder, "--output", tmp_path / "run", "--model", small_ctc, "--chunk-seconds", 20, "--threads", 1
    )

    assert done.returncode == 3, done.stderr
    assert "100 transcripts" in done.stdout
    assert "20 failed" in done.stdout
    errors = {row["utt_id"]: row for row in corpora.rows_of(tmp_path / "run", "errors")}
    broken = broken_files()
    assert set(errors) == {name.rpartition(".")[0] for name in broken}
    for name, (_, codes) in broken.items():
        row = errors[name.rpartition(".")[0]]
        assert row["code"] in codes, (name, row["message"])
        assert row["message"]
        assert row["uri"].endswith(name)
    transcripts = corpora.rows_of(tmp_path / "run")
    assert {row["utt_id"] for row in transcripts} == {path.stem for path in intact.iterdir()}

    # The intact files have the same transcripts as without the broken ones.
    config = pipeline.RunConfig(inputs=(str(intact),), output=str(tmp_path / "alone"), model=str(small_ctc), threads=1)
    assert pipeline.transcribe(config).status == "done"
    drop = ("uri", "part_id", "chunk")
    without_broken, with_broken = (corpora.rows_of(tmp_path / name, drop=drop) for name in ("alone", "run"))
    corpora.assert_same_transcripts(without_broken, with_broken)


def test_a_directory_with_only_broken_files_is_committed_without_transcripts(tmp_path, local_ray, small_ctc):
    folder = write_broken(tmp_path / "corpus")

    run = pipeline.transcribe(
        pipeline.RunConfig(inputs=(str(folder),), output=str(tmp_path / "run"), model=str(small_ctc))
    )

    assert run.status == "done"
    assert corpora.rows_of(run) == []
    assert len(corpora.rows_of(run, "errors")) == len(broken_files())
    assert sum(commit.last for commit in run.commits()) == run.record.parts


def test_strict_fails_the_run_at_a_broken_file(tmp_path, local_ray, small_ctc):
    folder = write_broken(tmp_path / "corpus")

    with pytest.raises(pipeline.RunFailedError, match="strict: "):
        pipeline.transcribe(
            pipeline.RunConfig(inputs=(str(folder),), output=str(tmp_path / "run"), model=str(small_ctc), strict=True)
        )

    assert pipeline.Run.open(str(tmp_path / "run")).status == "failed"


def test_too_many_failed_rows_fail_the_run(tmp_path, local_ray, small_ctc):
    rows = [{"audio_filepath": f"gone/{index}.wav"} for index in range(1200)]
    manifest = corpora.write_manifest(tmp_path / "manifest.jsonl", rows)

    with pytest.raises(pipeline.RunFailedError, match=r"(1\d{3}) of \1 rows failed.*'MISSING'"):
        pipeline.transcribe(
            pipeline.RunConfig(
                inputs=(str(manifest),), output=str(tmp_path / "run"), model=str(small_ctc), chunk_rows=100
            )
        )


def test_a_wav_with_the_placeholder_sizes_of_a_streaming_writer_is_not_broken(tmp_path, local_ray, small_ctc):
    wav = bytearray(audio_bytes("WAV"))
    wav[4:8] = wav[40:44] = struct.pack("<I", 0xFFFFFFFF)
    (tmp_path / "stream.wav").write_bytes(wav)

    run = pipeline.transcribe(
        pipeline.RunConfig(inputs=(str(tmp_path / "stream.wav"),), output=str(tmp_path / "run"), model=str(small_ctc))
    )

    assert [row["utt_id"] for row in corpora.rows_of(run)] == ["stream"]
