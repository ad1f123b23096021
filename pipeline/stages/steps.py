"""Steps: how the rows of a part, or of a chunk in the model, are produced so that work can resume at any of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Generic, NamedTuple, TypeVar

from pipeline.errors import AudioError, ErrorCode

Row = TypeVar("Row")


class Position(NamedTuple):
    """A position in a part: before row `row` of utterance `utterance`; row -1 is before the utterance is opened."""

    utterance: int
    row: int


START: Final = Position(0, -1)


@dataclass(frozen=True)
class Step(Generic[Row]):
    """One step of work: an utterance begins, a row is produced, or only the position advances.

    Attributes:
        next: the position after this step.
        size: planned bytes of the utterance that begins.
        row: the row that was produced.
        where: location of the utterance, for messages.
    """

    next: Position
    size: int = 0
    row: Row | None = None
    where: str = ""


@dataclass(frozen=True)
class Skipped:
    """The error that replaces the row at a position. The rest of the utterance, or of a container (-1), is not read."""

    position: Position
    code: ErrorCode
    message: str

    @property
    def error(self) -> AudioError:
        """The error in the form in which decoding raises errors."""
        return AudioError(self.code, self.message)


# The steps of a part, or of a chunk, from a position on; utterances to skip are given by number.
StepsFrom = Callable[[Position, Mapping[int, Skipped]], Iterator[Step[Row]]]
