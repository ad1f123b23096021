"""Cut digit strings into single digits, at the word times that a model recognises: single digits in many voices.

    python benchmarks/bundled/cut.py MODEL OUT MANIFEST...

Uses the strings that MODEL recognises without an error. Writes OUT, a manifest with one row per digit: a piece of the
string's file, cut half-way between neighbouring words. Joined again at random (`sewd finetune --join`), they sound like
strings of recorded digits, in some four hundred voices instead of a few.
"""

from __future__ import annotations

import argparse
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import soundfile
import soxr
import torch
import typer

from sewd_model import CTCTokenizer, FeatureExtractor, SEWDForCTC, greedy_path, words

RATE = 16_000
MARGIN_S = 0.1  # before the first word and after the last: CTC peaks are inside a word


def main() -> None:
    """Cut the strings of every MANIFEST."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("manifests", type=Path, nargs="+", metavar="MANIFEST")
    arguments = parser.parse_args()
    model = SEWDForCTC.from_pretrained(arguments.model).eval()
    tokenizer = CTCTokenizer.from_pretrained(arguments.model)
    features = FeatureExtractor.from_pretrained(arguments.model)
    strings = [json.loads(line) for path in arguments.manifests for line in path.read_text("utf-8").splitlines()]
    rows = []
    for string in strings:
        samples, rate = soundfile.read(string["audio_filepath"], dtype="float32")
        waveform = samples if rate == RATE else soxr.resample(samples, rate, RATE)
        with torch.inference_mode():
            logits = model(torch.from_numpy(features.prepare(waveform))[None]).logits[0]
        path = greedy_path(logits, model.blank, tokenizer.drop_ids)
        recognized = words(path, tokenizer, model.config.hop_length / RATE)
        if " ".join(word.word for word in recognized).lower() == string["text"]:
            inner = [(left.end_s + right.start_s) / 2 for left, right in pairwise(recognized)]
            first = max(0.0, recognized[0].start_s - MARGIN_S)
            last = min(string["duration"], recognized[-1].end_s + MARGIN_S)
            borders = pairwise([first, *inner, last])
            rows += [
                piece(string, word.word, start_s, end_s)
                for word, (start_s, end_s) in zip(recognized, borders, strict=True)
            ]
    arguments.out.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    hours = sum(row["duration"] for row in rows) / 3600
    typer.echo(f"{len(rows)} digits, {hours:.2f} h, {len({row['speaker'] for row in rows})} voices")


def piece(string: dict[str, Any], word: str, start_s: float, end_s: float) -> dict[str, Any]:
    """The manifest row of one word of a string."""
    row = {"audio_filepath": string["audio_filepath"], "speaker": string["speaker"], "text": word.lower()}
    return row | {"offset": round(start_s, 3), "duration": round(end_s - start_s, 3)}


if __name__ == "__main__":
    main()
