"""Few large files for many small ones: what finishing a run does to its data.

A chunk is twenty minutes of audio and a corpus has millions of them; readers of a finished run should open dozens of
files. The rows of the committed files are written again, in the order of their commits, into files of about
`FILE_BYTES`; then one object, `compaction.json`, names them. From then on readers take the files from there.

The ordering argument is that of `pipeline.runs.commit`, one level up. Compacted files carry the digest of their bytes
in their names and are put whole, and the object that names them is put when all of them are there: it can be read
only if they are complete. Killed before it: files that nothing names, removed as orphans by the next start, and
readers go by the commits, whose files are untouched. Killed after it: the small files are the orphans. Commits are
never touched: they are the truth for resume and for the totals.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq

from pipeline.runs.commit import DataFile
from pipeline.schemas import TABLES
from pipeline.storage import objects, retry, uris

COMPACTION: Final = "compaction.json"
FILE_BYTES: Final = 256 << 20
GROUP_FILES: Final = 5000  # that one task opens at most: small files are a matter of requests, not of bytes
ROW_GROUP_ROWS: Final = 1 << 15


def read_compaction(run: str) -> list[DataFile] | None:
    """The files that the run's rows lie in, if it was compacted; else None."""
    try:
        data = objects.fetch(uris.join(run, COMPACTION))
    except FileNotFoundError:
        return None
    return [DataFile(**file) for file in json.loads(data)["files"]]


def write_compaction(run: str, files: Iterable[DataFile]) -> None:
    """Put the object that names the compacted files: when all of them are there."""
    data = json.dumps({"files": [asdict(file) for file in files]}, indent=1).encode()
    objects.put(uris.join(run, COMPACTION), data)


def groups_of(files: Iterable[DataFile]) -> Iterator[tuple[str, list[DataFile]]]:
    """Files of one table in their order, as many as come to about `FILE_BYTES`: what one compacted file is made of."""
    by_table: dict[str, list[DataFile]] = {}
    for file in files:
        by_table.setdefault(file.table, []).append(file)
    for table, members in by_table.items():
        group: list[DataFile] = []
        size = 0
        for file in members:
            if group and (size + file.size > FILE_BYTES or len(group) == GROUP_FILES):
                yield table, group
                group, size = [], 0
            group.append(file)
            size += file.size
        yield table, group


def compact_group(run: str, table: str, files: Sequence[DataFile]) -> DataFile:
    """Write the rows of `files` as one file, in their order, a row group at a time; again, if the weather is bad.

    Raises:
        StorageError: it does not clear.
        RuntimeError: it would not hold as many rows as its sources are said to.
    """
    return retry.with_retries(run, lambda: _compacted(run, table, files))


def _compacted(run: str, table: str, files: Sequence[DataFile]) -> DataFile:
    fs, root = uris.filesystem(run)
    source = pads.dataset([uris.join(root, f.path) for f in files], TABLES[table], "parquet", filesystem=fs)
    rows = 0
    with tempfile.TemporaryDirectory(prefix="sewd-compact-") as folder:
        path = Path(folder, "part.parquet")
        with pq.ParquetWriter(path, TABLES[table], compression="zstd") as writer:
            for group in _row_groups(source.to_batches(batch_size=ROW_GROUP_ROWS, fragment_readahead=2)):
                writer.write_table(group)
                rows += group.num_rows
        data = path.read_bytes()
    if rows != sum(file.rows for file in files):
        raise RuntimeError(
            f"{run}: {rows} rows read of {sum(file.rows for file in files)} that commits name in {table}"
        )
    digest = hashlib.sha256(data).hexdigest()
    compacted = DataFile(table, f"{table}/all-{digest[:16]}.parquet", rows, len(data), digest)
    objects.put(uris.join(run, compacted.path), data)
    return compacted


def _row_groups(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    """Batches joined to at least `ROW_GROUP_ROWS` rows: small row groups are read as slowly as small files."""
    held: list[pa.RecordBatch] = []
    for batch in batches:
        held.append(batch)
        if sum(b.num_rows for b in held) >= ROW_GROUP_ROWS:
            yield pa.Table.from_batches(held)
            held = []
    if held:
        yield pa.Table.from_batches(held)
