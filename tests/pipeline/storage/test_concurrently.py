"""Calls in threads whose results come in order."""

import threading
import time

import pytest

from pipeline.storage.concurrently import once_each, ordered_map


def test_results_come_in_order_and_exceptions_at_their_place():
    def call(number: int) -> int:
        time.sleep(0.002 * (number % 3))
        if number == 7:
            raise ValueError("seven")
        return number * number

    for width in (0, 1, 4):
        found = ordered_map(call, range(10), width)
        assert [next(found) for _ in range(7)] == [number * number for number in range(7)]
        with pytest.raises(ValueError, match="seven"):
            next(found)


def test_no_more_calls_are_made_than_the_width_before_they_are_asked_for():
    made = []
    found = ordered_map(made.append, range(100), 5)
    assert made == []
    next(found)
    time.sleep(0.05)
    assert len(made) <= 6
    assert len(list(ordered_map(made.append, range(3), 0))) == 3


def test_a_function_is_called_once_for_each_argument_by_all_threads():
    calls = []
    begun = threading.Barrier(8, timeout=20)

    @once_each
    def slow(name: str) -> str:
        calls.append(name)
        time.sleep(0.05)
        if name == "bad":
            raise ValueError(name)
        return name.upper()

    def ask(name: str) -> str:
        begun.wait()
        return slow(name)

    assert list(ordered_map(ask, ["a", "b"] * 4, 8)) == ["A", "B"] * 4
    assert sorted(calls) == ["a", "b"]
    with pytest.raises(ValueError, match="bad"):
        slow("bad")
