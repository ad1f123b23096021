"""The heads of a recogniser: loaded checkpoints, and what they compute of decoded audio. Independent of Ray."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
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

from pipeline.errors import ErrorCode
from pipeline.schemas import RECOGNIZED_ROW
from pipeline.stages.rows import RowError
from pipeline.stages.settings import HeadSettings
from pipeline.storage.checkpoints import local_copy
from pipeline.storage.deadline import with_deadline
from sewd_model import (
    CTCTokenizer,
    FeatureExtractor,
    GreedyPath,
    SEWDForCTC,
    SEWDForSequenceClassification,
    backbone_digest,
    load_engine,
)
from sewd_model.engines import Engine
from sewd_model.posteriors import Posteriors, join
from sewd_model.recognition import Failure, Recognized, prepared

CTC = -1  # position of the CTC head; classifiers count from 0

Head = SEWDForCTC | SEWDForSequenceClassification


@dataclass(frozen=True)
class Recognition:
    """The result of the model for one utterance: numbers, an error, or nothing for a row without samples.

    Attributes:
        path: the greedy path through the logits of the CTC head.
        label_scores: for each classifier of the run, the scores of its labels.
        skipped_s: silence that was not computed, in seconds.
        error: why there are no numbers.
        posteriors: of the CTC head, instead of its path, where the settings say so.
    """

    path: GreedyPath | None = None
    label_scores: list[list[float]] | None = None
    skipped_s: float | None = None
    error: RowError | None = None
    posteriors: Posteriors | None = None


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
        self._load()

    def _load(self) -> None:
        settings = self.settings
        paths = [uri for uri in (settings.model, *settings.classifiers) if uri is not None]
        if settings.digests:
            paths = list(map(local_copy, paths, settings.digests))
        loaded: dict[int, tuple[FeatureExtractor, Head]] = {}
        drop: Sequence[int] = ()
        if settings.model is not None:
            model, *paths = paths
            ctc = SEWDForCTC.from_pretrained(model)
            loaded[CTC] = (FeatureExtractor.from_pretrained(model), ctc)
            # The ids of start and end of sentence come from the tokenizer, not from the configuration: many checkpoints
            # keep the default ids 1 and 2 there, which are letters in their vocabulary.
            drop = CTCTokenizer.from_pretrained(model).drop_ids
        for index, path in enumerate(paths):
            classifier = SEWDForSequenceClassification.from_pretrained(path)
            loaded[index] = (FeatureExtractor.from_pretrained(path), classifier)
        self.num_classifiers = len(paths)
        self.min_samples = max(head.config.min_samples for _, head in loaded.values())
        self.encoders = _encoders(loaded, settings, drop)

    def results(self, rows: pa.StructArray) -> list[Recognition]:
        """The result of each row; `_NO_RESULT` for a row without samples."""
        waveforms = _waveforms(rows)
        clips = [
            None if samples is None else self._clips(samples, edges)
            for samples, edges in zip(waveforms, rows.field("spans").to_pylist(), strict=True)
        ]
        recognized = iter(self.recognize([clip.samples for row in clips if row is not None for clip in row]))
        durations = rows.field("duration_s").to_pylist()
        return [
            _NO_RESULT
            if samples is None or row is None
            else _joined(
                row,
                list(itertools.islice(recognized, len(row))),
                len(samples),
                duration_s,
                has_posteriors=self.settings.posteriors,
            )
            for samples, row, duration_s in zip(waveforms, clips, durations, strict=True)
        ]

    def _clips(self, samples: np.ndarray, edges: list[int] | None) -> list[_Clip]:
        """The clips of a row, between its long pauses.

        A clip begins with a frame of the CTC head, so that the times of its tokens are exact.
        """
        if edges is None or (self.num_classifiers and not edges):  # a label needs something to be computed from
            return [_Clip(0, samples)]
        hop, least = self.settings.hop_length, self.min_samples
        clips = []
        for start, stop in zip(edges[::2], edges[1::2], strict=True):
            frame = max(0, min(start, len(samples) - least)) // hop
            clips.append(_Clip(frame, samples[frame * hop : max(stop, frame * hop + least)]))
        return clips

    def recognize(self, clips: Sequence[np.ndarray]) -> list[Recognition]:
        """Recognise utterances.

        Args:
            clips: int16 or float32 (num_samples,) each, at the model's sample rate, of at least `min_samples` samples.

        Returns:
            One result per utterance, in order; an error for an utterance that does not fit in the GPU's memory.
        """
        paths: list[GreedyPath | None] = [None] * len(clips)
        posteriors: list[Posteriors | None] = [None] * len(clips)
        label_scores: list[list[list[float]]] = [[[]] * self.num_classifiers for _ in clips]
        errors: dict[int, Recognition] = {}
        for encoder in self.encoders:
            for index, result in enumerate(self._recognized(encoder, clips)):
                if isinstance(result, Recognition):
                    errors.setdefault(index, result)
                    continue
                for position, output in zip(encoder.positions, result, strict=True):
                    if isinstance(output, GreedyPath):
                        paths[index] = output
                    elif isinstance(output, Posteriors):
                        posteriors[index] = output
                    else:
                        label_scores[index][position] = _label_scores(output)
        return [
            errors.get(index) or Recognition(path, scores, posteriors=kept)
            for index, (path, scores, kept) in enumerate(zip(paths, label_scores, posteriors, strict=True))
        ]

    def _recognized(
        self, encoder: _Encoder, clips: Sequence[np.ndarray]
    ) -> list[tuple[GreedyPath | Posteriors | torch.Tensor, ...] | Recognition]:
        """What the heads give of each clip, or its error."""
        found = list(self._timed(encoder.engine.recognize(clips)))
        # A clip whose values overflow can spoil the clips that share its batch: each of them is computed alone.
        for index in [index for index, result in enumerate(found) if result is Failure.BAD_OUTPUT]:
            (found[index],) = self._timed(encoder.engine.recognize(clips[index : index + 1]))
        return [
            _error(result, clip, encoder.features) if isinstance(result, Failure) else result
            for clip, result in zip(clips, found, strict=True)
        ]

    def _timed(self, results: Iterator[Recognized]) -> Iterator[Recognized]:
        deadline_s = self.settings.deadline_s
        return results if deadline_s is None else with_deadline(deadline_s, results)


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


def _joined(
    clips: Sequence[_Clip], results: Sequence[Recognition], samples: int, duration_s: float, *, has_posteriors: bool
) -> Recognition:
    """The result of a row of so many samples from those of its clips."""
    failed = next((result for result in results if result.error is not None), None)
    if failed is not None:
        return failed
    skipped = samples - sum(len(clip.samples) for clip in clips)
    if not skipped:
        return replace(results[0], skipped_s=0.0)
    skipped_s, scores = duration_s * skipped / samples, _joined_scores(clips, results)
    if has_posteriors:
        return Recognition(None, scores, skipped_s, posteriors=_joined_posteriors(clips, results))
    return Recognition(_joined_path(clips, results), scores, skipped_s)


def _joined_posteriors(clips: Sequence[_Clip], results: Sequence[Recognition]) -> Posteriors:
    """The posteriors of a row, with the frames of the row, from those of its clips."""
    pieces = [result.posteriors for result in results if result.posteriors is not None]
    firsts = [clip.first_frame for clip in clips]
    return join(pieces, firsts, firsts[-1] + pieces[-1].num_frames if pieces else 0)


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


_LIST_COLUMNS = {
    **{item.name: "path" for item in fields(GreedyPath)},
    **{item.name: "posteriors" for item in fields(Posteriors)},
}  # the field of `Recognition` that has each
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


def _error(failure: Failure, clip: np.ndarray, features: FeatureExtractor) -> Recognition:
    if failure is Failure.TOO_LARGE:
        return _TOO_LARGE
    return _BAD_FEATURES if prepared(clip, features) is None else _BAD_LOGITS


def _waveforms(rows: pa.StructArray) -> list[np.ndarray | None]:
    """The samples of each row, int16 or float32 (num_samples,), not copied; None for a row without."""
    samples, kinds = rows.field("samples"), rows.field("sample_type").to_pylist()
    _, offsets, data = samples.buffers()
    edges = np.frombuffer(offsets, np.int64, len(samples) + 1, samples.offset * 8).tolist()
    content = np.frombuffer(b"" if data is None else data, np.uint8)
    return [
        None if kind is None else _aligned(content[start:stop].view(np.dtype(kind).newbyteorder("<")))
        for kind, (start, stop) in zip(kinds, itertools.pairwise(edges), strict=True)
    ]


def _aligned(samples: np.ndarray) -> np.ndarray:
    """The samples, copied where they begin between two multiples of their size: sums would be rounded differently."""
    return samples if samples.flags.aligned else samples.copy()


def _label_scores(logits: torch.Tensor) -> list[float]:
    """Probabilities of the labels, from logits (labels,); a single output is a regression whose value is the score."""
    scores = logits if logits.shape[-1] == 1 else torch.softmax(logits, dim=-1)
    values: list[float] = scores.tolist()
    return values


def _encoders(
    loaded: Mapping[int, tuple[FeatureExtractor, Head]], settings: HeadSettings, drop: Sequence[int]
) -> list[_Encoder]:
    """One encoder for each backbone; heads with equal backbones and equal features share one."""
    groups: dict[tuple[str, bool], list[int]] = {}
    for position, (features, head) in loaded.items():
        groups.setdefault((backbone_digest(head), features.do_normalize), []).append(position)
    encoders = []
    for positions in groups.values():
        heads = [loaded[position][1].eval() for position in positions]
        features = loaded[positions[0]][0]
        engine = load_engine(
            heads, settings.device, settings.dtype, settings.threads, features, drop, posteriors=settings.posteriors
        )
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
    elif name == "num_frames":
        framed = [result.path or result.posteriors for result in results]
        values = [None if each is None else each.num_frames for each in framed]
    elif name in _LIST_COLUMNS:
        holders = [getattr(result, _LIST_COLUMNS[name]) for result in results]
        return _lists([None if holder is None else getattr(holder, name) for holder in holders], column.type)
    elif name in RowError._fields:
        before = rows.field(name).to_pylist()
        values = [
            value if result.error is None else getattr(result.error, name)
            for result, value in zip(results, before, strict=True)
        ]
    else:
        return rows.field(name)
    return pa.array(values, column.type)


def _lists(values: Sequence[np.ndarray | None], kind: pa.ListType) -> pa.ListArray:
    """Lists of numbers, from an array for each; null for None."""
    present = [value for value in values if value is not None]
    ends = np.cumsum([0, *(0 if value is None else len(value) for value in values)], dtype=np.int32)
    numbers = np.concatenate(present or [np.zeros(0)]).astype(kind.value_type.to_pandas_dtype(), copy=False)
    is_null = pa.array([value is None for value in values], pa.bool_())
    return pa.ListArray.from_arrays(pa.array(ends), pa.array(numbers, kind.value_type), type=kind, mask=is_null)
