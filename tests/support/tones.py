"""A synthetic language of tones: each letter is a tone, so that a tiny model can learn to transcribe it."""

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
    "initializer_range": 0.2,  # 0.02 is for a width of 768: a narrow model would predict only blanks for long
    "num_conv_pos_embeddings": 15,
    "num_conv_pos_embedding_groups": 4,
    "attention_dropout": 0.0,
    "activation_dropout": 0.0,
    "final_dropout": 0.0,
    "mask_time_prob": 0.0,
    "mask_time_min_masks": 0,
    "classifier_proj_size": 16,
}


def synthesize(text: str, rng: np.random.Generator) -> np.ndarray:
    """Return a text as tones of 100 ms, 40 ms apart, 80 ms more between words: `(num_samples,)` float32 at 16 kHz."""
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
    """Write audio and a manifest of `count` utterances of one or two words, with the number of words as label.

    There are two speakers. Returns the path of the manifest.
    """
    rng = np.random.default_rng(seed)
    directory.mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(count):
        words = rng.choice(WORDS, size=1 + number % 2)
        samples = synthesize(" ".join(words), rng)
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
    """Write the `config.json` of the tiny model, with changes to its fields; return its path."""
    path = directory / "tiny.json"
    path.write_text(json.dumps(TINY | changes))
    return path
