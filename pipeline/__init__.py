"""From an INPUT of audio to a committed run: corpus, plan, decode, infer, sink, metrics. Knows no command line.

run = pipeline.transcribe(pipeline.RunConfig(inputs=("corpus/",), output="run", model="checkpoint"))
pipeline.evaluate_run(run).wer
"""

import importlib
from typing import TYPE_CHECKING, Any

from pipeline.config import RunConfig
from pipeline.errors import AudioError, ErrorCode, RunFailedError, StorageError, UsageError
from pipeline.runs.run import Run

if TYPE_CHECKING:
    from pipeline.driver.transcribe import Progress, transcribe
    from pipeline.evaluation.evaluate import evaluate_run
    from pipeline.evaluation.reading import EvaluationSettings
    from pipeline.evaluation.results import Evaluation
    from pipeline.evaluation.tables import write_metrics
    from pipeline.scoring.rules import Scoring

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
    "Evaluation": "evaluation.results",
    "EvaluationSettings": "evaluation.reading",
    "Progress": "driver.transcribe",
    "Scoring": "scoring.rules",
    "evaluate_run": "evaluation.evaluate",
    "transcribe": "driver.transcribe",
    "write_metrics": "evaluation.tables",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(importlib.import_module(f"pipeline.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
