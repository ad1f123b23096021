"""Small language models: their files, and their scores by the definition of back-off."""

from __future__ import annotations

import ctypes
import math
import struct
from collections.abc import Sequence
from pathlib import Path

TINY = """\\data\\
ngram 1=7
ngram 2=6
ngram 3=2

\\1-grams:
-1.0\t<unk>
-99\t<s>\t-0.3
-1.2\t</s>
-0.9\ta\t-0.2
-1.1\tab\t-0.25
-1.3\tb\t-0.1
-1.5\tba\t-0.4

\\2-grams:
-0.4\t<s> a\t-0.15
-0.8\ta b\t-0.05
-0.5\tab a\t-0.11
-0.6\tb </s>
-0.3\ta ab\t-0.3
-0.2\tba ba\t0

\\3-grams:
-0.1\t<s> a b
-0.15\ta ab a

\\end\\
"""
PROBING, TRIE = 0, 2  # KenLM's two kinds of binary files
_WRITE_MMAP_AT = 96  # of lm::ngram::Config, the path of the binary file to write


def write_tiny(path: Path, content: str = TINY) -> str:
    """Write a language model of the words a, ab, b and ba; returns its path."""
    path.write_text(content, encoding="utf-8")
    return str(path)


def write_binary(arpa: str, path: Path, kind: int = PROBING) -> str:
    """Write an ARPA file as a binary file of KenLM; returns its path."""
    import ctc_beam_decoder

    kenlm = ctypes.CDLL(str(Path(ctc_beam_decoder.__file__).with_name("libkenlm.so")))
    config, name = ctypes.create_string_buffer(1024), ctypes.c_char_p(str(path).encode())
    kenlm._ZN2lm5ngram6ConfigC1Ev(config)
    struct.pack_into("<Q", config, _WRITE_MMAP_AT, ctypes.cast(name, ctypes.c_void_p).value or 0)
    kenlm._ZN2lm5ngram11LoadVirtualEPKcRKNS0_6ConfigENS0_9ModelTypeE(arpa.encode(), config, kind)
    return str(path)


Entries = dict[tuple[str, ...], tuple[float, float]]


def read_arpa(path: str) -> Entries:
    """The decimal logarithms of probability and back-off weight of each n-gram."""
    entries: Entries = {}
    for line in Path(path).read_text("utf-8").splitlines():
        columns = line.split("\t")
        if len(columns) > 1:
            entries[tuple(columns[1].split())] = (float(columns[0]), float(columns[2]) if len(columns) > 2 else 0.0)
    return entries


def log10_probability(entries: Entries, history: Sequence[str], word: str) -> float:
    """Of a word behind others, by back-off."""
    order = max(map(len, entries))
    history = tuple(history)[len(history) - min(len(history), order - 1) :]
    if (*history, word) in entries:
        return entries[*history, word][0]
    return entries.get(history, (0.0, 0.0))[1] + log10_probability(entries, history[1:], word)


def sentence_score(
    entries: Entries, words: Sequence[str], lm_weight: float, word_bonus: float, unknown_word: float
) -> float:
    """What a language model adds to the score of a text, see `DecoderSettings`; nothing to an empty one."""
    if not words:
        return 0.0
    total, history = 0.0, ["<s>"]
    for word in words:
        known = word if (word,) in entries else "<unk>"
        total += log10_probability(entries, history, known) + (unknown_word if known == "<unk>" else 0.0)
        history.append(known)
    total += log10_probability(entries, history, "</s>")
    return lm_weight * total * math.log(10) + word_bonus * len(words)
