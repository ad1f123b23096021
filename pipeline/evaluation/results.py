"""Results of an evaluation: sums, rates, groups."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final, NamedTuple

from pipeline.evaluation.confidence import ConfidenceFigures
from pipeline.evaluation.intervals import Interval
from pipeline.evaluation.sums import COUNT_NAMES
from pipeline.scoring.counts import ErrorCounts
from pipeline.scoring.references import MAX_EXAMPLES
from pipeline.scoring.rules import Scoring

_ORDERED: Final = frozenset({"duration", "confidence"})


@dataclass(frozen=True)
class Figures:
    """Sums over a set of utterances. Every rate is derived from them, and None where its denominator is 0.

    Attributes:
        utterances: utterances with a transcript.
        scored: those of them that have a reference too.
        sentence_errors: scored utterances with any word error.
        words: word counts of the scored utterances.
        chars: character counts of the scored utterances.
        audio_s: seconds of audio of all utterances.
        confident: utterances with a confidence; one with an empty text has none.
        confidence_sum: sum of those confidences.

    Raises:
        ValueError: more sentence errors than scored utterances, or more scored utterances than utterances.
    """

    utterances: int
    scored: int
    sentence_errors: int
    words: ErrorCounts
    chars: ErrorCounts
    audio_s: float
    confident: int
    confidence_sum: float

    def __post_init__(self) -> None:
        if not 0 <= self.sentence_errors <= self.scored <= self.utterances:
            raise ValueError(f"sentence errors, scored utterances and utterances must ascend from 0: {self}")

    @staticmethod
    def from_sums(sums: Mapping[str, Any]) -> Figures:
        """The figures in one row of a table of sums (`pipeline.evaluation.sums.SUM_COLUMNS`)."""
        return Figures(
            utterances=sums["utterances"],
            scored=sums["scored"],
            sentence_errors=sums["sentence_errors"],
            words=ErrorCounts(*(sums[name] for name in COUNT_NAMES)),
            chars=ErrorCounts(*(sums[f"char_{name}"] for name in COUNT_NAMES)),
            audio_s=sums["audio_s"],
            confident=sums["confident"],
            confidence_sum=sums["confidence"],
        )

    @property
    def sentence_counts(self) -> ErrorCounts:
        """Counts with sentences as tokens: correct ones are hits, wrong ones substitutions."""
        return ErrorCounts(self.scored - self.sentence_errors, self.sentence_errors, 0, 0)

    @property
    def counts(self) -> dict[str, ErrorCounts]:
        """By metric: wer over words, cer over characters, ser over sentences."""
        return {"wer": self.words, "cer": self.chars, "ser": self.sentence_counts}

    @property
    def rates(self) -> dict[str, float | None]:
        """By metric: wer, cer, ser, mer, wil."""
        rates = {metric: counts.error_rate for metric, counts in self.counts.items()}
        return rates | {"mer": self.words.match_error_rate, "wil": self.words.information_lost}

    @property
    def mean_confidence(self) -> float | None:
        """Mean confidence of the utterances that have one."""
        return self.confidence_sum / self.confident if self.confident else None


@dataclass(frozen=True)
class Group:
    """One group of utterances.

    Attributes:
        key: name of the group; None for the utterances without the key.
        figures: sums over the group.
        interval: confidence interval of its word error rate; None where there is none.
    """

    key: str | None
    figures: Figures
    interval: Interval | None


@dataclass(frozen=True)
class Grouping:
    """All groups of one grouping.

    Attributes:
        by: what the rows are grouped by, see `pipeline.evaluation.group_keys.grouping_key`.
        unit: sampling unit of the groups' intervals.
        groups: in ascending order of their keys.
    """

    by: str
    unit: str
    groups: tuple[Group, ...]

    @property
    def ordered(self) -> bool:
        """Whether the order of the groups is meaningful: they are bins of a number."""
        return self.by in _ORDERED


class IdSummary(NamedTuple):
    """How many utterance ids there are of some kind, and the first of them."""

    total: int = 0
    examples: tuple[str, ...] = ()

    @staticmethod
    def of(utt_ids: Collection[str], total: int | None = None) -> IdSummary:
        """The summary of ids of which `utt_ids` are the first; `total` is their number if there are more."""
        return IdSummary(len(utt_ids) if total is None else total, tuple(islice(utt_ids, MAX_EXAMPLES)))


@dataclass(frozen=True)
class ReferenceProblems:
    """Utterance ids for which reference files and run do not match.

    Attributes:
        missing: utterances with a transcript that no file contains; they are not scored.
        unknown: utterances of the files for which the run has neither a transcript nor an error.
        duplicate: utterances that a file contains more than once, with the same reference.
    """

    missing: IdSummary
    unknown: IdSummary
    duplicate: IdSummary


class RecordingScore(NamedTuple):
    """The counts of one recording, or of one of its channels.

    Attributes:
        recording: id of the recording.
        name: the same, with `#c<channel>` if the recording has several.
        reference: digest of its normalised reference, valid within this process.
        words: counts of words.
        chars: counts of characters.
        timed: counts of words under the time constraint; None if the reference has no times.
        speaker: the only speaker, if there is one.
    """

    recording: str
    name: str
    reference: int
    words: ErrorCounts
    chars: ErrorCounts
    timed: ErrorCounts | None
    speaker: str | None


@dataclass(frozen=True)
class RecordingFigures:
    """What is known of recordings that have a reference for the whole of them.

    Their word errors are among the figures of the utterances, of which they consist.

    Attributes:
        scored: recordings that were scored, each channel with a reference of its own by itself.
        unscored: those that were not: nothing was transcribed, or the reference does not say which channel it is of.
        reference_words: words of all references of recordings, also of recordings that the run does not have.
        scored_words: words of the references that were scored.
        timed: word counts of the recordings whose references have times, under the time constraint; None without any.
        interval: confidence interval of their rate; None where there are too few units.
        collar_s: the constraint: how far from its time a word may be recognised, in seconds.
        worst: the recordings with the most word errors, worst first.
    """

    scored: int
    unscored: IdSummary
    reference_words: int
    scored_words: int
    timed: ErrorCounts | None
    interval: Interval | None
    collar_s: float
    worst: tuple[RecordingScore, ...] = ()

    @property
    def coverage(self) -> float | None:
        """Scored words of the references / all their words."""
        return self.scored_words / self.reference_words if self.reference_words else None


@dataclass(frozen=True)
class Evaluation:
    """Result of an evaluation of a run.

    Attributes:
        figures: sums over all committed utterances.
        failed: utterances without a transcript: rows of `errors/`.
        scoring: the rules that the utterances were scored under.
        unit: sampling unit of the intervals: speaker, recording, utterance, or several joined by ` or `.
        intervals: confidence intervals of wer, cer and ser; None where there are too few units.
        groupings: in the order of the settings.
        worst_utterances: ids of the utterances with the most word errors, worst first; as many as the settings ask for.
        rate_histogram: number of scored utterances by their own word error rate, for each bin of `RATE_EDGES`.
        problems: mismatches of reference files and run; None without such files.
        recordings: figures of recordings that were scored as wholes; None without any reference of a recording.
        confidence: how far the confidences can be relied on; None if nothing was scored.
    """

    figures: Figures
    failed: int
    scoring: Scoring
    unit: str
    intervals: Mapping[str, Interval | None]
    groupings: tuple[Grouping, ...] = ()
    worst_utterances: tuple[str, ...] = ()
    rate_histogram: tuple[int, ...] = ()
    problems: ReferenceProblems | None = None
    recordings: RecordingFigures | None = None
    confidence: ConfidenceFigures | None = None

    @property
    def rates(self) -> dict[str, float | None]:
        """By metric: wer, cer, ser, mer, wil."""
        return self.figures.rates

    @property
    def tcwer(self) -> float | None:
        """Time-constrained word error rate; None without a reference with times."""
        timed = self.recordings and self.recordings.timed
        return timed.error_rate if timed else None

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
        """Sentence error rate, the share of scored utterances with any word error; None without a scored utterance."""
        return self.figures.rates["ser"]

    @property
    def scored(self) -> int:
        """Utterances with a transcript and a reference."""
        return self.figures.scored

    @property
    def no_reference(self) -> int:
        """Utterances with a transcript but without a reference."""
        return self.figures.utterances - self.figures.scored

    @property
    def coverage(self) -> float | None:
        """Scored utterances / all utterances, failed ones included: the share of the corpus that the rates describe."""
        total = self.figures.utterances + self.failed
        return self.scored / total if total else None
