"""The register's arithmetic: which row is set aside after which deaths. With processes that die: tests/faults."""

from __future__ import annotations

import time
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from pipeline.quarantine import DEATHS, UNREGISTERED, Register


def go(register, rows, killers, piece="piece", careful_only=False):
    """One process at a piece; gives the rows that it did and those that it set aside, or None if it died."""
    careful, deaths = register.begin(piece, "host:1")
    done, aside = [], []
    for row in rows:
        if deaths.get(row, 0) >= DEATHS:
            aside.append(row)
            continue
        if careful:
            register.row(piece, row)
        if row in killers:
            return None
        done.append(row)
    register.end(piece)
    return done, aside


@given(st.integers(1, 8), st.sets(st.integers(0, 7)))
def test_each_row_that_kills_is_set_aside_and_no_other(count, killers):
    rows = [str(n) for n in range(count)]
    killers = {str(n) for n in killers} & set(rows)
    register, deaths = Register(), 0
    while (result := go(register, rows, killers)) is None:
        deaths += 1
    assert result == ([row for row in rows if row not in killers], [row for row in rows if row in killers])
    assert deaths == (1 + DEATHS * len(killers) if killers else 0)
    # It is forgotten: another piece of that name starts without a record.
    assert register.begin("piece", "host:1") == (False, {})


@given(st.lists(st.integers(0, 5), max_size=12))
def test_deaths_of_other_causes_set_nothing_aside_unless_they_meet_at_one_row(places):
    rows, register = [str(n) for n in range(6)], Register()
    register.begin("piece", "host:1")  # the first died, nobody knows where
    for place in places:
        _, deaths = register.begin("piece", "host:1")
        assert max(deaths.values(), default=0) <= Counter(places).most_common(1)[0][1]
        register.row("piece", rows[place])
    _, deaths = register.begin("piece", "host:1")
    assert deaths == {rows[place]: number for place, number in Counter(places).items()}


def test_pieces_do_not_mix():
    register = Register()
    register.begin("a", "host:1")
    register.row("a", "7")
    assert register.begin("b", "host:1") == (False, {})
    assert register.begin("a", "host:1") == (True, {"7": 1})
    register.end("b")
    register.end("never was")
    register.row("never was", "1")
    assert register.begin("a", "host:1") == (True, {"7": 1}), "it died before its first row"


def test_what_is_stuck_is_named_the_longest_first(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    register = Register()
    register.begin("a", "host:1")
    now[0] += 5
    register.begin("b", "host:2")
    register.row("b", "3")
    assert register.stuck(1) == [("a", "host:1", None, 5.0)]
    now[0] += 5
    assert register.stuck(1) == [("a", "host:1", None, 10.0), ("b", "host:2", "3", 5.0)]
    register.end("a")
    assert register.stuck(6) == []


def test_a_process_that_nobody_watches_does_every_row():
    assert UNREGISTERED.row("0")
    UNREGISTERED.rest()
