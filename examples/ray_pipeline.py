"""SEW-D in a Ray Data pipeline of your own: clips as rows in, texts as rows out, no run and no commits.

    python examples/ray_pipeline.py recordings/

Each text is what the model gives for that clip alone, whatever else is in its batch. For retries, error rows, long
recordings and exactly-once output use `pipeline.transcribe`.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
import ray
import soundfile
import soxr
import torch

from sewd_model import CTCTokenizer, FeatureExtractor, PackedModel, SEWDForCTC, greedy_path


def decode(row: dict[str, Any]) -> dict[str, Any]:
    """The samples of a file, mixed to one channel, at 16 kHz: float32 (num_samples,)."""
    samples, rate = soundfile.read(io.BytesIO(row["bytes"]), dtype="float32", always_2d=True)
    return {"path": row["path"], "samples": soxr.resample(samples.mean(axis=1), rate, 16_000)}


class Recognizer:
    """A Ray Data actor: a batch of clips to texts, in one packed pass."""

    def __init__(self, checkpoint: str) -> None:
        self.model = SEWDForCTC.from_pretrained(checkpoint).eval()
        self.packed = PackedModel([self.model], threads=1)
        self.features = FeatureExtractor.from_pretrained(checkpoint)
        self.tokenizer = CTCTokenizer.from_pretrained(checkpoint)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        """Columns `path` and `samples` in, `path` and `text` out, row for row."""
        inputs = [torch.from_numpy(self.features.prepare(np.asarray(samples))) for samples in batch["samples"]]
        texts = [
            self.tokenizer.text(greedy_path(output.logits[0], self.model.blank, self.tokenizer.drop_ids).token_ids)
            for output in self.packed.stream(inputs)
        ]
        return {"path": batch["path"], "text": texts}


def main(audio: str) -> None:
    """Print path and text of each WAV and FLAC file below `audio`."""
    paths = sorted(str(path) for path in Path(audio).rglob("*") if path.suffix in (".wav", ".flac"))
    clips = ray.data.read_binary_files(paths, include_paths=True).map(decode)
    texts = clips.map_batches(Recognizer, fn_constructor_args=("bundled",), batch_size=16, concurrency=1)
    for row in texts.iter_rows():
        print(f"{row['path']}: {row['text']!r}")


if __name__ == "__main__":
    main(*sys.argv[1:])
