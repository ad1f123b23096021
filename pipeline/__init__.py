"""From an INPUT of audio to a committed run: corpus, plan, decode, infer, sink, metrics. Knows no command line.

    run = pipeline.transcribe(pipeline.RunConfig(inputs=("corpus/",), output="run", model="checkpoint"))
    pipeline.evaluate_run(run).wer
"""

from pipeline.config import RunConfig
from pipeline.errors import AudioError, ErrorCode, RunFailedError, StorageError, UsageError
from pipeline.evaluate import Evaluation
from pipeline.run import Run
from pipeline.score import evaluate_run, write_metrics
from pipeline.transcribe import Progress, transcribe

__all__ = [
    "AudioError",
    "ErrorCode",
    "Evaluation",
    "Progress",
    "Run",
    "RunConfig",
    "RunFailedError",
    "StorageError",
    "UsageError",
    "evaluate_run",
    "transcribe",
    "write_metrics",
]
