"""Text normalisation before scoring: which texts count as the same words.

The name of a normalizer is stored with every run, and its meaning never changes: stored counts are used again if
the names agree. A changed rule needs a new name. So the names that users write are resolved first (`resolve`):

* `none` and `basic` (stored as they are) are independent of the language, see below, and idempotent.
* `english` (`english@VERSION`) is Whisper's, by the package whisper-normalizer of this version: numbers, contractions,
  spellings, fillers. Typographic apostrophes are plain ones for it.
* `rules:FILE` (`rules:` and the rules themselves) replaces what the expressions of the file find
  (`pipeline.scoring.substitutions`) in the text in NFC, with plain apostrophes and hyphens, and then does as `basic`.

`english` and `rules` need not be idempotent: Whisper's reads `minus and` as `-and`, and that as `and`.

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

import functools
import importlib.metadata
import re
import unicodedata
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

from pipeline.errors import UsageError
from pipeline.scoring.substitutions import Pairs, decode_pairs, digest, encode_pairs, read_pairs, replaced

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
"""Those of this module, by name. `basic`: see above. `none`: strip, replace a run of white space by one space, and
change nothing else.

White space is Unicode's (no-break and ideographic spaces, line ends). `none` must replace it: jiwer splits words
at the space only, so a tab or a line end would join two words.
"""


_ENGLISH: Final = "english"
_RULES: Final = "rules:"
CHOICES: Final = (*NORMALIZERS, _ENGLISH, f"{_RULES}FILE")
"""What users write."""

_PLAIN: Final = {
    **dict.fromkeys(map(ord, _APOSTROPHES), "'"),
    **dict.fromkeys([*range(0x2010, 0x2016), 0x2212], "-"),
}


def resolve(normalizer: str) -> str:
    """The name under which a normalizer is stored, which means the same on every machine and for ever.

    Raises:
        UsageError: there is no such normalizer, its package is not installed, or its file cannot be used.
        StorageError: its file could not be reached.
    """
    if normalizer == _ENGLISH:
        return f"{_ENGLISH}@{_installed_version()}"
    if normalizer.startswith(f"{_ENGLISH}@"):
        return normalizer
    if normalizer.startswith(_RULES):
        pairs = _stored_pairs(normalizer)
        return _RULES + encode_pairs(read_pairs(normalizer.removeprefix(_RULES)) if pairs is None else pairs)
    if normalizer not in NORMALIZERS:
        raise UsageError(f"there is no normalizer {normalizer!r}: choose one of {', '.join(CHOICES)}")
    return normalizer


def label(normalizer: str) -> str:
    """A short name of a stored normalizer, for tables and files: rules by their digest."""
    pairs = _stored_pairs(normalizer)
    return normalizer if pairs is None else f"rules.{digest(pairs)}"


def is_by_word(normalizer: str) -> bool:
    """Whether a stored normalizer does the same to the words of a text, one by one, as to the text."""
    return normalizer in NORMALIZERS


def normalize(text: str, normalizer: str = DEFAULT_NORMALIZER) -> str:
    """Normalise a text for scoring.

    The result has single spaces between words and no space at either end, and may be empty. `basic` follows the Unicode
    tables of the running Python.

    Raises:
        UsageError: as `resolve`; its package is installed in another version; or a rule makes the text grow too much.
    """
    return _function(normalizer)(text)


@functools.lru_cache(64)
def _function(normalizer: str) -> Callable[[str], str]:
    normalizer = resolve(normalizer)
    if normalizer in NORMALIZERS:
        return NORMALIZERS[normalizer]
    if (pairs := _stored_pairs(normalizer)) is not None:
        apply = replaced(pairs)
        return lambda text: _basic(apply(unicodedata.normalize("NFC", text).translate(_PLAIN)))
    if (installed := _installed_version()) != normalizer.partition("@")[2]:
        raise UsageError(
            f"normalizer: {normalizer} needs that version of whisper-normalizer, and {installed} is installed: counts "
            "under different versions are not compared"
        )
    from whisper_normalizer.english import EnglishTextNormalizer  # noqa: PLC0415 - an extra

    english = EnglishTextNormalizer()
    return lambda text: _collapse_spaces(english(text.translate(_PLAIN)))


def _stored_pairs(normalizer: str) -> Pairs | None:
    """The rules in a stored name; None if it is another normalizer, or names a file."""
    if not normalizer.startswith(f"{_RULES}["):
        return None
    try:
        return decode_pairs(normalizer.removeprefix(_RULES))
    except ValueError:
        return None


def _installed_version() -> str:
    try:
        return importlib.metadata.version("whisper-normalizer")
    except importlib.metadata.PackageNotFoundError as error:
        message = "normalizer: whisper-normalizer is not installed: pip install 'sewd-pipeline[normalizers]'"
        raise UsageError(message) from error
