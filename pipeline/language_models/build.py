"""Build an n-gram model: modified Kneser-Ney smoothing, interpolated, with counts below a limit left out.

Chen and Goodman 1998 ("An empirical study of smoothing techniques for language modeling", section 3), as KenLM's
lmplz computes it (Heafield et al. 2013): an n-gram of the highest order counts as often as it occurs, one of a lower
order as often as there are different words before it; at the start of a sentence nothing is before it, and it counts as
often as it occurs. The counts are made, sorted and joined by DuckDB, on disk where they do not fit in memory.
"""

from __future__ import annotations

import contextlib
import gzip
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import UsageError

MIN_ORDER, MAX_ORDER = 2, 6  # that KenLM reads
MEMORY: Final = "1GB"  # of DuckDB; the words and one batch come on top
_START, _END, _UNKNOWN = "<s>", "</s>", "<unk>"
_BATCH_WORDS: Final = 2_000_000
_FALLBACK: Final = (0.5, 1.0, 1.5)  # discounts where counts are too few to estimate them, as in KenLM
_LINES: Final = 100_000  # written at a time


@dataclass(frozen=True)
class Built:
    """What was built.

    Attributes:
        sentences: lines with words.
        words: words in them.
        ngrams: entries of each order, from 1.
        discounts: of each order, those of counts 1, 2, and 3 and more.
    """

    sentences: int
    words: int
    ngrams: tuple[int, ...]
    discounts: tuple[tuple[float, float, float], ...]


def build(
    lines: Iterable[str],
    output: Path,
    order: int,
    prune: Sequence[int] = (),
    memory: str = MEMORY,
    scratch: Path | None = None,
) -> Built:
    """Build a model from sentences and write it as an ARPA file, compressed if its name ends in `.gz`.

    Args:
        lines: sentences; words are separated by spaces.
        output: the file to write.
        order: words of the longest n-grams.
        prune: for each order, from 1: n-grams with at most this count are left out; the last number holds for higher
            orders too. The first must be 0: all words are kept. An n-gram that a longer one needs is kept.
        memory: most memory of DuckDB.
        scratch: directory for what does not fit in memory; None: that of temporary files.

    Raises:
        UsageError: a setting is out of range, there are no words, or memory or disk are too small.
    """
    limits = _limits(prune, order)
    if not re.fullmatch(r"[0-9]+(\.[0-9]+)? *[KMGT]i?B", memory):
        raise UsageError(f"memory: {memory!r} is no size, such as 1GB")
    import duckdb  # noqa: PLC0415 - an extra

    with (
        _too_small(duckdb, memory),
        tempfile.TemporaryDirectory(dir=scratch, prefix="sewd-lm-") as folder,
        closing(duckdb.connect(f"{folder}/counts.duckdb")) as database,
    ):
        database.execute("SET preserve_insertion_order = false")
        database.execute(f"SET memory_limit = '{memory}'")
        database.execute(f"SET temp_directory = '{folder}'")
        counted = _count(database, lines, order)
        if not counted.words:
            raise UsageError("lm build: there are no words in the text")
        discounts = tuple(_discounts(database, n) for n in range(1, order + 1))
        _keep(database, limits)
        for n in range(1, order + 1):
            _estimate(database, n, discounts[n - 1], len(counted.vocabulary))
        ngrams = tuple(_rows(database, f"p{n}") for n in range(1, order + 1))
        _write(database, output, ngrams, counted.vocabulary)
    return Built(counted.sentences, counted.words, ngrams, discounts)


@contextlib.contextmanager
def _too_small(duckdb: Any, memory: str) -> Iterator[None]:
    """Say in one line that DuckDB ran out of memory, or of space for what does not fit."""
    try:
        yield
    except (duckdb.OutOfMemoryException, duckdb.IOException) as error:
        raise UsageError(f"memory: {memory}, or the space for temporary files, is too small: {error}") from error


def _limits(prune: Sequence[int], order: int) -> list[int]:
    if not MIN_ORDER <= order <= MAX_ORDER:
        raise UsageError(f"order: must be from {MIN_ORDER} to {MAX_ORDER}, not {order}")
    limits = [*prune, *[prune[-1] if prune else 0] * order][:order]
    if limits[0] or any(limit < 0 for limit in limits) or limits != sorted(limits):
        raise UsageError(f"prune: {' '.join(map(str, prune))}: must begin with 0 and not fall, such as 0 0 1")
    return limits


# ------------------------------------------------------------------------------------------------------------ counts
@dataclass
class _Counted:
    vocabulary: list[str]
    sentences: int = 0
    words: int = 0


def _columns(n: int, first: int = 1) -> str:
    return ", ".join(f"w{i}" for i in range(first, first + n))


def _count(database: Any, lines: Iterable[str], order: int) -> _Counted:
    """Make the tables `c1` to `cN`: each n-gram as ids `w1`, `w2`, ..., and its count `c`, see the top.

    In a sentence all words are preceded by as many starts as the longest n-gram has words, less one. An n-gram with
    several of them stands for the shorter one with one of them.
    """
    ids = {_START: 0, _END: 1, _UNKNOWN: 2}
    counted = _Counted([])
    kinds = ", ".join(f"w{i} INTEGER" for i in range(1, order + 1))
    database.execute(f"CREATE TABLE raw ({kinds}, c BIGINT)")
    for batch in _batches(lines, ids, order, counted):
        windows = np.lib.stride_tricks.sliding_window_view(batch, order)
        windows = windows[windows[:, -1] != ids[_START]]  # n-grams that end with a start cross two sentences
        database.register("windows", pa.table({f"w{i + 1}": windows[:, i] for i in range(order)}))
        database.execute(f"INSERT INTO raw SELECT {_columns(order)}, count(*) FROM windows GROUP BY ALL")
    counted.vocabulary = list(ids)
    whole = f"SELECT {_columns(order)}, sum(c)::BIGINT AS c FROM raw WHERE w2 <> 0 GROUP BY ALL"
    database.execute(f"CREATE TABLE c{order} AS {whole}")
    for n in range(order - 1, 0, -1):
        renamed = ", ".join(f"w{i + 1} AS w{i}" for i in range(1, n + 1))
        continued = f"SELECT {renamed}, count(*) AS c FROM c{n + 1} GROUP BY {_columns(n, 2)}"
        first = order - n + 1  # where those begin that have the only start in their first place
        begun = ", ".join(f"w{first + i - 1} AS w{i}" for i in range(1, n + 1))
        one_start = f"w{first} = 0" + (f" AND w{first + 1} <> 0" if n > 1 else "")
        starts = f"SELECT {begun}, sum(c)::BIGINT AS c FROM raw WHERE {one_start} GROUP BY {_columns(n, first)}"
        database.execute(f"CREATE TABLE c{n} AS {continued}" + (f" UNION ALL {starts}" if n > 1 else ""))
    database.execute("DROP TABLE raw")
    return counted


def _batches(lines: Iterable[str], ids: dict[str, int], order: int, counted: _Counted) -> Iterator[np.ndarray]:
    """Ids of many sentences end to end, each with its starts and its end."""
    starts, batch = [ids[_START]] * (order - 1), []
    for line in lines:
        # Words that mean something else in the file are unknown ones.
        words = [_UNKNOWN if word in (_START, _END) else word for word in line.split()]
        if not words:
            continue
        counted.sentences += 1
        counted.words += len(words)
        batch += starts
        batch += [ids.setdefault(word, len(ids)) for word in words]
        batch.append(ids[_END])
        if len(batch) > _BATCH_WORDS:
            yield np.array(batch, np.int32)
            batch = []
    if batch:
        yield np.array(batch, np.int32)


def _discounts(database: Any, n: int) -> tuple[float, float, float]:
    """The discounts of counts 1, 2, and 3 and more (Chen and Goodman 1998, equation 26)."""
    rows = dict(database.execute(f"SELECT c, count(*) FROM c{n} WHERE c <= 4 GROUP BY c").fetchall())
    ones, twos, threes, fours = (rows.get(count, 0) for count in (1, 2, 3, 4))
    if not (ones and twos and threes):
        return _FALLBACK
    y = ones / (ones + 2 * twos)
    found = (1 - 2 * y * twos / ones, 2 - 3 * y * threes / twos, 3 - 4 * y * fours / threes)
    is_valid = all(0 < discount <= count for count, discount in enumerate(found, 1))
    return found if is_valid else _FALLBACK


def _rows(database: Any, table: str) -> int:
    return int(database.execute(f"SELECT count(*) FROM {table}").fetchall()[0][0])


# ----------------------------------------------------------------------------------------------------- probabilities
def _keep(database: Any, limits: Sequence[int]) -> None:
    """Make the tables `k1` to `kN` of the n-grams that are kept, from the longest to the shortest."""
    order = len(limits)
    for n in range(order, 0, -1):
        needed = ""
        if n < order and limits[n - 1]:
            heads, tails = _columns(n), _columns(n, 2)
            needed = (
                f" OR ({heads}) IN (SELECT ({heads}) FROM k{n + 1}) OR ({heads}) IN (SELECT ({tails}) FROM k{n + 1})"
            )
        database.execute(f"CREATE TABLE k{n} AS SELECT * FROM c{n} WHERE c > {limits[n - 1]}{needed}")


def _estimate(database: Any, n: int, discounts: Sequence[float], num_words: int) -> None:
    """Make `p{n}`, the probability of each n-gram, and `b{n}`, what each of its contexts leaves for shorter ones.

    What a context leaves is what its n-grams do not get: their discounts, and the counts of those that are left out.
    """
    one, two, more = discounts
    share = f"greatest(c - CASE c WHEN 1 THEN {one} WHEN 2 THEN {two} ELSE {more} END, 0.0)"
    if n == 1:
        uniform = 1.0 / (num_words - 1)  # all words and the end; the start is never predicted
        database.execute(f"CREATE TABLE b1 AS SELECT 1.0 - sum({share}) / sum(c) AS b FROM c1")
        database.execute(
            f"CREATE TABLE p1 AS SELECT w1, {share} / (SELECT sum(c) FROM c1) + (SELECT b FROM b1) * {uniform} AS p "
            f"FROM c1 UNION ALL SELECT 2, (SELECT b FROM b1) * {uniform} WHERE 2 NOT IN (SELECT w1 FROM c1)"
        )
        return
    context = _columns(n - 1)
    database.execute(
        f"CREATE TABLE b{n} AS SELECT {context}, 1.0 - coalesce(kept, 0.0) / total AS b, total FROM "
        f"(SELECT {context}, sum(c) AS total FROM c{n} GROUP BY ALL) LEFT JOIN "
        f"(SELECT {context}, sum({share}) AS kept FROM k{n} GROUP BY ALL) USING ({context})"
    )
    shorter = " AND ".join(f"k.w{i + 1} = s.w{i}" for i in range(1, n))
    database.execute(
        f"CREATE TABLE p{n} AS SELECT {', '.join(f'k.w{i}' for i in range(1, n + 1))}, "
        f"{share.replace('(c -', '(k.c -').replace('CASE c', 'CASE k.c')} / x.total + x.b * s.p AS p "
        f"FROM k{n} AS k JOIN b{n} AS x USING ({context}) JOIN p{n - 1} AS s ON {shorter}"
    )


# -------------------------------------------------------------------------------------------------------------- file
def _write(database: Any, output: Path, ngrams: Sequence[int], vocabulary: Sequence[str]) -> None:
    """Write the ARPA file: logarithms to the base of 10, and weights of contexts where longer n-grams follow."""
    # The start of a sentence has a weight and no probability.
    database.execute("INSERT INTO p1 VALUES (0, 1e-99)")
    words = pa.array(vocabulary)
    opened: Callable[..., Any] = gzip.open if output.name.endswith(".gz") else open
    with opened(output, "wb") as file:
        counts = [ngrams[0] + 1, *ngrams[1:]]
        file.write("".join(["\\data\\\n", *(f"ngram {n}={count}\n" for n, count in enumerate(counts, 1))]).encode())
        for n in range(1, len(ngrams) + 1):
            columns = _columns(n)
            weight, joined = "NULL::DOUBLE", ""
            if n < len(ngrams):
                weight = "round(log10(greatest(coalesce(b, 1.0), 1e-7)), 6)"
                joined = f"LEFT JOIN b{n + 1} USING ({columns})"
            query = f"SELECT {columns}, round(log10(p), 6) AS p, {weight} AS b FROM p{n} {joined} ORDER BY {columns}"
            file.write(f"\n\\{n}-grams:\n".encode())
            for batch in database.sql(query).to_arrow_reader(_LINES):
                file.write(_lines(batch, words, n))
        file.write(b"\n\\end\\\n")


def _lines(batch: pa.RecordBatch, words: pa.Array, n: int) -> bytes:
    ngrams = [words.take(batch[f"w{i}"]) for i in range(1, n + 1)]
    columns = [pc.cast(batch["p"], pa.string()), pc.binary_join_element_wise(*ngrams, " ")]
    if not batch["b"].null_count:
        columns.append(pc.cast(batch["b"], pa.string()))
    return "".join(f"{line}\n" for line in pc.binary_join_element_wise(*columns, "\t").to_pylist()).encode()
