"""What the language model and each word should count: the errors of a run's references over a grid of both.

The weights with the fewest errors are found on the utterances that they are measured on: their figure is too good. The
cross-validated one is not: each fold of speakers is decoded with the weights that are best on the other folds.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.decoding.decoder import load_decoder
from pipeline.decoding.rows import unpacked_levels
from pipeline.decoding.settings import DecoderSettings
from pipeline.errors import UsageError
from pipeline.runs.run import Run
from pipeline.stages.texts import TextSettings, transcripts

WEIGHTS: Final = (0.25, 0.5, 0.75, 1.0, 1.25)
BONUSES: Final = (0.0, 1.0, 2.0, 3.0, 4.0)
LIMIT_S: Final = 3600.0  # of audio
FOLDS: Final = 5

Weights = tuple[float, float]
"""(lm_weight, word_bonus)."""


@dataclass(frozen=True)
class Tuning:
    """What was measured.

    Attributes:
        utterances: that were decoded.
        audio_s: their audio, in seconds.
        words: of their references.
        greedy: word errors of greedy decoding.
        errors: word errors with each weights.
        best: the weights with the fewest errors; of equal ones, the smallest.
        cross_validated: word errors where the weights of each fold are the best on the others; None: there is one fold.
        folds: number of folds.
        by_speaker: whether folds are of speakers, and not of utterances.
    """

    utterances: int
    audio_s: float
    words: int
    greedy: int
    errors: dict[Weights, int]
    best: Weights
    cross_validated: int | None
    folds: int
    by_speaker: bool


def tune(
    run: Run,
    decoder: DecoderSettings,
    weights: Sequence[float] = WEIGHTS,
    bonuses: Sequence[float] = BONUSES,
    limit_s: float = LIMIT_S,
    on_step: Callable[[str], None] = lambda _: None,
) -> Tuning:
    """Decode utterances of a run with each combination of weights, on all processors.

    Args:
        run: with kept posteriors and references.
        decoder: with a language model; its weights are replaced.
        weights: of the language model.
        bonuses: of a word.
        limit_s: most audio to decode; of longer runs, utterances are drawn by their ids.
        on_step: called before each step that may take long.

    Raises:
        UsageError: the run keeps no posteriors, no reference has words, or the decoder cannot be loaded.
        StorageError: the run could not be read.
    """
    if decoder.lm is None:
        raise UsageError("lm tune: add --lm FILE, whose weight is to be found")
    if not weights or not bonuses:
        raise UsageError("lm tune: there are no weights to try")
    acoustics = run.acoustics
    load_decoder(decoder, acoustics)
    on_step("reading the run")
    rows = _drawn(run, limit_s)
    config = run.record.config
    settings = TextSettings(
        acoustics=acoustics,
        decoder=DecoderSettings(),
        word_gap_s=config["word_gap_s"],
        extend_words=False,
        normalizer=run.record.normalizer,
        classifiers=(),
    )
    grid = [(weight, bonus) for weight in sorted(weights) for bonus in sorted(bonuses)]
    chosen = [replace(decoder, nbest=1, lm_weight=weight, word_bonus=bonus) for weight, bonus in grid]
    greedy = transcripts(rows, settings)
    words = int(pc.sum(greedy["ref_words"]).as_py())
    if not words:
        raise UsageError(f"lm tune: the references of {run.uri} have no words: there is nothing to count errors by")
    with ThreadPoolExecutor(os.process_cpu_count() if hasattr(os, "process_cpu_count") else os.cpu_count()) as pool:
        found = []
        jobs = [pool.submit(_errors, rows, replace(settings, decoder=item)) for item in chosen]
        for job, (weight, bonus) in zip(jobs, grid, strict=True):
            on_step(f"weight {weight:g}, bonus {bonus:g}")
            found.append(job.result())
    errors = np.stack(found)  # (points, utterances)
    folds, by_speaker = _folds(rows)
    return Tuning(
        utterances=len(rows),
        audio_s=float(pc.sum(rows["duration_s"]).as_py()),
        words=words,
        greedy=int(_sum_of_errors(greedy).sum()),
        errors=dict(zip(grid, errors.sum(axis=1).tolist(), strict=True)),
        best=grid[int(errors.sum(axis=1).argmin())],
        cross_validated=_cross_validated(errors, folds),
        folds=int(folds.max()) + 1,
        by_speaker=by_speaker,
    )


def _drawn(run: Run, limit_s: float) -> pa.Table:
    """Rows of `POSTERIORS` with references, with their levels unpacked: all, or some of `limit_s`."""
    has_reference = pc.is_valid(pc.field("reference"))
    dataset = run.dataset("posteriors")
    ids = dataset.to_table(["utt_id", "duration_s"], filter=has_reference)
    if not len(ids):
        raise UsageError(f"lm tune: no utterance of {run.uri} has a reference: there is nothing to count errors by")
    names, durations = ids["utt_id"].to_pylist(), ids["duration_s"].to_pylist()
    order = sorted(range(len(names)), key=lambda index: _number(names[index]))
    taken = np.cumsum([0.0, *(durations[index] or 0.0 for index in order)])[:-1] < limit_s
    drawn = pa.array([names[index] for index, is_taken in zip(order, taken, strict=True) if is_taken])
    rows = dataset.to_table(filter=has_reference & pc.field("utt_id").isin(drawn)).combine_chunks()
    return rows.set_column(rows.schema.get_field_index("levels"), "levels", unpacked_levels(rows["levels"]))


def _number(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")


def _errors(rows: pa.Table, settings: TextSettings) -> np.ndarray:
    return _sum_of_errors(transcripts(rows, settings))


def _sum_of_errors(scored: pa.Table) -> np.ndarray:
    kinds = [scored[name].to_numpy() for name in ("substitutions", "deletions", "insertions")]
    total: np.ndarray = np.sum(kinds, axis=0)
    return total


def _folds(rows: pa.Table) -> tuple[np.ndarray, bool]:
    """The fold of each utterance, and whether all of a speaker are in the same."""
    speakers = rows["speaker"].to_pylist()
    by_speaker = None not in speakers and len(set(speakers)) > 1
    units = speakers if by_speaker else rows["utt_id"].to_pylist()
    fold_of = {unit: index % FOLDS for index, unit in enumerate(sorted(set(units), key=_number))}
    return np.array([fold_of[unit] for unit in units]), by_speaker


def _cross_validated(errors: np.ndarray, folds: np.ndarray) -> int | None:
    if folds.max() == 0:
        return None
    total = 0
    for fold in range(folds.max() + 1):
        held_out = folds == fold
        total += int(errors[errors[:, ~held_out].sum(axis=1).argmin(), held_out].sum())
    return total


def draw(tuning: Tuning) -> bytes:
    """The error rate by weight, a line for each bonus, as a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415 - takes a second, and few runs plot
    from matplotlib.figure import Figure  # noqa: PLC0415

    figure = Figure(figsize=(8, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes: Any = figure.subplots()
    for bonus in sorted({bonus for _, bonus in tuning.errors}):
        points = [
            (weight, errors / tuning.words) for (weight, other), errors in tuning.errors.items() if other == bonus
        ]
        axes.plot(*zip(*points, strict=True), marker="o", markersize=4, label=f"{bonus:g}")
    axes.axhline(tuning.greedy / tuning.words, color="grey", linestyle=":", label="greedy")
    axes.set_xlabel("weight of the language model")
    axes.set_ylabel("word error rate")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.1%}")
    axes.grid(alpha=0.3)
    axes.legend(title="word bonus")
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=110)
    return file.getvalue()
