"""Characters that the vocabulary lacks are counted, whatever the vocabulary's case and special tokens."""

from __future__ import annotations

import pytest

from pipeline.scoring.normalize import normalize
from pipeline.training.characters import encode, unknown_characters
from pipeline.training.data import Clip
from pipeline.training.model import default_tokenizer
from sewd_model.ctc import CTCTokenizer

LOWER = CTCTokenizer(vocab={token: i for i, token in enumerate(["<pad>", "|", *"abcdefghijklmnopqrstuvwxyz"])})
UPPER_OF_LOWER = CTCTokenizer(vocab={t: i for i, t in enumerate(["<pad>", "|", *"ABCEMR"])}, do_lower_case=True)
WITHOUT_UNKNOWN = CTCTokenizer(
    vocab={token: i for i, token in enumerate(["<pad>", "|", *"ABCEMR"])},
    unk_token=None,
    bos_token=None,
    eos_token=None,
)


def clips(*texts: str | None) -> list[Clip]:
    return [Clip(str(n), 1.0, None if t is None else normalize(t, "basic"), None, None) for n, t in enumerate(texts)]


@pytest.mark.parametrize("tokenizer", [default_tokenizer(), LOWER])
def test_unknown_characters_are_counted_by_character(tokenizer):
    found = unknown_characters(clips("Crème brûlée 7", "crème", "cream", None, "", "Ünïcödé 77"), tokenizer)
    assert found.counts == {"7": 3, "è": 2, "é": 2, "ö": 1, "û": 1, "ü": 1, "ï": 1}
    assert next(iter(found.counts)) == "7"
    assert (found.texts, found.all_texts) == (3, 5)
    line = found.describe("train")
    assert line.startswith("train: 3 of 5 texts")
    assert "'7' 3, 'è' 2" in line
    assert "\n" not in line


@pytest.mark.parametrize("text", ["日本語", "привет", "naïve", "straße", "it’s 100 %"])
def test_the_count_is_what_the_tokenizer_makes_of_the_text(text):
    [clip] = clips(text)
    tokenizer = default_tokenizer()
    found = unknown_characters([clip], tokenizer)
    unknown = encode(clip.text, tokenizer).count(tokenizer.unk_id)
    assert sum(found.counts.values()) == unknown


def test_a_vocabulary_that_has_all_is_silent():
    for tokenizer in (default_tokenizer(), LOWER, UPPER_OF_LOWER):
        found = unknown_characters(clips("bram crab"), tokenizer)
        assert not found.counts or set(found.counts) - set("bramc ")
    assert unknown_characters(clips("it's a macchiato"), default_tokenizer()).describe("train") == ""


def test_without_an_unknown_token_the_character_is_left_out():
    assert encode("crème b", WITHOUT_UNKNOWN) == WITHOUT_UNKNOWN.encode("CRME B")
    assert unknown_characters(clips("crème b"), WITHOUT_UNKNOWN).counts == {"è": 1}


def test_many_characters_are_cut_to_one_readable_line():
    found = unknown_characters(clips("".join(map(chr, range(0x4E00, 0x4E00 + 200)))), default_tokenizer())
    assert len(found.counts) == 200
    assert "and 180 others" in found.describe("train")
