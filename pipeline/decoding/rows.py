"""The columns of the table `posteriors`, from and to numbers, for many rows at once."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from sewd_model.posteriors import Posteriors, split


def joined_posteriors(rows: pa.Table) -> tuple[Posteriors, np.ndarray]:
    """The posteriors of all rows, end to end, and the number of frames of each row.

    Args:
        rows: with the columns `counts`, `tokens` and `costs`, without nulls.
    """
    counts, tokens, costs = (rows[name].combine_chunks() for name in ("counts", "tokens", "costs"))
    joined = Posteriors(*(column.flatten().to_numpy() for column in (counts, tokens, costs)))
    return joined, counts.value_lengths().to_numpy()


def posteriors_of(rows: pa.Table) -> list[Posteriors]:
    """The posteriors of each row, see `joined_posteriors`."""
    posteriors, num_frames = joined_posteriors(rows)
    return split(posteriors, num_frames)


def packed_levels(levels: pa.Array) -> pa.Array:
    """Levels as the table keeps them, by differences, which take two thirds of the space.

    Args:
        levels: binary, int8 for each 10 ms of a row; see `pipeline.audio.silence.levels`.

    Returns:
        Binary: the first level of a row, then the difference of each from the one before it, modulo 256.
    """
    values, starts = _values(levels)
    steps = np.diff(values, prepend=np.uint8(0))
    steps[starts] = values[starts]
    return _with_values(levels, steps)


def unpacked_levels(steps: pa.Array) -> pa.Array:
    """The inverse of `packed_levels`."""
    values, starts = _values(steps)
    values = values.copy()
    # The sum starts again at each row: its first step takes back what was summed before it.
    sums = np.cumsum(values, dtype=np.uint8)
    ends = np.append(starts[1:], len(values))[: len(starts)]
    before = np.where(starts > 0, sums[starts - 1], np.uint8(0))
    return _with_values(steps, sums - before.repeat(ends - starts))


def _values(column: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """The bytes of a binary column, end to end, and where each row that has some begins."""
    column = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    offsets = np.frombuffer(column.buffers()[1], np.int32, len(column) + 1, column.offset * 4)
    data = column.buffers()[2]
    values = np.frombuffer(data, np.uint8) if data else np.zeros(0, np.uint8)
    starts = offsets[:-1][np.diff(offsets) > 0] - offsets[0]
    return values[offsets[0] : offsets[-1]], starts.astype(np.int64)


def _with_values(column: pa.Array, values: np.ndarray) -> pa.Array:
    """A binary column of the same lengths and nulls, of other bytes."""
    column = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    offsets = np.frombuffer(column.buffers()[1], np.int32, len(column) + 1, column.offset * 4)
    validity = pa.array(column.is_valid()).buffers()[1]
    buffers = [validity, pa.py_buffer(offsets - offsets[0]), pa.py_buffer(values)]
    return pa.Array.from_buffers(pa.binary(), len(column), buffers, column.null_count)
