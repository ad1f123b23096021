"""Compound-tolerant scoring: a word that is only parted or joined otherwise than in the reference is no error.

`ice cream` for `icecream`, or `data base` for `database`, are one spelling of the same speech. Before counting, the
hypothesis is parted like the reference where the letters are the same, by the alignment with the fewest word errors;
then it is counted like any other, so that all the algebra of counts stays as it is. Word errors can only fall;
character errors can rise, where the cheapest alignment of words is another than that of characters. After the rule
that NIST's scoring expresses with its lists of alternative spellings, without a list.
"""

from __future__ import annotations

from collections.abc import Iterator

MAX_PARTS = 4
"""Words that one word may stand for."""

MAX_CELLS = 1_000_000
"""Of the alignment's table, so that one long text cannot hold up a corpus: longer ones are left as they are."""


def join_like(reference: str, hypothesis: str) -> str:
    """`hypothesis`, its words joined and parted as those of `reference` where their letters are equal.

    Both normalised: words parted by single spaces. The result has the same letters in the same order, never more word
    errors than the hypothesis, and is the hypothesis itself where nothing can be matched, or both texts are very long.
    """
    wanted, found = reference.split(), hypothesis.split()
    if wanted == found or not wanted or not found or len(wanted) * len(found) > MAX_CELLS:
        return hypothesis
    matches = _matches(wanted, found)
    if not any(parts != (1, 1) for options in matches.values() for parts in options):
        return hypothesis
    return " ".join(_cheapest(wanted, found, matches))


def _matches(wanted: list[str], found: list[str]) -> dict[tuple[int, int], list[tuple[int, int]]]:
    """At (i, j): each (m, n) for which wanted[i:i+m] and found[j:j+n] are the same letters and one of m, n is 1."""
    starts: dict[str, list[tuple[int, int]]] = {}
    for i, m in _spans(len(wanted)):
        starts.setdefault("".join(wanted[i : i + m]), []).append((i, m))
    matches: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for j, n in _spans(len(found)):
        for i, m in starts.get("".join(found[j : j + n]), ()):
            if 1 in (m, n):
                matches.setdefault((i, j), []).append((m, n))
    return matches


def _spans(length: int) -> Iterator[tuple[int, int]]:
    return ((i, m) for i in range(length) for m in range(1, min(MAX_PARTS, length - i) + 1))


def _cheapest(wanted: list[str], found: list[str], matches: dict[tuple[int, int], list[tuple[int, int]]]) -> list[str]:
    """The words of the alignment with the fewest errors: matched stretches as wanted, the rest as found."""
    rows, columns = len(wanted), len(found)
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
        words += wanted[i : i + m] if (m, n) in matches.get((i, j), ()) else found[j : j + n]
        i, j = i + m, j + n
    return words
