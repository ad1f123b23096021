"""Tables as the bytes of Parquet files."""

from __future__ import annotations

from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq


def encode_table(table: pa.Table, compression: Literal["zstd", "snappy"] = "zstd") -> bytes:
    """Return `table` as the bytes of a Parquet file; equal tables have equal bytes."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression=compression)
    content: bytes = sink.getvalue().to_pybytes()
    return content
