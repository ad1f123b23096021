"""Transcribe a speech corpus into a run, and evaluate the run; or recognise audio in this process, without a run.

Independent of the command line.

run = pipeline.transcribe(pipeline.RunConfig(inputs=("corpus/",), output="run", model="checkpoint"))
pipeline.evaluate_run(run).wer
"""

import importlib
from typing import TYPE_CHECKING, Any

from pipeline.errors import AudioError, ErrorCode, RunFailedError, StorageError, UsageError

if TYPE_CHECKING:
    from pipeline.config import RedecodeConfig, RunConfig
    from pipeline.driver.progress import Progress
    from pipeline.driver.redecode import redecode
    from pipeline.driver.transcribe import transcribe
    from pipeline.evaluation.evaluate import evaluate_run
    from pipeline.evaluation.results import Evaluation
    from pipeline.evaluation.settings import EvaluationSettings
    from pipeline.evaluation.tables import write_metrics
    from pipeline.runs.recordings import recordings
    from pipeline.runs.run import Run
    from pipeline.scoring.rules import Scoring
    from pipeline.stages.recognizer import Recognizer, Transcript
    from pipeline.stages.table_recognizer import TableRecognizer

__all__ = [
    "AudioError",
    "ErrorCode",
    "Evaluation",
    "EvaluationSettings",
    "Progress",
    "Recognizer",
    "RedecodeConfig",
    "Run",
    "RunConfig",
    "RunFailedError",
    "Scoring",
    "StorageError",
    "TableRecognizer",
    "Transcript",
    "UsageError",
    "evaluate_run",
    "recordings",
    "redecode",
    "transcribe",
    "write_metrics",
]

# Loaded on first use: importing torch, Ray, Arrow and scipy takes seconds, for which only those wait who use them.
_MODULES = {
    "Evaluation": "evaluation.results",
    "EvaluationSettings": "evaluation.settings",
    "Progress": "driver.progress",
    "Recognizer": "stages.recognizer",
    "RedecodeConfig": "config",
    "Run": "runs.run",
    "RunConfig": "config",
    "Scoring": "scoring.rules",
    "TableRecognizer": "stages.table_recognizer",
    "Transcript": "stages.recognizer",
    "evaluate_run": "evaluation.evaluate",
    "recordings": "runs.recordings",
    "redecode": "driver.redecode",
    "transcribe": "driver.transcribe",
    "write_metrics": "evaluation.tables",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(importlib.import_module(f"pipeline.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
