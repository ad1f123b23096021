"""The rows of a run in pandas, Polars and DuckDB, each of which is optional: rows are read once it is there."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

from pipeline.errors import UsageError

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.dataset as pads

_EXTRA: Final = "pip install 'sewd-pipeline[frames]'"


def pandas_frame(read: Callable[[], pa.Table]) -> Any:
    """A `pandas.DataFrame` of the table that `read` returns.

    Raises:
        UsageError: pandas is not installed.
    """
    _library("pandas")
    return read().to_pandas()


def polars_frame(read: Callable[[], pa.Table]) -> Any:
    """A `polars.DataFrame` of the table that `read` returns.

    Raises:
        UsageError: Polars is not installed.
    """
    return _library("polars").from_arrow(read())


def duckdb_connection(read: Callable[[], Mapping[str, pads.Dataset]]) -> Any:
    """A connection of DuckDB in memory with a view of each dataset of `read`, which is read when it is queried.

    Raises:
        UsageError: DuckDB is not installed.
    """
    connection = _library("duckdb").connect()
    for name, dataset in read().items():
        connection.register(name, dataset)
    return connection


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UsageError(f"{name} is not installed: {_EXTRA}") from error
