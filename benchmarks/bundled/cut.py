"""Single digits out of strings of them, by the times of the words that a model hears: many voices, one digit at a time.

    python benchmarks/bundled/cut.py MODEL OUT MANIFEST...

Takes the strings that MODEL hears without an error, and writes OUT, a manifest with a row a digit: a piece of its
string's file, cut half-way between neighbours. Joined again at random (`sewd finetune --join`) they sound as strings of
recorded digits do, in some four hundred voices instead of a few.
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
MARGIN_S = 0.1  # before the first word and behind the last: CTC's peaks lie inside of a word


def main() -> None:
    """Cut."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("manifests", type=Path, nargs="+", metavar="MANIFEST")
    places = parser.parse_args()
    model = SEWDForCTC.from_pretrained(places.model).eval()
    tokenizer = CTCTokenizer.from_pretrained(places.model)
    features = FeatureExtractor.from_pretrained(places.model)
    strings = [json.loads(line) for path in places.manifests for line in path.read_text("utf-8").splitlines()]
    rows = []
    for string in strings:
        samples, rate = soundfile.read(string["audio_filepath"], dtype="float32")
        waveform = samples if rate == RATE else soxr.resample(samples, rate, RATE)
        with torch.inference_mode():
            logits = model(torch.from_numpy(features(waveform))[None]).logits[0]
        path = greedy_path(logits, model.blank, tokenizer.drop_ids)
        heard = words(path, tokenizer, model.config.hop_length / RATE)
        if " ".join(word.word for word in heard).lower() == string["text"]:
            ends = [(heard[0].start_s - MARGIN_S), *((a.end_s + b.start_s) / 2 for a, b in pairwise(heard))]
            ends = [max(0.0, ends[0]), *ends[1:], min(string["duration"], heard[-1].end_s + MARGIN_S)]
            rows += [piece(string, word.word, a, b) for word, (a, b) in zip(heard, pairwise(ends), strict=True)]
    places.out.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    hours = sum(row["duration"] for row in rows) / 3600
    typer.echo(f"{len(rows)} digits, {hours:.2f} h, {len({row['speaker'] for row in rows})} voices")


def piece(string: dict[str, Any], word: str, start_s: float, end_s: float) -> dict[str, Any]:
    """A row of the manifest."""
    row = {"audio_filepath": string["audio_filepath"], "speaker": string["speaker"], "text": word.lower()}
    return row | {"offset": round(start_s, 3), "duration": round(end_s - start_s, 3)}


if __name__ == "__main__":
    main()
