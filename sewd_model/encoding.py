"""What a processor returns: rows of numbers by name, as lists, NumPy arrays or tensors, padded to one length."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np

if TYPE_CHECKING:
    import torch

Padding = bool | Literal["longest", "max_length", "do_not_pad"]
TensorType = Literal["pt", "np"] | None


class Encoding(dict[str, Any]):
    """A dictionary whose values are attributes too, as transformers' `BatchFeature` and `BatchEncoding` are."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value

    def to(self, *where: Any, dtype: torch.dtype | None = None) -> Self:
        """Move the tensors to a device, in place, and change the data type of those that hold fractions.

        Args:
            where: a device, a data type, or both.
            dtype: data type, if it is not in `where`.
        """
        kinds = [one for one in where if type(one).__name__ == "dtype"]
        devices = [one for one in where if type(one).__name__ != "dtype"]
        wanted = kinds[0] if kinds else dtype
        for name, value in self.items():
            if hasattr(value, "is_floating_point"):
                moved = value.to(devices[0]) if devices else value
                self[name] = moved.to(wanted) if wanted is not None and moved.is_floating_point() else moved
        return self


def target_length(
    lengths: Sequence[int], padding: Padding, max_length: int | None = None, pad_to_multiple_of: int | None = None
) -> int | None:
    """Return the length to which rows are padded; None: not at all.

    Args:
        lengths: of the rows.
        padding: True or "longest": to the longest row; "max_length": to `max_length`; False or "do_not_pad": none.
        max_length: see `padding`.
        pad_to_multiple_of: round the length up to a multiple of this.

    Raises:
        ValueError: `padding` has another value, or is "max_length" without `max_length`.
    """
    if padding in (False, "do_not_pad"):
        return None
    if padding not in (True, "longest", "max_length"):
        msg = f'padding must be True, False, "longest", "max_length" or "do_not_pad", not {padding!r}'
        raise ValueError(msg)
    if padding == "max_length" and max_length is None:
        msg = 'padding="max_length" needs max_length'
        raise ValueError(msg)
    length = max(lengths, default=0) if padding != "max_length" or max_length is None else max_length
    return length if pad_to_multiple_of is None else -(-length // pad_to_multiple_of) * pad_to_multiple_of


def padded(rows: Sequence[np.ndarray], length: int | None, filler: float) -> list[np.ndarray]:
    """Return the rows with `filler` appended up to `length`; rows that are longer stay as they are."""
    if length is None:
        return list(rows)
    return [np.pad(row, (0, max(0, length - len(row))), constant_values=filler) for row in rows]


def in_type(rows: Sequence[np.ndarray], tensors: TensorType) -> Any:
    """Return the rows as one tensor ("pt"), as one array ("np"), or as they are (None).

    Raises:
        ValueError: the rows of a tensor or array differ in length, or `tensors` is something else.
    """
    if tensors not in ("pt", "np", None):
        msg = f'return_tensors must be "pt", "np" or None, not {tensors!r}'
        raise ValueError(msg)
    if tensors is None:
        return list(rows)
    if len({len(row) for row in rows}) > 1:
        msg = "rows of different lengths do not form a tensor: pass padding=True"
        raise ValueError(msg)
    stacked = np.stack(rows)
    if tensors == "np":
        return stacked
    import torch  # noqa: PLC0415 - loading it takes seconds, which a process that only makes words of tokens can save

    return torch.from_numpy(stacked)
