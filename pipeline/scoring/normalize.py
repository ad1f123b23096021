"""Text normalisation before scoring: which texts count as the same words.

The name of a normalizer is stored with every run, and its meaning never changes: stored counts are used again if
the names agree. A changed rule needs a new name.

`basic` is independent of the language. Its steps, in this order, and their reasons:

1. Unicode NFKC: full-width forms, ligatures, superscripts and composed letters each get one spelling.
2. Typographic apostrophes, and characters typed in their place (U+2018, U+2019, U+201B, U+02BB, U+02BC,
   back-tick, acute accent), become `'`. The acute accent is replaced before 1, since NFKC turns it into a space
   and a combining mark.
3. Punctuation, symbols, controls, private use and unassigned code points become a space; so hyphens, dashes
   and slashes separate words (`well-known` -> `well known`) and no two words are joined. There is no rule for
   numbers or abbreviations: `3.14` -> `3 14`, `1,000` -> `1 000`, `U.S.` -> `u s`, `50%` -> `50`.
4. Invisible characters are removed: format characters (soft hyphen, byte-order mark, direction marks,
   ZWJ, ZWNJ), variation selectors, enclosing marks. Only the zero-width space becomes a space: it
   separates words.
5. Combining marks stay: they are vowels and tones in Hindi, Thai or Vietnamese. A mark that does not follow a
   letter or digit (its symbol was removed) is removed.
6. An apostrophe stays between two letters or digits (`QUILTER'S` -> `quilter's`), and becomes a space elsewhere.
7. `str.lower`, after 3, so that a capital sigma at the end of a word becomes a final one. Not `str.casefold`:
   it makes `Maße` and `Masse` equal and changes the number of characters. Upper-case Turkish without its
   language is ambiguous: `I` and `İ` both become `i` (without the combining dot that `str.lower` leaves),
   `ı` stays.
8. NFKC again, since lower case may compose where upper case could not; then white space as in `none`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

from pipeline.errors import UsageError

DEFAULT_NORMALIZER: Final = "basic"

_ACUTE_ACCENT: Final = "\u00b4"
_APOSTROPHES: Final = frozenset("'\u2018\u2019\u201b\u02bb\u02bc`")
_INVISIBLE_MARKS: Final = frozenset(  # variation selectors and the grapheme joiner are marks (Mn) by category
    map(chr, [0x034F, *range(0x180B, 0x180E), 0x180F, *range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0)])
)
_ZERO_WIDTH_SPACE: Final = "\u200b"

# After `_CHARACTERS`, a text holds letters and digits (`\w`), marks (neither `\w` nor `\s`), spaces and `'`.
_STRAY_MARKS: Final = re.compile(r"(?<![^\s'])[^\w\s']+")
_STRAY_APOSTROPHE: Final = re.compile(r"(?<![^\s'])'|'(?![^\s'])")
_DOTTED_I: Final = re.compile("i\u0307+")


class _Characters(dict[int, str]):
    """The replacement of each code point, computed at its first use: there are 1.1 million."""

    def __missing__(self, code_point: int) -> str:
        character = chr(code_point)
        category = unicodedata.category(character)
        if character in _APOSTROPHES:
            replacement = "'"
        elif (category in {"Cf", "Me"} and character != _ZERO_WIDTH_SPACE) or character in _INVISIBLE_MARKS:
            replacement = ""
        else:
            replacement = character if category[0] in "LMN" else " "
        self[code_point] = replacement
        return replacement


_CHARACTERS: Final = _Characters()


def _collapse_spaces(text: str) -> str:
    return " ".join(text.split())


def _basic(text: str) -> str:
    text = unicodedata.normalize("NFKC", text.replace(_ACUTE_ACCENT, "'")).translate(_CHARACTERS)
    text = _STRAY_APOSTROPHE.sub(" ", _STRAY_MARKS.sub("", text)).lower()
    return _collapse_spaces(unicodedata.normalize("NFKC", _DOTTED_I.sub("i", text)))


NORMALIZERS: Final[Mapping[str, Callable[[str], str]]] = MappingProxyType({"basic": _basic, "none": _collapse_spaces})
"""By name. `basic`: see above. `none`: strip, replace a run of white space by one space, and change nothing else.

White space is Unicode's (no-break and ideographic spaces, line ends). `none` must replace it: jiwer splits words
at the space only, so a tab or a line end would join two words.
"""


def check_normalizer(normalizer: str) -> None:
    """Refuse a name that is not in `NORMALIZERS`.

    Raises:
        UsageError: there is no such normalizer; the message names the choices.
    """
    if normalizer not in NORMALIZERS:
        choices = ", ".join(NORMALIZERS)
        raise UsageError(f"there is no normalizer {normalizer!r}: choose one of {choices}")


def normalize(text: str, normalizer: str = DEFAULT_NORMALIZER) -> str:
    """Normalise a text for scoring.

    The result has single spaces between words and no space at either end, and may be empty. Idempotent for each
    normalizer: `normalize(normalize(t, n), n) == normalize(t, n)`. `basic` follows the Unicode tables of the running
    Python.

    Raises:
        UsageError: there is no such normalizer.
    """
    check_normalizer(normalizer)
    return NORMALIZERS[normalizer](text)
