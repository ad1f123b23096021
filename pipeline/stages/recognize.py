"""The model stage: waveforms in, numbers out; a Ray actor.

It returns numbers, not words: token ids, frames, probabilities and label scores, as Arrow. Words, error counts and
Parquet are made by the CPU tasks after it, so that Python text work never stands between two encoder passes.
"""

from __future__ import annotations

import functools
import logging
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

# Read when torch is loaded. torch's threads meet after each operation; by default those that wait there keep their
# processor busy, and on a machine with other work, decoding for one, stand in the way of the one that they wait for:
# ten times slower with two threads on two busy processors.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

from pipeline.audio.decode import to_float32
from pipeline.cluster.ray_private import actor_was_restarted
from pipeline.errors import ErrorCode, StorageError
from pipeline.runs.engine import Engine
from pipeline.schemas import RECOGNIZED_CHUNK, RECOGNIZED_ROW, one_chunk
from pipeline.stages.child import run_in_child
from pipeline.stages.quarantine import Place, Skipped, Step, attempt_marker
from pipeline.stages.read import worker_name
from pipeline.storage import objects, retry
from pipeline.storage.checkpoints import local_copy
from pipeline.storage.deadline import within
from sewd_model import (
    CTCTokenizer,
    FeatureExtractor,
    PackedModel,
    SEWDForCTC,
    SEWDForSequenceClassification,
    backbone_digest,
    greedy_path,
)
from sewd_model.packed.gpu_memory import out_of_memory, taken_by_others

# An actor that was started again first gets the chunks that the one before it had: Ray sends each two to four ahead.
IN_DOUBT = 16
log = logging.getLogger(__name__)

Head = SEWDForCTC | SEWDForSequenceClassification
Logits = tuple[torch.Tensor, ...]  # of each head of an encoder, float32 on the CPU
Encode = Callable[[Sequence[torch.Tensor]], Iterable[Logits | None]]  # prepared waveforms in; None: it does not fit
Tell = Callable[[], tuple[Engine, int]]  # what computes now, and how many batches were halved for want of memory so far


@dataclass(frozen=True)
class RecognizeSettings:
    """What an actor loads.

    Attributes:
        model: checkpoint of the CTC head, directory or URI.
        classifiers: checkpoints of classification heads.
        digests: of the one and the others, in order.
        device: `cpu` or `cuda`.
        dtype: in what the model computes, see `RunConfig`.
        threads: packs of utterances that are worked off at a time on CPU, each in a thread of its own.
        stop_uri: while an object lies here, chunks that wait are given up (the next start reads them again).
        run: the run, for what has to be set aside.
        deadline_s: a process that does not come to the next utterance in this time hangs.
    """

    model: str
    classifiers: tuple[str, ...]
    digests: tuple[str, ...]
    device: str
    dtype: str
    threads: int
    stop_uri: str
    run: str
    deadline_s: float


@dataclass(frozen=True)
class _Encoder:
    """A backbone, and the heads that it serves in one pass."""

    features: FeatureExtractor
    positions: tuple[int, ...]  # of its heads, among the run's
    encode: Encode
    tell: Tell


class Recognizer:
    """Runs every head over every utterance of a chunk.

    An utterance's result is what the model gives for it alone; what is beside it, in the chunk or the cluster, changes
    nothing but the rounding of its last digits. On CPUs a chunk's utterances are packed, neighbours together, which
    depends on the chunk alone: read again on such a machine, it comes out the same to the bit, but where processes died
    of it and it was gone through one by one. Heads whose backbones are equal, tensor by tensor, share one pass.
    """

    chunks = 0  # that are through
    encoders: Sequence[_Encoder] = ()
    splits = 0  # that are told of
    broken: StorageError | None = None  # why the weights could not be loaded

    def __init__(self, settings: RecognizeSettings) -> None:
        # Ray hands the settings, never the weights: an actor that is started again loads them again.
        self.settings = settings
        self.device = torch.device(settings.device)
        if self.device.type == "cpu":
            torch.set_num_threads(1)  # packs have threads of their own
        try:
            retry.with_retries(settings.model, self._load)
        except StorageError as error:  # said with the first chunk: of what is raised here Ray keeps no more than a text
            self.broken = error

    def _load(self) -> None:
        settings = self.settings
        model, *classifiers = map(local_copy, (settings.model, *settings.classifiers), settings.digests)
        ctc = SEWDForCTC.from_pretrained(model)
        loaded: list[tuple[FeatureExtractor, Head]] = [(FeatureExtractor.from_pretrained(model), ctc)]
        loaded += [
            (FeatureExtractor.from_pretrained(path), SEWDForSequenceClassification.from_pretrained(path))
            for path in classifiers
        ]
        self.num_classifiers = len(settings.classifiers)
        self.blank = ctc.blank
        # The tokenizer's word for start and end of sentence, not the configuration's: many checkpoints keep the
        # default ids 1 and 2 there while their vocabulary has letters in those places.
        self.drop = CTCTokenizer.from_pretrained(model).drop_ids
        self.encoders = _share_encoders(loaded, self.device, settings.dtype, settings.threads)

    def __call__(self, chunks: pa.Table) -> pa.Table:
        """Recognise whole chunks: `READ_CHUNK` in, `RECOGNIZED_CHUNK` out, row for row; nothing once the run stops."""
        if self.broken is not None:
            raise self.broken
        results = [self._chunk(chunks.slice(index, 1)) for index in range(chunks.num_rows)]
        done = [table for table in results if table is not None]
        return pa.concat_tables(done) if done else RECOGNIZED_CHUNK.empty_table()

    def _chunk(self, chunk: pa.Table) -> pa.Table | None:
        if objects.exists(self.settings.stop_uri):
            return None
        began, began_at = time.perf_counter(), time.time()
        rows = chunk["rows"].combine_chunks().flatten()
        head = chunk.drop_columns("rows").to_pylist()[0]
        head["queue_s"] = max(0.0, began_at - head["read_at"])  # two machines' clocks may differ
        died = False
        if self.chunks < IN_DOUBT and actor_was_restarted():
            name = f"{head['part_id']}-{head['chunk']}"
            with attempt_marker(self.settings.run, name) as died:
                results = self._with_care(name, rows) if died else self._results(rows)
        else:
            results = self._results(rows)
        self.chunks += 1
        head |= self._told(alone=died)
        return _table(head, rows, results, time.perf_counter() - began)

    def _told(self, alone: bool) -> dict[str, Any]:
        """What computes, and the batches that were halved since this was asked for last.

        Args:
            alone: the utterances went one by one, by children of this process that load what it has.
        """
        told = [encoder.tell() for encoder in self.encoders]
        before, self.splits = self.splits, sum(splits for _, splits in told)
        engines = [replace(engine, budget_s=None) if alone else engine for engine, _ in told]
        return {"engines": [asdict(engine) for engine in engines], "splits": self.splits - before}

    def _results(self, rows: pa.StructArray) -> list[dict[str, Any]]:
        """Of each row; of one without samples, nothing."""
        waveforms = [_waveform(rows, index) for index in range(len(rows))]
        recognized = iter(self.recognize([waveform for waveform in waveforms if waveform is not None]))
        return [_NOTHING if waveform is None else next(recognized) for waveform in waveforms]

    def _with_care(self, name: str, rows: pa.StructArray) -> list[dict[str, Any]]:
        """The same by children of this process, row by row: one of the rows is deadly."""
        table = pa.Table.from_struct_array(rows)
        # Ray made a class of its own of this one, which no other process can find by its name.
        kind = next(k for k in type(self).__mro__ if getattr(sys.modules[k.__module__], k.__name__, None) is k)
        steps = functools.partial(_one_row_after_another, kind, self.settings, table)
        made = run_in_child(self.settings.run, name, steps, self.settings.deadline_s)
        return [step.row for step in made if step.row is not None]

    def recognize(self, waveforms: Sequence[np.ndarray]) -> list[dict[str, Any]]:
        """Recognise utterances.

        Args:
            waveforms: (num_samples,) float32 each, at the model's rate, at least `min_samples` of it.

        Returns:
            The columns of `RECOGNIZED_ROW` that the model makes, for each utterance, in order; of one that does not fit
        in the GPU's memory, its error.
        """
        numbers: list[dict[str, Any]] = [{"label_scores": [[]] * self.num_classifiers} for _ in waveforms]
        for encoder in self.encoders:
            inputs = [torch.from_numpy(encoder.features(waveform)) for waveform in waveforms]
            outputs = within(self.settings.deadline_s, iter(encoder.encode(inputs)))
            for row, logits in zip(numbers, outputs, strict=True):
                if logits is None:
                    row.update(_TOO_LARGE)
                    continue
                for position, of_head in zip(encoder.positions, logits, strict=True):
                    if position == 0:
                        row.update(self._greedy(of_head))
                    else:
                        row["label_scores"][position - 1] = _label_scores(of_head)
        return [_NOTHING | _TOO_LARGE if "code" in row else row for row in numbers]

    def _greedy(self, logits: torch.Tensor) -> dict[str, Any]:
        path = greedy_path(logits, self.blank, self.drop)
        return {
            "num_frames": path.num_frames,
            "token_ids": path.token_ids,
            "start_frames": path.start_frames,
            "end_frames": path.end_frames,
            "probabilities": path.probabilities,
        }


_NUMBERS = ("num_frames", "token_ids", "start_frames", "end_frames", "probabilities", "label_scores")
_PROBLEM = ("stage", "code", "message")
_NOTHING: dict[str, Any] = dict.fromkeys(_NUMBERS)
_TOO_LARGE = {
    "stage": "model",
    "code": ErrorCode.TOO_LARGE.value,
    "message": "alone it takes more memory than the GPU has: --max-segment cuts utterances shorter",
}


def _one_row_after_another(
    recognizer: type[Recognizer],
    settings: RecognizeSettings,
    table: pa.Table,
    start: Place,
    aside: Mapping[int, Skipped],
) -> Iterator[Step]:
    """The results of rows of `READ_ROW` from `start` on, one a step; of a row that is set aside, its error.

    The model is loaded before there is a first step: a process that dies of that convicts no row.
    """
    rows = table.to_struct_array().combine_chunks()
    one = recognizer(settings)

    def steps() -> Iterator[Step]:
        for index in range(start.utterance, len(rows)):
            waveform = _waveform(rows, index)
            row = _NOTHING
            if index in aside:
                row = _NOTHING | {"stage": "model", "code": aside[index].code.value, "message": aside[index].message}
            elif waveform is not None:
                (row,) = one.recognize([waveform])
            yield Step(Place(index + 1, -1), row=row)

    return steps()


def _waveform(rows: pa.StructArray, index: int) -> np.ndarray | None:
    """The samples of a row in float32, (num_samples,); None where it has none."""
    samples = rows.field("samples")[index]
    if not samples.is_valid:
        return None
    kind = np.dtype(rows.field("sample_type")[index].as_py()).newbyteorder("<")
    return to_float32(np.frombuffer(samples.as_buffer(), kind))


def _label_scores(logits: torch.Tensor) -> list[float]:
    """Probabilities of the labels; one output is a regression, and its value is the score."""
    scores = logits if logits.shape[-1] == 1 else torch.softmax(logits, dim=-1)
    values: list[float] = scores.tolist()
    return values


def _share_encoders(
    loaded: Sequence[tuple[FeatureExtractor, Head]], device: torch.device, dtype: str, threads: int
) -> list[_Encoder]:
    groups: dict[tuple[str, bool], list[int]] = {}
    for position, (features, head) in enumerate(loaded):
        groups.setdefault((backbone_digest(head), features.do_normalize), []).append(position)
    encoders = []
    for positions in groups.values():
        heads = [loaded[position][1].eval() for position in positions]
        features = loaded[positions[0]][0]
        if device.type == "cpu":
            encode, tell = _packed(heads, dtype, threads, features.sampling_rate)
        else:
            encode, tell = _on_device(heads, dtype, device)
        encoders.append(_Encoder(features, tuple(positions), encode, tell))
    return encoders


def _packed(heads: Sequence[Head], dtype: str, threads: int, rate: int) -> tuple[Encode, Tell]:
    """The encoder on CPUs."""
    model = PackedModel(heads, dtype=dtype, threads=threads)
    budget_s = model.pack_frames * model.config.hop_length / rate or None
    engine = Engine("packed", model.dtype, _name(torch.device("cpu")), budget_s, model.fallback)
    return lambda waveforms: (output.logits for output in model.stream(waveforms)), lambda: (engine, 0)


def _name(device: torch.device) -> str:
    if device.type == "cpu":
        return f"cpu {torch.backends.cpu.get_cpu_capability()}"
    return torch.cuda.get_device_name(device)


def _on_device(heads: Sequence[Head], dtype: str, device: torch.device) -> tuple[Encode, Tell]:
    """The encoder on GPUs: packed batches, where they compute what the models compute; else utterance by utterance."""
    try:
        from sewd_model.packed import gpu, gpu_batches  # noqa: PLC0415 - they need torch 2.5
    except ImportError as error:
        return _fall_back(heads, dtype, device, error)
    try:
        model = gpu.PackedDeviceModel(heads, device=device, dtype=dtype)
        gpu_batches.check(model, _one_by_one(heads, "float32", device), dtype)
        engine = gpu_batches.DeviceEngine(model)
        budget_s = gpu_batches.probed_budget_s(engine) if device.type == "cuda" else gpu_batches.BUDGET_S
    except gpu_batches.CHECK_ERRORS as error:
        return _fall_back(heads, dtype, device, error)
    heads = [head.cpu() for head in heads]
    packed = Engine("packed", dtype, _name(device), budget_s, None)
    fallen: tuple[Encode, Tell] | None = None

    def encode(waveforms: Sequence[torch.Tensor]) -> Iterator[Logits | None]:
        nonlocal fallen
        done = 0
        if fallen is None:
            try:
                for logits in gpu_batches.stream(engine, waveforms, budget_s):
                    yield logits
                    done += 1
            except gpu_batches.COMPILER_ERRORS as error:
                fallen = _fall_back(heads, dtype, device, error)
        if fallen is not None:
            alone, _ = fallen
            yield from alone(waveforms[done:])

    def tell() -> tuple[Engine, int]:
        return (packed if fallen is None else fallen[1]()[0]), engine.splits

    return encode, tell


def _fall_back(heads: Sequence[Head], dtype: str, device: torch.device, error: Exception) -> tuple[Encode, Tell]:
    cause = getattr(error, "inner_exception", error)  # the compiler's wrapper says no more than that there is one
    reason = f"{type(cause).__name__}: {(str(cause).strip() or 'no reason given').splitlines()[0]}"
    if isinstance(error, RuntimeError) and out_of_memory(error):  # with numbers that are others each time
        reason = "the model and one batch do not fit in its memory"
    log.warning("no packed batches on %s, the model runs clip by clip: %s", device, reason)
    engine = Engine("clip by clip", dtype, _name(device), None, f"no packed batches: {reason}")
    return _one_by_one(heads, dtype, device), lambda: (engine, 0)


def _one_by_one(heads: Sequence[Head], dtype: str, device: torch.device) -> Encode:
    """The encoder on any device: utterance by utterance, through the first head's backbone."""
    kind: torch.dtype = getattr(torch, dtype)
    heads = [head.to(device, kind) for head in heads]
    hidden_states = any(head.needs_hidden_states for head in heads)

    @torch.inference_mode()
    def logits(waveform: torch.Tensor) -> Logits | None:
        try:
            with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
                outputs = heads[0].sew_d(waveform[None].to(device, kind), output_hidden_states=hidden_states)
                return tuple(head.head(outputs)[0].float().cpu() for head in heads)
        except RuntimeError as error:
            if not out_of_memory(error) or taken_by_others():
                raise
            return None

    return lambda waveforms: map(logits, waveforms)


def _table(head: dict[str, Any], rows: pa.StructArray, results: list[dict[str, Any]], compute_s: float) -> pa.Table:
    """Rows as they came, with what the model made of them, or why it made nothing."""
    columns = []
    for part in RECOGNIZED_ROW:
        if part.name in _NUMBERS:
            columns.append(pa.array([result[part.name] for result in results], part.type))
        elif part.name in _PROBLEM:
            came = rows.field(part.name).to_pylist()
            values = [result.get(part.name, value) for result, value in zip(results, came, strict=True)]
            columns.append(pa.array(values, part.type))
        else:
            columns.append(rows.field(part.name))
    recognized = pa.StructArray.from_arrays(columns, fields=list(RECOGNIZED_ROW))
    durations = rows.field("duration_s").to_pylist()
    lost_s = sum(duration for duration, result in zip(durations, results, strict=True) if "code" in result)
    head |= {"recognizer": worker_name(), "compute_s": compute_s, "audio_s": head["audio_s"] - lost_s}
    return one_chunk(RECOGNIZED_CHUNK, head, recognized)
