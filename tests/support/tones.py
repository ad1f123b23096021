"""A language of tones, made by the tests: each letter is a tone of its own, so that a tiny model learns to read it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import soundfile

RATE = 16_000
TONES = {letter: 300.0 * 1.45**place for place, letter in enumerate("ABCDEF")}  # 300 Hz to 1.9 kHz
WORDS = ("ab", "cab", "fade", "bead", "dace", "face", "cafe", "abed")
TINY = {
    "model_type": "sew-d",
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 96,
    "conv_dim": [8, 16, 16, 16, 16, 32, 32, 32, 32, 48, 48, 48, 48],
    "hidden_act": "gelu",
    "initializer_range": 0.2,  # 0.02 is for a width of 768: so narrow, it would stay on the plateau of blanks for long
    "num_conv_pos_embeddings": 15,
    "num_conv_pos_embedding_groups": 4,
    "attention_dropout": 0.0,
    "activation_dropout": 0.0,
    "final_dropout": 0.0,
    "mask_time_prob": 0.0,
    "mask_time_min_masks": 0,
    "classifier_proj_size": 16,
}


def say(text: str, rng: np.random.Generator) -> np.ndarray:
    """The text in tones of 100 ms with 40 ms between them, 80 ms more between words."""
    pieces = [np.zeros(800)]
    for letter in text.upper():
        if letter == " ":
            pieces.append(np.zeros(1280))
            continue
        time = np.arange(1600) / RATE
        tone = np.sin(2 * np.pi * TONES[letter] * time + rng.uniform(0, 6)) * np.hanning(1600)
        pieces += [0.3 * tone, np.zeros(640)]
    samples = np.concatenate([*pieces, np.zeros(800)])
    return (samples + 1e-3 * rng.standard_normal(len(samples))).astype(np.float32)


def write_corpus(directory: Path, count: int = 50, seed: int = 0) -> Path:
    """A manifest of `count` utterances of one or two words, labelled by their number of words; two speakers."""
    rng = np.random.default_rng(seed)
    directory.mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(count):
        words = rng.choice(WORDS, size=1 + number % 2)
        samples = say(" ".join(words), rng)
        soundfile.write(directory / f"{number:02}.wav", samples, RATE)
        rows.append(
            {
                "audio_filepath": f"{number:02}.wav",
                "duration": len(samples) / RATE,
                "text": " ".join(words),
                "label": ("one", "two")[len(words) - 1],
                "speaker": "ab"[number % 2],
            }
        )
    manifest = directory / "manifest.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return manifest


def write_config(directory: Path, **changes: object) -> Path:
    """The tiny model's `config.json`."""
    path = directory / "tiny.json"
    path.write_text(json.dumps(TINY | changes))
    return path
