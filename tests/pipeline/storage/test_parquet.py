"""Tables as Parquet bytes: what pyarrow writes to a file, the same for equal tables."""

import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.schemas import TABLES
from pipeline.storage.parquet import encode_table

TABLE = pa.table({"a": [1, 2, None], "b": ["x", "y", "ü"]})


@pytest.mark.parametrize("compression", ["zstd", "snappy"])
def test_the_bytes_are_those_of_a_parquet_file(compression):
    file = io.BytesIO()
    pq.write_table(TABLE, file, compression=compression)
    assert encode_table(TABLE, compression) == file.getvalue()
    assert pq.read_metadata(file).row_group(0).column(0).compression == compression.upper()


def test_equal_tables_have_equal_bytes():
    assert encode_table(TABLE) == encode_table(pa.concat_tables([TABLE.slice(0, 3)]))


@pytest.mark.parametrize("name", TABLES)
def test_the_meaning_of_each_column_is_kept(name):
    schema = pq.read_schema(io.BytesIO(encode_table(TABLES[name].empty_table())))
    assert schema.names == TABLES[name].names
    for field in TABLES[name]:
        assert field.metadata[b"meaning"]
        assert schema.field(field.name).metadata[b"meaning"] == field.metadata[b"meaning"]
