"""The expected texts of a run, by independent code: soundfile and soxr for samples, transformers on each clip alone."""

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

NEAR_TIE = 1e-5  # difference of two logits below which either token may win in float32
MAX_TIES = 12  # more near-ties than this give too many possible texts to compare


def samples(path: Path) -> np.ndarray:
    """Return the samples of an audio file at 16 kHz, mono: `(num_samples,)` float32."""
    audio, rate = soundfile.read(path, dtype="float32", always_2d=True)
    mono = audio.mean(axis=1) if audio.shape[1] > 1 else audio[:, 0]
    return mono if rate == 16_000 else soxr.resample(mono, rate, 16_000)


def collapse(ids: Iterable[int]) -> str:
    """Return the greedy CTC text of token ids: collapse repeats, drop the blank, then drop bos and eos."""
    runs = [token for token, _ in itertools.groupby(ids)]
    kept = [TOKENS[token] for token in runs if token not in (VOCAB["<pad>"], VOCAB["<s>"], VOCAB["</s>"])]
    return "".join(" " if token == "|" else token for token in kept).strip()


@dataclass(frozen=True)
class Expected:
    """The reference's text of a clip, and the frames in which two tokens have almost equal scores.

    Attributes:
        text: the text of the best tokens.
        best: the best token of each frame.
        ties: for each frame with a near-tie, the second best token.
    """

    text: str
    best: tuple[int, ...]
    ties: dict[int, int]

    def allows(self, text: str) -> bool:
        """Whether a text is the expected one, or differs from it in near-ties only."""
        if text == self.text:
            return True
        if not self.ties or len(self.ties) > MAX_TIES:
            return False
        frames = list(self.ties)
        for choice in itertools.product((False, True), repeat=len(frames)):
            ids = list(self.best)
            for frame, takes_second in zip(frames, choice, strict=True):
                if takes_second:
                    ids[frame] = self.ties[frame]
            if collapse(ids) == text:
                return True
        return False


class Reference:
    """transformers' SEWDForCTC and feature extractor, for one clip at a time."""

    def __init__(self, checkpoint: Path) -> None:
        self.model = transformers.SEWDForCTC.from_pretrained(checkpoint).eval()
        self.features = transformers.Wav2Vec2FeatureExtractor.from_pretrained(checkpoint)

    @torch.inference_mode()
    def expect(self, audio: np.ndarray) -> Expected:
        """Return the expected text of samples `(num_samples,)` float32 at 16 kHz."""
        inputs = self.features(audio, sampling_rate=16_000, return_tensors="pt")
        logits = self.model(inputs.input_values).logits[0]
        top = logits.topk(2, dim=-1)
        best = logits.argmax(dim=-1).tolist()
        gap = (top.values[:, 0] - top.values[:, 1]).tolist()
        ties = {frame: top.indices[frame, 1].item() for frame, width in enumerate(gap) if width < NEAR_TIE}
        return Expected(collapse(best), tuple(best), ties)
