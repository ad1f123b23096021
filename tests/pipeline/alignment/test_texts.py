"""Texts as words of tokens, and files of texts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.alignment.texts import read_texts, text_words
from pipeline.errors import UsageError
from sewd_model import CTCTokenizer
from tests.support.posteriors import TOKENIZER


def spelled(text: str, tokenizer: CTCTokenizer = TOKENIZER) -> list[tuple[str, str, bool]]:
    return [(word.word, tokenizer.text(word.ids), word.is_spelled) for word in text_words(text, tokenizer)]


def test_words_are_spelled_with_what_the_vocabulary_has():
    assert spelled("Don’t, stop\u00a0Café 42 3rd —") == [
        ("Don’t,", "DON'T", True),
        ("stop", "STOP", True),
        ("Café", "CAFE", True),
        ("42", "", False),
        ("3rd", "RD", False),
        ("—", "", True),
    ]


def test_case_is_that_of_the_vocabulary():
    lower = CTCTokenizer(vocab={"<pad>": 0, "<unk>": 1, "|": 2, "a": 3, "b": 4})
    assert spelled("AB", lower) == [("AB", "ab", True)]
    upper = CTCTokenizer(vocab={"<pad>": 0, "<unk>": 1, "|": 2, "A": 3, "B": 4}, do_lower_case=True)
    assert spelled("aB", upper) == [("aB", "ab", True)]


def test_tokens_of_several_characters():
    tokenizer = CTCTokenizer(vocab={"<pad>": 0, "<unk>": 1, "|": 2, "T": 3, "H": 4, "TH": 5, "E": 6})
    assert text_words("the", tokenizer)[0].ids == (5, 6)


def test_special_tokens_and_delimiters_are_no_text():
    assert spelled("<s> <pad> a|b") == [("<s>", "S", True), ("<pad>", "PAD", True), ("a|b", "AB", True)]


def test_files_of_texts(tmp_path: Path):
    (tmp_path / "talk.txt").write_text("one\ntwo\n")
    assert read_texts(str(tmp_path / "talk.txt"), [("talks/a", None)]).texts_of(_ids("talks/a")).to_pylist() == [
        "one\ntwo\n"
    ]
    with pytest.raises(UsageError, match="the text of one recording, and there are 2"):
        read_texts(str(tmp_path / "talk.txt"), [("a", None), ("b", None)])
    with pytest.raises(UsageError, match="there is no"):
        read_texts(str(tmp_path / "other.txt"), [("a", None)])
    (tmp_path / "texts").mkdir()
    for name in ("a", "b"):
        (tmp_path / "texts" / f"{name}.txt").write_text(name)
    found = read_texts(str(tmp_path / "texts"), [("talks/a", None), ("talks/b", None), ("talks/c", None)])
    assert found.texts_of(_ids("talks/a", "talks/b", "talks/c")).to_pylist() == ["a", "b", None]
    (tmp_path / "refs.jsonl").write_text(json.dumps({"audio_filepath": "x/a.wav", "text": "table"}))
    assert read_texts(str(tmp_path / "refs.jsonl"), [("x/a", None)]).texts_of(_ids("x/a")).to_pylist() == ["table"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=r"no .txt files"):
        read_texts(str(tmp_path / "empty"), [("a", None)])


def _ids(*names: str):
    import pyarrow as pa

    return pa.array(names)
