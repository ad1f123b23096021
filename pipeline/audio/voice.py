"""Voice activity by silero-vad, in places where a recording may be cut. Needs the extra `vad`.

The network is called directly, in one block of frames after the other: the package's own wrapper calls it frame by
frame at a sixth of the speed, and importing it sets the number of threads of torch for the whole process.
"""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from pipeline.audio.samples import Samples, to_float32
from pipeline.audio.silence import runs

RATE: Final = 16_000  # Hz, of the network
FRAME: Final = 512  # samples for which it gives a probability
_BEFORE: Final = 64  # samples in front of a frame that it hears too
_STATE: Final = (1, 1, 128)
_BLOCK: Final = 512  # frames a call
_LEAD: Final = 16  # frames in front of a window, in which the network gets to know the sound
_SPEECH: Final = 0.5  # probability from which a frame is speech
_MODEL: Final = "data/silero_vad_16k_sequence.onnx"


def missing() -> str | None:
    """Return why voice activity cannot be computed here, one line; None if it can."""
    names = [name for name in ("onnxruntime", "silero_vad") if importlib.util.find_spec(name) is None]
    return f"{' and '.join(names)} not found: pip install 'sewd-pipeline[vad]'" if names else None


def longest_silence(signal: Samples, first: int, last: int, rate: int = RATE) -> int:
    """Return the middle of the longest stretch without speech between two positions of a signal.

    Where all is speech, it is the middle of the frame that is least probably so.

    Args:
        signal: (samples,), int16 or float32, at `RATE`.
        first: first position to consider.
        last: last position.
        rate: `RATE`.
    """
    start = max(0, first - _LEAD * FRAME)
    probabilities = speech_probabilities(to_float32(signal[start:last]))[(first - start) // FRAME :]
    if not len(probabilities):
        return last
    silent = probabilities < _SPEECH if probabilities.min() < _SPEECH else probabilities == probabilities.min()
    begin, end = max(runs(silent), key=lambda run: run[1] - run[0])
    return first + (begin + end) * FRAME // 2


def speech_probabilities(samples: np.ndarray) -> np.ndarray:
    """Return the probability of speech in each whole frame, (len(samples) // FRAME,) float32.

    Args:
        samples: (samples,) float32 at `RATE`.
    """
    count = len(samples) // FRAME
    padded = np.concatenate((np.zeros(_BEFORE, np.float32), samples[: count * FRAME]))
    frames = sliding_window_view(padded, _BEFORE + FRAME)[::FRAME] if count else np.zeros((0, _BEFORE + FRAME))
    hidden = cell = np.zeros(_STATE, np.float32)
    found = [np.zeros(0, np.float32)]
    for block in range(0, count, _BLOCK):
        inputs = {"input": np.ascontiguousarray(frames[block : block + _BLOCK]), "h": hidden, "c": cell}
        values, hidden, cell = _network().run(["speech_probs", "hn", "cn"], inputs)
        found.append(values)
    return np.concatenate(found)


@functools.cache
def _network() -> Any:
    import onnxruntime  # noqa: PLC0415 - an extra

    spec = importlib.util.find_spec("silero_vad")  # finds the package, and does not import it
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(missing())
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    path = Path(spec.origin).parent / _MODEL
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
