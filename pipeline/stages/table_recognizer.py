"""A recogniser as a stage of a Ray Data pipeline: a table of recordings in, the same table with texts out.

ds.map_batches(
    pipeline.TableRecognizer,
    fn_constructor_kwargs={"name": "bundled", "audio": "bytes"},
    batch_format="pyarrow", batch_size=64, concurrency=2, num_gpus=1,
)
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.corpus.utterances import Utterance, broken_utterance
from pipeline.errors import AudioError, ErrorCode, UsageError
from pipeline.schemas import WORD, field
from pipeline.stages.recognizer import NotAudioError, Recognizer, Transcript, utterance_of

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
        field("warning", pa.string(), "what is wrong with the headers of the file, all of which was read"),
    ]
)
"""The columns that are added."""
SAMPLES: Final = ("samples", "sampling_rate")


class TableRecognizer:
    """A callable class for `Dataset.map_batches` with `batch_format="pyarrow"`: one row out for each row in, in order.

    Input: the column `audio`, of encoded files as binary, paths or URIs as strings, or structs with `bytes` and `path`
    as Hugging Face datasets have them; or, where there is no such column, `samples` and `sampling_rate`, in Hz. Samples
    are lists, nested lists or tensors, (samples,) or (samples, channels): int16, int32, floats with full scale at 1, or
    int64 with values of int16. All columns are kept, and those of `RESULT` are added.

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
            UsageError: the batch is no Arrow table, has no audio, or has a column of `RESULT`; or the package that
                serves a URI is not installed.
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
        rows = zip(batch["samples"], batch["sampling_rate"].to_pylist(), strict=True)
        return [_utterance(_array(value), _rate(rate), "samples") for value, rate in rows]


def _utterance(audio: Any, rate: Any, column: str) -> Utterance:
    """The audio of a row; what is no audio is bad data here, and becomes the error of its row."""
    try:
        return utterance_of(audio, rate, column)
    except NotAudioError as error:
        return broken_utterance(column, "", AudioError(ErrorCode.BAD_ROW, str(error)))


def _file(value: Any) -> Any:
    if isinstance(value, dict):  # of Hugging Face's datasets
        return value.get("bytes") if value.get("bytes") is not None else value.get("path")
    return value


def _rate(value: Any) -> Any:
    """A rate in Hz. Columns of whole numbers and nulls become floats in pandas."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _array(value: pa.Scalar) -> Any:
    """The samples of a row, (samples,) or (samples, channels), without a Python object for each."""
    if not value.is_valid:
        return None
    if isinstance(value, pa.FixedShapeTensorScalar):
        array = value.to_numpy()
    elif isinstance(value, pa.ListScalar):
        array = _of_list(value.values)
    else:
        array = value.as_py()  # Ray's tensors become arrays
    if (
        isinstance(array, np.ndarray)
        and array.dtype == np.int64
        and np.array_equal(short := array.astype(np.int16), array)
    ):
        return short  # Python's integers are int64 in Arrow
    return array


def _of_list(values: pa.Array) -> Any:
    """The values of a list; of a list of lists of one length, (samples, channels)."""
    if not (
        pa.types.is_list(values.type) or pa.types.is_large_list(values.type) or pa.types.is_fixed_size_list(values.type)
    ):
        return values.to_numpy(zero_copy_only=False)
    lengths = pc.unique(pc.list_value_length(values)).to_pylist()
    if len(lengths) != 1 or lengths[0] is None:  # not rectangular, which the check of its dtype refuses; or empty
        return values.to_numpy(zero_copy_only=False) if lengths else np.zeros(0, np.float32)
    return values.flatten().to_numpy(zero_copy_only=False).reshape(len(values), lengths[0])


def _row(result: Transcript) -> dict[str, Any]:
    if not result.segments:
        return {"error_code": result.error_code, "error": result.error, "warning": result.warning}
    best = {task: found[0] for task, found in result.labels.items()}
    return {
        "text": result.text,
        "words": [vars(word) for word in result.words],
        "confidence": result.confidence,
        "labels": [{"task": task, "label": top.label, "score": top.score} for task, top in best.items()],
        "duration_s": result.duration_s,
        "error_code": result.error_code,
        "error": result.error,
        "warning": result.warning,
    }
