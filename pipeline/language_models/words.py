"""The words that a language model knows, from its file: ARPA, compressed or not, or a binary file of KenLM."""

from __future__ import annotations

import gzip
import mmap
import struct
import zlib
from pathlib import Path
from typing import Final

from pipeline.errors import UsageError

_GZIP: Final = b"\x1f\x8b"
_KENLM: Final = b"mmap lm http://kheafield.com/code"
# Of KenLM's header: 88 bytes that check the machine's types, 20 of sizes and kinds, then the number of unigrams.
_UNIGRAMS_AT: Final = 108
_FIRST_WORD: Final = b"<unk>\0"
SPECIAL: Final = frozenset({"<unk>", "<UNK>", "<s>", "</s>"})


def words_of(path: str) -> list[str]:
    """Return the words of a language model, without those for unknown words and the ends of sentences.

    Raises:
        UsageError: there is no such file, or it has no words, one line.
    """
    try:
        with Path(path).open("rb") as file:
            start = file.read(len(_KENLM))
        found = _of_binary(path) if start == _KENLM else _of_arpa(path, is_compressed=start.startswith(_GZIP))
    except (OSError, EOFError, zlib.error, ValueError, struct.error) as error:
        why = " ".join((getattr(error, "strerror", None) or str(error)).split())
        raise UsageError(f"lm: cannot read {path}: {why}") from error
    words = [word for word in found if word not in SPECIAL]
    if not words:
        raise UsageError(f"lm: {path} has no words: it is neither an ARPA file nor a binary file of KenLM")
    return words


def _of_arpa(path: str, *, is_compressed: bool) -> list[str]:
    words = []
    in_unigrams = False
    with gzip.open(path, "rb") if is_compressed else Path(path).open("rb") as file:
        for line in file:
            if line.startswith(b"\\"):
                if in_unigrams:
                    break
                in_unigrams = line.strip() == b"\\1-grams:"
            elif in_unigrams and len(columns := line.split()) >= 2:
                words.append(columns[1].decode("utf-8"))
    return words


def _of_binary(path: str) -> list[str]:
    """The words at the end of the file, each with a zero behind it; the first is that of unknown words."""
    with Path(path).open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        (count,) = struct.unpack_from("<Q", content, _UNIGRAMS_AT)
        words = content[max(0, content.rfind(_FIRST_WORD)) :].decode("utf-8").split("\0")[:-1]
    if len(words) not in (count, count + 1):
        raise ValueError("it was built without its words (KenLM's build_binary keeps them by default), or cut off")
    return words
