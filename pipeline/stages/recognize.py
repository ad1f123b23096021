"""The model stage, a Ray actor: waveforms in, numbers out.

It returns token ids, frames, probabilities and label scores, as Arrow. The CPU tasks after it make words, error counts
and Parquet, so that Python text work never delays the next encoder pass.
"""

from __future__ import annotations

import functools
import itertools
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

# Read when torch is loaded. The threads of torch synchronise after each operation. By default waiting threads spin, and
# on a machine with other work, such as decoding, they take the CPU from the thread that they wait for: ten times slower
# with two threads on two busy CPUs.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# oneDNN, and torch's layer above it, each keep the kernels of the last 1024 shapes. With clips of any length this takes
# half a gigabyte; with half as many, the model is as fast.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "512")
os.environ.setdefault("LRU_CACHE_CAPACITY", "512")

import torch

from pipeline.audio.samples import to_float32
from pipeline.cluster.ray_private import actor_was_restarted
from pipeline.errors import ErrorCode, StorageError
from pipeline.schemas import RECOGNIZED_CHUNK, RECOGNIZED_ROW, one_chunk
from pipeline.stages.child import run_in_child
from pipeline.stages.quarantine import attempt_marker
from pipeline.stages.read import worker_name
from pipeline.stages.rows import RowError
from pipeline.stages.steps import Position, Skipped, Step
from pipeline.storage import objects, retry
from pipeline.storage.checkpoints import local_copy
from pipeline.storage.deadline import with_deadline
from sewd_model import (
    CTCTokenizer,
    FeatureExtractor,
    GreedyPath,
    SEWDForCTC,
    SEWDForSequenceClassification,
    backbone_digest,
    greedy_path,
    load_engine,
)
from sewd_model.engines import Engine, Logits

# A restarted actor first gets the chunks of the actor before it, and one of them may have killed that actor: Ray sends
# each actor two to four chunks in advance.
CHUNKS_AFTER_RESTART = 16
CTC = -1  # position of the CTC head; classifiers count from 0

Head = SEWDForCTC | SEWDForSequenceClassification


@dataclass(frozen=True)
class RecognizeSettings:
    """What an actor loads.

    Attributes:
        model: checkpoint of the CTC head, directory or URI; None: only the classifiers are computed.
        classifiers: checkpoints of classification heads.
        digests: digests of these checkpoints, the model's first.
        device: `cpu` or `cuda`.
        dtype: data type that the model computes in, see `RunConfig`.
        threads: on CPUs, packs of utterances that are computed at the same time, each by one thread.
        stop_uri: while this object exists, waiting chunks are dropped (the next start reads them again).
        run: URI of the run, for its quarantine.
        deadline_s: a process that takes longer than this for an utterance hangs.
        hop_length: samples per frame of the CTC head.
    """

    model: str | None
    classifiers: tuple[str, ...]
    digests: tuple[str, ...]
    device: str
    dtype: str
    threads: int
    stop_uri: str
    run: str
    deadline_s: float
    hop_length: int = 320


@dataclass(frozen=True)
class Recognition:
    """The result of the model for one utterance: numbers, an error, or nothing for a row without samples.

    Attributes:
        path: the greedy path through the logits of the CTC head.
        label_scores: for each classifier of the run, the scores of its labels.
        skipped_s: silence that was not computed, in seconds.
        error: why there are no numbers.
    """

    path: GreedyPath | None = None
    label_scores: list[list[float]] | None = None
    skipped_s: float | None = None
    error: RowError | None = None


@dataclass(frozen=True)
class _Encoder:
    """The engine of a backbone, and the heads that it serves in one pass."""

    features: FeatureExtractor
    positions: tuple[int, ...]  # of its heads: `CTC`, or among the classifiers
    engine: Engine


class Recognizer:
    """Runs every head over every utterance of a chunk.

    An utterance gets the result that the model gives for it alone; its neighbours, in the chunk or the cluster, only
    change the rounding of the last digits. On CPUs the utterances of a chunk are packed with their neighbours, which
    depends on the chunk alone: the same chunk on such a machine gives the same bits, unless it killed processes and was
    recognised one by one. Heads with equal backbones, tensor by tensor, share one pass.
    """

    chunks = 0  # recognised so far
    encoders: Sequence[_Encoder] = ()
    splits = 0  # reported so far
    num_classifiers = 0
    min_samples = 0  # that all heads accept
    load_error: StorageError | None = None  # why the weights could not be loaded

    def __init__(self, settings: RecognizeSettings) -> None:
        # Ray passes the settings, never the weights: a restarted actor loads them again.
        self.settings = settings
        self.device = torch.device(settings.device)
        if self.device.type == "cpu":
            torch.set_num_threads(1)  # each pack has its own thread
        try:
            retry.with_retries(settings.model or settings.classifiers[0], self._load)
        except StorageError as error:  # raised with the first chunk: Ray keeps only the text of what is raised here
            self.load_error = error

    def _load(self) -> None:
        settings = self.settings
        paths = list(map(local_copy, filter(None, (settings.model, *settings.classifiers)), settings.digests))
        loaded: dict[int, tuple[FeatureExtractor, Head]] = {}
        if settings.model is not None:
            model, *paths = paths
            ctc = SEWDForCTC.from_pretrained(model)
            loaded[CTC] = (FeatureExtractor.from_pretrained(model), ctc)
            self.blank = ctc.blank
            # The ids of start and end of sentence come from the tokenizer, not from the configuration: many checkpoints
            # keep the default ids 1 and 2 there, which are letters in their vocabulary.
            self.drop = CTCTokenizer.from_pretrained(model).drop_ids
        for index, path in enumerate(paths):
            classifier = SEWDForSequenceClassification.from_pretrained(path)
            loaded[index] = (FeatureExtractor.from_pretrained(path), classifier)
        self.num_classifiers = len(paths)
        self.min_samples = max(head.config.min_samples for _, head in loaded.values())
        self.encoders = _encoders(loaded, self.device, settings.dtype, settings.threads)

    def __call__(self, chunks: pa.Table) -> pa.Table:
        """Recognise chunks: rows of `READ_CHUNK` in, rows of `RECOGNIZED_CHUNK` out, none once the run stops.

        Raises:
            StorageError: the weights could not be loaded.
            RunFailedError: no child process can work on a chunk that killed processes.
        """
        if self.load_error is not None:
            raise self.load_error
        results = [self._chunk(chunks.slice(index, 1)) for index in range(chunks.num_rows)]
        done = [table for table in results if table is not None]
        return pa.concat_tables(done) if done else RECOGNIZED_CHUNK.empty_table()

    def _chunk(self, chunk: pa.Table) -> pa.Table | None:
        if objects.exists(self.settings.stop_uri):
            return None
        started, started_at = time.perf_counter(), time.time()
        rows = chunk.to_batches()[0].column("rows").flatten()  # the samples stay where Ray keeps them
        head = chunk.drop_columns("rows").to_pylist()[0]
        head["queue_s"] = max(0.0, started_at - head["read_at"])  # clocks of two machines may differ
        one_by_one = False
        if self.chunks < CHUNKS_AFTER_RESTART and actor_was_restarted():
            name = f"{head['part_id']}-{head['chunk']}"
            with attempt_marker(self.settings.run, name) as one_by_one:
                results = self._results_by_children(name, rows) if one_by_one else self.results(rows)
        else:
            results = self.results(rows)
        self.chunks += 1
        head |= self._engine_columns(one_by_one)
        return _table(head, rows, results, time.perf_counter() - started)

    def _engine_columns(self, one_by_one: bool) -> dict[str, Any]:
        """The columns `engines` and `splits`: what computes, and the batches halved since the last call.

        Args:
            one_by_one: child processes with the same engines recognised the utterances one by one.
        """
        before, self.splits = self.splits, sum(encoder.engine.splits for encoder in self.encoders)
        engines = [encoder.engine.status() for encoder in self.encoders]
        if one_by_one:
            engines = [replace(engine, budget_s=None) for engine in engines]
        return {"engines": [asdict(engine) for engine in engines], "splits": self.splits - before}

    def results(self, rows: pa.StructArray) -> list[Recognition]:
        """The result of each row; `_NO_RESULT` for a row without samples."""
        clips = [self._clips(rows, index) for index in range(len(rows))]
        recognized = iter(self.recognize([clip.samples for row in clips if row is not None for clip in row]))
        return [self._joined(rows, index, row, recognized) for index, row in enumerate(clips)]

    def _clips(self, rows: pa.StructArray, index: int) -> list[_Clip] | None:
        """The clips of a row, between its long pauses; None for a row without samples.

        A clip begins with a frame of the CTC head, so that the times of its tokens are exact.
        """
        samples = _samples(rows, index)
        if samples is None:
            return None
        edges = rows.field("spans")[index].as_py()
        if edges is None or (self.num_classifiers and not edges):  # a label needs something to be computed from
            return [_Clip(0, samples)]
        hop, least = self.settings.hop_length, self.min_samples
        clips = []
        for start, stop in zip(edges[::2], edges[1::2], strict=True):
            frame = max(0, min(start, len(samples) - least)) // hop
            clips.append(_Clip(frame, samples[frame * hop : max(stop, frame * hop + least)]))
        return clips

    def _joined(
        self, rows: pa.StructArray, index: int, clips: list[_Clip] | None, recognized: Iterator[Recognition]
    ) -> Recognition:
        """The result of a row from those of its clips, which are taken from `recognized`."""
        if clips is None:
            return _NO_RESULT
        results = list(itertools.islice(recognized, len(clips)))
        failed = next((result for result in results if result.error is not None), None)
        if failed is not None:
            return failed
        samples = (
            len(rows.field("samples")[index].as_buffer()) // np.dtype(rows.field("sample_type")[index].as_py()).itemsize
        )
        skipped = samples - sum(len(clip.samples) for clip in clips)
        if not skipped:
            return replace(results[0], skipped_s=0.0)
        duration_s: float = rows.field("duration_s")[index].as_py()
        return Recognition(_joined_path(clips, results), _joined_scores(clips, results), duration_s * skipped / samples)

    def _results_by_children(self, name: str, rows: pa.StructArray) -> list[Recognition]:
        """The same results by child processes, row by row, since one of the rows kills processes."""
        table = pa.Table.from_struct_array(rows)
        # Ray subclasses this class, and another process cannot find that subclass by its name.
        kind = next(k for k in type(self).__mro__ if getattr(sys.modules[k.__module__], k.__name__, None) is k)
        recognize_rows = functools.partial(_recognize_rows, kind, self.settings, table)
        steps = run_in_child(self.settings.run, name, recognize_rows, self.settings.deadline_s)
        return [step.row for step in steps if step.row is not None]

    def recognize(self, clips: Sequence[np.ndarray]) -> list[Recognition]:
        """Recognise utterances.

        Args:
            clips: int16 or float32 (num_samples,) each, at the model's sample rate, of at least `min_samples` samples.

        Returns:
            One result per utterance, in order; an error for an utterance that does not fit in the GPU's memory.
        """
        paths: list[GreedyPath | None] = [None] * len(clips)
        label_scores: list[list[list[float]]] = [[[]] * self.num_classifiers for _ in clips]
        errors: dict[int, Recognition] = {}
        for encoder in self.encoders:
            for index, logits in enumerate(self._logits(encoder, clips)):
                if isinstance(logits, Recognition):
                    errors.setdefault(index, logits)
                    continue
                for position, head_logits in zip(encoder.positions, logits, strict=True):
                    if position == CTC:
                        paths[index] = greedy_path(head_logits, self.blank, self.drop)
                    else:
                        label_scores[index][position] = _label_scores(head_logits)
        return [
            errors.get(index) or Recognition(path, scores)
            for index, (path, scores) in enumerate(zip(paths, label_scores, strict=True))
        ]

    def _logits(self, encoder: _Encoder, clips: Sequence[np.ndarray]) -> list[Logits | Recognition]:
        """The logits of each clip, or its error."""
        with np.errstate(over="ignore", invalid="ignore"):
            inputs = [torch.from_numpy(encoder.features.prepare(to_float32(clip))) for clip in clips]
        results: list[Logits | Recognition] = [_BAD_FEATURES] * len(clips)
        usable = [index for index, values in enumerate(inputs) if torch.isfinite(values).all()]
        outputs = with_deadline(self.settings.deadline_s, iter(encoder.engine.encode([inputs[i] for i in usable])))
        for index, logits in zip(usable, outputs, strict=True):
            results[index] = _checked(logits)
        # A clip whose values overflow can spoil the clips that share its batch: each of them is computed alone.
        for index in [index for index in usable if results[index] is _BAD_LOGITS]:
            (alone,) = with_deadline(self.settings.deadline_s, iter(encoder.engine.encode([inputs[index]])))
            results[index] = _checked(alone)
        return results


class _Clip(NamedTuple):
    """What the model computes of a row: some or all of its samples, from a frame of the CTC head on."""

    first_frame: int
    samples: np.ndarray


def _joined_path(clips: Sequence[_Clip], results: Sequence[Recognition]) -> GreedyPath:
    """The path of a row, with the frames of the row, from those of its clips."""
    paths = [result.path for result in results if result.path is not None]
    offsets = [clip.first_frame for clip in clips]

    def joined(columns: list[np.ndarray], kind: type) -> np.ndarray:
        return np.concatenate([np.zeros(0, kind), *columns]).astype(kind)

    return GreedyPath(
        joined([path.token_ids for path in paths], np.int64),
        joined([path.start_frames + first for path, first in zip(paths, offsets, strict=True)], np.int64),
        joined([path.end_frames + first for path, first in zip(paths, offsets, strict=True)], np.int64),
        joined([path.probabilities for path in paths], np.float32),
        offsets[-1] + paths[-1].num_frames if paths else 0,
    )


def _joined_scores(clips: Sequence[_Clip], results: Sequence[Recognition]) -> list[list[float]]:
    """The scores of a row: the means of those of its clips, by their lengths."""
    weights = [len(clip.samples) for clip in clips]
    by_classifier = zip(*(result.label_scores or [] for result in results), strict=True)
    return [np.average(scores, axis=0, weights=weights).tolist() for scores in by_classifier]


_PATH_COLUMNS = tuple(item.name for item in fields(GreedyPath))
_NO_RESULT = Recognition()
_BAD_FEATURES = Recognition(
    error=RowError("model", ErrorCode.NON_FINITE.value, "its samples are too large to be normalised for the model")
)
_BAD_LOGITS = Recognition(
    error=RowError("model", ErrorCode.NON_FINITE.value, "the model's output is not finite: its values overflow")
)
_TOO_LARGE = Recognition(
    error=RowError(
        "model",
        ErrorCode.TOO_LARGE.value,
        "does not fit in the memory of the GPU by itself: use a smaller --max-segment",
    )
)


def _checked(logits: Logits | None) -> Logits | Recognition:
    """The logits of a clip, or its error."""
    if logits is None:
        return _TOO_LARGE
    return logits if all(bool(torch.isfinite(head).all()) for head in logits) else _BAD_LOGITS


def _recognize_rows(
    kind: type[Recognizer],
    settings: RecognizeSettings,
    table: pa.Table,
    start: Position,
    skipped: Mapping[int, Skipped],
) -> Iterator[Step[Recognition]]:
    """The results of rows of `READ_ROW` from `start` on, one per step; a skipped row gives its error.

    The model is loaded before the first step: a process that dies while it loads is not attributed to a row.
    """
    rows = table.to_struct_array().combine_chunks()
    recognizer = kind(settings)

    def steps() -> Iterator[Step[Recognition]]:
        for index in range(start.utterance, len(rows)):
            if (skip := skipped.get(index)) is not None:
                result = Recognition(error=RowError.of("model", skip.error))
            else:
                (result,) = recognizer.results(rows[index : index + 1])
            yield Step(Position(index + 1, -1), row=result)

    return steps()


def _samples(rows: pa.StructArray, index: int) -> np.ndarray | None:
    """The samples of a row, int16 or float32 (num_samples,), not copied; None if it has none."""
    samples = rows.field("samples")[index]
    if not samples.is_valid:
        return None
    kind = np.dtype(rows.field("sample_type")[index].as_py()).newbyteorder("<")
    return np.frombuffer(samples.as_buffer(), kind)


def _label_scores(logits: torch.Tensor) -> list[float]:
    """Probabilities of the labels, from logits (labels,); a single output is a regression whose value is the score."""
    scores = logits if logits.shape[-1] == 1 else torch.softmax(logits, dim=-1)
    values: list[float] = scores.tolist()
    return values


def _encoders(
    loaded: Mapping[int, tuple[FeatureExtractor, Head]], device: torch.device, dtype: str, threads: int
) -> list[_Encoder]:
    """One encoder for each backbone; heads with equal backbones and equal features share one."""
    groups: dict[tuple[str, bool], list[int]] = {}
    for position, (features, head) in loaded.items():
        groups.setdefault((backbone_digest(head), features.do_normalize), []).append(position)
    encoders = []
    for positions in groups.values():
        heads = [loaded[position][1].eval() for position in positions]
        features = loaded[positions[0]][0]
        engine = load_engine(heads, device, dtype, threads, features.sampling_rate)
        encoders.append(_Encoder(features, tuple(positions), engine))
    return encoders


def _table(head: dict[str, Any], rows: pa.StructArray, results: list[Recognition], compute_s: float) -> pa.Table:
    """The chunk with its rows, their results, and the errors of rows without a result."""
    columns = [_column(column, rows, results) for column in RECOGNIZED_ROW]
    recognized = pa.StructArray.from_arrays(columns, fields=list(RECOGNIZED_ROW))
    durations = rows.field("duration_s").to_pylist()
    lost_s = sum(duration for duration, result in zip(durations, results, strict=True) if result.error is not None)
    skipped_s = sum(result.skipped_s or 0.0 for result in results)
    head |= {"skipped_s": skipped_s}
    head |= {"recognizer": worker_name(), "compute_s": compute_s, "audio_s": head["audio_s"] - lost_s}
    return one_chunk(RECOGNIZED_CHUNK, head, recognized)


def _column(column: pa.Field, rows: pa.StructArray, results: list[Recognition]) -> pa.Array:
    name = column.name
    values: list[Any]
    if name == "label_scores":
        values = [result.label_scores for result in results]
    elif name == "skipped_s":
        values = [result.skipped_s for result in results]
    elif name in _PATH_COLUMNS:
        values = [None if result.path is None else getattr(result.path, name) for result in results]
    elif name in RowError._fields:
        before = rows.field(name).to_pylist()
        values = [
            value if result.error is None else getattr(result.error, name)
            for result, value in zip(results, before, strict=True)
        ]
    else:
        return rows.field(name)
    return pa.array(values, column.type)
