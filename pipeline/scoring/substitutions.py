"""Regular expressions of the user's, which replace pieces of a text: the normalizer `rules:FILE`.

Each line of the file is a pattern, a tab and a replacement, `\\1` for the first group; without a tab, what is found is
removed. Empty lines and lines that begin with `#` say nothing. A byte-order mark is no part of the first.

    # fillers, spellings
    (?i)\\b(um|uh|mhm)\\b
    (?i)\\bcolour(s?)\\b	color\\1

The expressions are RE2's (https://github.com/google/re2/wiki/Syntax), whose time grows linearly with the text whatever
the pattern: there are no look-arounds and no references back. `\\b` and `\\w` know ASCII alone; `\\pL` is a letter of
any script. Replacements could still make a text grow without bound, which is refused.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable
from typing import Final

from pipeline.errors import UsageError
from pipeline.storage import objects, uris

_MAX_BYTES: Final = 1 << 20  # of a file
_GROWTH: Final = 10  # a text becomes at most this many times as long, or
_SHORT: Final = 10_000  # this many characters

Pairs = tuple[tuple[str, str], ...]


def read_pairs(uri: str) -> Pairs:
    """The patterns of a file with their replacements, checked.

    Raises:
        UsageError: there is no such file, or a line cannot be used; the message names it.
        StorageError: it could not be reached.
    """
    try:
        data = objects.fetch(uris.absolute(uri), 0, _MAX_BYTES + 1)
        text = data.decode("utf-8-sig")
    except FileNotFoundError as error:
        raise UsageError(f"normalizer: there is no file {uri}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"normalizer: {uri} is not UTF-8: {error}") from error
    if len(data) > _MAX_BYTES:
        raise UsageError(f"normalizer: {uri} is larger than {_MAX_BYTES >> 20} MiB")
    lines = [line.rstrip("\r") for line in text.split("\n")]
    numbered = [(number, line) for number, line in enumerate(lines, 1) if line.strip() and not line.startswith("#")]
    found = []
    for number, line in numbered:
        pattern, _, replacement = line.partition("\t")
        _substitution(pattern, replacement, f"{uri}, line {number}")
        found.append((pattern, replacement))
    if not found:
        raise UsageError(f"normalizer: {uri} has no rule")
    return tuple(found)


def encode_pairs(pairs: Pairs) -> str:
    """The pairs as one text, equal for equal pairs."""
    return json.dumps(pairs, ensure_ascii=False, separators=(",", ":"))


def decode_pairs(text: str) -> Pairs:
    """The pairs of `encode_pairs`; raises ValueError for any other text."""
    pairs = json.loads(text)
    return tuple((str(pattern), str(replacement)) for pattern, replacement in pairs)


def digest(pairs: Pairs) -> str:
    """Twelve characters that stand for the pairs."""
    return hashlib.sha256(encode_pairs(pairs).encode()).hexdigest()[:12]


@functools.lru_cache(16)
def replaced(pairs: Pairs) -> Callable[[str], str]:
    """A function that applies the pairs to a text, one after the other.

    Raises:
        UsageError: a pattern or replacement cannot be used, or google-re2 is not installed; when it is called, that a
            text grows too much.
    """
    substitutions = [_substitution(*pair, f"rule {number}") for number, pair in enumerate(pairs, 1)]

    def apply(text: str) -> str:
        longest = max(_GROWTH * len(text), _SHORT)
        for number, substitute in enumerate(substitutions, 1):
            text = substitute(text)
            if len(text) > longest:
                raise UsageError(f"normalizer: rule {number} makes a text grow to {len(text):,} characters")
        return text

    return apply


def _substitution(pattern: str, replacement: str, where: str) -> Callable[[str], str]:
    try:
        import re2  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise UsageError("normalizer: google-re2 is not installed: pip install 'sewd-pipeline[normalizers]'") from error
    options = re2.Options()
    options.log_errors = False
    try:
        compiled = re2.compile(pattern, options=options)
    except re2.error as error:
        why = error.args[0].decode() if isinstance(error.args[0], bytes) else str(error)
        raise UsageError(f"normalizer: {where}: {why}") from error
    # re2 decodes a replacement as if it were Latin-1 with escapes, so what is not ASCII is given as escapes.
    template = replacement.encode("ascii", "backslashreplace").decode()
    try:
        re2.compile(f"(?:{pattern})?", options=options).sub(template, "")
    except (IndexError, UnicodeDecodeError, re2.error) as error:
        raise UsageError(
            f"normalizer: {where}: the replacement {replacement!r} names no group of the pattern, or ends in a "
            "backslash that is not doubled"
        ) from error
    return functools.partial(compiled.sub, template)
