"""The model stage: waveforms in, numbers out; a Ray actor.

It returns numbers, not words: token ids, frames, probabilities and label scores, as Arrow. Words, error counts and
Parquet are made by the CPU tasks after it, so that Python text work never stands between two encoder passes.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

# Read when torch is loaded. torch's threads meet after each operation; by default those that wait there keep their
# processor busy, and on a machine with other work, decoding for one, stand in the way of the one that they wait for:
# ten times slower with two threads on two busy processors.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

from pipeline import storage
from pipeline.audio import to_float32
from pipeline.read import worker_name
from pipeline.schemas import RECOGNIZED_CHUNK, RECOGNIZED_ROW
from sewd_model import (
    CTCTokenizer,
    FeatureExtractor,
    SEWDForCTC,
    SEWDForSequenceClassification,
    backbone_digest,
    greedy_path,
)

Head = SEWDForCTC | SEWDForSequenceClassification


@dataclass(frozen=True)
class RecognizeSettings:
    """What an actor loads.

    Attributes:
        model: checkpoint of the CTC head, directory or URI.
        classifiers: checkpoints of classification heads.
        device: `cpu` or `cuda`.
        threads: torch threads on CPU.
        stop_uri: while an object lies here, chunks that wait are given up (the next start reads them again).
    """

    model: str
    classifiers: tuple[str, ...]
    device: str
    threads: int
    stop_uri: str


@dataclass(frozen=True)
class _Encoder:
    """A backbone, and the heads that it serves in one pass."""

    features: FeatureExtractor
    backbone: torch.nn.Module
    heads: tuple[tuple[int, Head], ...]  # (position among the run's heads, head)
    hidden_states: bool


class Recognizer:
    """Runs every head over every utterance of a chunk.

    Each utterance goes through the model alone, so that what is beside it, in the chunk or the cluster, cannot change
    its result. Heads whose backbones are equal, tensor by tensor, share one pass.
    """

    def __init__(self, settings: RecognizeSettings) -> None:
        # Ray hands the settings, never the weights: an actor that is restarted loads them again from their URI.
        self.settings = settings
        self.device = torch.device(settings.device)
        if self.device.type == "cpu":
            torch.set_num_threads(settings.threads)
        storage.persist(settings.model, self._load)

    def _load(self) -> None:
        settings = self.settings
        ctc = SEWDForCTC.from_pretrained(settings.model)
        loaded: list[tuple[FeatureExtractor, Head]] = [(FeatureExtractor.from_pretrained(settings.model), ctc)]
        loaded += [
            (FeatureExtractor.from_pretrained(uri), SEWDForSequenceClassification.from_pretrained(uri))
            for uri in settings.classifiers
        ]
        self.num_classifiers = len(settings.classifiers)
        self.blank = ctc.blank
        # The tokenizer's word for start and end of sentence, not the configuration's: many checkpoints keep the
        # default ids 1 and 2 there while their vocabulary has letters in those places.
        self.drop = CTCTokenizer.from_pretrained(settings.model).drop_ids
        self.encoders = _share_encoders(loaded, self.device)

    def __call__(self, chunks: pa.Table) -> pa.Table:
        """Recognise whole chunks: `READ_CHUNK` in, `RECOGNIZED_CHUNK` out, row for row; nothing once the run stops."""
        results = [self._chunk(chunks.slice(index, 1)) for index in range(chunks.num_rows)]
        done = [table for table in results if table is not None]
        return pa.concat_tables(done) if done else RECOGNIZED_CHUNK.empty_table()

    def _chunk(self, chunk: pa.Table) -> pa.Table | None:
        if storage.exists(self.settings.stop_uri):
            return None
        began = time.perf_counter()
        rows = chunk["rows"].combine_chunks().flatten()
        numbers = [self._utterance(rows, index) for index in range(len(rows))]
        head = chunk.drop_columns("rows").to_pylist()[0]
        return _table(head, rows, numbers, time.perf_counter() - began)

    def _utterance(self, rows: pa.StructArray, index: int) -> dict[str, Any]:
        samples = rows.field("samples")[index]
        if not samples.is_valid:
            return dict.fromkeys(_NUMBERS)
        kind = np.dtype(rows.field("sample_type")[index].as_py()).newbyteorder("<")
        return self.recognize(to_float32(np.frombuffer(samples.as_buffer(), kind)))

    @torch.inference_mode()
    def recognize(self, waveform: np.ndarray) -> dict[str, Any]:
        """One utterance.

        Args:
            waveform: (num_samples,) float32 at the model's rate, at least `min_samples` of it.

        Returns:
            The columns of `RECOGNIZED_ROW` that the model makes.
        """
        numbers: dict[str, Any] = {"label_scores": [[] for _ in range(self.num_classifiers)]}
        for encoder in self.encoders:
            inputs = torch.from_numpy(encoder.features(waveform))[None].to(self.device)
            outputs = encoder.backbone(inputs, output_hidden_states=encoder.hidden_states)
            for position, head in encoder.heads:
                logits = head.head(outputs)[0].float().cpu()
                if position == 0:
                    numbers |= self._greedy(logits)
                else:
                    numbers["label_scores"][position - 1] = _label_scores(logits)
        return numbers

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


def _label_scores(logits: torch.Tensor) -> list[float]:
    """Probabilities of the labels; one output is a regression, and its value is the score."""
    scores = logits if logits.shape[-1] == 1 else torch.softmax(logits, dim=-1)
    values: list[float] = scores.tolist()
    return values


def _share_encoders(loaded: Sequence[tuple[FeatureExtractor, Head]], device: torch.device) -> list[_Encoder]:
    groups: dict[tuple[str, bool], list[tuple[int, Head]]] = {}
    for position, (features, head) in enumerate(loaded):
        key = (backbone_digest(head), features.do_normalize)
        groups.setdefault(key, []).append((position, head.to(device).eval()))
    return [
        _Encoder(
            features=loaded[heads[0][0]][0],
            backbone=heads[0][1].sew_d,
            heads=tuple(heads),
            hidden_states=any(head.needs_hidden_states for _, head in heads),
        )
        for heads in groups.values()
    ]


def _table(head: dict[str, Any], rows: pa.StructArray, numbers: list[dict[str, Any]], compute_s: float) -> pa.Table:
    columns = []
    for part in RECOGNIZED_ROW:
        if part.name in _NUMBERS:
            columns.append(pa.array([row[part.name] for row in numbers], part.type))
        else:
            columns.append(rows.field(part.name))
    recognized = pa.StructArray.from_arrays(columns, fields=list(RECOGNIZED_ROW))
    row_list = pa.ListArray.from_arrays(pa.array([0, len(rows)], pa.int32()), recognized)
    head |= {"recognizer": worker_name(), "compute_s": compute_s}
    arrays = [row_list if f.name == "rows" else pa.array([head[f.name]], f.type) for f in RECOGNIZED_CHUNK]
    return pa.Table.from_arrays(arrays, schema=RECOGNIZED_CHUNK)
