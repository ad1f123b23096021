"""Recordings with a reference for the whole of them, scored against their joined transcripts.

The reference comes with the run (`recording_reference`), or from files of references that name a recording and not its
segments. The alignment of the whole is divided among the segments (`pipeline.scoring.long_texts`), so that everything
else of an evaluation goes by utterance as usual: the rows of such recordings are replaced by the scored ones, which are
kept in a temporary file. Where the reference has times, the time-constrained errors are counted beside.
"""

from __future__ import annotations

import difflib
import functools
import heapq
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
import pyarrow.parquet as pq

from pipeline.corpus.naming import composed, stem
from pipeline.evaluation.intervals import rate_interval
from pipeline.evaluation.reading import SCAN_OPTIONS, scan_batches
from pipeline.evaluation.results import IdSummary, RecordingFigures, RecordingScore
from pipeline.evaluation.settings import EvaluationSettings
from pipeline.runs.commit import DataFile
from pipeline.runs.recordings import (
    IDENTITY,
    RecordingRows,
    by_id,
    channels_of,
    is_shard,
    recording_ids,
    recording_keys,
    recording_rows,
)
from pipeline.runs.run import Run, open_files
from pipeline.schemas import SCORE_FIELDS, TRANSCRIPTS
from pipeline.scoring.compounds import join_like
from pipeline.scoring.counts import ErrorCounts, count_rows
from pipeline.scoring.long_texts import segment_scores
from pipeline.scoring.normalize import is_by_word, normalize
from pipeline.scoring.references import References, agree, names_of
from pipeline.scoring.rules import COUNT_COLUMNS, Scoring
from pipeline.scoring.stm import ReferenceSegment
from pipeline.scoring.time_constrained import TimedWord, spread, time_constrained_counts
from sewd_model.grouping import grouped

Reference = tuple[ReferenceSegment, ...]
Target = tuple[str, str | None]
"""A key of `recording_keys`, and the id of a recording in it; None: whatever is in it, as one recording."""

WORST: Final = 100
"""Recordings that are listed as those with the most errors."""

_ROW_GROUP_ROWS: Final = 1 << 12
_SCHEMA: Final = pa.schema([column for column in TRANSCRIPTS if column.name != "words"])


@dataclass(frozen=True)
class ScoredRecordings:
    """The recordings of a run that are scored as wholes.

    Attributes:
        keys: `row_keys` of their rows.
        scores: by recording and channel.
        reference_words: words of all references of recordings, scored or not.
        unscored: recordings with a reference that could not be scored: nothing was transcribed, or the reference does
            not say which channel it is of.
        named: for each file of references, the names in it that are those of recordings.
        folder: where the rows are stored, for as long as this object lives.
    """

    keys: pa.Array
    scores: tuple[RecordingScore, ...]
    reference_words: int
    unscored: tuple[str, ...]
    named: tuple[frozenset[str], ...]
    folder: tempfile.TemporaryDirectory[str] = field(repr=False)

    def dataset(self) -> pads.Dataset:
        """The rows of these recordings: `transcripts` without words, counted against the references of the wholes."""
        return pads.dataset(_path(self.folder), _SCHEMA, "parquet")

    def batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """The given columns of `dataset`."""
        yield from self.dataset().to_batches(columns=list(columns), **SCAN_OPTIONS)


def row_keys(rows: pa.Table | pa.RecordBatch) -> pa.Array:
    """The key of each row's recording together with its id; `rows` has the columns of `IDENTITY`."""
    pairs = zip(recording_keys(rows), recording_ids(rows), strict=True)
    return pa.array([f"{key}\0{recording}" for key, recording in pairs], pa.string())


def without_recordings(batches: Iterable[pa.RecordBatch], keys: pa.Array | None) -> Iterator[pa.RecordBatch]:
    """Rows without those of the recordings with these keys; None: all rows. Reads `IDENTITY`."""
    for batch in batches:
        if keys is None:
            yield batch
        else:
            yield batch.filter(pc.invert(pc.is_in(row_keys(batch), keys)))


def scored_recordings(run: Run, scoring: Scoring, references: Sequence[References]) -> ScoredRecordings | None:
    """Score the recordings of a run that have a reference for the whole; None if there are none.

    The last results are kept: an evaluation, its examples and a report need the same.
    """
    files = run.files()
    state = tuple(file.path for table in ("transcripts", "errors") for file in files[table])
    return _scored_recordings(_Request(run, scoring, tuple(references)), state)


@dataclass(frozen=True, eq=False)
class _Request:
    """Equal for the same run, rules and content of the reference files."""

    run: Run
    scoring: Scoring
    references: tuple[References, ...]

    def _values(self) -> tuple[object, ...]:
        files = tuple((file.texts, tuple(file.recordings.items())) for file in self.references)
        return self.run.uri, self.scoring, files

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Request) and self._values() == other._values()

    def __hash__(self) -> int:
        return hash((self.run.uri, self.scoring))


@functools.lru_cache(maxsize=2)  # a run and its baseline
def _scored_recordings(request: _Request, state: tuple[str, ...]) -> ScoredRecordings | None:
    run, scoring, references = request.run, request.scoring, request.references
    if references:
        targets, named = run.read(lambda files: _named_recordings(run, files, references))
    else:
        targets, named = run.read(lambda files: _stored(run, files)), ()
    unfound: dict[str, int] = {}  # words by name: of alternatives, those of the longest
    for file, names in zip(references, named, strict=True):
        for name in file.recordings.keys() - names:
            number = _word_number(file.recordings[name], scoring.normalizer)
            unfound[name] = max(unfound.get(name, 0), number)
    if not targets and not unfound:
        return None
    keep = pa.array(sorted({key for key, _ in targets}), pa.string())
    keys: set[str] = set()
    folder = tempfile.TemporaryDirectory(prefix="sewd-scores-")
    scores: list[RecordingScore] = []
    unscored: list[str] = []
    words = sum(unfound.values())

    def tables() -> Iterator[pa.Table]:
        nonlocal words
        for rows in recording_rows(run, TRANSCRIPTS.names, keep):
            whole = targets.get((rows.key, None), [])
            for each in [rows] if whole else by_id(rows):
                named = targets.get((each.key, each.recording))
                if own := [*whole, *(named or ())] or (_stored_reference(each) if named is not None else []):
                    found = _score_recording(each, own, scoring)
                    keys.update(row_keys(each.transcripts).to_pylist())
                    words += found.reference_words
                    scores.extend(found.scores)
                    unscored.extend(found.unscored)
                    yield from found.rows

    with pq.ParquetWriter(_path(folder), _SCHEMA, compression="zstd") as writer:
        for group in grouped(tables() if targets else (), len, at_least=_ROW_GROUP_ROWS):
            writer.write_table(pa.concat_tables(group))
    return ScoredRecordings(pa.array(sorted(keys), pa.string()), tuple(scores), words, tuple(unscored), named, folder)


def _path(folder: tempfile.TemporaryDirectory[str]) -> Path:
    return Path(folder.name, "rows.parquet")


def recording_figures(recordings: ScoredRecordings, scoring: Scoring, settings: EvaluationSettings) -> RecordingFigures:
    """The figures of recordings; intervals are over speakers or recordings."""
    timed = [(each, each.timed) for each in recordings.scores if each.timed is not None]
    units: dict[tuple[str | None, str | None], ErrorCounts] = {}
    for each, counts in timed:
        is_speaker = each.speaker and settings.unit in ("auto", "speaker")
        unit = (each.speaker, None) if is_speaker else (None, each.recording)
        units[unit] = units.get(unit, ErrorCounts.zero()) + counts
    errors, lengths = ([getattr(total, name) for total in units.values()] for name in ("errors", "reference"))
    return RecordingFigures(
        scored=len(recordings.scores),
        unscored=IdSummary.of(recordings.unscored),
        reference_words=recordings.reference_words,
        scored_words=sum(each.words.reference for each in recordings.scores),
        timed=sum((counts for _, counts in timed), start=ErrorCounts.zero()) if timed else None,
        interval=rate_interval(errors, lengths, level=settings.level) if units else None,
        collar_s=scoring.collar_s,
        worst=tuple(heapq.nsmallest(WORST, recordings.scores, key=lambda each: (-each.words.errors, each.name))),
    )


# --- Which recordings have a reference


def _stored(run: Run, files: Mapping[str, Sequence[DataFile]]) -> dict[Target, list[Reference]]:
    """The recordings whose reference is stored with the run, which is read with their rows."""
    targets: dict[Target, list[Reference]] = {}
    has_reference = pads.field("recording_reference").is_valid()
    for table in ("transcripts", "errors"):
        dataset = open_files(run.uri, table, [file.path for file in files[table]])
        for batch in dataset.to_batches(columns=list(IDENTITY), filter=has_reference, **SCAN_OPTIONS):
            ids = recording_ids(batch)
            for key, recording, utt_id in zip(recording_keys(batch), ids, batch["utt_id"].to_pylist(), strict=True):
                # An error row has the reference also of what is no recording in segments.
                if table == "transcripts" or recording != utt_id:
                    targets[key, recording] = []
    return targets


def _stored_reference(rows: RecordingRows) -> list[Reference]:
    stored = [*rows.transcripts["recording_reference"].to_pylist(), *rows.errors["recording_reference"].to_pylist()]
    found: list[Reference] = [(ReferenceSegment(text),) for text in stored if text is not None]
    return found[:1]


def _named_recordings(
    run: Run, files: Mapping[str, Sequence[DataFile]], references: Sequence[References]
) -> tuple[dict[Target, list[Reference]], tuple[frozenset[str], ...]]:
    """The recordings that files of references name: by id, else as the only one whose path ends in that name.

    Returns:
        The references of each recording, at most one of each file; and the names of each file that were found.
    """
    wanted = [_Names(file) for file in references]
    for table in ("transcripts", "errors"):
        for batch in scan_batches(run.uri, table, [file.path for file in files[table]], IDENTITY):
            ids = recording_ids(batch)
            columns = (batch[name].to_pylist() for name in ("utt_id", "uri", "start_s", "channel"))
            seen = set(zip(ids, recording_keys(batch), *columns, strict=True))
            for recording, key, utt_id, uri, start_s, channel in seen:
                is_cut = recording != utt_id
                for names in wanted:
                    if is_cut or names.are_of_recordings:
                        names.offer(recording, (key, recording), channel)
                    elif table == "transcripts":
                        names.take(utt_id)
                    if (is_cut or names.are_of_recordings or start_s) and not is_shard(uri):
                        names.offer(stem(uri), (key, None))
    targets: dict[Target, list[Reference]] = {}
    for names in wanted:
        for target, reference in names.references().items():
            targets.setdefault(target, []).append(reference)
    return targets, tuple(names.found() for names in wanted)


class _Names:
    """The names in one file of references, and the recordings that they may be names of."""

    def __init__(self, file: References) -> None:
        self._file = file
        self._by_last: dict[str, list[str]] = defaultdict(list)
        for name in file.recordings or file.index:
            self._by_last[names_of(name)[-1]].append(name)
        self._exact: dict[str, set[tuple[Target, int | None]]] = defaultdict(set)
        self._alike: dict[str, set[tuple[Target, int | None]]] = defaultdict(set)
        self._utterances: set[str] = set()

    @property
    def are_of_recordings(self) -> bool:
        """Whether the file has no references of utterances."""
        return bool(self._file.recordings)

    def take(self, utt_id: str) -> None:
        """Note that an utterance that is whole has this id: it is scored by it, and the name is no recording's."""
        self._utterances.add(composed(utt_id))

    def offer(self, candidate: str, target: Target, channel: int | None = None) -> None:
        """Note that a recording may be called `candidate`, and this channel of it by the suffix of channels."""
        candidate = composed(candidate)
        with_channel = f"{candidate}#c{channel}"
        if with_channel in self._file.index:
            self._exact[with_channel].add((target, channel))
        names = names_of(candidate)
        for name in self._by_last.get(names[-1], ()):
            if name == candidate:
                self._exact[name].add((target, None))
            elif agree(names_of(name), names):
                self._alike[name].add((target, None))

    def _matches(self) -> dict[str, tuple[Target, int | None]]:
        """The recording, and perhaps its channel, of each name that is that of one recording."""
        matches: dict[str, tuple[Target, int | None]] = {}
        for name in {**self._exact, **self._alike}.keys() - self._utterances:
            found = self._exact.get(name) or self._alike[name]
            wholes = {each for each in found if each[0][1] is None}
            if len({key for (key, _), _ in found}) == 1 and len(wholes or found) == 1:
                matches[name] = next(iter(wholes or found))
        return matches

    def found(self) -> frozenset[str]:
        return frozenset(self._matches())

    def references(self) -> dict[Target, Reference]:
        references: dict[Target, Reference] = {}
        for name, (target, channel) in sorted(self._matches().items()):
            if self._file.recordings:
                references[target] = references.get(target, ()) + self._file.recordings[name]
            elif (text := self._file.texts[self._file.index[name]]) is not None:
                references[target] = (*references.get(target, ()), ReferenceSegment(text, channel=channel))
        return references


# --- Scores of one recording


class _Scored(NamedTuple):
    rows: list[pa.Table]
    scores: list[RecordingScore]
    reference_words: int
    unscored: list[str]


def _score_recording(rows: RecordingRows, references: Sequence[Reference], scoring: Scoring) -> _Scored:
    """The rows of a recording with their counts, and the counts of each of its channels."""
    channels = channels_of(rows)
    scored = _Scored([], [], 0, [])
    words, used = 0, 0
    for channel, transcripts, _ in channels:
        name = rows.recording if channel is None or len(channels) == 1 else f"{rows.recording}#c{channel}"
        own = [_of_channel(reference, channel, is_only=len(channels) == 1) for reference in references]
        best = (
            []
            if not len(transcripts)
            else [_score(transcripts, each, rows.recording, name, scoring) for each in own if each]
        )
        if best:
            table, score = min(best, key=lambda each: each[1].words.errors)
            scored.scores.append(score)
            used += score.words.reference
        else:
            table = _replaced(transcripts, {f.name: pa.nulls(len(transcripts), f.type) for f in SCORE_FIELDS})
            scored.unscored.append(name)
        scored.rows.append(table)
    words = max((_word_number(reference, scoring.normalizer) for reference in references), default=0)
    return scored._replace(reference_words=max(words, used))


def _of_channel(reference: Reference, channel: int | None, *, is_only: bool) -> Reference:
    """The segments of a reference that are of a channel, by time.

    A transcript without a channel is that of all channels. A reference without one is that of a recording with one.
    """
    if channel is None:
        return reference
    return tuple(each for each in reference if each.channel == channel or (each.channel is None and is_only))


def _word_number(reference: Reference, normalizer: str) -> int:
    return sum(len(normalize(each.text, normalizer).split()) for each in reference if each.text is not None)


def _score(
    transcripts: pa.Table, reference: Reference, recording: str, name: str, scoring: Scoring
) -> tuple[pa.Table, RecordingScore]:
    """Score one channel of a recording; `transcripts` are its rows by time."""
    normalizer = scoring.normalizer
    ignored = [(each.start_s, each.end_s) for each in reference if each.text is None]
    spoken = [(normalize(each.text, normalizer), each) for each in reference if each.text is not None]
    text = " ".join(words for words, _ in spoken if words)
    rows = transcripts.select(["text", "words", "start_s", "duration_s"]).to_pylist()
    timed_words = [_timed_words(row, ignored) for row in rows]
    texts = [
        normalize(" ".join(each.word for each in found) if ignored else row["text"], normalizer)
        for row, found in zip(rows, timed_words, strict=True)
    ]
    scores = segment_scores(text, texts)
    counts = [
        dict(zip(COUNT_COLUMNS, _columns(*pair), strict=True)) for pair in zip(scores.words, scores.chars, strict=True)
    ]
    if scoring.compounds:
        texts = [join_like(piece, found) for piece, found in zip(scores.references, texts, strict=True)]
        counts = pa.table(count_rows(scores.references, texts)).to_pylist()
    timed = None
    if spoken and all(each.start_s is not None and each.end_s is not None for _, each in spoken):
        timed = time_constrained_counts(
            (word for words, each in spoken for word in spread(words.split(), each.start_s or 0.0, each.end_s or 0.0)),
            (word for found in timed_words for word in _normalized(found, normalizer)),
            scoring.collar_s,
        )
    speakers = {each.speaker for _, each in spoken if each.text}
    speaker = speakers.pop() if len(speakers) == 1 else None
    new = {column: pa.array([row[column] for row in counts], pa.int32()) for column in COUNT_COLUMNS}
    new |= {"normalized_text": pa.array(texts), "normalized_reference": pa.array(scores.references)}
    if speaker is not None:
        new["speaker"] = pc.fill_null(transcripts["speaker"], speaker)
    table = _replaced(transcripts, new)
    words, chars = (sum((_counts(row, prefix) for row in counts), start=ErrorCounts.zero()) for prefix in ("", "char_"))
    named = pc.unique(table["speaker"]).to_pylist()
    speaker = named[0] if len(named) == 1 else None
    return table, RecordingScore(recording, name, hash(text), words, chars, timed, speaker)


def _timed_words(row: Mapping[str, Any], ignored: Sequence[tuple[float | None, float | None]]) -> list[TimedWord]:
    """The words of a transcript that are in no ignored time, by the middle of each."""
    words = [TimedWord(word["word"], word["start_s"], word["end_s"]) for word in row["words"]]
    if not words:
        words = spread(row["text"].split(), row["start_s"], row["start_s"] + row["duration_s"])
    spans = [(start_s or 0.0, end_s or 0.0) for start_s, end_s in ignored]
    return [
        word
        for word in words
        if not any(start_s <= (word.start_s + word.end_s) / 2 < end_s for start_s, end_s in spans)
    ]


def _normalized(words: Sequence[TimedWord], normalizer: str) -> Iterator[TimedWord]:
    """The words as they are in the normalised text, with the times of those that they were made of."""
    found = [
        one for each in words for one in spread(normalize(each.word, normalizer).split(), each.start_s, each.end_s)
    ]
    if is_by_word(normalizer):
        yield from found
        return
    whole = normalize(" ".join(each.word for each in words), normalizer).split()
    matcher = difflib.SequenceMatcher(None, [each.word for each in found], whole, autojunk=False)
    for kind, start, end, first, last in matcher.get_opcodes():
        if kind == "equal":
            yield from found[start:end]
        elif last > first:  # `twenty`, `five` became `25`
            over = found[start:end] or found[max(start - 1, 0) : start + 1] or words
            yield from spread(whole[first:last], over[0].start_s, over[-1].end_s)


def _columns(words: ErrorCounts, chars: ErrorCounts) -> list[int]:
    """The counts in the order of `COUNT_COLUMNS`."""
    return [
        number
        for each in (words, chars)
        for number in (each.reference, each.hits, each.substitutions, each.deletions, each.insertions)
    ]


def _counts(row: Mapping[str, int], prefix: str) -> ErrorCounts:
    return ErrorCounts(*(row[prefix + kind] for kind in ("hits", "substitutions", "deletions", "insertions")))


def _replaced(transcripts: pa.Table, new: Mapping[str, pa.Array]) -> pa.Table:
    """The rows as `_SCHEMA`, with the new columns in place of their own."""
    columns = [new[column.name] if column.name in new else transcripts[column.name] for column in _SCHEMA]
    return pa.Table.from_arrays(columns, schema=_SCHEMA)
