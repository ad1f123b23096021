"""What a run must say, from other people's code: soundfile and soxr for samples, transformers on each clip alone."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr
import torch
import transformers

from tests.support.checkpoints import TOKENS, VOCAB

NEAR_TIE = 1e-5
MAX_TIES = 12


def samples(path: Path) -> np.ndarray:
    """The clip's samples at 16 kHz, mono."""
    audio, rate = soundfile.read(path, dtype="float32", always_2d=True)
    mono = audio.mean(axis=1) if audio.shape[1] > 1 else audio[:, 0]
    return mono if rate == 16_000 else soxr.resample(mono, rate, 16_000)


def collapse(ids: Iterable[int]) -> str:
    """Greedy CTC text: collapse repeats, drop the blank, then drop bos and eos."""
    runs = [token for token, _ in itertools.groupby(ids)]
    kept = [TOKENS[token] for token in runs if token not in (VOCAB["<pad>"], VOCAB["<s>"], VOCAB["</s>"])]
    return "".join(" " if token == "|" else token for token in kept).strip()


@dataclass(frozen=True)
class Expected:
    """The reference's text of a clip, and how many of its frames are too close to call in float32."""

    text: str
    best: tuple[int, ...]
    ties: dict[int, int]  # frame -> the other token

    def allows(self, text: str) -> bool:
        """Is it the text, or one that differs in near-ties only."""
        if text == self.text:
            return True
        if not self.ties or len(self.ties) > MAX_TIES:
            return False
        frames = list(self.ties)
        for choice in itertools.product((False, True), repeat=len(frames)):
            ids = list(self.best)
            for frame, other in zip(frames, choice, strict=True):
                if other:
                    ids[frame] = self.ties[frame]
            if collapse(ids) == text:
                return True
        return False


class Reference:
    """transformers' SEWDForCTC and feature extractor, one clip at a time."""

    def __init__(self, checkpoint: Path) -> None:
        self.model = transformers.SEWDForCTC.from_pretrained(checkpoint).eval()
        self.features = transformers.Wav2Vec2FeatureExtractor.from_pretrained(checkpoint)

    @torch.inference_mode()
    def expect(self, audio: np.ndarray) -> Expected:
        inputs = self.features(audio, sampling_rate=16_000, return_tensors="pt")
        logits = self.model(inputs.input_values).logits[0]
        top = logits.topk(2, dim=-1)
        best = logits.argmax(dim=-1).tolist()
        gap = (top.values[:, 0] - top.values[:, 1]).tolist()
        ties = {frame: top.indices[frame, 1].item() for frame, width in enumerate(gap) if width < NEAR_TIE}
        return Expected(collapse(best), tuple(best), ties)
