"""How numbers are written, so that the same kind of number looks the same everywhere. None is a dash."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Final

NONE: Final = "–"
SPACE: Final = "\u00a0"  # between a number and its unit: a page must not break the line there


def count(value: float | None) -> str:
    """`12,345`."""
    return NONE if value is None else _with_minus(f"{value:,.0f}")


def change(value: float | None) -> str:
    """`+12`."""
    return NONE if value is None else _with_minus(f"{value:+,.0f}")


def number(value: float | None, digits: int = 2) -> str:
    """`1,234.50`."""
    return NONE if value is None else _with_minus(f"{value:,.{digits}f}")


def percent(rate: float | None, digits: int | None = None) -> str:
    """`8.32 %`, `12.3 %`; of a fraction."""
    if rate is None:
        return NONE
    return number(100 * rate, percent_digits([rate]) if digits is None else digits) + f"{SPACE}%"


def points(difference: float | None, digits: int = 2) -> str:
    """`+0.42 pp`: a difference of two fractions in percentage points."""
    return NONE if difference is None else _with_minus(f"{100 * difference:+,.{digits}f}") + f"{SPACE}pp"


def percent_digits(rates: Iterable[float | None]) -> int:
    """Decimals for percentages that are written alike: two if any of them is small."""
    smallest = min((abs(rate) for rate in rates if rate), default=1.0)
    return 2 if smallest < 0.0995 else 1


def percent_range(low: float, high: float, digits: int | None = None) -> str:
    """`4.10–5.20 %`; of two fractions."""
    digits = percent_digits([low, high]) if digits is None else digits
    return f"{number(100 * low, digits)}–{number(100 * high, digits)}{SPACE}%"


def probability(value: float | None) -> str:
    """`0.042`, `< 0.001`, `> 0.999`."""
    if value is None:
        return NONE
    if 0.001 <= value <= 0.999:
        return f"{value:.3f}"
    return f"<{SPACE}0.001" if value < 0.001 else f">{SPACE}0.999"


def duration(seconds: float | None, space: str = " ") -> str:
    """`3.2 s`, `12 min 01 s`, `3 h 02 min`, `1,234 h`.

    Args:
        seconds: the duration.
        space: between a number and its unit; `SPACE` in reports.
    """
    if seconds is None:
        return NONE
    if seconds < 59.95:
        return f"{seconds:.1f}{space}s"
    if seconds < 3599.5:
        return "{0}{2}min {1:02d}{2}s".format(*divmod(round(seconds), 60), space)
    if seconds < 100 * 3600:
        return "{0}{2}h {1:02d}{2}min".format(*divmod(round(seconds / 60), 60), space)
    return f"{seconds / 3600:,.0f}{space}h"


def moment(iso: str | None) -> str:
    """`2026-11-22 19:00:00 UTC`."""
    return NONE if iso is None else f"{datetime.fromisoformat(iso).astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def plural(number_of: int, noun: str) -> str:
    """`1 speaker`, `12 speakers`, `12 speakers or utterances`."""
    return f"{count(number_of)} {noun if number_of == 1 else plural_of(noun)}"


def plural_of(noun: str) -> str:
    """`speakers`; `speakers or utterances` of a unit that is several kinds."""
    return f"{noun}s".replace(" or ", "s or ")


def significant(value: float | None) -> str:
    """A number of any size with four digits."""
    return NONE if value is None else _with_minus(f"{value:.4g}")


def _with_minus(text: str) -> str:
    """A typographic minus for the hyphen."""
    return text.replace("-", "−")
