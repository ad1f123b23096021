"""Sums over the chunks of a run."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.runs.commit import Commit
from pipeline.runs.ledger import error_codes, utterances_by

UNKNOWN_ENGINE: Final = "unknown"  # of chunks whose commits do not record their engine


@dataclass(frozen=True)
class Totals:
    """Sums over the commits of a run.

    Attributes:
        chunks: number of committed chunks.
        utterances: rows with a transcript.
        errors: rows without a transcript.
        audio_s: audio in the committed chunks, in seconds.
        skipped_s: silence in it that the model did not compute, in seconds.
        warned: transcripts with a warning about their file.
        source_bytes: planned input bytes that were processed.
        compute_s: time in the model, summed over its processes, in seconds.
        error_codes: rows without a transcript, by error code.
        engines: transcripts by a description of the engine that computed them; `unknown` where their commits do not
            record it.
        fallbacks: transcripts by the reason why they, or their labels, were not computed by the requested or the
            fastest engine.
        splits: number of times that a batch was halved because memory ran out.
    """

    chunks: int = 0
    utterances: int = 0
    errors: int = 0
    audio_s: float = 0.0
    source_bytes: int = 0
    compute_s: float = 0.0
    error_codes: dict[str, int] = dataclasses.field(default_factory=dict)
    engines: dict[str, int] = dataclasses.field(default_factory=dict)
    fallbacks: dict[str, int] = dataclasses.field(default_factory=dict)
    splits: int = 0
    skipped_s: float = 0.0
    warned: int = 0

    def __add__(self, other: Totals) -> Totals:
        sums: dict[str, Any] = {}
        for name in (f.name for f in dataclasses.fields(self)):
            left, right = getattr(self, name), getattr(other, name)
            sums[name] = _add_counts(left, right) if isinstance(left, dict) else left + right
        return Totals(**sums)

    @property
    def error_rate(self) -> float:
        """Share of the rows that failed; 0 where there are no rows."""
        return self.errors / max(self.errors + self.utterances, 1)

    @property
    def warnings(self) -> list[str]:
        """What a reader of the run's figures should know about them; usually empty."""
        fallbacks = [
            f"{number:,} of {self.utterances:,} transcripts, or their labels, were computed by a fallback: {reason}"
            for reason, number in self.fallbacks.items()
        ]
        halved = f"a batch was halved {self.splits:,} time{'s' * (self.splits != 1)} because memory ran out"
        warned = (
            f"{self.warned:,} of {self.utterances:,} transcripts are of files with wrong headers or bytes that are no "
            "audio: see the column `warning`"
        )
        return [*fallbacks, *[halved] * bool(self.splits), *[warned] * bool(self.warned)]

    @staticmethod
    def from_ledger(table: pa.Table) -> Totals:
        """The sums over a table of schema `LEDGER`."""
        names = ("utterances", "errors", "audio_s", "source_bytes", "compute_s", "splits", "skipped_s", "warned")
        sums = {name: pc.sum(table[name], min_count=0).as_py() for name in names}
        engines = utterances_by(table, "engine")
        fallbacks = utterances_by(table, "fallback")
        return Totals(
            chunks=len(table),
            **sums,
            error_codes=error_codes(table),
            engines=_sorted({engine or UNKNOWN_ENGINE: number for engine, number in engines.items()}),
            fallbacks=_sorted({reason: number for reason, number in fallbacks.items() if reason is not None}),
        )

    @staticmethod
    def from_commit(commit: Commit) -> Totals:
        """The totals of one chunk."""
        return Totals(
            chunks=1,
            utterances=commit.utterances,
            errors=commit.errors,
            audio_s=commit.audio_s,
            source_bytes=commit.source_bytes,
            compute_s=commit.seconds["compute"],
            error_codes=_sorted(commit.error_codes),
            engines={commit.engine or UNKNOWN_ENGINE: commit.utterances} if commit.utterances else {},
            fallbacks={commit.fallback: commit.utterances} if commit.utterances and commit.fallback else {},
            splits=commit.splits or 0,
            skipped_s=commit.skipped_s,
            warned=commit.warned,
        )

    @staticmethod
    def from_record(values: Mapping[str, Any]) -> Totals:
        """The totals in a `run.json`. Keys that an earlier version did not write are 0; unknown keys are ignored."""
        known = {f.name for f in dataclasses.fields(Totals)}
        return Totals(**{name: value for name, value in values.items() if name in known})


def _add_counts(a: dict[str, int], b: dict[str, int]) -> dict[str, int]:
    return _sorted({key: a.get(key, 0) + b.get(key, 0) for key in a | b})


def _sorted(counts: dict[str, int]) -> dict[str, int]:
    return dict(sorted(counts.items()))
