"""All sums that an evaluation needs, over batches of `transcripts`; the tallies of parts of a run can be added."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.evaluation.confidence import SUMS as CONFIDENCE_SUMS
from pipeline.evaluation.confidence import confidence_summands
from pipeline.evaluation.context import DEFAULT_CONTEXT, RunContext
from pipeline.evaluation.group_keys import SOURCE_KEYS, grouping_key, utterance_rate_bins
from pipeline.evaluation.reading import BATCH_ROWS, rebatch
from pipeline.evaluation.results import IdSummary
from pipeline.evaluation.settings import EvaluationSettings
from pipeline.evaluation.sums import KEY_PREFIX, merge_sums, row_summands, sum_by_key
from pipeline.evaluation.units import row_units, unit_columns, unit_keys, utterance_units
from pipeline.scoring.references import References
from pipeline.scoring.rules import Scoring, score

MAX_INTERVALS: Final = 200
"""Groupings of more groups have no intervals: a bootstrap for each group would take hours."""

_UNIT_SUMS: Final = ("scored", "word_errors", "ref_words")
_NO_UTTERANCES: Final = pa.table({"utt_id": pa.array([], pa.string()), "errors": pa.array([], pa.int32())})
_WORST_FIRST: Final = [("errors", "descending"), ("utt_id", "ascending")]

RowMask = npt.NDArray[np.bool_]


class SumKind(StrEnum):
    """What a table of sums in `Tallies` is keyed by."""

    CORPUS = "corpus"  # no key: all figures of the corpus
    WORD_UNITS = "word units"  # sampling unit: for the intervals of wer and ser
    CHAR_UNITS = "char units"  # sampling unit: for the interval of cer
    RATE_BINS = "rate bins"  # an utterance's own word error rate
    GROUPS = "groups"  # a group: all its figures
    CONFIDENCE = "confidence"  # a small part of the confidences: see pipeline.evaluation.confidence
    GROUP_UNITS = "group units"  # group and sampling unit: for the group's interval of wer


class SumName(NamedTuple):
    """Name of a table of sums in `Tallies`; `by` is the grouping of GROUPS and GROUP_UNITS."""

    kind: SumKind
    by: str = ""


@dataclass(frozen=True)
class Tallies:
    """Sums over batches.

    Attributes:
        sums: tables of sums by name, each as pieces that are merged from time to time.
        worst: candidates for the utterances with the most word errors: `utt_id`, `errors`.
        used_references: for each reference file, a mask of its rows whose utterance occurred.
        missing: utterances that no reference file contains.
    """

    sums: Mapping[SumName, tuple[pa.Table, ...]] = field(default_factory=dict)
    worst: pa.Table = field(default_factory=lambda: _NO_UTTERANCES)
    used_references: tuple[RowMask, ...] = ()
    missing: IdSummary = IdSummary()  # noqa: RUF009  # immutable

    def __add__(self, other: Tallies) -> Tallies:
        names = {**self.sums, **other.sums}
        if self.used_references and other.used_references:
            masks = zip(self.used_references, other.used_references, strict=True)
            used_references = tuple(mask | other_mask for mask, other_mask in masks)
        else:
            used_references = self.used_references or other.used_references
        return Tallies(
            {name: _compacted(self.sums.get(name, ()) + other.sums.get(name, ())) for name in names},
            pa.concat_tables([self.worst, other.worst]),
            used_references,
            IdSummary.of(self.missing.examples + other.missing.examples, self.missing.total + other.missing.total),
        )

    def merged(self, kind: SumKind, by: str = "") -> pa.Table | None:
        """One table of sums in one piece; None if there was no batch."""
        pieces = self.sums.get(SumName(kind, by))
        return None if pieces is None else merge_sums(pieces)

    def worst_utterances(self, number: int) -> tuple[str, ...]:
        """Ids of the utterances with the most word errors, worst first."""
        return tuple(self.worst.sort_by(_WORST_FIRST)["utt_id"].to_pylist()[:number])


def _compacted(pieces: tuple[pa.Table, ...]) -> tuple[pa.Table, ...]:
    """The pieces merged once they have twice the rows of the largest: each row is then merged only a few times."""
    rows = [len(piece) for piece in pieces]
    return pieces if sum(rows) < 2 * max(BATCH_ROWS, *rows) else (merge_sums(pieces),)


def required_columns(
    settings: EvaluationSettings,
    scoring: Scoring,
    stored_normalizer: str | None,
    context: RunContext = DEFAULT_CONTEXT,
) -> list[str]:
    """The columns of `transcripts` that `tally_batches` reads; a reader need not fetch others."""
    columns = [
        "duration_s",
        "confidence",
        *scoring.source_columns(stored_normalizer),
        *unit_columns(settings.unit, context.objects_are_recordings),
        *(["utt_id"] if settings.num_worst else []),
        *(column for by in settings.by for column in grouping_key(by).columns),
    ]
    return list(dict.fromkeys(columns))


def tally_batches(
    batches: Iterable[pa.RecordBatch],
    settings: EvaluationSettings,
    scoring: Scoring,
    stored_normalizer: str | None,
    references: Sequence[References] = (),
    context: RunContext = DEFAULT_CONTEXT,
) -> Tallies:
    """Tallies of rows of `transcripts`. Order and size of the batches do not matter; batches bound the memory.

    Args:
        batches: rows with `required_columns(...)`; other columns are ignored.
        settings: groupings, unit and number of worst utterances.
        scoring: the rules.
        stored_normalizer: normalizer under which the stored counts were made; None: do not use stored counts.
        references: the files of `scoring.references`, loaded.
        context: facts about the whole run, see `run_context`.

    Raises:
        ValueError: stored counts contradict each other.
    """
    total = Tallies(used_references=tuple(np.zeros(len(file.texts), bool) for file in references))
    for rows in rebatch(batches):
        summands = row_summands(rows, score(rows, scoring, stored_normalizer, references))
        used_references, missing = match_references(rows, references)
        total += Tallies(
            {name: (table,) for name, table in _batch_sums(rows, summands, settings, context).items()},
            _worst(rows, summands, settings.num_worst) if settings.num_worst else _NO_UTTERANCES,
            used_references,
            IdSummary.of(missing, len(missing)),
        )
    return total


def match_references(rows: pa.Table, references: Sequence[References]) -> tuple[tuple[RowMask, ...], list[str]]:
    """A mask of each file's rows whose utterances are in `rows`, and the ids of the utterances in no file."""
    if not references:
        return (), []
    masks = []
    found = np.zeros(rows.num_rows, bool)
    for file in references:
        file_rows = file.positions(rows["utt_id"])
        mask = np.zeros(len(file.texts), bool)
        mask[file_rows[file_rows >= 0]] = True
        masks.append(mask)
        found |= file_rows >= 0
    return tuple(masks), rows["utt_id"].filter(pa.array(~found)).to_pylist()


def _batch_sums(
    rows: pa.Table, summands: pa.Table, settings: EvaluationSettings, context: RunContext
) -> dict[SumName, pa.Table]:
    """All sums over one batch."""
    units = row_units(rows, settings.unit, context.objects_are_recordings)
    word_units = unit_keys(units, summands["word_errors"], summands["ref_words"])
    char_units = unit_keys(units, summands["char_errors"], summands["ref_chars"])
    words, chars = (*_UNIT_SUMS, "sentence_errors"), ("scored", "char_errors", "ref_chars")
    if units.names.null_count:
        unit_sums = sum_by_key(summands, word_units, words), sum_by_key(summands, char_units, chars)
    else:  # no utterance is its own unit, so the keys of both are equal and one pass is enough
        both = sum_by_key(summands, word_units, tuple(dict.fromkeys(words + chars)))
        keys = [name for name in both.column_names if name.startswith(KEY_PREFIX)]
        unit_sums = both.select([*keys, *words]), both.select([*keys, *chars])
    sums = {
        SumName(SumKind.WORD_UNITS): unit_sums[0],
        SumName(SumKind.CHAR_UNITS): unit_sums[1],
        SumName(SumKind.CORPUS): sum_by_key(summands, {}),
        SumName(SumKind.RATE_BINS): sum_by_key(summands, {"rate": utterance_rate_bins(summands)}, ("scored",)),
    }
    rows_by_confidence, parts = confidence_summands(summands, settings.calibration)
    sums[SumName(SumKind.CONFIDENCE)] = sum_by_key(rows_by_confidence, {"part": parts}, CONFIDENCE_SUMS)
    for by in settings.by:
        keys_of_group = {"group": grouping_key(by, context.confidence_edges).keys_of(rows)}
        groups = sum_by_key(summands, keys_of_group)
        sums[SumName(SumKind.GROUPS, by)] = groups
        if len(groups) <= MAX_INTERVALS:
            # Within the group of one speaker the speaker cannot be the unit.
            keys_of_unit = word_units if SOURCE_KEYS.get(by, by) != "speaker" else _single_utterances(summands)
            sums[SumName(SumKind.GROUP_UNITS, by)] = sum_by_key(summands, keys_of_group | keys_of_unit, _UNIT_SUMS)
    return sums


def _single_utterances(summands: pa.Table) -> dict[str, pa.Array]:
    return unit_keys(utterance_units(len(summands)), summands["word_errors"], summands["ref_words"])


def _worst(rows: pa.Table, summands: pa.Table, number: int) -> pa.Table:
    """The utterances of these rows that may be among the worst of the run."""
    table = pa.table({"utt_id": rows["utt_id"], "errors": summands["word_errors"]})
    table = table.filter(pc.greater(table["errors"], 0))
    return table.take(pc.select_k_unstable(table, number, _WORST_FIRST))
