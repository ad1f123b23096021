"""How the report writes numbers, so that the same kind of number looks the same everywhere; a dash stands for null."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, Final

NONE: Final = "–"
SPACE: Final = "\u00a0"  # between a number and its unit


def count(value: float | None) -> str:
    """`12,345`."""
    return NONE if value is None else _signed(f"{value:,.0f}")


def change(value: float | None) -> str:
    """`+12`."""
    return NONE if value is None else _signed(f"{value:+,.0f}")


def number(value: float | None, digits: int = 2) -> str:
    """`1,234.50`."""
    return NONE if value is None else _signed(f"{value:,.{digits}f}")


def percent(rate: float | None, digits: int | None = None) -> str:
    """`8.32 %`, `12.3 %`."""
    if rate is None:
        return NONE
    return number(100 * rate, percent_digits([rate]) if digits is None else digits) + f"{SPACE}%"


def points(difference: float | None, digits: int = 2) -> str:
    """`+0.42 pp`: a difference of two rates in percentage points."""
    return NONE if difference is None else _signed(f"{100 * difference:+,.{digits}f}") + f"{SPACE}pp"


def percent_digits(rates: Iterable[float | None]) -> int:
    """Decimals that write percentages alike: two where any of them is small."""
    smallest = min((abs(rate) for rate in rates if rate), default=1.0)
    return 2 if smallest < 0.0995 else 1


def percent_range(interval: Mapping[str, Any] | None, digits: int | None = None) -> str:
    """`4.10–5.20 %`."""
    if interval is None:
        return NONE
    low, high = interval["low"], interval["high"]
    digits = percent_digits([low, high]) if digits is None else digits
    return f"{number(100 * low, digits)}–{number(100 * high, digits)}{SPACE}%"


def probability(value: float | None) -> str:
    """`0.042`, `< 0.001`, `> 0.999`."""
    if value is None:
        return NONE
    if 0.001 <= value <= 0.999:
        return f"{value:.3f}"
    return f"<{SPACE}0.001" if value < 0.001 else f">{SPACE}0.999"


def span(seconds: float | None) -> str:
    """`3.2 s`, `12 min 31 s`, `3 h 12 min`, `1,234 h`."""
    if seconds is None:
        return NONE
    if seconds < 59.95:
        return f"{seconds:.1f}{SPACE}s"
    if seconds < 3599.5:
        return "{0}{2}min {1}{2}s".format(*divmod(round(seconds), 60), SPACE)
    if seconds < 100 * 3600:
        return "{0}{2}h {1}{2}min".format(*divmod(round(seconds / 60), 60), SPACE)
    return f"{seconds / 3600:,.0f}{SPACE}h"


def moment(iso: str | None) -> str:
    """`2026-11-22 19:00:00 UTC`."""
    return NONE if iso is None else f"{datetime.fromisoformat(iso).astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def _signed(text: str) -> str:
    return text.replace("-", "−")


def plural(number_of: int, noun: str) -> str:
    """`1 speaker`, `12 speakers`."""
    return f"{count(number_of)} {noun}{'' if number_of == 1 else 's'}"


def significant(value: float | None) -> str:
    """Four digits of a number of any size."""
    return NONE if value is None else _signed(f"{value:.4g}")
