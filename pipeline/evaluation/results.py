"""The result of an evaluation: sums, groups and rates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from pipeline.evaluation.intervals import Interval
from pipeline.evaluation.tally import (
    COUNT_NAMES,
)
from pipeline.scoring.counts import ErrorCounts
from pipeline.scoring.rules import Scoring

ORDERED: Final = frozenset({"duration", "confidence"})


@dataclass(frozen=True)
class Figures:
    """Sums over any utterances. Every rate is a view, and None where there is nothing to divide by.

    Attributes:
        utterances: with a transcript.
        sentences: those that were scored: they have a reference too.
        sentence_errors: those of them with any word error.
        words: counts of the scored ones.
        chars: the same, by character.
        audio_s: seconds of audio of all.
        confident: utterances with a confidence: their text is not empty.
        confidence_sum: sum of those confidences.

    Raises:
        ValueError: more sentences are wrong than were scored.
    """

    utterances: int
    sentences: int
    sentence_errors: int
    words: ErrorCounts
    chars: ErrorCounts
    audio_s: float
    confident: int
    confidence_sum: float

    def __post_init__(self) -> None:
        if not 0 <= self.sentence_errors <= self.sentences <= self.utterances:
            raise ValueError(f"more sentences are wrong than there are: {self}")

    @staticmethod
    def of(sums: Mapping[str, Any]) -> Figures:
        """Of one row of a tally."""
        return Figures(
            utterances=sums["utterances"],
            sentences=sums["scored"],
            sentence_errors=sums["sentence_errors"],
            words=ErrorCounts(*(sums[name] for name in COUNT_NAMES)),
            chars=ErrorCounts(*(sums[f"char_{name}"] for name in COUNT_NAMES)),
            audio_s=sums["audio_s"],
            confident=sums["confident"],
            confidence_sum=sums["confidence"],
        )

    @property
    def sentence_counts(self) -> ErrorCounts:
        """Sentences as the units: right ones are hits, wrong ones substitutions."""
        return ErrorCounts(self.sentences - self.sentence_errors, self.sentence_errors, 0, 0)

    @property
    def counts(self) -> dict[str, ErrorCounts]:
        """By metric: wer of words, cer of characters, ser of sentences."""
        return {"wer": self.words, "cer": self.chars, "ser": self.sentence_counts}

    @property
    def rates(self) -> dict[str, float | None]:
        """By metric: wer, cer, ser, mer, wil."""
        rates = {metric: counts.error_rate for metric, counts in self.counts.items()}
        return rates | {"mer": self.words.match_error_rate, "wil": self.words.information_lost}

    @property
    def confidence(self) -> float | None:
        """Mean confidence of the utterances that have one."""
        return self.confidence_sum / self.confident if self.confident else None


@dataclass(frozen=True)
class Group:
    """The figures of the utterances with one key; `interval` is of the word error rate."""

    key: str | None
    figures: Figures
    interval: Interval | None


@dataclass(frozen=True)
class Grouping:
    """All groups of one grouping; `unit` is what their intervals draw from."""

    by: str
    unit: str
    groups: tuple[Group, ...]

    @property
    def ordered(self) -> bool:
        """Whether the order of the groups means something."""
        return self.by in ORDERED


@dataclass(frozen=True)
class ReferenceProblems:
    """Where references from files and the run do not fit each other: numbers, and the first ids of each kind.

    Attributes:
        missing: utterances with a transcript that no file names: they are not scored.
        unknown: utterances of the files that the run knows nothing of, neither transcript nor error.
        duplicate: utterances that one file names more than once, with the same reference.
    """

    missing: tuple[int, tuple[str, ...]]
    unknown: tuple[int, tuple[str, ...]]
    duplicate: tuple[int, tuple[str, ...]]


@dataclass(frozen=True)
class Evaluation:
    """What a run comes to.

    Attributes:
        figures: over all that is committed.
        failed: utterances without a transcript: rows of `errors/`.
        scoring: the rules.
        unit: what the intervals draw from: speaker, recording, utterance, or several joined by ` or `.
        intervals: of wer, cer and ser; None where the units are too few.
        groupings: in the order that they were asked for.
        worst: ids of the utterances with the most word errors, the worst first: as many as were asked for.
        spread: number of scored utterances by their own word error rate: one for each bin of `RATE_EDGES`.
        problems: of references from files; None where there are none.
    """

    figures: Figures
    failed: int
    scoring: Scoring
    unit: str
    intervals: Mapping[str, Interval | None]
    groupings: tuple[Grouping, ...] = ()
    worst: tuple[str, ...] = ()
    spread: tuple[int, ...] = ()
    problems: ReferenceProblems | None = None

    @property
    def rates(self) -> dict[str, float | None]:
        """By metric: wer, cer, ser, mer, wil."""
        return self.figures.rates

    @property
    def wer(self) -> float | None:
        """Word error rate; None without a reference word."""
        return self.figures.rates["wer"]

    @property
    def cer(self) -> float | None:
        """Character error rate; None without a reference character."""
        return self.figures.rates["cer"]

    @property
    def ser(self) -> float | None:
        """Share of scored utterances with any word error; None where none was scored."""
        return self.figures.rates["ser"]

    @property
    def scored(self) -> int:
        """Utterances with a transcript and a reference."""
        return self.figures.sentences

    @property
    def no_reference(self) -> int:
        """Utterances with a transcript, but no reference."""
        return self.figures.utterances - self.figures.sentences

    @property
    def coverage(self) -> float | None:
        """Scored utterances / all, failed ones included: how much of the corpus the rates speak for."""
        everything = self.figures.utterances + self.failed
        return self.scored / everything if everything else None
