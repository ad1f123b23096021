"""Corpus-level WER, CER and sentence error rate of a run: from sums of counts, never from means of rates."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.counts import SCORE_FIELDS, ErrorCounts, score_columns
from pipeline.normalize import check_normalizer
from pipeline.schemas import SCHEMA_VERSION, field

METRICS_SCHEMA: Final = pa.schema(
    [
        field("scope", pa.string(), "what the row sums over: corpus, or a grouping", nullable=False),
        field("key", pa.string(), "the group within the scope; null for the corpus"),
        field("metric", pa.string(), "wer (words), cer (characters) or ser (sentences)", nullable=False),
        field(
            "errors",
            pa.int64(),
            "substitutions + deletions + insertions",
            "units of the metric",
            nullable=False,
        ),
        field("hits", pa.int64(), "units recognised", "units of the metric", nullable=False),
        field(
            "substitutions",
            pa.int64(),
            "for ser: sentences with any word error",
            "units of the metric",
            nullable=False,
        ),
        field("deletions", pa.int64(), "0 for ser", "units of the metric", nullable=False),
        field("insertions", pa.int64(), "0 for ser", "units of the metric", nullable=False),
        field("reference", pa.int64(), "hits + substitutions + deletions", "units of the metric", nullable=False),
        field("rate", pa.float64(), "errors / reference; null where reference is 0", "1"),
        field("ci_low", pa.float64(), "lower end of the rate's confidence interval; null: not computed", "1"),
        field("ci_high", pa.float64(), "upper end of the rate's confidence interval; null: not computed", "1"),
        field("sentences", pa.int64(), "utterances that the counts sum over", "utterances", nullable=False),
        field("scored", pa.int64(), "utterances with transcript and reference", "utterances", nullable=False),
        field(
            "no_reference",
            pa.int64(),
            "utterances with a transcript but no reference",
            "utterances",
            nullable=False,
        ),
        field(
            "failed",
            pa.int64(),
            "utterances without a transcript: rows in errors/",
            "utterances",
            nullable=False,
        ),
        field("normalizer", pa.string(), "normaliser of both texts", nullable=False),
    ],
    metadata={"sewd.table": "metrics", "sewd.schema_version": str(SCHEMA_VERSION)},
)

_COUNT_COLUMNS: Final = tuple(f.name for f in SCORE_FIELDS if pa.types.is_integer(f.type))
_ROWS_PER_SCORING: Final = 4096  # bounds the Python strings alive at a time, whatever the size of a batch


@dataclass(frozen=True)
class Evaluation:
    """What a corpus comes to. Every rate is a view, and None where there is nothing to divide by.

    Attributes:
        words: sum over the scored utterances.
        chars: the same, by character.
        sentences: utterances that were scored: they have a transcript and a reference.
        sentence_errors: those whose normalised texts differ, that is: with any word error.
        no_reference: utterances with a transcript, but no reference.
        failed: utterances without a transcript: rows of `errors/`.
        normalizer: of both texts.

    Raises:
        ValueError: a number is negative, or more sentences are wrong than there are.
    """

    words: ErrorCounts
    chars: ErrorCounts
    sentences: int
    sentence_errors: int
    no_reference: int
    failed: int
    normalizer: str

    def __post_init__(self) -> None:
        if min(self.sentences, self.sentence_errors, self.no_reference, self.failed) < 0:
            raise ValueError(f"numbers of utterances cannot be negative: {self}")
        if self.sentence_errors > self.sentences:
            raise ValueError(f"more sentences are wrong than there are: {self}")

    @property
    def scored(self) -> int:
        """Another name of `sentences`, for coverage."""
        return self.sentences

    @property
    def wer(self) -> float | None:
        """Word error rate; None without a reference word."""
        return self.words.error_rate

    @property
    def cer(self) -> float | None:
        """Character error rate; None without a reference character."""
        return self.chars.error_rate

    @property
    def ser(self) -> float | None:
        """Share of scored utterances with any word error; None where none was scored."""
        return self.sentence_counts.error_rate

    @property
    def sentence_counts(self) -> ErrorCounts:
        """Sentences as the units: right ones are hits, wrong ones substitutions."""
        return ErrorCounts(self.sentences - self.sentence_errors, self.sentence_errors, 0, 0)

    @property
    def coverage(self) -> float | None:
        """Scored utterances / all, failed ones included: how much of the corpus the rates speak for."""
        everything = self.sentences + self.no_reference + self.failed
        return self.sentences / everything if everything else None


def required_columns(normalizer: str, stored_normalizer: str | None) -> tuple[str, ...]:
    """The columns of `transcripts` that `evaluate` reads: a reader needs to fetch no others."""
    return _COUNT_COLUMNS if normalizer == stored_normalizer else ("text", "reference")


def evaluate(
    transcripts: Iterable[pa.RecordBatch | pa.Table],
    num_errors: int,
    *,
    normalizer: str,
    stored_normalizer: str | None,
) -> Evaluation:
    """Sums over the rows of `transcripts`, one batch at a time: memory is bounded by the largest batch.

    Where the normalizers agree, stored counts are summed as columns; else every row is scored again from its
    text and reference. Order and size of the batches do not matter.

    Args:
        transcripts: batches with `required_columns(normalizer, stored_normalizer)`; more columns are ignored.
        num_errors: rows of the run's `errors/`.
        normalizer: the one to score under.
        stored_normalizer: the one that the stored counts are of; None: do not use them.

    Raises:
        UsageError: no such normalizer.
        KeyError: a batch lacks a column.
        ValueError: stored counts contradict each other or the references.
    """
    check_normalizer(normalizer)
    stored = normalizer == stored_normalizer
    words, chars = ErrorCounts.zero(), ErrorCounts.zero()
    sentences = sentence_errors = no_reference = 0
    for batch in transcripts:
        for columns in [_stored_counts(batch)] if stored else _scored_again(batch, normalizer):
            words += _sum(columns, "")
            chars += _sum(columns, "char_")
            scored = len(columns["hits"]) - columns["hits"].null_count
            sentences += scored
            no_reference += len(columns["hits"]) - scored
            sentence_errors += _wrong(columns)
    return Evaluation(words, chars, sentences, sentence_errors, no_reference, num_errors, normalizer)


def metrics_table(evaluation: Evaluation) -> pa.Table:
    """The corpus's rows of `metrics/`, as `METRICS_SCHEMA`: wer, cer, ser."""
    counts_by_metric = {"wer": evaluation.words, "cer": evaluation.chars, "ser": evaluation.sentence_counts}
    rows = [
        {
            "scope": "corpus",
            "key": None,
            "metric": metric,
            "errors": counts.errors,
            "hits": counts.hits,
            "substitutions": counts.substitutions,
            "deletions": counts.deletions,
            "insertions": counts.insertions,
            "reference": counts.reference,
            "rate": counts.error_rate,
            "ci_low": None,
            "ci_high": None,
            "sentences": evaluation.sentences,
            "scored": evaluation.scored,
            "no_reference": evaluation.no_reference,
            "failed": evaluation.failed,
            "normalizer": evaluation.normalizer,
        }
        for metric, counts in counts_by_metric.items()
    ]
    return pa.Table.from_pylist(rows, schema=METRICS_SCHEMA)


def _stored_counts(batch: pa.RecordBatch | pa.Table) -> dict[str, pa.Array | pa.ChunkedArray]:
    """The batch's own counts, if they agree: a rate over half-filled columns would look sound."""
    columns = {name: batch.column(name) for name in _COUNT_COLUMNS}
    filled = {name: pc.is_valid(column) for name, column in columns.items()}
    if "reference" in batch.schema.names:
        filled["reference"] = pc.is_valid(batch.column("reference"))
    if any(not mask.equals(filled["hits"]) for mask in filled.values()):
        values = {name: pc.sum(mask, min_count=0).as_py() for name, mask in filled.items()}
        raise ValueError(f"reference and stored counts are not filled in the same rows; values by column: {values}")
    for prefix, unit in (("", "words"), ("char_", "chars")):
        length, counted = pc.sum(columns[f"ref_{unit}"], min_count=0).as_py(), _sum(columns, prefix).reference
        if length != counted:
            raise ValueError(
                f"stored counts contradict each other: ref_{unit} come to {length}, "
                f"{prefix}hits + {prefix}substitutions + {prefix}deletions to {counted}"
            )
    return columns


def _scored_again(batch: pa.RecordBatch | pa.Table, normalizer: str) -> Iterator[dict[str, pa.Array]]:
    texts, references = batch.column("text"), batch.column("reference")
    for start in range(0, batch.num_rows, _ROWS_PER_SCORING):
        rows = (start, _ROWS_PER_SCORING)
        yield score_columns(texts.slice(*rows), references.slice(*rows), normalizer)


def _sum(columns: Mapping[str, pa.Array | pa.ChunkedArray], prefix: str) -> ErrorCounts:
    """Column totals (in int64); nulls are rows without a reference and add nothing."""
    names = ("hits", "substitutions", "deletions", "insertions")
    return ErrorCounts(*(pc.sum(columns[prefix + name], min_count=0).as_py() for name in names))


def _wrong(columns: Mapping[str, pa.Array | pa.ChunkedArray]) -> int:
    """Rows with any word error: with single spaces between words, those whose normalised texts differ."""
    largest = pc.max_element_wise(*(columns[name] for name in ("substitutions", "deletions", "insertions")))
    wrong: int = pc.sum(pc.greater(largest, 0), min_count=0).as_py()
    return wrong
