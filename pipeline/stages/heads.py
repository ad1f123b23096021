"""The heads of a recogniser: loaded checkpoints, and what they compute of decoded audio. Independent of Ray."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
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
from pipeline.errors import ErrorCode
from pipeline.schemas import RECOGNIZED_ROW
from pipeline.stages.rows import RowError
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

CTC = -1  # position of the CTC head; classifiers count from 0

Head = SEWDForCTC | SEWDForSequenceClassification


@dataclass(frozen=True)
class HeadSettings:
    """What is loaded, and how it computes.

    Attributes:
        model: checkpoint of the CTC head, directory or URI; None: only the classifiers are computed.
        classifiers: checkpoints of classification heads.
        digests: digests of these checkpoints, the model's first; empty: they are read from where they are.
        device: `cpu` or `cuda`.
        dtype: data type that the model computes in, see `RunConfig`.
        threads: on CPUs, packs of utterances that are computed at the same time, each by one thread.
        deadline_s: a process that takes longer than this for an utterance hangs, and is ended; None: no deadline.
        hop_length: samples per frame of the CTC head.
    """

    model: str | None
    classifiers: tuple[str, ...]
    digests: tuple[str, ...]
    device: str
    dtype: str
    threads: int
    deadline_s: float | None = None
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


class Heads:
    """Runs every head over every utterance.

    An utterance gets the result that the model gives for it alone; its neighbours only change the rounding of the last
    digits. On CPUs utterances are packed with their neighbours in the same call: the same call on such a machine gives
    the same bits. Heads with equal backbones, tensor by tensor, share one pass.
    """

    encoders: Sequence[_Encoder] = ()
    num_classifiers = 0
    min_samples = 0  # that all heads accept

    def __init__(self, settings: HeadSettings) -> None:
        self.settings = settings
        self.device = torch.device(settings.device)
        self._load()

    def _load(self) -> None:
        settings = self.settings
        paths = [uri for uri in (settings.model, *settings.classifiers) if uri is not None]
        if settings.digests:
            paths = list(map(local_copy, paths, settings.digests))
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
        outputs = self._timed(encoder.engine.encode([inputs[i] for i in usable]))
        for index, logits in zip(usable, outputs, strict=True):
            results[index] = _checked(logits)
        # A clip whose values overflow can spoil the clips that share its batch: each of them is computed alone.
        for index in [index for index in usable if results[index] is _BAD_LOGITS]:
            (alone,) = self._timed(encoder.engine.encode([inputs[index]]))
            results[index] = _checked(alone)
        return results

    def _timed(self, outputs: Iterable[Logits | None]) -> Iterator[Logits | None]:
        deadline_s = self.settings.deadline_s
        return iter(outputs) if deadline_s is None else with_deadline(deadline_s, iter(outputs))


def set_torch_threads(count: int) -> int:
    """Set the number of torch's own threads in this process; returns what it was."""
    before = torch_threads()
    torch.set_num_threads(count)
    return before


def torch_threads() -> int:
    """The number of torch's own threads in this process: `OMP_NUM_THREADS`, or the processors."""
    return torch.get_num_threads()


def has_gpu() -> bool:
    """Whether torch finds a GPU."""
    return torch.cuda.is_available()


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
        "does not fit in the memory of the GPU by itself: use shorter segments (--max-segment, max_segment_s)",
    )
)


def _checked(logits: Logits | None) -> Logits | Recognition:
    """The logits of a clip, or its error."""
    if logits is None:
        return _TOO_LARGE
    return logits if all(bool(torch.isfinite(head).all()) for head in logits) else _BAD_LOGITS


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


def recognized_rows(rows: pa.StructArray, results: Sequence[Recognition]) -> pa.StructArray:
    """Rows of `READ_ROW` with their results, as rows of `RECOGNIZED_ROW`; a row without a result keeps its error."""
    columns = [_column(column, rows, results) for column in RECOGNIZED_ROW]
    return pa.StructArray.from_arrays(columns, fields=list(RECOGNIZED_ROW))


def _column(column: pa.Field, rows: pa.StructArray, results: Sequence[Recognition]) -> pa.Array:
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
