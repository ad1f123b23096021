"""The content of a report as typed values: `pipeline.report.content` builds it, pages and the JSON report present it.

The field names, in their order, are the keys of the JSON report (`to_json`). Renaming or moving a field changes that
format: raise `FORMAT` then. Rates and shares are fractions (0..1; a word error rate may exceed 1), durations are in
seconds, times are UTC in ISO 8601. None means not available.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from pipeline.runs.status import RunStatus

FORMAT: Final = 1

AudioMode = Literal["embed", "link", "none"]
"""What a page has of the audio: short clips inside it, links to the objects, or nothing."""

Alignment = Sequence[tuple[str, str, str]]
"""(op, reference words, hypothesis words) from left to right; op is equal, substitute, delete or insert."""


@dataclass(frozen=True)
class Interval:
    """A confidence interval.

    Attributes:
        low: lower end.
        high: upper end.
        level: nominal coverage, 0..1.
        units: number of independent units that it is computed over.
        method: how it is computed, in words.
        unit: the kind of unit: speaker, recording, utterance, or several joined by ` or `.
    """

    low: float
    high: float
    level: float
    units: int
    method: str
    unit: str


@dataclass(frozen=True)
class Counts:
    """Error counts over words, characters or sentences.

    Attributes:
        hits: correct ones.
        substitutions: substituted ones.
        deletions: deleted ones.
        insertions: inserted ones.
        reference: length of the reference.
        errors: substitutions + deletions + insertions.
        rate: errors / reference.
    """

    hits: int
    substitutions: int
    deletions: int
    insertions: int
    reference: int
    errors: int
    rate: float | None


@dataclass(frozen=True)
class Histogram:
    """Counts of utterances between `edges`: one more than counts, rising; a last edge of None is infinity."""

    edges: Sequence[float | None]
    counts: Sequence[int]


@dataclass(frozen=True)
class EngineUse:
    """How many transcripts an engine computed."""

    engine: str
    transcripts: int


@dataclass(frozen=True)
class RunCost:
    """What the machines of a run cost.

    Attributes:
        per_hour: price of all machines together, per hour of wall time.
        currency: of the prices.
        total: price of the run.
        per_audio_hour: price per hour of audio.
    """

    per_hour: float
    currency: str
    total: float
    per_audio_hour: float | None


@dataclass(frozen=True)
class RunSummary:
    """The run as a whole, and its speed.

    Attributes:
        uri: of the run.
        status: when the report was written.
        started: first start of the driver.
        finished: end of the run.
        wall_s: from the start to the end; None if the run was resumed or has not finished.
        predicted_s: what `sewd plan` predicted for it; None without a prediction, or where `wall_s` is None.
        audio_s: transcribed audio.
        skipped_s: silence in it that the model did not compute.
        compute_s: time in the model, summed over processes.
        rtfx: audio_s / wall_s.
        compute_rtfx: audio_s / compute_s.
        utterances: rows with a transcript.
        errors: rows without one.
        chunks: committed chunks.
        engines: what computed the transcripts.
        decoding: how posteriors became texts.
        warnings: what a reader of the figures should know about them.
        attempts: number of starts of the driver.
        starts: when each start was.
        cost: None without a price.
    """

    uri: str
    status: RunStatus
    started: str | None
    finished: str | None
    wall_s: float | None
    audio_s: float
    skipped_s: float
    compute_s: float
    rtfx: float | None
    compute_rtfx: float | None
    utterances: int
    errors: int
    chunks: int
    engines: Sequence[EngineUse]
    warnings: Sequence[str]
    attempts: int
    starts: Sequence[str]
    cost: RunCost | None
    predicted_s: float | None = None
    decoding: str = "greedy"


@dataclass(frozen=True)
class Coverage:
    """How much of the corpus the error rates cover.

    Attributes:
        rows: all utterances.
        scored: those with a transcript and a reference.
        no_reference: those with a transcript, but no reference.
        failed: those without a transcript.
        share: scored / rows.
    """

    rows: int
    scored: int
    no_reference: int
    failed: int
    share: float | None


@dataclass(frozen=True)
class ScoringRules:
    """The rules that the texts are compared under, and how intervals are computed.

    Attributes:
        normalizer: name of the normalizer of both texts.
        references: file names, or where else the references come from.
        compounds: words that are only joined or split differently count as correct.
        unit: the kind of unit that intervals are computed over, as in `Interval`.
        level: nominal coverage of the intervals, 0..1.
    """

    normalizer: str
    references: str
    compounds: bool
    unit: str
    level: float


@dataclass(frozen=True)
class RecordingRates:
    """Error counts of a recording, or of one of its channels; `timed` is None if its reference has no times."""

    name: str
    speaker: str | None
    words: Counts
    timed: Counts | None


@dataclass(frozen=True)
class Recordings:
    """Recordings with a reference for the whole of them.

    Attributes:
        scored: recordings that were scored, each channel with a reference of its own by itself.
        unscored: recordings with such a reference that were not.
        reference_words: words of all such references.
        scored_words: words of the references that were scored.
        coverage: scored_words / reference_words.
        collar_s: how far from its time in the reference a word may be recognised, for the time-constrained counts.
        rows: those with the most errors, worst first.
    """

    scored: int
    unscored: ReferenceProblem
    reference_words: int
    scored_words: int
    coverage: float | None
    collar_s: float
    rows: Sequence[RecordingRates]


@dataclass(frozen=True)
class Headline:
    """An error rate of the whole corpus. `metric` is wer, tcwer, cer, ser, mer or wil; mer and wil have no counts."""

    metric: str
    rate: float | None
    interval: Interval | None
    counts: Counts | None


@dataclass(frozen=True)
class ReferenceProblem:
    """A kind of mismatch between references and run: how many utterances, and the first ids."""

    count: int
    examples: Sequence[str]


@dataclass(frozen=True)
class ReferenceProblems:
    """Mismatches between files of references and the run.

    Attributes:
        missing: utterances with a transcript that no file names.
        unknown: utterances of the files that the run does not have.
        duplicate: utterances that one file names more than once, with the same reference.
    """

    missing: ReferenceProblem
    unknown: ReferenceProblem
    duplicate: ReferenceProblem


@dataclass(frozen=True)
class GroupRates:
    """The figures of one group. `interval` is that of the word error rate; a key of None: utterances without one."""

    key: str | None
    utterances: int
    audio_s: float
    words: Counts
    chars: Counts
    sentences: Counts
    interval: Interval | None


@dataclass(frozen=True)
class GroupingTable:
    """Error rates by group.

    Attributes:
        by: what the utterances are grouped by.
        ordered: the order of the groups has a meaning; else the groups with most word errors come first.
        unit: the kind of unit that the intervals are computed over.
        total: number of groups.
        shown: length of `groups`.
        groups: the first of them.
        unscored: number of groups without a reference, which are not counted in `total`.
    """

    by: str
    ordered: bool
    unit: str
    total: int
    shown: int
    groups: Sequence[GroupRates]
    unscored: int


@dataclass(frozen=True)
class ConfidenceBin:
    """Utterances with a confidence of `low` to `high`: their mean confidence, and 1 - WER as their accuracy."""

    low: float
    high: float
    utterances: int
    confidence: float | None
    accuracy: float | None


@dataclass(frozen=True)
class Reliability:
    """Accuracy by decile of confidence, and what confidences are good for.

    Attributes:
        bins: the deciles.
        ece: expected calibration error: of the share of utterances without a word error.
        risk_area: area under the curve of risk over coverage.
        risk_curve: (coverage, risk): the word error rate of this share of the utterances, the most certain first.
    """

    bins: Sequence[ConfidenceBin]
    ece: float | None = None
    risk_area: float | None = None
    risk_curve: Sequence[tuple[float, float]] = ()


@dataclass(frozen=True)
class WordConfusion:
    """How often `reference` was recognised as `hypothesis`; an empty one marks an insertion or a deletion."""

    reference: str
    hypothesis: str
    count: int
    examples: Sequence[str]


@dataclass(frozen=True)
class Confusions:
    """The most frequent word errors.

    Attributes:
        sampled: number of utterances with errors that they are counted in.
        of: number of utterances with errors.
        substitutions: the most frequent first.
        deletions: likewise.
        insertions: likewise.
    """

    sampled: int
    of: int
    substitutions: Sequence[WordConfusion]
    deletions: Sequence[WordConfusion]
    insertions: Sequence[WordConfusion]


@dataclass(frozen=True)
class Clip:
    """Audio of an utterance.

    Attributes:
        source: a `data:` URI of Ogg Opus, or the address of the object with the part to play (`#t=START,END`).
        seconds: how much of the utterance it plays.
    """

    source: str
    seconds: float | None


@dataclass(frozen=True)
class Listening:
    """How many of the worst utterances can be played.

    Attributes:
        mode: embed or link.
        wanted: the first of the worst utterances, which a clip was made for if possible.
        playable: those that have one.
        left_out: the others, by the reason: an error code, or a few words.
    """

    mode: AudioMode
    wanted: int
    playable: int
    left_out: Mapping[str, int]


@dataclass(frozen=True)
class WorstUtterance:
    """An utterance with many errors.

    `reference` is normalized, `text` is the transcript as stored; `clip` is None if it cannot be played.
    """

    utt_id: str
    uri: str
    start_s: float
    duration_s: float | None
    speaker: str | None
    confidence: float | None
    reference: str
    text: str
    counts: Counts
    alignment: Alignment
    clip: Clip | None


@dataclass(frozen=True)
class WorstUtterances:
    """The utterances with the most errors: `shown` of `of` that have any; `listening` is None without audio."""

    shown: int
    of: int
    rows: Sequence[WorstUtterance]
    listening: Listening | None


@dataclass(frozen=True)
class ClassScores:
    """The figures of one label of a classifier.

    Attributes:
        label: the label.
        precision: share of the utterances given the label that have it as reference.
        recall: share of the utterances with it as reference that were given it.
        f1: harmonic mean of the two.
        support: utterances with it as reference.
        predicted: utterances that were given it.
        auroc: area under the ROC curve of the label against all others; None if its scores are incomplete.
    """

    label: str
    precision: float | None
    recall: float | None
    f1: float | None
    support: int
    predicted: int
    auroc: float | None


@dataclass(frozen=True)
class ConfusionMatrix:
    """Utterances by reference label (rows of `matrix`, in the order of `labels`) and predicted label (columns)."""

    labels: Sequence[str]
    predicted: Sequence[str]
    matrix: Sequence[Sequence[int]]


@dataclass(frozen=True)
class CalibrationBin:
    """Utterances with a score of `low` to `high`: their number, mean score and accuracy."""

    low: float
    high: float
    count: int
    confidence: float | None
    accuracy: float | None


@dataclass(frozen=True)
class ScoreCalibration:
    """Accuracy by score of a classifier.

    Attributes:
        ece: expected calibration error.
        bins: bins of equal width, which it is defined over.
        plotted: bins of about equally many utterances.
    """

    ece: float | None
    bins: Sequence[CalibrationBin]
    plotted: Sequence[CalibrationBin]


@dataclass(frozen=True)
class ClassificationTask:
    """The figures of one classifier.

    Attributes:
        task: its name.
        scored: utterances with a reference label.
        no_reference: utterances without one.
        unknown_label: utterances whose reference label no classifier of the run has; they count as errors.
        other_label: utterances whose reference label another classifier of the run has; they are not scored.
        accuracy: share of the scored utterances with the right label.
        interval: of the accuracy.
        balanced_accuracy: mean recall of the labels.
        macro_f1: mean F1 of the labels.
        micro_f1: F1 of the summed counts.
        classes: figures by label.
        confusion: reference against predicted label.
        calibration: of the scores.
    """

    task: str
    scored: int
    no_reference: int
    unknown_label: int
    other_label: int
    accuracy: float | None
    interval: Interval | None
    balanced_accuracy: float | None
    macro_f1: float | None
    micro_f1: float | None
    classes: Sequence[ClassScores]
    confusion: ConfusionMatrix
    calibration: ScoreCalibration


@dataclass(frozen=True)
class FailedUtterance:
    """An utterance without a transcript."""

    utt_id: str
    uri: str
    message: str


@dataclass(frozen=True)
class ErrorMessage:
    """An error message, with its numbers masked, and how often it occurs in the sampled rows."""

    message: str
    count: int


@dataclass(frozen=True)
class ErrorsByCode:
    """The utterances that failed with one error code. `share` is that of all failed utterances."""

    code: str
    count: int
    share: float
    examples: Sequence[FailedUtterance]
    messages: Sequence[ErrorMessage]


@dataclass(frozen=True)
class LabelShare:
    """How often a classifier gave a label: among the counted rows, with share and mean score, and among the others."""

    label: str
    count: int
    share: float
    mean_score: float | None
    others: int


@dataclass(frozen=True)
class TaskLabels:
    """The labels that one classifier gave, the most frequent first.

    Attributes:
        task: the classifier.
        rows: utterances that are counted: those with a reference label of the classifier if there are any, else all.
        others: utterances that are not counted: without a reference label, or with one of another classifier.
        labels: the labels.
    """

    task: str
    rows: int
    others: int
    labels: Sequence[LabelShare]


@dataclass(frozen=True)
class TagValue:
    """The sampled utterances with one value of a tag: transcribed ones, their hours of audio, and failed ones."""

    value: str | None
    utterances: int
    hours: float
    failed: int


@dataclass(frozen=True)
class TagTable:
    """The values of one tag, the most frequent first."""

    tag: str
    values: Sequence[TagValue]


@dataclass(frozen=True)
class SampleTranscript:
    """A transcript to show."""

    utt_id: str
    text: str
    confidence: float | None
    duration_s: float | None


@dataclass(frozen=True)
class Corpus:
    """The corpus as far as a run describes it without references.

    Attributes:
        hours: of audio.
        utterances: with a transcript.
        sampled: utterances that the fields below are computed from, `labels` excepted.
        of: utterances that they were sampled from.
        speech_share: time from word to word, without pauses of half a second or more / duration.
        words: recognised words.
        words_per_second: of audio.
        durations: utterances by duration.
        confidences: utterances by confidence.
        empty_texts: utterances without a word.
        labels: that the classifiers gave, over all utterances.
        by_tag: tags with few values.
        samples: some transcripts.
    """

    hours: float
    utterances: int
    sampled: int
    of: int
    speech_share: float | None
    words: int
    words_per_second: float | None
    durations: Histogram
    confidences: Histogram
    empty_texts: int
    labels: Sequence[TaskLabels]
    by_tag: Sequence[TagTable]
    samples: Sequence[SampleTranscript]


@dataclass(frozen=True)
class Lineage:
    """What the transcripts were made from.

    Attributes:
        model: checkpoint of the recogniser.
        classifiers: checkpoints of the classifiers, as NAME=CHECKPOINT.
        inputs: what was transcribed.
        fingerprint: digests of what determines the result, as `run.json` has them.
        config: the settings of the run, as `run.json` has them.
        versions: of Python and the packages at the last start, by name.
    """

    model: str
    classifiers: Sequence[str]
    inputs: Sequence[str]
    fingerprint: Mapping[str, Any]
    config: Mapping[str, Any]
    versions: Mapping[str, Any]


@dataclass(frozen=True)
class GateResult:
    """A condition of `--fail-if`. `failed`: it holds, or cannot be judged since `value` or `limit` is None."""

    condition: str
    value: float | None
    limit: float | None
    failed: bool


@dataclass(frozen=True)
class BaselineSummary:
    """The run that the report's run is compared with."""

    uri: str
    title: str
    model: str
    headline: Sequence[Headline]
    coverage: Coverage
    run: RunSummary


@dataclass(frozen=True)
class Pairing:
    """Which utterances are compared.

    Attributes:
        utterances: scored in both runs with the same reference: these are compared.
        only_here: scored in this run only.
        only_baseline: scored in the baseline only.
        reference_differs: scored in both with different references.
    """

    utterances: int
    only_here: int
    only_baseline: int
    reference_differs: int


@dataclass(frozen=True)
class MetricDifference:
    """An error rate of both runs, over the compared utterances.

    Attributes:
        metric: wer, cer or ser.
        here: rate of this run.
        baseline: rate of the baseline.
        difference: here - baseline, so a negative one is an improvement.
        interval: of the difference; None if there are too few units, or if no unit differs.
        probability_of_improvement: share of the resamples in which this run has fewer errors, ties counted half; None
            if there are too few units, and 0.5 if no unit differs.
    """

    metric: str
    here: float | None
    baseline: float | None
    difference: float | None
    interval: Interval | None
    probability_of_improvement: float | None


@dataclass(frozen=True)
class Significance:
    """A significance test of the difference of two runs."""

    name: str
    statistic: float | None
    p_value: float | None
    n: int
    detail: str


@dataclass(frozen=True)
class Changes:
    """Compared utterances with fewer, with more, and with as many word errors as in the baseline."""

    better: int
    worse: int
    same: int


@dataclass(frozen=True)
class ChangedText:
    """The transcript that one run has of a changed utterance; `errors` are word errors."""

    text: str
    errors: int
    alignment: Alignment


@dataclass(frozen=True)
class ChangedUtterance:
    """An utterance with another number of word errors than in the baseline; `difference` is here - baseline."""

    utt_id: str
    duration_s: float | None
    reference: str
    difference: int
    here: ChangedText
    baseline: ChangedText


@dataclass(frozen=True)
class ComparisonSection:
    """The difference between the run and a baseline.

    Attributes:
        baseline: the run that it is compared with.
        paired: which utterances are compared.
        metrics: error rates of both.
        tests: significance tests.
        changes: numbers of changed utterances.
        better: the utterances that improved most.
        worse: the utterances that got worse most.
    """

    baseline: BaselineSummary
    paired: Pairing
    metrics: Sequence[MetricDifference]
    tests: Sequence[Significance]
    changes: Changes
    better: Sequence[ChangedUtterance]
    worse: Sequence[ChangedUtterance]


@dataclass(frozen=True)
class ReportContent:
    """All that a report contains. None, or nothing, where there is nothing to report, or no references.

    Attributes:
        format: version of the JSON report.
        title: name of the run.
        generated: when the report was written.
        version: of this package.
        run: the run as a whole.
        coverage: how much of the corpus the error rates cover.
        scoring: the rules of scoring.
        headline: error rates of the corpus.
        reference_problems: mismatches between files of references and the run.
        distribution: utterances by their own word error rate.
        groups: error rates by group, a table for each grouping.
        confidence: accuracy by confidence.
        confusions: the most frequent word errors.
        worst: the utterances with the most errors.
        classification: figures by classifier.
        errors: failed utterances by error code, the most frequent first.
        corpus: description of the corpus.
        lineage: model, inputs, settings and versions.
        gate: judged conditions of `--fail-if`.
        comparison: difference from a baseline.
        recordings: recordings that were scored as wholes.
    """

    format: int = field(default=FORMAT, init=False)
    title: str
    generated: str
    version: str
    run: RunSummary
    coverage: Coverage
    scoring: ScoringRules
    headline: Sequence[Headline]
    reference_problems: ReferenceProblems | None
    distribution: Histogram | None
    groups: Sequence[GroupingTable]
    confidence: Reliability | None
    confusions: Confusions | None
    worst: WorstUtterances | None
    classification: Sequence[ClassificationTask]
    errors: Sequence[ErrorsByCode]
    corpus: Corpus
    lineage: Lineage
    gate: Sequence[GateResult]
    comparison: ComparisonSection | None
    recordings: Recordings | None = None


def to_json(value: Any) -> Any:
    """Content of a report, or any part of it, as dicts, lists and scalars for `json.dumps`."""
    if dataclasses.is_dataclass(value):
        return {f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: to_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(item) for item in value]
    return value
