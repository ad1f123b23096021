"""The texts of a run's utterances and recordings, aligned to its kept posteriors, without Ray and without the model."""

from __future__ import annotations

import functools
import math
import multiprocessing
import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.alignment.texts import TextWord, read_texts, text_words
from pipeline.alignment.words_path import LENIENT, STRICT, Ids, NoPathError, WordsPath, words_path
from pipeline.corpus.naming import composed
from pipeline.decoding.acoustics import Acoustics
from pipeline.decoding.rows import posteriors_of, unpacked_levels
from pipeline.runs.recordings import IDENTITY, channels_of, distributed_rows, recording_ids, recordings_in
from pipeline.runs.run import Run, open_files
from pipeline.schemas import ERRORS, field
from pipeline.scoring.references import References
from pipeline.stages.word_ends import sound_ends, sound_starts
from pipeline.storage import objects
from sewd_model import Word

_COLUMNS: Final = (*IDENTITY, "counts", "tokens", "costs", "levels", "reference", "recording_reference", "speaker")
_TABLE_ROWS: Final = 256
_AHEAD: Final = 16  # tasks for each process

ALIGNED_WORD: Final = pa.struct(
    [
        field("word", pa.string(), "the word, as the text has it", nullable=False),
        field("start_s", pa.float64(), "start of the word in the recording; null: it is not in the audio", "s"),
        field("end_s", pa.float64(), "end of the word in the recording; null likewise", "s"),
        field("confidence", pa.float32(), "geometric mean of its tokens' probabilities; null likewise", "0..1"),
    ]
)
_PASSAGE: Final = pa.struct(
    [
        field("start_s", pa.float64(), "start in the recording", "s", nullable=False),
        field("end_s", pa.float64(), "end in the recording", "s", nullable=False),
    ]
)
ALIGNMENTS: Final = pa.schema(
    [
        field("utt_id", pa.string(), "id of the utterance, or of the recording, that the text is of", nullable=False),
        field("uri", pa.string(), "file or object that holds the audio", nullable=False),
        field("start_s", pa.float64(), "start of the audio in the recording", "s"),
        field("duration_s", pa.float64(), "duration of the audio", "s"),
        field("channel", pa.int32(), "channel, from 0, where channels have rows of their own; else null"),
        field("text", pa.string(), "the text", nullable=False),
        field(
            "score",
            pa.float32(),
            "how well the text fits: the probability of its best path relative to the best of all paths, per token of "
            "the text; without what only one of text and audio has; 0: no path fits; null: see problem",
            "0..1",
        ),
        field("words", pa.list_(ALIGNED_WORD), "words of the text, with their times", nullable=False),
        field("missing_words", pa.int32(), "words that are not in the audio, or cannot be spelled", nullable=False),
        field("extra", pa.list_(_PASSAGE), "speech that is not in the text", nullable=False),
        field("speaker", pa.string(), "speaker, if the source names the same for all of it"),
        field("problem", pa.string(), "why the text was not aligned; else null"),
    ],
    metadata={"sewd.table": "alignments"},
)


class AlignedWord(NamedTuple):
    """A word of a text in a recording.

    Attributes:
        text: the word and its tokens.
        start_s: start in the recording; None: it is not in the audio, and so for the others.
        end_s: end in the recording.
        confidence: geometric mean of its tokens' probabilities.
        loss: how much less probable its frames are than with the best tokens, up to the next word, in nats.
    """

    text: TextWord
    start_s: float | None = None
    end_s: float | None = None
    confidence: float | None = None
    loss: float = 0.0


@dataclass(frozen=True)
class Alignment:
    """The text of an utterance or of a recording, aligned.

    Attributes:
        identity: values of the columns of `ALIGNMENTS` that say what it is of.
        text: the text.
        words: its words.
        score: see `ALIGNMENTS`.
        extra: speech that is not in the text: start and end in the recording.
        problem: why it was not aligned.
    """

    identity: dict[str, Any]
    text: str
    words: tuple[AlignedWord, ...] = ()
    score: float | None = None
    extra: tuple[tuple[float, float], ...] = ()
    problem: str | None = None

    def to_row(self) -> dict[str, Any]:
        """As a row of `ALIGNMENTS`."""
        words = [
            {"word": word.text.word, "start_s": word.start_s, "end_s": word.end_s, "confidence": word.confidence}
            for word in self.words
        ]
        return {
            **self.identity,
            "text": self.text,
            "score": self.score,
            "words": words,
            "missing_words": sum(word.start_s is None for word in self.words),
            "extra": [{"start_s": start_s, "end_s": end_s} for start_s, end_s in self.extra],
            "problem": self.problem,
        }


def score_of(words: Sequence[AlignedWord]) -> float | None:
    """The probability of the words relative to the best of all paths, per token; None if none is in the audio."""
    found = [word for word in words if word.start_s is not None]
    tokens = sum(len(word.text.ids) for word in found)
    return math.exp(-math.fsum(word.loss for word in found) / tokens) if tokens else None


def alignments(
    run: Run,
    texts: str | None = None,
    on_rows: Callable[[int], None] = lambda _: None,
    on_unknown: Callable[[list[str]], None] = lambda _: None,
    workers: int = 1,
) -> Iterator[Alignment]:
    """Align the texts of a run, recording by recording.

    The text of a recording of several segments may lack passages of the audio and have others; that of an utterance may
    not. What has no text is left out.

    Args:
        run: with kept posteriors.
        texts: see `pipeline.alignment.texts.read_texts`; None: the references that the run has.
        on_rows: called with the number of rows of the run that were read.
        on_unknown: called at the end with the ids in `texts` that the run does not have, if there are any.
        workers: processes; 1: this one. A recording is aligned by one of them. The results are the same, in the same
            order.

    Raises:
        UsageError: the run has no posteriors, or the texts cannot be read.
        StorageError: storage errors last longer than the retries.
        DamagedRunError: a file that the run names is lost or was changed.
    """
    align_task = functools.partial(_align_task, acoustics=run.acoustics)
    tasks = _tasks(run, texts, on_rows, on_unknown)
    return map(align_task, tasks) if workers == 1 else _in_processes(align_task, tasks, workers)


class _Task(NamedTuple):
    """A text, and the rows of what it is of; None: it cannot be aligned, see the problem."""

    rows: pa.Table | None
    text: str
    identity: dict[str, Any]
    problem: str | None = None


def _align_task(task: _Task, acoustics: Acoustics) -> Alignment:
    if task.rows is None:
        return Alignment(task.identity, task.text, problem=task.problem)
    return align_rows(task.rows, task.text, task.identity, acoustics)


def _in_processes(call: Callable[[_Task], Alignment], tasks: Iterator[_Task], workers: int) -> Iterator[Alignment]:
    """The result of each task, in order; few tasks are read ahead."""
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        pending: deque[Future[Alignment]] = deque()
        for task in tasks:
            pending.append(pool.submit(call, task))
            if len(pending) > workers * _AHEAD:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def _tasks(
    run: Run, texts: str | None, on_rows: Callable[[int], None], on_unknown: Callable[[list[str]], None]
) -> Iterator[_Task]:
    references = None if texts is None else read_texts(texts, _recordings(run))
    used: set[int] = set()  # positions of texts
    for tables in distributed_rows(run, {"posteriors": _COLUMNS, "errors": ERRORS.names}):
        for recording in recordings_in(tables["posteriors"], tables["errors"]):
            channels = [channel for channel in channels_of(recording) if channel[1].num_rows]
            for _, rows, errors in channels:
                on_rows(rows.num_rows)
                if references is not None:
                    names = pa.array([recording.recording, *rows["utt_id"].to_pylist()])
                    used.update(references.positions(names).tolist())
                for part, text, identity in _parts(recording.recording, rows, errors, references):
                    if part.num_rows > 1 and len(channels) > 1:
                        yield _Task(None, text, identity, "the text is that of several channels")
                    else:
                        yield _Task(part, text, identity)
    if references is not None:
        names_of = {position: name for name, position in reversed(references.index.items())}
        if unknown := [name for position, name in sorted(names_of.items()) if position not in used]:
            on_unknown(unknown)


def _recordings(run: Run) -> list[tuple[str, None]]:
    """The ids of all recordings of a run, also of those that failed: a text may be meant for one of them."""
    tables = run.read(
        lambda files: [
            open_files(run.uri, table, [file.path for file in files[table]]).to_table(list(IDENTITY))
            for table in ("posteriors", "errors")
        ]
    )
    return [(name, None) for name in dict.fromkeys(name for table in tables for name in recording_ids(table))]


def _parts(
    recording: str, rows: pa.Table, errors: pa.Table, references: References | None
) -> Iterator[tuple[pa.Table, str, dict[str, Any]]]:
    """What of a channel of a recording has a text of its own, and the text: the whole, or each row."""
    if references is None:
        of_recording = (*rows["recording_reference"].to_pylist(), *errors["recording_reference"].to_pylist())
        whole = next((text for text in of_recording if text is not None), None)
        own = rows["reference"].to_pylist()
    else:
        position = references.index.get(composed(recording), -1)
        whole = references.texts[position] if position >= 0 else None
        own = references.texts_of(rows["utt_id"]).to_pylist()
    if whole is not None:
        yield rows, whole, _identity(recording if rows.num_rows > 1 else rows["utt_id"][0].as_py(), rows)
        return
    for index, text in enumerate(own):
        if text is not None:
            row = rows.take(pa.array([index]))  # not a slice, which would take all rows to another process
            yield row, text, _identity(row["utt_id"][0].as_py(), row)


def _identity(utt_id: str, rows: pa.Table) -> dict[str, Any]:
    starts, durations = rows["start_s"].to_pylist(), rows["duration_s"].to_pylist()
    speakers = set(rows["speaker"].to_pylist())
    return {
        "utt_id": utt_id,
        "uri": rows["uri"][0].as_py(),
        "start_s": starts[0],
        "duration_s": starts[-1] + durations[-1] - starts[0],
        "channel": rows["channel"][0].as_py(),
        "speaker": speakers.pop() if len(speakers) == 1 else None,
    }


def align_rows(rows: pa.Table, text: str, identity: dict[str, Any], acoustics: Acoustics) -> Alignment:
    """Align a text to rows of `POSTERIORS`, of one recording and in the order of time."""
    words = text_words(text, acoustics.tokenizer)
    spelled = [word for word in words if word.ids]
    if not spelled:
        return Alignment(identity, text, problem="the text has no word that the model's vocabulary can spell")
    posteriors = posteriors_of(rows)
    costs = STRICT if rows.num_rows == 1 else LENIENT
    log_probabilities = np.concatenate(
        [each.log_probabilities(acoustics.num_tokens, acoustics.blank) for each in posteriors]
    )
    ids = [word.ids for word in spelled]
    try:
        path = words_path(log_probabilities, ids, acoustics.blank, acoustics.tokenizer.delimiter_id, costs)
    except NoPathError:
        return Alignment(identity, text, score=0.0, problem="the text does not fit into the audio")
    times = _Times(rows, [each.num_frames for each in posteriors], acoustics.frame_s)
    found = iter(_aligned(path, spelled, times))
    aligned = tuple(next(found) if word.ids else AlignedWord(word) for word in words)
    return Alignment(identity, text, aligned, score_of(aligned), tuple(_passages(path.stars, times)))


class _Times:
    """Times of the frames of the rows of a recording, end to end."""

    def __init__(self, rows: pa.Table, num_frames: Sequence[int], frame_s: float) -> None:
        self.frame_s = frame_s
        self.row_starts = np.array(rows["start_s"].to_pylist())
        self.row_of = np.repeat(np.arange(len(num_frames)), num_frames)
        firsts = np.cumsum([0, *num_frames[:-1]])
        self.starts = self.row_starts[self.row_of] + (np.arange(len(self.row_of)) - firsts[self.row_of]) * frame_s
        levels = rows["levels"].combine_chunks()
        self.levels = [
            None if row is None else np.frombuffer(row, np.int8) for row in unpacked_levels(levels).to_pylist()
        ]


def _aligned(path: WordsPath, words: Sequence[TextWord], times: _Times) -> list[AlignedWord]:
    found = [AlignedWord(word) for word in words]
    numbers = np.flatnonzero(path.start_frames >= 0)
    starts_s, ends_s = _sound_times(path.start_frames[numbers], path.end_frames[numbers], times)
    for number, start_s, end_s in zip(numbers.tolist(), starts_s.tolist(), ends_s.tolist(), strict=True):
        confidence, loss = math.exp(path.log_probabilities[number]), float(path.losses[number])
        found[number] = AlignedWord(words[number], start_s, end_s, confidence, loss)
    return found


def _sound_times(start_frames: Ids, end_frames: Ids, times: _Times) -> tuple[np.ndarray, np.ndarray]:
    """Start and end of each word: of its sound (`pipeline.stages.word_ends`) in the row where it begins or ends."""
    lasts = end_frames - 1
    starts_s, ends_s = times.starts[start_frames], times.starts[lasts] + times.frame_s
    for side_s, rows, moved in (
        (starts_s, times.row_of[start_frames], sound_starts),
        (ends_s, times.row_of[lasts], sound_ends),
    ):
        for row in np.unique(rows).tolist():
            levels, offset_s, own = times.levels[row], times.row_starts[row], rows == row
            if levels is not None:
                spans = zip((starts_s[own] - offset_s).tolist(), (ends_s[own] - offset_s).tolist(), strict=True)
                words = [Word("", max(0.0, start_s), end_s, 1.0) for start_s, end_s in spans]
                side_s[own] = np.array(moved(words, levels)) + offset_s
    return starts_s, ends_s


def _passages(stars: np.ndarray, times: _Times) -> Iterator[tuple[float, float]]:
    edges = np.flatnonzero(np.diff(stars.astype(np.int8), prepend=0, append=0))
    for start, end in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
        yield float(times.starts[start]), float(times.starts[end - 1]) + times.frame_s


def write_alignments(found: Iterator[Alignment], uri: str) -> Iterator[Alignment]:
    """Write alignments as one Parquet file while they pass; it is complete, and replaces an earlier one, at the end.

    Raises:
        StorageError: the file could not be written.
    """
    with tempfile.TemporaryDirectory(prefix="sewd-alignments-") as folder:
        path = Path(folder, "alignments.parquet")
        with pq.ParquetWriter(path, ALIGNMENTS, compression="zstd") as writer:
            rows: list[dict[str, Any]] = []
            for alignment in found:
                rows.append(alignment.to_row())
                if len(rows) == _TABLE_ROWS:
                    writer.write_table(pa.Table.from_pylist(rows, ALIGNMENTS))
                    rows = []
                yield alignment
            writer.write_table(pa.Table.from_pylist(rows, ALIGNMENTS))
        objects.put_file(uri, path)
