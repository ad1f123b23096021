"""A recogniser as a stage of a Ray Data pipeline: a table of recordings in, the same table with texts out.

ds.map_batches(
    pipeline.TableRecognizer,
    fn_constructor_kwargs={"name": "bundled", "audio": "bytes"},
    batch_format="pyarrow", batch_size=64, concurrency=2, num_gpus=1,
)
"""

from __future__ import annotations

from typing import Any, Final

import pyarrow as pa

from pipeline.corpus.utterances import Utterance, broken_utterance
from pipeline.errors import AudioError, ErrorCode, UsageError
from pipeline.schemas import WORD, field
from pipeline.stages.recognizer import Recognizer, Transcript, utterance_of

_LABEL: Final = pa.struct(
    [
        field("task", pa.string(), "name of the classifier", nullable=False),
        field("label", pa.string(), "most probable label, or `score` for a regression head", nullable=False),
        field("score", pa.float32(), "probability of the label, or the predicted value", nullable=False),
    ]
)
RESULT: Final = pa.schema(
    [
        field("text", pa.string(), "transcript; null if the recording could not be read"),
        field("words", pa.list_(WORD), "words of the transcript, with their times; null as text"),
        field("confidence", pa.float32(), "geometric mean of the tokens' probabilities", "0..1"),
        field("labels", pa.list_(_LABEL), "the most probable label of each classifier; null as text"),
        field("duration_s", pa.float64(), "length of what was recognised; null as text", "s"),
        field("error_code", pa.string(), "a member of pipeline.errors.ErrorCode, if it was not read to its end"),
        field("error", pa.string(), "what is wrong, in words"),
    ]
)
"""The columns that are added."""
SAMPLES: Final = ("samples", "sampling_rate")


class TableRecognizer:
    """A callable class for `Dataset.map_batches` with `batch_format="pyarrow"`: one row out for each row in, in order.

    Input: the column `audio`, of encoded files as binary, paths or URIs as strings, or structs with `bytes` and `path`
    as Hugging Face datasets have them; or, where there is no such column, `samples` (lists or tensors of numbers, full
    scale of floats at 1) and `sampling_rate`, in Hz. All columns are kept, and those of `RESULT` are added.

    A row without usable audio has an `error_code`, and a null text unless some of it was recognised. Storage that
    cannot be reached fails the pipeline, after retries.
    """

    def __init__(self, name: str, *, audio: str = "audio", **options: Any) -> None:
        """Load a model.

        Args:
            name: see `Recognizer.from_pretrained`, as `options`.
            audio: name of the column with the audio.
            **options: see above.

        Raises:
            UsageError, StorageError: as `Recognizer.from_pretrained`.
        """
        self.audio = audio
        self.recognizer = Recognizer.from_pretrained(name, **options)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """The rows of a batch with the columns of `RESULT`.

        Raises:
            UsageError: the batch is no Arrow table, has no audio, or has a column of `RESULT`.
            StorageError: an object could not be reached.
        """
        if not isinstance(batch, pa.Table):
            raise UsageError(f'map_batches needs batch_format="pyarrow" here; the batch is a {type(batch).__name__}')
        if taken := [name for name in RESULT.names if name in batch.column_names]:
            raise UsageError(f"the rows have columns of the result already, rename them: {', '.join(taken)}")
        results = self.recognizer.transcribe_utterances(self._utterances(batch))
        added = pa.Table.from_pylist([_row(result) for result in results], schema=RESULT)
        for column in RESULT:
            batch = batch.append_column(column, added[column.name])
        return batch

    def _utterances(self, batch: pa.Table) -> list[Utterance]:
        if self.audio in batch.column_names:
            return [_utterance(_file(value), None, self.audio) for value in batch[self.audio].to_pylist()]
        if not set(SAMPLES) <= set(batch.column_names):
            wanted = f"neither {self.audio!r} nor {' and '.join(map(repr, SAMPLES))}"
            raise UsageError(f"the rows have {wanted} among their columns: {', '.join(batch.column_names)}")
        arrays = [_array(value) for value in batch["samples"]]
        rates = batch["sampling_rate"].to_pylist()
        return [_utterance(array, rate, "samples") for array, rate in zip(arrays, rates, strict=True)]


def _utterance(audio: Any, rate: int | None, column: str) -> Utterance:
    """The audio of a row; what is no audio is bad data here, and becomes the error of its row."""
    try:
        return utterance_of(audio, rate, column)
    except UsageError as error:
        return broken_utterance(column, "", AudioError(ErrorCode.BAD_ROW, str(error)))


def _file(value: Any) -> Any:
    if isinstance(value, dict):  # of Hugging Face's datasets
        return value.get("bytes") if value.get("bytes") is not None else value.get("path")
    return value


def _array(value: pa.Scalar) -> Any:
    if isinstance(value, pa.ListScalar) and value.is_valid and not isinstance(value.type.value_type, pa.ListType):
        return value.values.to_numpy(zero_copy_only=False)  # without a Python object for each sample
    return value.as_py()  # Ray's tensors become arrays


def _row(result: Transcript) -> dict[str, Any]:
    if not result.segments:
        return {"error_code": result.error_code, "error": result.error}
    best = {task: found[0] for task, found in result.labels.items()}
    return {
        "text": result.text,
        "words": [vars(word) for word in result.words],
        "confidence": result.confidence,
        "labels": [{"task": task, "label": top.label, "score": top.score} for task, top in best.items()],
        "duration_s": result.duration_s,
        "error_code": result.error_code,
        "error": result.error,
    }
