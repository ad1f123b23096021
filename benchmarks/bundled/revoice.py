"""Change the voices of real recordings: pitch, formants, tempo and breath, independently of each other, by WORLD.

    python benchmarks/bundled/revoice.py CORPUS TTS OUT

Needs the pip packages `pyworld` (Morise et al. 2016, MIT) and `setuptools<81`, which it imports. CORPUS holds the
manifests of `prepare.py`, and TTS those of `synthesize.py`. Writes WAV files of 16 kHz and manifests of the same names
to OUT: the digits (each training speaker in `VOICES` other voices, with half of the digits each) and a share of each
set in `ONCE`. Speed perturbation, by contrast, changes pitch, formants and tempo together: a man becomes a smaller man
in a hurry, not another speaker.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyworld
import soundfile
import soxr
import typer

RATE = 16_000
VOICES = 6
# The share of each set that is written once, each utterance in a different voice.
ONCE = {
    "orders": 1.0,
    "synthetic-digits": 1.0,
    "keywords": 0.2,
    "read-short": 0.5,
    "read-long": 0.5,
    "flite": 0.3,
    "sentences": 0.25,
}
FRAME_MS = 5.0


@dataclass(frozen=True)
class Voice:
    """How a voice changes.

    Attributes:
        pitch: factor of the pitch.
        range: exponent of the pitch's variation.
        formants: factor of the formants' frequencies.
        breath: exponent of the aperiodicity.
    """

    pitch: float
    range: float
    formants: float
    breath: float


def main() -> None:
    """Write the digits and the other sets."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("corpus", type=Path, metavar="CORPUS")
    parser.add_argument("tts", type=Path, metavar="TTS")
    parser.add_argument("out", type=Path, metavar="OUT")
    arguments = parser.parse_args()
    rng = np.random.default_rng(11)
    digits = rows_of(arguments.corpus / "digits.jsonl")
    speakers = sorted({row["speaker"] for row in digits})
    jobs = [
        (row, voice, f"{speaker}-{number}")
        for speaker in speakers
        for number in range(VOICES)
        for voice in [draw_voice(rng)]
        for row in digits
        if row["speaker"] == speaker and rng.random() < 0.5
    ]
    write(rng, jobs, arguments.out, "digits")
    for name, share in ONCE.items():
        manifest = next(
            path for folder in (arguments.corpus, arguments.tts) if (path := folder / f"{name}.jsonl").exists()
        )
        rows = [row for row in rows_of(manifest) if rng.random() < share]
        write(rng, [(row, draw_voice(rng), None) for row in rows], arguments.out, name)


def draw_voice(rng: np.random.Generator) -> Voice:
    """Draw a voice; high voices tend to have short vocal tracts."""
    pitch = np.exp(rng.uniform(np.log(0.75), np.log(1.9)))
    formants = np.exp(0.25 * np.log(pitch) + rng.uniform(-0.1, 0.1))
    return Voice(pitch, np.exp(rng.uniform(-0.5, 0.5)), formants, np.exp(rng.uniform(-0.5, 0.5)))


def write(rng: np.random.Generator, jobs: list[tuple[dict[str, Any], Voice, str | None]], out: Path, name: str) -> None:
    """Write each row in another voice to `out/name`, and the manifest `out/name.jsonl`.

    Args:
        rng: the source of randomness.
        jobs: for each utterance its row, its new voice and the name of its new speaker, if it has one.
        out: the directory for all sets.
        name: name of the set.
    """
    folder = out / name
    folder.mkdir(parents=True, exist_ok=True)
    revoiced = []
    for number, (row, voice, speaker) in enumerate(jobs):
        if row.get("offset") is not None:
            raise SystemExit(f"{row['audio_filepath']}: a piece of a longer recording cannot be revoiced")
        samples, rate = soundfile.read(row["audio_filepath"])
        if rate != RATE:
            samples = soxr.resample(samples, rate, RATE)
        changed = revoice(rng, samples, voice)
        path = folder / f"{number:05}.wav"
        soundfile.write(path, changed, RATE, subtype="PCM_16")
        new = {key: value for key, value in row.items() if key != "speaker"}
        new |= {"audio_filepath": str(path.resolve()), "duration": len(changed) / RATE}
        revoiced.append(new if speaker is None else new | {"speaker": speaker})
    (out / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in revoiced), encoding="utf-8")
    typer.echo(f"{name}: {len(revoiced)} rows, {sum(row['duration'] for row in revoiced) / 3600:.2f} h")


def revoice(rng: np.random.Generator, samples: np.ndarray, voice: Voice, frame_ms: float = FRAME_MS) -> np.ndarray:
    """Change the voice of speech. The result is as loud as before, and 0.8 to 1.25 times as long.

    Args:
        rng: the source of randomness, for the tempo.
        samples: float64 (num_samples,) at `RATE`.
        voice: how the voice changes.
        frame_ms: frame shift of WORLD.

    Returns:
        float64 (num_samples,) at `RATE`.
    """
    pitch, times = pyworld.dio(samples, RATE, frame_period=frame_ms)
    pitch = pyworld.stonemask(samples, pitch, times, RATE)
    envelope = pyworld.cheaptrick(samples, pitch, times, RATE)
    breath = pyworld.d4c(samples, pitch, times, RATE)
    voiced = pitch > 0
    if voiced.any():
        mean = np.exp(np.log(pitch[voiced]).mean())
        pitch[voiced] = mean * voice.pitch * (pitch[voiced] / mean) ** voice.range
    bins = np.arange(envelope.shape[1], dtype=float)
    source = np.minimum(bins / voice.formants, bins[-1])
    envelope = np.exp(np.stack([np.interp(source, bins, row) for row in np.log(envelope)]))
    tempo = np.exp(rng.uniform(np.log(0.8), np.log(1.25)))
    changed = pyworld.synthesize(pitch, envelope, breath**voice.breath, RATE, frame_ms * tempo)
    changed *= np.sqrt(np.mean(samples**2) / max(np.mean(changed**2), 1e-12))
    return changed / max(1.0, np.abs(changed).max() / 0.99)


def rows_of(manifest: Path) -> list[dict[str, Any]]:
    """The rows of a manifest, with absolute paths."""
    rows = [json.loads(line) for line in manifest.read_text("utf-8").splitlines()]
    return [row | {"audio_filepath": str((manifest.parent / row["audio_filepath"]).resolve())} for row in rows]


if __name__ == "__main__":
    main()
