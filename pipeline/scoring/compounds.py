"""Compound-tolerant scoring: a word that is only split or joined differently from the reference is not an error.

`ice cream` for `icecream`, or `data base` for `database`, are spellings of the same speech. Before counting, the
hypothesis is split and joined like the reference where the letters are the same, along the alignment with the fewest
word errors. The result is counted like any other hypothesis, so all the algebra of counts stays the same. Word errors
can only fall. Character errors can rise, where the cheapest alignment of words is not that of characters. The rule
follows the alternative spellings of NIST's scoring, without a list of words.
"""

from __future__ import annotations

from collections.abc import Iterator

MAX_PARTS = 4
"""The most words that one word may be split into."""

MAX_CELLS = 1_000_000
"""The largest table of an alignment, so that one long text cannot delay a corpus; longer texts stay as they are."""


def join_like(reference: str, hypothesis: str) -> str:
    """Split and join the words of `hypothesis` like those of `reference` where their letters are equal.

    Args:
        reference: normalised, that is, with single spaces between words.
        hypothesis: normalised.

    Returns:
        A text with the same letters in the same order, and never more word errors than `hypothesis`. It is `hypothesis`
        itself if nothing matches, or if the table of the alignment would be larger than `MAX_CELLS`.
    """
    ref, hyp = reference.split(), hypothesis.split()
    if ref == hyp or not ref or not hyp or len(ref) * len(hyp) > MAX_CELLS:
        return hypothesis
    matches = _matches(ref, hyp)
    if not any(lengths != (1, 1) for options in matches.values() for lengths in options):
        return hypothesis
    return " ".join(_cheapest(ref, hyp, matches))


def _matches(ref: list[str], hyp: list[str]) -> dict[tuple[int, int], list[tuple[int, int]]]:
    """At (i, j): each (m, n) for which ref[i:i+m] and hyp[j:j+n] have the same letters, and m or n is 1."""
    starts: dict[str, list[tuple[int, int]]] = {}
    for i, m in _spans(len(ref)):
        starts.setdefault("".join(ref[i : i + m]), []).append((i, m))
    matches: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for j, n in _spans(len(hyp)):
        for i, m in starts.get("".join(hyp[j : j + n]), ()):
            if 1 in (m, n):
                matches.setdefault((i, j), []).append((m, n))
    return matches


def _spans(length: int) -> Iterator[tuple[int, int]]:
    """(start, number of words) of every stretch of up to `MAX_PARTS` words."""
    return ((i, m) for i in range(length) for m in range(1, min(MAX_PARTS, length - i) + 1))


def _cheapest(ref: list[str], hyp: list[str], matches: dict[tuple[int, int], list[tuple[int, int]]]) -> list[str]:
    """The words along the alignment with the fewest errors: matches as in the reference, the rest as hypothesised."""
    rows, columns = len(ref), len(hyp)
    costs = [[0] * (columns + 1) for _ in range(rows + 1)]  # errors from (i, j) to the end
    steps = [[(0, 0)] * (columns + 1) for _ in range(rows + 1)]
    for i in range(rows, -1, -1):
        for j in range(columns, -1, -1):
            if (i, j) == (rows, columns):
                continue
            options = [(costs[i + m][j + n], (m, n)) for m, n in matches.get((i, j), ())]
            options += [
                (1 + costs[i + m][j + n], (m, n))
                for m, n in ((1, 1), (1, 0), (0, 1))
                if i + m <= rows and j + n <= columns
            ]
            costs[i][j], steps[i][j] = min(options, key=lambda option: option[0])
    words, i, j = [], 0, 0
    while (i, j) != (rows, columns):
        m, n = steps[i][j]
        words += ref[i : i + m] if (m, n) in matches.get((i, j), ()) else hyp[j : j + n]
        i, j = i + m, j + n
    return words
