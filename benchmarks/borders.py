"""Measure word errors at the borders of segments, by the way in which long recordings are cut.

    python -m benchmarks.borders DATA [--sets librispeech-dev-clean,coffee-orders] [--backgrounds silence,noise,music]
        [--ways known,grid,...] [--longest 20] [--minutes 30] [--seed 18] [--output FILE]

DATA holds the sets, each with a `manifest.jsonl`. The utterances of a reader (of a set without readers: 40 at a time,
in random order) are joined into a recording, with pauses of 0 to 2 s, uniformly. The background is digital silence in
the pauses; or pink noise, or music (chords of decaying tones), through pauses and speech alike, 20 dB below the speech.

Each recording is cut in each way into segments of at most `--longest` seconds, and the bundled model recognises each
segment alone. `known` cuts in the longest gap between the words of the reference, `grid` wherever a segment is three
quarters of the longest; the others are:

* `pause`, `vad`, `quietest`: those of `pipeline.audio.decode.CUTS`, the last as versions up to 0.1.0;
* `quiet-300ms`: the quietest 300 ms, without looking at how long they are quiet;
* `model`: in the longest run of blanks of the model itself, which first computes the second half of each longest
  segment, with a second of context;
* `WAY+1s`: the model hears a second of context on either side of a segment, and tokens there are dropped.

Three figures come from an alignment of the joined texts with the joined references:

* *WER*: of all words; to be compared with that of the same audio cut at its true utterances.
* *Border WER*: errors within 1 s of a border, by reference words that overlap these 2 s. A substitution or deletion
  counts by the time of the reference word, an insertion by that of the inserted word.
* *Added errors*: the errors near a border less those in the same 2 s where the border is the middle of a clip of 16 s;
  by 100 borders, with the standard error over borders. It is what cutting costs: words near borders are often the
  first or last of a sentence, and these are harder also without a border.

The time of a reference word is that of the recognised word that the alignment pairs it with, where its utterance is
recognised alone and without background; between such words, times are interpolated. *Cut words* is the share of borders
inside a word, by 20 ms or more. *Cost* is the audio that the model computes beside the segments, as a share of them.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import jiwer
import numpy as np
import soundfile
import soxr
import torch
import typer

from pipeline.audio.decode import CUTS
from pipeline.scoring.normalize import NORMALIZERS
from sewd_model import (
    CTCTokenizer,
    FeatureExtractor,
    GreedyPath,
    SEWDForCTC,
    Word,
    greedy_path,
    load_engine,
    split_at_gaps,
    words,
)

RATE: Final = 16_000
NEAR_S: Final = 1.0
AROUND: Final = 8 * RATE  # samples on either side of a place that is not cut
WORD_GAP_S: Final = 0.5  # as `sewd transcribe`: a word ends where no token follows for this long
LONGEST_PAUSE_S: Final = 2.0
BELOW_SPEECH_DB: Final = 20.0
UNKNOWN_READERS: Final = ("2277", "2412")  # of LibriSpeech, whom the bundled model does not understand


@dataclass(frozen=True, eq=False)
class Joined:
    """A recording of known utterances.

    Attributes:
        samples: float32 (samples,).
        places: (start, stop) of each utterance, in samples.
        texts: of each utterance, normalised.
        word_times: (words, 2) start and end of each word of the joined texts, in seconds.
    """

    samples: np.ndarray
    places: list[tuple[int, int]]
    texts: list[str]
    word_times: np.ndarray


@dataclass(frozen=True)
class Cut:
    """How a recording is cut.

    Attributes:
        borders: samples at which a segment ends and the next begins.
        context: samples before and behind a segment that the model hears too; tokens there are dropped.
        cost_s: seconds of audio that the model computed to find the borders.
    """

    borders: list[int]
    context: int = 0
    cost_s: float = 0.0


class Recogniser:
    """The bundled model, one thread."""

    def __init__(self) -> None:
        torch.set_num_threads(1)
        model = SEWDForCTC.from_pretrained("bundled")
        self.features = FeatureExtractor.from_pretrained("bundled")
        self.tokenizer = CTCTokenizer.from_pretrained("bundled")
        self.hop, self.blank = model.config.hop_length, model.blank
        self.engine = load_engine([model], "cpu")

    def paths(self, clips: Sequence[np.ndarray]) -> list[GreedyPath]:
        """The greedy path of each clip."""
        outputs = self.engine.encode([torch.from_numpy(self.features.prepare(clip)) for clip in clips])
        return [greedy_path(output[0], self.blank, self.tokenizer.drop_ids) for output in outputs]

    def words(self, samples: np.ndarray, places: Sequence[tuple[int, int]], context: int = 0) -> list[Word]:
        """The words of pieces of a recording, with their times in it."""
        context = context // self.hop * self.hop
        starts = [max(0, start - context) for start, _ in places]
        clips = [samples[first : stop + context] for first, (_, stop) in zip(starts, places, strict=True)]
        found = []
        for path, first, (start, stop) in zip(self.paths(clips), starts, places, strict=True):
            frames = path.start_frames * self.hop + first
            inside = path.take((start <= frames) & (frames < stop)) if context else path
            found += [
                Word(word.word, word.start_s + first / RATE, word.end_s + first / RATE, word.confidence)
                for piece in split_at_gaps(inside, round(WORD_GAP_S * RATE / self.hop))
                for word in words(piece, self.tokenizer, self.hop / RATE)
            ]
        return found


# ------------------------------------------------------------------------------------------------ recordings
def recordings(data: Path, name: str, background: str, minutes: float, seed: int, model: Recogniser) -> list[Joined]:
    """Joined recordings of a set: the same utterances and pauses for every background."""
    rng = np.random.default_rng(seed)
    groups, total = [], 0.0
    for group in _groups(data / name, rng):
        if total < 60 * minutes:
            groups.append(_joined(data / name, group, background, rng, model))
            total += len(groups[-1].samples) / RATE
    return groups


def _groups(folder: Path, rng: np.random.Generator) -> list[list[dict]]:
    rows = [json.loads(line) for line in (folder / "manifest.jsonl").read_text("utf-8").splitlines()]
    if "speaker" in rows[0]:
        speakers = sorted({row["speaker"] for row in rows} - set(UNKNOWN_READERS))
        return [[row for row in rows if row["speaker"] == speakers[index]] for index in rng.permutation(len(speakers))]
    rows = [row for row in rows if row.get("verified", True)]
    rows = [rows[index] for index in rng.permutation(len(rows))]
    return [rows[first : first + 40] for first in range(0, len(rows), 40)]


def _joined(folder: Path, rows: list[dict], background: str, rng: np.random.Generator, model: Recogniser) -> Joined:
    normalize = NORMALIZERS["basic"]
    pieces, places, position = [], [], 0
    for row in rows:
        samples, rate = soundfile.read(folder / row["audio_filepath"], dtype="float32", always_2d=True)
        samples = soxr.resample(samples.mean(axis=1), rate, RATE)
        pause = round(rng.uniform(0, LONGEST_PAUSE_S) * RATE)
        pieces += [samples, np.zeros(pause, np.float32)]
        places.append((position, position + len(samples)))
        position += len(samples) + pause
    speech = np.concatenate(pieces)
    texts = [normalize(row["text"]) for row in rows]
    times = [_word_times(text, model.words(speech, [place]), place) for text, place in zip(texts, places, strict=True)]
    noise_rng = np.random.default_rng(len(speech))
    under = BACKGROUNDS[background](len(speech), noise_rng)
    level = np.sqrt(np.mean(np.concatenate(pieces[::2]) ** 2)) * 10 ** (-BELOW_SPEECH_DB / 20)
    return Joined((speech + level * under).astype(np.float32), places, texts, np.concatenate(times))


def _word_times(text: str, found: list[Word], place: tuple[int, int]) -> np.ndarray:
    """Start and end of each word of an utterance, (words, 2), by those that were recognised."""
    reference = text.split()
    edges = np.full(len(reference) * 2, np.nan)
    for op, ref, hyp in _pairs(text, found):
        if op in ("equal", "substitute"):
            edges[2 * ref : 2 * ref + 2] = found[hyp].start_s, found[hyp].end_s
    known = np.flatnonzero(~np.isnan(edges))
    positions = np.concatenate(([-1], known, [len(edges)]))
    values = np.concatenate(([place[0] / RATE], edges[known], [place[1] / RATE]))
    return np.interp(np.arange(len(edges)), positions, values).reshape(-1, 2)


def _no_noise(length: int, rng: np.random.Generator) -> np.ndarray:
    return np.zeros(length)


def _pink_noise(length: int, rng: np.random.Generator) -> np.ndarray:
    spectrum = np.fft.rfft(rng.standard_normal(length))
    spectrum /= np.sqrt(np.maximum(np.arange(len(spectrum)), len(spectrum) * 50 / (RATE / 2)))
    noise = np.fft.irfft(spectrum, length)
    return noise / noise.std()


def _music(length: int, rng: np.random.Generator) -> np.ndarray:
    """Chords of three decaying notes with overtones, two or four a second, a scale of C major."""
    sound, position = np.zeros(length + 4 * RATE), 0
    scale = 130.8 * 2 ** (np.array([0, 2, 4, 5, 7, 9, 11, 12, 14, 16, 17, 19, 21, 23]) / 12)
    while position < length:
        seconds = np.arange(2 * RATE) / RATE
        root = rng.integers(0, 9)
        for pitch in scale[[root, root + 2, root + 4]]:
            for overtone in range(1, 6):
                wave = np.sin(2 * np.pi * pitch * overtone * seconds + rng.uniform(0, 2 * np.pi))
                decay = np.exp(-seconds * (1.5 + overtone)) * np.minimum(1, seconds / 0.01)
                sound[position : position + 2 * RATE] += rng.uniform(0.5, 1) / overtone * wave * decay
        position += round(RATE * rng.choice([0.25, 0.5, 0.5, 1.0]))
    return sound[:length] / sound[:length].std()


BACKGROUNDS: Final = {"silence": _no_noise, "noise": _pink_noise, "music": _music}


# ------------------------------------------------------------------------------------------------ ways to cut
Way = Callable[[np.ndarray, int, int], int]


def borders(longest: int, recording: Joined, way: Way) -> list[int]:
    """The borders of a recording, one after the other, each in the second half of the longest segment."""
    found, start, rest, length = [], 0, min(RATE, longest // 2), len(recording.samples)
    while length - start > longest:
        last = min(start + longest, length - rest)
        found.append(way(recording.samples, start + longest // 2, last))
        start = found[-1]
    return found


def grid(samples: np.ndarray, first: int, last: int) -> int:
    """A border whatever is spoken there."""
    return (first + last) // 2


def quiet_300ms(samples: np.ndarray, first: int, last: int) -> int:
    """The middle of the quietest 300 ms, by steps of 10 ms."""
    step, width = RATE // 100, 30
    powers = (samples[first : first + (last - first) // step * step].astype(np.float64) ** 2).reshape(-1, step).mean(1)
    sums = np.concatenate(([0.0], np.cumsum(powers)))
    return first + (int(np.argmin(sums[width:] - sums[:-width])) + width // 2) * step


def longest_gap(spans: np.ndarray, first: int, last: int) -> int:
    """The middle of the longest gap between spans, (n, 2), from `first` to `last`."""
    edges = np.clip(np.concatenate(([first], spans.ravel(), [last])), first, last).reshape(-1, 2)
    start, stop = edges[np.argmax(edges[:, 1] - edges[:, 0])]
    return int(start + stop) // 2


def cut(name: str, recording: Joined, longest: int, model: Recogniser) -> Cut:
    """Cut a recording in one of `WAYS`."""
    name, _, context = name.partition("+")
    cost_s = 0.0

    def by_model(samples: np.ndarray, first: int, last: int) -> int:
        nonlocal cost_s
        start = max(0, first - RATE)
        clip = samples[start : last + RATE]
        cost_s += len(clip) / RATE
        (path,) = model.paths([clip])
        path = path.take(path.token_ids != model.tokenizer.delimiter_id)
        spans = np.stack([path.start_frames, path.end_frames], axis=1) * model.hop + start
        return longest_gap(spans, first, last)

    ways: dict[str, Way] = {
        "known": lambda _, first, last: longest_gap(np.round(recording.word_times * RATE).astype(int), first, last),
        "grid": grid,
        "quiet-300ms": quiet_300ms,
        "model": by_model,
        **{key: lambda *window, place=place: place(*window, RATE) for key, (place, _) in CUTS.items()},
    }
    found = borders(longest, recording, ways[name])
    seconds = int(context.removesuffix("s") or 0)
    return Cut(found, seconds * RATE, cost_s + 2 * seconds * len(found))


WAYS: Final = ("known", "grid", "quietest", "quiet-300ms", "pause", "vad", "model", "quietest+1s", "pause+1s")


# ------------------------------------------------------------------------------------------------ figures
@dataclass(frozen=True)
class Figures:
    """Of one way to cut, over the recordings of a set with one background; see above."""

    set: str
    background: str
    way: str
    num_borders: int
    cut_words: float
    border_words: int
    border_wer: float
    added: float
    added_error: float
    wer: float
    cost: float


def figures(name: str, background: str, way: str, longest: int, joined: Sequence[Joined], model: Recogniser) -> Figures:
    """Cut and recognise the recordings in one way."""
    cuts = [cut(way, recording, longest, model) for recording in joined]
    in_word, near_words, near_errors, num_errors = 0, 0, 0, 0
    added: list[int] = []
    for recording, made in zip(joined, cuts, strict=True):
        edges = [0, *made.borders, len(recording.samples)]
        found = model.words(recording.samples, list(itertools.pairwise(edges)), made.context)
        errors = error_times(recording.texts, recording.word_times, found)
        places = np.array(made.borders) / RATE
        num_errors += len(errors)
        in_word += int(overlaps(recording.word_times, places, -0.02).any(axis=1).sum())
        near_words += int(overlaps(recording.word_times, places, NEAR_S).any(axis=0).sum())
        near_errors += int(overlaps(errors, places, NEAR_S).any(axis=0).sum())
        added += (overlaps(errors, places, NEAR_S).sum(axis=1) - uncut_errors(recording, made.borders, model)).tolist()
    num_words = sum(len(recording.word_times) for recording in joined)
    return Figures(
        set=name,
        background=background,
        way=way,
        num_borders=len(added),
        cut_words=in_word / len(added),
        border_words=near_words,
        border_wer=near_errors / max(near_words, 1),
        added=100 * float(np.mean(added)),
        added_error=100 * float(np.std(added)) / len(added) ** 0.5,
        wer=num_errors / num_words,
        cost=sum(made.cost_s for made in cuts) * RATE / sum(len(recording.samples) for recording in joined),
    )


def wer_at_utterances(joined: Sequence[Joined], model: Recogniser) -> float:
    """The word error rate where the true utterances are recognised one by one."""
    found = [model.words(recording.samples, recording.places) for recording in joined]
    errors = [error_times(r.texts, r.word_times, words) for r, words in zip(joined, found, strict=True)]
    return sum(map(len, errors)) / sum(len(recording.word_times) for recording in joined)


def uncut_errors(recording: Joined, places: Sequence[int], model: Recogniser) -> np.ndarray:
    """The errors near each place, (places,), where it is the middle of a clip."""
    samples, middles = recording.samples, recording.word_times.mean(axis=1)
    texts = " ".join(recording.texts).split()
    counts = []
    for place in places:
        first, stop = max(0, place - AROUND), min(len(samples), place + AROUND)
        words_in = slice(*np.searchsorted(middles, (first / RATE, stop / RATE)))
        found = model.words(samples, [(first, stop)])
        errors = error_times([" ".join(texts[words_in])], recording.word_times[words_in], found)
        counts.append(int(overlaps(errors, np.array([place / RATE]), NEAR_S).sum()))
    return np.array(counts, int)


def error_times(texts: Sequence[str], word_times: np.ndarray, found: list[Word]) -> np.ndarray:
    """Start and end of each error, (errors, 2): of the reference word, or of the inserted word."""
    times = [
        (found[hyp].start_s, found[hyp].end_s) if op == "insert" else tuple(word_times[ref])
        for op, ref, hyp in _pairs(" ".join(texts), found)
        if op != "equal"
    ]
    return np.array(times).reshape(-1, 2)


def _pairs(reference: str, found: list[Word]) -> Iterator[tuple[str, int, int]]:
    """(operation, index of the reference word, index of the recognised word) of an alignment."""
    normalize = NORMALIZERS["basic"]
    recognised = [normalize(word.word).replace(" ", "") or "-" for word in found]
    for chunk in jiwer.process_words([reference], [" ".join(recognised)]).alignments[0]:
        count = max(chunk.ref_end_idx - chunk.ref_start_idx, chunk.hyp_end_idx - chunk.hyp_start_idx)
        for index in range(count):
            yield chunk.type, chunk.ref_start_idx + index, chunk.hyp_start_idx + index


def overlaps(spans: np.ndarray, places: np.ndarray, around: float) -> np.ndarray:
    """Whether each span, (n, 2), overlaps what is `around` each place, (places, n)."""
    return (spans[:, 0] < places[:, None] + around) & (spans[:, 1] > places[:, None] - around)


def main() -> None:
    """Print the figures as a table, and write them to a file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, metavar="DATA")
    parser.add_argument("--sets", default="librispeech-dev-clean,coffee-orders")
    parser.add_argument("--backgrounds", default=",".join(BACKGROUNDS))
    parser.add_argument("--ways", default=",".join(WAYS))
    parser.add_argument("--longest", type=float, default=20.0)
    parser.add_argument("--minutes", type=float, default=30.0, help="of audio, at least, for each set and background")
    parser.add_argument("--seed", type=int, default=18)
    parser.add_argument("--output", type=Path, help="file to append the figures to, a JSON object a line")
    options = parser.parse_args()
    model = Recogniser()
    for name, background in itertools.product(options.sets.split(","), options.backgrounds.split(",")):
        joined = recordings(options.data, name, background, options.minutes, options.seed, model)
        minutes = sum(len(recording.samples) for recording in joined) / RATE / 60
        wer = wer_at_utterances(joined, model)
        typer.echo(f"{name}, {background}: {len(joined)} recordings of {minutes:.1f} min; WER at utterances {wer:.2%}")
        typer.echo("| way | borders | cut words | words near | border WER | added errors | WER | cost |")
        for way in options.ways.split(","):
            result = figures(name, background, way, round(options.longest * RATE), joined, model)
            typer.echo(
                f"| {way} | {result.num_borders} | {result.cut_words:.1%} | {result.border_words} "
                f"| {result.border_wer:.1%} | {result.added:+.1f} +- {result.added_error:.1f} "
                f"| {result.wer:.2%} | {result.cost:.0%} |"
            )
            if options.output is not None:
                with options.output.open("a") as file:
                    file.write(json.dumps(asdict(result)) + "\n")


if __name__ == "__main__":
    main()
