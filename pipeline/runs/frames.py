"""The rows of a run in pandas, Polars and DuckDB, each of which is optional."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

from pipeline.errors import UsageError

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.dataset as pads

_EXTRA: Final = "pip install 'sewd-pipeline[frames]'"


def pandas_frame(table: pa.Table) -> Any:
    """A `pandas.DataFrame` of a table.

    Raises:
        UsageError: pandas is not installed.
    """
    _library("pandas")
    return table.to_pandas()


def polars_frame(table: pa.Table) -> Any:
    """A `polars.DataFrame` of a table.

    Raises:
        UsageError: Polars is not installed.
    """
    return _library("polars").from_arrow(table)


def duckdb_connection(datasets: dict[str, pads.Dataset]) -> Any:
    """A connection of DuckDB in memory with a view of each dataset, which is read when it is queried.

    Raises:
        UsageError: DuckDB is not installed.
    """
    connection = _library("duckdb").connect()
    for name, dataset in datasets.items():
        connection.register(name, dataset)
    return connection


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UsageError(f"{name} is not installed: {_EXTRA}") from error
