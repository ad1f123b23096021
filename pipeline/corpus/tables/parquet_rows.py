"""Parquet files whose audio is in other files: rows of paths, as CSV has them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.corpus.class_labels import class_names, with_class_names
from pipeline.corpus.metadata import UtteranceMeta
from pipeline.corpus.tables.kind import MAX_TABLE_BYTES, Row, TableKind
from pipeline.errors import AudioError, ErrorCode, UsageError
from pipeline.storage import objects

# Raised for a broken file by Arrow, and by Python for the names and numbers in it. StorageError, raised where the
# storage fails, is not among them.
PARQUET_ERRORS: Final = (pa.ArrowException, OSError, ValueError, LookupError, ArithmeticError, MemoryError)
# Raised where a value has no equal in Python: a date beyond the year 9999, nanoseconds, a string that is not UTF-8.
VALUE_ERRORS: Final = (ValueError, ArithmeticError, pa.ArrowException)
_BATCH_ROWS: Final = 1024
_KNOWN_COLUMNS: Final = frozenset(
    name
    for field in UtteranceMeta.model_fields.items()
    for name in (field[0], *(field[1].validation_alias.choices if field[1].validation_alias else ()))  # type: ignore[union-attr]
)


def _rows(uri: str) -> Iterator[Row]:
    done = 0
    with objects.open_read(uri) as file:
        try:
            table = pq.ParquetFile(file)
            if sum(table.metadata.row_group(i).total_byte_size for i in range(table.num_row_groups)) > MAX_TABLE_BYTES:
                raise UsageError(f"{uri} is larger than {MAX_TABLE_BYTES >> 30} GiB, and its rows are held in memory")
            names = [name for name in table.schema_arrow.names if not _is_bytes(table.schema_arrow.field(name).type)]
            classes = class_names(table.schema_arrow)
            for batch in table.iter_batches(_BATCH_ROWS, columns=names):
                for index in range(batch.num_rows):
                    done += 1
                    row = _row(batch, index)
                    yield row if isinstance(row, AudioError) else with_class_names(row, classes)
        except PARQUET_ERRORS as error:
            yield AudioError(ErrorCode.BAD_ARCHIVE, f"after {done} rows: {error}")


def _is_bytes(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind))


def value_of(scalar: pa.Scalar, name: str) -> Any:
    """The value as Python has it. A column that only becomes a tag is shown as it is stored if Python has none.

    Raises:
        ValueError, ArrowException: a column of `UtteranceMeta` has a value that Python has not.
    """
    try:
        return scalar.as_py()
    except VALUE_ERRORS:
        if name in _KNOWN_COLUMNS:
            raise
        return None if (number := getattr(scalar, "value", None)) is None else str(number)


def _row(batch: pa.RecordBatch, index: int) -> Row:
    values: dict[str, Any] = {}
    try:
        for name in batch.schema.names:
            if (value := value_of(batch[name][index], name)) is not None:
                values[name] = value
    except VALUE_ERRORS as error:
        return AudioError(ErrorCode.BAD_ROW, str(error))
    return values


PARQUET_ROWS = TableKind(
    key="parquet",
    name="Parquet file of paths",
    recognises=lambda name, head: head.startswith(b"PAR1"),
    rows=_rows,
)
