"""The model stage as the driver hands it to Ray: by reference, without what computes. Loads no torch."""

from __future__ import annotations

import pyarrow as pa

from pipeline.stages.settings import RecognizeSettings


class RecognizerActor:
    """`pipeline.stages.recognize.RecognizerActor`, which the actor's process imports: it loads torch."""

    def __init__(self, settings: RecognizeSettings) -> None:
        from pipeline.stages.recognize import RecognizerActor as Recognizer  # noqa: PLC0415 - loads torch

        self._recognizer = Recognizer(settings)

    def __call__(self, chunks: pa.Table) -> pa.Table:
        """Recognise chunks, see `pipeline.stages.recognize.RecognizerActor`."""
        return self._recognizer(chunks)
