"""Merge the many small data files of a run into few large ones, when the run is finished.

A chunk is twenty minutes of audio and a corpus has millions of them; readers of a finished run should open dozens of
files. The rows of the committed files are written again, in the order of their commits, into files of about
`FILE_BYTES`; then one object, `compaction.json`, names them. From then on readers use those files.

The ordering argument is that of `pipeline.runs.commit`, one level up. The names of compacted files contain the digest
of their bytes, each is put whole, and `compaction.json` is put when all of them are stored: if it can be read, they are
complete. Killed before it: the compacted files are orphans, which the next start removes, and readers use the files of
the commits, which are untouched. Killed after it: the small files are the orphans. Commits of parts in the plan are
never touched: a resume and the totals rely on them.

A run that was updated (`pipeline.runs.update`) is compacted again, by the same argument: until the new
`compaction.json` is stored, readers use the files that the old one names, which are untouched. Of these, files whose
rows all stay are named again as they are, files with rows of parts that left are written again without them, and the
files of new commits are merged. So that a run with many small updates has few files, the last files are merged with
the new ones while they are not larger than what comes behind them: a row is written again a logarithmic number of
times.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.runs.commit import DataFile, data_file_from_json, put_data_file
from pipeline.runs.damage import damaged, first_damaged_file, first_lost_file
from pipeline.schemas import TABLES
from pipeline.storage import clients, objects, retry, uris
from pipeline.storage.arrow import arrow_filesystem
from sewd_model.grouping import grouped

COMPACTION: Final = "compaction.json"
FILE_BYTES: Final = 256 << 20
MAX_GROUP_FILES: Final = 5000  # files that one task opens: small files cost requests, not bytes
ROW_GROUP_ROWS: Final = 1 << 15
ROW_GROUP_FRAMES: Final = 1 << 17  # of posteriors, 44 minutes at 20 ms: what one task decodes
SMALL_RUN_BYTES: Final = 32 << 20  # below this, starting workers takes longer than the work


@dataclass(frozen=True)
class Compaction:
    """What `compaction.json` holds.

    Attributes:
        files: the files that hold the rows of the run.
        update: the number of the update of the plan whose rows they are; 0: of the plan that created the run.
        additions: the additions of classifiers, by their folders, whose labels they hold (`pipeline.runs.additions`).
    """

    files: tuple[DataFile, ...]
    update: int = 0
    additions: tuple[str, ...] = ()


class FileGroup(NamedTuple):
    """Files of one table that become one compacted file.

    Attributes:
        table: the table.
        files: its files, in order.
        left: ids of the parts whose rows in them are left out.
    """

    table: str
    files: list[DataFile]
    left: frozenset[str] = frozenset()


CompactGroups = Callable[[str, Sequence[FileGroup]], list[DataFile]]
"""Writes each group of files of a run as one file; where, and how many at a time, is the caller's choice."""


def read_compaction(run: str) -> Compaction | None:
    """The files that hold the rows of the run, if it was compacted; else None.

    Raises:
        DamagedRunError: the object that names them cannot be read.
    """
    try:
        data = objects.fetch(uris.join(run, COMPACTION))
    except FileNotFoundError:
        return None
    try:
        values = json.loads(data)
        update = values.get("update", 0)  # versions without updates did not write it
        if not isinstance(update, int):
            raise TypeError(f"update is {update!r}")
        additions = tuple(map(str, values.get("additions", ())))
        return Compaction(tuple(map(data_file_from_json, values["files"])), update, additions)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise damaged(run, COMPACTION, f"cannot be read ({error})") from error


def write_compaction(run: str, files: Iterable[DataFile], update: int = 0, additions: Iterable[str] = ()) -> None:
    """Put the object that names the compacted files. All of them must be stored already."""
    values: dict[str, Any] = {"files": [asdict(file) for file in files], **({"update": update} if update else {})}
    if folders := list(additions):
        values["additions"] = folders
    objects.put(uris.join(run, COMPACTION), json.dumps(values, indent=1).encode())


def compact_files(run: str, files: Sequence[DataFile], compact_groups: CompactGroups) -> list[DataFile]:
    """Write the rows of the committed `files` to few files: by `compact_groups`, or in this process if they are small.

    Returns:
        The compacted files, which nothing names yet.
    """
    return _compact(run, list(compaction_groups(files)), compact_groups)


def compact_again(
    run: str, files: Iterable[DataFile], parts: pa.Array, new: Sequence[DataFile], compact_groups: CompactGroups
) -> list[DataFile]:
    """Merge committed files into a run that was compacted before; see the module.

    Args:
        run: the run.
        files: its compacted files.
        parts: ids of the parts whose rows stay.
        new: the files of commits of parts that have no rows in `files`.
        compact_groups: see `compact_files`.

    Returns:
        The files that hold the rows now, which nothing names yet; those that changed nothing first.
    """
    stored = [file for file in files if file.rows]
    with ThreadPoolExecutor(clients.MAX_CONNECTIONS) as pool:
        left = dict(zip(stored, pool.map(lambda file: _left_parts(run, file, parts), stored), strict=True))
    kept: list[DataFile] = []
    groups: list[FileGroup] = []
    for table in TABLES:
        following = [file for file in new if file.table == table]
        rewritten: list[DataFile] = []
        following_bytes = sum(file.size for file in following)
        for file in reversed([file for file in stored if file.table == table]):
            if left[file].rows == file.rows:
                continue
            if left[file].parts or file.size <= min(following_bytes, FILE_BYTES // 2):
                rewritten.insert(0, file)
                following_bytes += file.size
            else:
                kept.append(file)
        for group in compaction_groups([*rewritten, *following]):
            parts_left = frozenset[str]().union(*(left[file].parts for file in group.files if file in left))
            groups.append(group._replace(left=parts_left))
    return [*sorted(kept, key=stored.index), *_compact(run, groups, compact_groups)]


class _Left(NamedTuple):
    """The parts in a file whose rows do not stay, and the number of these rows."""

    parts: frozenset[str]
    rows: int


def _left_parts(run: str, file: DataFile, parts: pa.Array) -> _Left:
    def attempt() -> _Left:
        try:
            with objects.open_read(uris.join(run, file.path)) as source:
                ids = pq.read_table(source, columns=["part_id"])["part_id"]
        except (FileNotFoundError, pa.ArrowException) as error:
            raise first_damaged_file(run, [file]) or error from error
        gone = ids.filter(pc.invert(pc.is_in(ids, parts)))
        return _Left(frozenset(gone.unique().to_pylist()), len(gone))

    return retry.with_retries(run, attempt)


def _compact(run: str, groups: Sequence[FileGroup], compact_groups: CompactGroups) -> list[DataFile]:
    if sum(file.size for group in groups for file in group.files) < SMALL_RUN_BYTES:
        return [compact_group(run, *group) for group in groups]
    return compact_groups(run, groups)


def compaction_groups(files: Iterable[DataFile]) -> Iterator[FileGroup]:
    """Group the files of each table, in their order, so that a group has about `FILE_BYTES`."""
    by_table: dict[str, list[DataFile]] = {}
    for file in files:
        by_table.setdefault(file.table, []).append(file)
    for table, members in by_table.items():
        for group in grouped(members, lambda file: file.size, at_most=FILE_BYTES, max_items=MAX_GROUP_FILES):
            yield FileGroup(table, group)


def compact_group(run: str, table: str, files: Sequence[DataFile], left: frozenset[str] = frozenset()) -> DataFile:
    """Write the rows of `files` as one file, in their order, a row group at a time; transient errors are retried.

    Args:
        run: the run.
        table: the table.
        files: its files.
        left: ids of parts whose rows are left out.

    Raises:
        StorageError: storage errors last longer than the retries.
        DamagedRunError: one of `files` is lost or was changed.
        RuntimeError: `files` do not hold as many rows as their commits say.
    """

    def attempt() -> DataFile:
        try:
            return _merge(run, table, files, left)
        except FileNotFoundError as error:
            raise first_lost_file(run, files) or error from error
        except (pa.ArrowException, OSError) as error:
            if getattr(error, "errno", None) is None and (damage := first_damaged_file(run, files)):
                raise damage from error
            raise

    return retry.with_retries(run, attempt)


def _merge(run: str, table: str, files: Sequence[DataFile], left: frozenset[str]) -> DataFile:
    import pyarrow.dataset as pads  # noqa: PLC0415 - loads pandas, if there is one

    fs, root = arrow_filesystem(run)
    source = pads.dataset([uris.join(root, f.path) for f in files], TABLES[table], "parquet", filesystem=fs)
    read = rows = 0
    gone = pa.array(sorted(left), pa.string())

    def staying() -> Iterator[pa.RecordBatch]:
        nonlocal read
        for batch in source.to_batches(batch_size=ROW_GROUP_ROWS, fragment_readahead=2):
            read += batch.num_rows
            yield batch.filter(pc.invert(pc.is_in(batch["part_id"], gone))) if left else batch

    with tempfile.TemporaryDirectory(prefix="sewd-compact-") as folder:
        path = Path(folder, "part.parquet")
        with pq.ParquetWriter(path, TABLES[table], compression="zstd") as writer:
            for group in _row_groups(table, staying()):
                writer.write_table(group)
                rows += group.num_rows
        data = path.read_bytes()
    expected = sum(file.rows for file in files)
    if read != expected:
        raise RuntimeError(f"{run}: the files of {table} hold {read} rows, but their commits name {expected}")
    return put_data_file(run, table, "all", rows, data)


def _row_groups(table: str, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    """Join batches to at least `ROW_GROUP_ROWS` rows: small row groups are read as slowly as small files.

    Those of posteriors are closed by frames, between two batches: the rows of a chunk are in one row group.
    """
    if table == "posteriors":
        groups = grouped(batches, lambda batch: pc.sum(batch["num_frames"]).as_py() or 0, at_least=ROW_GROUP_FRAMES)
    else:
        groups = grouped(batches, lambda batch: batch.num_rows, at_least=ROW_GROUP_ROWS)
    return map(pa.Table.from_batches, groups)
