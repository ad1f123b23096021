"""From an INPUT of audio to a committed run: corpus, plan, decode, infer, sink, metrics. Knows no command line.

run = pipeline.transcribe(pipeline.RunConfig(inputs=("corpus/",), output="run", model="checkpoint"))
pipeline.evaluate_run(run).wer
"""

import importlib
from typing import TYPE_CHECKING, Any

from pipeline.config import RunConfig
from pipeline.errors import AudioError, ErrorCode, RunFailedError, StorageError, UsageError
from pipeline.run import Run

if TYPE_CHECKING:
    from pipeline.driver import Progress, transcribe
    from pipeline.evaluate import Evaluation, EvaluationSettings, evaluate_run
    from pipeline.metrics import write_metrics
    from pipeline.scoring import Scoring

__all__ = [
    "AudioError",
    "ErrorCode",
    "Evaluation",
    "EvaluationSettings",
    "Progress",
    "Run",
    "RunConfig",
    "RunFailedError",
    "Scoring",
    "StorageError",
    "UsageError",
    "evaluate_run",
    "transcribe",
    "write_metrics",
]

# Loaded when they are asked for: torch, Ray and scipy take seconds, which reading a run need not wait for, nor each of
# a run's workers.
_MODULES = {
    "Evaluation": "evaluate",
    "EvaluationSettings": "evaluate",
    "Progress": "driver",
    "Scoring": "scoring",
    "evaluate_run": "evaluate",
    "transcribe": "driver",
    "write_metrics": "metrics",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(importlib.import_module(f"pipeline.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
