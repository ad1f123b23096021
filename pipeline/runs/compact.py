"""Merge the many small data files of a run into few large ones, when the run is finished.

A chunk is twenty minutes of audio and a corpus has millions of them; readers of a finished run should open dozens of
files. The rows of the committed files are written again, in the order of their commits, into files of about
`FILE_BYTES`; then one object, `compaction.json`, names them. From then on readers use those files.

The ordering argument is that of `pipeline.runs.commit`, one level up. The names of compacted files contain the digest
of their bytes, each is put whole, and `compaction.json` is put when all of them are stored: if it can be read, they are
complete. Killed before it: the compacted files are orphans, which the next start removes, and readers use the files of
the commits, which are untouched. Killed after it: the small files are the orphans. Commits are never touched: a resume
and the totals rely on them.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq

from pipeline.runs.commit import DataFile, data_file_from_json, put_data_file
from pipeline.runs.damage import damaged, first_damaged_file, first_lost_file
from pipeline.schemas import TABLES
from pipeline.storage import objects, retry, uris
from sewd_model.grouping import grouped

COMPACTION: Final = "compaction.json"
FILE_BYTES: Final = 256 << 20
MAX_GROUP_FILES: Final = 5000  # files that one task opens: small files cost requests, not bytes
ROW_GROUP_ROWS: Final = 1 << 15
SMALL_RUN_BYTES: Final = 32 << 20  # below this, starting workers takes longer than the work

FileGroup = tuple[str, list[DataFile]]
"""A table, and the files of it that become one compacted file."""

CompactGroups = Callable[[str, Sequence[FileGroup]], list[DataFile]]
"""Writes each group of files of a run as one file; where, and how many at a time, is the caller's choice."""


def read_compaction(run: str) -> list[DataFile] | None:
    """The files that hold the rows of the run, if it was compacted; else None.

    Raises:
        DamagedRunError: the object that names them cannot be read.
    """
    try:
        data = objects.fetch(uris.join(run, COMPACTION))
    except FileNotFoundError:
        return None
    try:
        return [data_file_from_json(file) for file in json.loads(data)["files"]]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise damaged(run, COMPACTION, f"cannot be read ({error})") from error


def write_compaction(run: str, files: Iterable[DataFile]) -> None:
    """Put the object that names the compacted files. All of them must be stored already."""
    data = json.dumps({"files": [asdict(file) for file in files]}, indent=1).encode()
    objects.put(uris.join(run, COMPACTION), data)


def compact_files(run: str, files: Sequence[DataFile], compact_groups: CompactGroups) -> list[DataFile]:
    """Write the rows of the committed `files` to few files: by `compact_groups`, or in this process if they are small.

    Returns:
        The compacted files, which nothing names yet.
    """
    groups = list(compaction_groups(files))
    if sum(file.size for file in files) < SMALL_RUN_BYTES:
        return [compact_group(run, table, group) for table, group in groups]
    return compact_groups(run, groups)


def compaction_groups(files: Iterable[DataFile]) -> Iterator[FileGroup]:
    """Group the files of each table, in their order, so that a group has about `FILE_BYTES`."""
    by_table: dict[str, list[DataFile]] = {}
    for file in files:
        by_table.setdefault(file.table, []).append(file)
    for table, members in by_table.items():
        for group in grouped(members, lambda file: file.size, at_most=FILE_BYTES, max_items=MAX_GROUP_FILES):
            yield table, group


def compact_group(run: str, table: str, files: Sequence[DataFile]) -> DataFile:
    """Write the rows of `files` as one file, in their order, a row group at a time; transient errors are retried.

    Raises:
        StorageError: storage errors last longer than the retries.
        DamagedRunError: one of `files` is lost or was changed.
        RuntimeError: `files` do not hold as many rows as their commits say.
    """

    def attempt() -> DataFile:
        try:
            return _merge(run, table, files)
        except FileNotFoundError as error:
            raise first_lost_file(run, files) or error from error
        except (pa.ArrowException, OSError) as error:
            if getattr(error, "errno", None) is None and (damage := first_damaged_file(run, files)):
                raise damage from error
            raise

    return retry.with_retries(run, attempt)


def _merge(run: str, table: str, files: Sequence[DataFile]) -> DataFile:
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
    expected = sum(file.rows for file in files)
    if rows != expected:
        raise RuntimeError(f"{run}: the files of {table} hold {rows} rows, but their commits name {expected}")
    return put_data_file(run, table, "all", rows, data)


def _row_groups(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    """Join batches to at least `ROW_GROUP_ROWS` rows: small row groups are read as slowly as small files."""
    return map(pa.Table.from_batches, grouped(batches, lambda batch: batch.num_rows, at_least=ROW_GROUP_ROWS))
