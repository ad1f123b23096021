"""What a check found."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Outcome(StrEnum):
    """How a check ended."""

    OK = "ok"
    WARNING = "warning"  # a run works, but slower, or not always
    FAILURE = "failure"  # a run fails


@dataclass(frozen=True)
class Check:
    """One line of `sewd doctor`.

    Attributes:
        name: what was looked at.
        outcome: how it ended.
        message: what was found, with numbers.
        advice: what to do; empty where nothing is to be done.
    """

    name: str
    outcome: Outcome
    message: str
    advice: str = ""


def ok(name: str, message: str) -> Check:
    """A check that found nothing wrong."""
    return Check(name, Outcome.OK, message)


def warning(name: str, message: str, advice: str) -> Check:
    """A check that found what makes runs slower, or fail at times."""
    return Check(name, Outcome.WARNING, message, advice)


def failure(name: str, message: str, advice: str) -> Check:
    """A check that found why a run fails."""
    return Check(name, Outcome.FAILURE, " ".join(message.split()), advice)
