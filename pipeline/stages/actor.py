"""The model stage as the driver hands it to Ray: by reference, without what computes. Loads no torch."""

from __future__ import annotations

import pyarrow as pa

from pipeline.stages.settings import RecognizeSettings


class RecognizerActor:
    """`pipeline.stages.recognize.ChunkRecognizer`, which the actor's process imports: it loads torch."""

    def __init__(self, settings: RecognizeSettings) -> None:
        from pipeline.stages.recognize import ChunkRecognizer  # noqa: PLC0415 - loads torch

        self._recognizer = ChunkRecognizer(settings)

    def __call__(self, chunks: pa.Table) -> pa.Table:
        """Recognise chunks, see `pipeline.stages.recognize.ChunkRecognizer`."""
        return self._recognizer(chunks)
