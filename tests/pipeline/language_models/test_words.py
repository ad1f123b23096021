"""The words of a language model are those of its file, whatever its format."""

from __future__ import annotations

import gzip

import pytest

from pipeline.errors import UsageError
from pipeline.language_models.words import words_of
from tests.support.language_models import PROBING, TINY, TRIE, write_binary, write_tiny

WORDS = {"a", "ab", "b", "ba"}


def test_words_of_an_arpa_file(tmp_path):
    assert words_of(write_tiny(tmp_path / "x")) == sorted(WORDS)
    (tmp_path / "y").write_bytes(gzip.compress(TINY.encode()))
    assert words_of(str(tmp_path / "y")) == sorted(WORDS)


def test_words_of_a_unigram_model(tmp_path):
    only = TINY.split("\\2-grams:")[0].replace("ngram 2=6\nngram 3=2\n", "") + "\\end\\\n"
    assert words_of(write_tiny(tmp_path / "x", only)) == sorted(WORDS)


@pytest.mark.parametrize("kind", [PROBING, TRIE], ids=["probing", "trie"])
def test_words_of_a_binary_file(kind, tmp_path):
    pytest.importorskip("ctc_beam_decoder")
    binary = write_binary(write_tiny(tmp_path / "x"), tmp_path / "y", kind)
    assert set(words_of(binary)) == WORDS


def test_compressed_and_cut(tmp_path):
    whole = gzip.compress(TINY.encode())
    (tmp_path / "cut").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UsageError, match="lm: cannot read"):
        words_of(str(tmp_path / "cut"))
    (tmp_path / "latin").write_bytes(TINY.replace("ba", "ä").encode("latin-1"))
    with pytest.raises(UsageError, match="lm: cannot read"):
        words_of(str(tmp_path / "latin"))
