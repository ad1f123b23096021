"""The model on this machine: its numbers against stored ones, and a user's checkpoint against the reference model."""

from __future__ import annotations

import time
from typing import Final

import numpy as np
import torch

from pipeline.cluster.local_machine import local_cpus
from pipeline.doctor.check import Check, failure, ok
from pipeline.errors import StorageError
from pipeline.storage import retry
from sewd_model import CheckpointError, CTCTokenizer, FeatureExtractor, SEWDForCTC, load_engine
from sewd_model.files import BUNDLED

# Logits of the bundled model for `probe`: frames `FRAMES`, labels 0 to 5, by the reference model in float64.
FRAMES: Final = (0, 24, 48)
STORED: Final = (
    (6.21693, -17.24684, -17.52821, -17.49920, -7.91743, -5.43471),
    (5.40722, -16.59784, -16.44126, -16.27778, -5.36242, -6.14097),
    (3.57227, -5.01172, -5.01562, -5.00781, -0.57129, -0.19080),
)
TOLERANCE: Final = 2e-3  # of the spread of the logits: float32 on any processor
ADVICE: Final = "install the versions in constraints.txt; if it stays so, report it with this line"


def probe(rate: int) -> np.ndarray:
    """One second of a chord that swells and falls: float32 (rate,)."""
    time_s = np.arange(rate) / rate
    chord = sum(np.sin(2 * np.pi * frequency * time_s) / (1 + k) for k, frequency in enumerate((220, 660, 1430, 2750)))
    return (0.2 * chord * np.sin(np.pi * time_s) ** 2).astype(np.float32)


def stored_numbers() -> Check:
    """The bundled model's logits, as runs on this machine's CPUs compute them, against those that are stored."""
    name = "model"
    started = time.perf_counter()
    logits, _ = _logits(BUNDLED)
    expected = np.array(STORED)
    difference = float(np.abs(logits[list(FRAMES), : expected.shape[1]] - expected).max() / np.ptp(expected))
    message = f"the bundled model differs from its stored numbers by {difference:.1e} of their spread"
    if not difference <= TOLERANCE:  # a NaN does not pass either
        return failure(name, message, ADVICE)
    return ok(name, f"{message}; {time.perf_counter() - started:.1f} s")


def checkpoint(uri: str) -> Check:
    """Load a CTC checkpoint, and compare what runs compute with it with the reference model."""
    name = f"model {uri}"
    try:
        logits, head = retry.with_retries(uri, lambda: _logits(uri))
        features = retry.with_retries(uri, lambda: FeatureExtractor.from_pretrained(uri))
        retry.with_retries(uri, lambda: CTCTokenizer.from_pretrained(uri))
    except (CheckpointError, ValueError, FileNotFoundError) as error:
        return failure(
            name, f"cannot load it: {error}", "name a SEW-D checkpoint with a CTC head, as --model of sewd transcribe"
        )
    except StorageError as error:
        return failure(name, str(error), "check the name, the credentials and the network")
    with torch.inference_mode():
        reference = head(*features.pad([probe(features.sampling_rate)])).logits[0].numpy()[: len(logits)]
    difference = float(np.abs(logits - reference).max() / max(float(np.ptp(reference)), 1e-6))
    millions = sum(parameter.numel() for parameter in head.parameters()) / 1e6
    message = (
        f"{millions:.1f} million parameters, {logits.shape[1]} labels, {features.sampling_rate} Hz; packed batches "
        f"differ from the reference by {difference:.1e} of the spread"
    )
    return ok(name, message) if difference <= TOLERANCE else failure(name, message, ADVICE)


def _logits(uri: str) -> tuple[np.ndarray, SEWDForCTC]:
    """The logits of `probe` by the engine for CPUs, float32 (frames, labels), and the model."""
    head = SEWDForCTC.from_pretrained(uri).eval()
    features = FeatureExtractor.from_pretrained(uri)
    engine = load_engine([head], "cpu", threads=local_cpus(), features=features)
    waveform = torch.from_numpy(features.prepare(probe(features.sampling_rate)))
    (output,) = engine.encode([waveform])
    assert output is not None  # only devices run out of memory
    return output[0].numpy(), head
