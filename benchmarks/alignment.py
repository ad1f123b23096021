"""Alignment of known texts with the bundled model: speed and memory, wrong texts, and passages that one side lacks.

    python -m benchmarks.alignment DATA [--minutes 60] [--wrong 20] [--of 400] [--seed 1]

DATA has a set of read speech with texts (`librispeech-dev-clean/manifest.jsonl`). Posteriors are computed once, as a
run keeps them. Then: texts of utterances, of which some are exchanged for others of the same length (ROC area of the
score); a recording of so many minutes with its whole text, alone and beside `ctc-segmentation` if that is installed, on
the same posteriors (times real time on one core, memory, differences of the starts of words); and the same with
sentences taken from the text or added to it (words that both have and that moved by more than 100 ms or were lost).
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import random
import resource
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
import soxr
import torch
import typer

from pipeline.alignment.texts import text_words
from pipeline.alignment.words_path import LENIENT, STRICT, NoPathError, WordsPath, words_path
from sewd_model import CTCTokenizer, FeatureExtractor, SEWDForCTC, load_engine
from sewd_model.posteriors import keep
from sewd_model.recognition import prepared

RATE = 16_000
FRAME_S = 0.02
BATCH = 40


class Sentence(NamedTuple):
    """An utterance: its text, the tokens of its words, and the log-probabilities `(T, V)` that are kept of it."""

    text: str
    words: list[tuple[int, ...]]
    scores: np.ndarray


def main() -> None:
    """Measure, and print a line for each figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--wrong", type=int, default=20)
    parser.add_argument("--of", type=int, default=400)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rng = random.Random(options.seed)
    tokenizer = CTCTokenizer.from_pretrained("bundled")
    sentences = recognized(options.data / "librispeech-dev-clean", tokenizer)
    wrong_texts(rng, rng.sample(sentences, min(options.of, len(sentences))), options.wrong, tokenizer)
    recording: list[Sentence] = []
    while sentences and sum(len(sentence.scores) for sentence in recording) * FRAME_S < options.minutes * 60:
        recording.append(sentences.pop(0))
    starts = whole_text(recording, tokenizer)
    missing_passages(recording, sentences or recording[:10], starts, tokenizer)


def recognized(folder: Path, tokenizer: CTCTokenizer) -> list[Sentence]:
    """The utterances of a set, with what a run keeps of them."""
    model = SEWDForCTC.from_pretrained("bundled").eval()
    features = FeatureExtractor.from_pretrained("bundled")
    engine = load_engine([model], torch.device("cpu"), "float32", 1, features, ())
    rows = [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]
    found, began, audio_s = [], time.process_time(), 0.0
    for first in range(0, len(rows), BATCH):
        batch = rows[first : first + BATCH]
        clips = [waveform(folder / row["audio_filepath"]) for row in batch]
        audio_s += sum(map(len, clips)) / RATE
        for row, logits in zip(batch, engine.encode([prepared(clip, features) for clip in clips]), strict=True):
            kept = keep(logits[0].numpy(), model.blank)
            words = [word.ids for word in text_words(row["text"], tokenizer)]
            found.append(Sentence(row["text"], words, kept.log_probabilities(len(tokenizer), model.blank)))
    typer.echo(f"model: {audio_s / 3600:.2f} h of audio, {audio_s / (time.process_time() - began):.0f}x real time")
    return found


def waveform(path: Path) -> np.ndarray:
    """A recording at the model's rate, float32."""
    samples, rate = soundfile.read(path, dtype="float32")
    return np.ascontiguousarray(samples if rate == RATE else soxr.resample(samples, rate, RATE), np.float32)


def aligned(scores: np.ndarray, words: Sequence[tuple[int, ...]], costs: object, tokenizer: CTCTokenizer) -> WordsPath:
    """The words in a clip or a recording."""
    return words_path(scores, words, tokenizer.pad_id or 0, tokenizer.delimiter_id, costs)


def wrong_texts(rng: random.Random, sentences: list[Sentence], wrong: int, tokenizer: CTCTokenizer) -> None:
    """ROC area of the score, for texts that are exchanged."""
    scores, began = [], time.process_time()
    for index, sentence in enumerate(sentences):
        words = sentence.words
        if index < wrong:
            others = [other for other in sentences if other.text != sentence.text]
            words = min(others, key=lambda other: (abs(len(other.text) - len(sentence.text)), rng.random())).words
        try:
            losses = aligned(sentence.scores, words, STRICT, tokenizer).losses
            scores.append(float(np.exp(-losses.sum() / sum(map(len, words)))))
        except NoPathError:
            scores.append(0.0)
    seconds = time.process_time() - began
    audio_s = sum(len(sentence.scores) for sentence in sentences) * FRAME_S
    bad, good = np.array(scores[:wrong]), np.array(scores[wrong:])
    area = np.mean((bad[:, None] < good) + 0.5 * (bad[:, None] == good))
    typer.echo(f"utterances: {audio_s / seconds:.0f}x real time")
    typer.echo(
        f"wrong texts: {wrong} of {len(scores)}, ROC area {area:.4f}; "
        f"scores: wrong <= {bad.max():.4f}, right >= {good.min():.4f}"
    )


def whole_text(recording: list[Sentence], tokenizer: CTCTokenizer) -> np.ndarray:
    """A recording and its whole text; returns the first frame of each word."""
    scores = np.concatenate([sentence.scores for sentence in recording])
    words = [word for sentence in recording for word in sentence.words]
    audio_s, letters = len(scores) * FRAME_S, sum(map(len, words))
    before, began = memory_gb(), time.process_time()
    path = aligned(scores, words, LENIENT, tokenizer)
    seconds = time.process_time() - began
    typer.echo(
        f"recording: {audio_s / 60:.0f} min, {letters:,} letters: {audio_s / seconds:.0f}x real time, "
        f"{memory_gb() - before:.2f} GB more, {np.sum(path.start_frames < 0)} of {len(words):,} words lost"
    )
    if importlib.util.find_spec("ctc_segmentation"):
        before, began = memory_gb(), time.process_time()
        peer = ctc_segmentation(scores, recording, tokenizer)
        seconds = time.process_time() - began
        apart = np.abs(peer - path.start_frames)[path.start_frames >= 0] * FRAME_S * 1000
        typer.echo(
            f"ctc-segmentation: {audio_s / seconds:.0f}x real time, {memory_gb() - before:.2f} GB more; "
            f"starts differ by {np.median(apart):.0f} ms in the median, {np.percentile(apart, 95):.0f} ms at 95 %"
        )
    return path.start_frames


def ctc_segmentation(scores: np.ndarray, recording: list[Sentence], tokenizer: CTCTokenizer) -> np.ndarray:
    """The first frame of each word by `ctc-segmentation`."""
    import ctc_segmentation as peer  # noqa: PLC0415 - where it is installed

    settings = peer.CtcSegmentationParameters(char_list=[tokenizer.tokens[index] for index in range(len(tokenizer))])
    settings.index_duration, settings.blank = 1.0, tokenizer.pad_id
    delimiter = tokenizer.delimiter_id
    texts = [[token for word in each.words for token in (*word, delimiter)][:-1] for each in recording]
    truth, firsts = peer.prepare_token_list(settings, list(map(np.array, texts)))
    frames, _, _ = peer.ctc_segmentation(settings, scores, truth)
    starts = []
    for first, sentence in zip(firsts, recording, strict=False):
        position = first + 1
        for word in sentence.words:
            starts.append(frames[position])
            position += len(word) + 1
    return np.array(starts)


def missing_passages(
    recording: list[Sentence], others: list[Sentence], starts: np.ndarray, tokenizer: CTCTokenizer
) -> None:
    """Sentences taken from the text at a quarter and a half of it, and others put into it at a third and at 3/4."""
    number = len(recording)
    cut = {*range(number // 4, number // 4 + max(1, number // 40)), number // 2}
    added = {number // 3: others[:2], 3 * number // 4: others[2 : 2 + max(1, number // 40)]}
    firsts = np.cumsum([0, *(len(sentence.words) for sentence in recording)])
    words: list[tuple[int, ...]] = []
    expected: list[int] = []
    for index, sentence in enumerate(recording):
        for other in added.get(index, ()):
            words += other.words
            expected += [-1] * len(other.words)
        if index not in cut:
            words += sentence.words
            expected += starts[firsts[index] : firsts[index + 1]].tolist()
    path = aligned(np.concatenate([sentence.scores for sentence in recording]), words, LENIENT, tokenizer)
    known = np.array(expected)
    both, found = known >= 0, path.start_frames >= 0
    moved = both & found & (np.abs(path.start_frames - known) * FRAME_S > 0.1)
    typer.echo(
        f"passages: of {both.sum():,} words of both, {moved.sum()} moved and {(both & ~found).sum()} were lost; of "
        f"{(~both).sum()} words that are not in the audio, {(~both & found).sum()} were placed"
    )


def memory_gb() -> float:
    """The most memory that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


if __name__ == "__main__":
    main()
