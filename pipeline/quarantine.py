"""Rows that kill the process which works on them: found by their deaths, and set aside as rows of `errors/`.

A file that crashes its decoder, hangs it or eats the machine's memory takes its process along, and Ray gives the same
work to the next one. So each piece of work, a part that is read or a chunk that is recognised, is entered in a register
while it is under way: a small Ray actor beside the driver. A process that takes up a piece which is under way already
knows that another one died of it, or with it, and goes carefully: it enters each row before it begins with it. A row
with which `DEATHS` processes died that went carefully is set aside, and the rest of its part survives.

A process dies of other things, too: of the machine that is taken away. That is why one death convicts nobody: a row has
to be the one at work each time. A process that is at the same row for longer than its deadline ends itself, and counts
as any other that died.
"""

from __future__ import annotations

import faulthandler
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import ray

DEATHS: Final = 2  # of processes that went carefully; the one before them did not look


@dataclass
class _UnderWay:
    worker: str
    since: float
    row: str | None = None


class Register:
    """Which pieces of work are under way, and at which rows processes died; lives in an actor of its own."""

    def __init__(self) -> None:
        self._under_way: dict[str, _UnderWay] = {}
        self._deaths: dict[str, Counter[str]] = {}

    def begin(self, piece: str, worker: str) -> tuple[bool, dict[str, int]]:
        """Enter a piece; gives whether it was under way already, and how often processes died at which of its rows."""
        before = self._under_way.get(piece)
        deaths = self._deaths.setdefault(piece, Counter())
        if before is not None and before.row is not None:
            deaths[before.row] += 1
        self._under_way[piece] = _UnderWay(worker, time.monotonic())
        return before is not None, dict(deaths)

    def row(self, piece: str, row: str) -> None:
        """Enter the row that a piece has come to."""
        if piece in self._under_way:
            self._under_way[piece].row = row
            self._under_way[piece].since = time.monotonic()

    def end(self, piece: str) -> None:
        """A piece is through."""
        self._under_way.pop(piece, None)
        self._deaths.pop(piece, None)

    def stuck(self, seconds: float) -> list[tuple[str, str, str | None, float]]:
        """Piece, worker, row (of one that goes carefully) and seconds of what has been at one place for so long."""
        now = time.monotonic()
        entries = [(piece, e.worker, e.row, now - e.since) for piece, e in self._under_way.items()]
        return sorted((entry for entry in entries if entry[3] >= seconds), key=lambda entry: -entry[3])


@dataclass(frozen=True)
class Quarantine:
    """What stages need of it.

    Attributes:
        register: handle of a `Register` actor; None: nothing is entered, and nothing set aside.
        deadline_s: longest that a process may be at one row.
    """

    register: Any = None
    deadline_s: float = 600.0

    @contextmanager
    def attempt(self, piece: str, worker: str) -> Iterator[Attempt]:
        """This process takes up a piece of work; see `Attempt`. An exception is no death."""
        if self.register is None:
            yield Attempt(self, piece)
            return
        careful, deaths = ray.get(self.register.begin.remote(piece, worker))
        attempt = Attempt(self, piece, careful, deaths)
        try:
            yield attempt
        finally:
            attempt.rest()
            self.register.end.remote(piece)


@dataclass(frozen=True)
class Attempt:
    """One process at one piece of work. `careful`: another died before it; `deaths` by row."""

    quarantine: Quarantine
    piece: str
    careful: bool = False
    deaths: dict[str, int] = field(default_factory=dict)

    def row(self, row: str) -> bool:
        """About to begin with a row: may it? It has `deadline_s` from now, until the next or until `rest`."""
        register = self.quarantine.register
        if self.deaths.get(row, 0) >= DEATHS:
            return False
        if register is not None:
            if self.careful:
                ray.get(register.row.remote(self.piece, row))
            # In C, without the interpreter's lock: a decoder that hangs may hold it.
            faulthandler.dump_traceback_later(self.quarantine.deadline_s, exit=True)
        return True

    def rest(self) -> None:
        """At no row for now: waiting is not hanging."""
        if self.quarantine.register is not None:
            faulthandler.cancel_dump_traceback_later()

    def why(self, row: str) -> str:
        """Of a row that is set aside."""
        return f"{self.deaths[row] + 1} processes died, each while it was at work on this"


UNREGISTERED: Final = Attempt(Quarantine(), "")  # of a process that nobody watches
