"""From an INPUT of audio to a committed run: corpus, plan, decode, infer, sink, metrics. Knows no command line.

run = pipeline.transcribe(pipeline.RunConfig(inputs=("corpus/",), output="run", model="checkpoint"))
pipeline.evaluate_run(run).wer
"""

from typing import TYPE_CHECKING, Any

from pipeline.config import RunConfig
from pipeline.errors import AudioError, ErrorCode, RunFailedError, StorageError, UsageError
from pipeline.evaluate import Evaluation, EvaluationSettings, evaluate_run
from pipeline.metrics import write_metrics
from pipeline.run import Run
from pipeline.scoring import Scoring

if TYPE_CHECKING:
    from pipeline.driver import Progress, transcribe

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


def __getattr__(name: str) -> Any:
    """Load the driver when it is asked for: torch and Ray take seconds, which reading a run need not wait for."""
    if name in ("Progress", "transcribe"):
        from pipeline import driver  # noqa: PLC0415

        return getattr(driver, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
