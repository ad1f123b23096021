"""Beam search finds the most probable text: compared with the sum over all paths of small clips."""

from __future__ import annotations

import dataclasses
import gzip
import itertools
import math
import os
import pickle
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("ctc_beam_decoder")

from pipeline.decoding import beam as module
from pipeline.decoding.acoustics import Acoustics
from pipeline.decoding.beam import BeamDecoder
from pipeline.decoding.decoder import GreedyDecoder, load_decoder
from pipeline.decoding.settings import DecoderSettings, hotwords_of, requested
from pipeline.errors import UsageError
from sewd_model import CTCTokenizer, greedy_path
from sewd_model.posteriors import LARGEST_COST, Posteriors, keep
from tests.support.language_models import (
    PROBING,
    TINY,
    TRIE,
    read_arpa,
    sentence_score,
    write_binary,
    write_tiny,
)

AB = CTCTokenizer(vocab={"a": 0, "|": 1, "<pad>": 2, "b": 3}, bos_token=None, eos_token=None, unk_token=None)
BLANK = 2
LEAST = -LARGEST_COST - 0.5  # about that of the tokens that a frame does not keep


def acoustics_of(tokenizer, blank=2):
    return Acoustics(tokenizer, blank, max(tokenizer.tokens) + 1, 320, 16_000)


ACOUSTICS = acoustics_of(AB)
WIDE = DecoderSettings(beam=100_000, nbest=100_000)


@pytest.fixture(scope="module")
def arpa(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("lm") / "tiny.arpa")


def posteriors_of(rows, blank=BLANK):
    logits = np.asarray(rows, np.float64).reshape(len(rows), -1)
    return keep(logits - np.logaddexp.reduce(logits, axis=1, keepdims=True), blank)


@st.composite
def clips(draw, num_tokens=4):
    """Posteriors of up to five frames, some of them sure."""
    frames = draw(st.integers(1, 5))
    scale = draw(st.sampled_from([0.5, 1.0, 3.0]))
    seed = draw(st.integers(0, 2**32 - 1))
    logits = np.random.default_rng(seed).normal(size=(frames, num_tokens)) * scale
    for frame in draw(st.lists(st.integers(0, frames - 1), max_size=3)):
        logits[frame, BLANK] += 40.0
    return posteriors_of(logits)


def brute_force(posteriors, tokenizer, blank=BLANK):
    """The logarithm of the sum over all paths, of each text; frames are normalised, as the library does it."""
    num_tokens = max(tokenizer.tokens) + 1
    scores = posteriors.log_probabilities(num_tokens, blank).astype(np.float64)
    scores -= np.logaddexp.reduce(scores, axis=1, keepdims=True)
    kept = scores > LEAST
    totals = defaultdict(lambda: -math.inf)
    for path in itertools.product(*(np.flatnonzero(frame) for frame in kept)):
        tokens = [token for token, _ in itertools.groupby(path)]
        kept_tokens = [token for token in tokens if token != blank and token not in tokenizer.drop_ids]
        text = " ".join(tokenizer.text(kept_tokens).split())
        totals[text] = np.logaddexp(totals[text], sum(scores[frame, token] for frame, token in enumerate(path)))
    return totals


def text_of(hypothesis, tokenizer):
    return tokenizer.text(hypothesis.path.token_ids)


@given(clips())
@settings(max_examples=80, deadline=None)
def test_every_text_has_the_sum_of_its_paths(all_texts_kept, posteriors):
    expected = brute_force(posteriors, AB)
    found = BeamDecoder(WIDE, ACOUSTICS).decode(posteriors)
    scores = {text_of(h, AB): h.score for h in found}
    assert len(scores) == len(found)
    assert scores == pytest.approx(expected, abs=1e-3)
    assert [h.score for h in found] == sorted(scores.values(), reverse=True)


@given(clips(), st.sampled_from([0.0, 0.7]), st.sampled_from([-0.5, 2.0]))
@settings(max_examples=80, deadline=None)
def test_with_a_language_model_every_text_has_its_exact_score(all_texts_kept, arpa, posteriors, weight, bonus):
    by_paths, entries = brute_force(posteriors, AB), read_arpa(arpa)
    expected = {
        text: total + sentence_score(entries, text.split(), weight, bonus, module.UNKNOWN_WORD)
        for text, total in by_paths.items()
    }
    chosen = DecoderSettings(beam=100_000, nbest=100_000, lm=arpa, lm_weight=weight, word_bonus=bonus)
    found = BeamDecoder(chosen, ACOUSTICS).decode(posteriors)
    assert {text_of(h, AB): h.score for h in found} == pytest.approx(expected, abs=1e-3)
    assert {text_of(h, AB): h.acoustic for h in found} == pytest.approx(by_paths, abs=1e-3)
    assert found[0].score == pytest.approx(max(expected.values()), abs=1e-3)
    # For one text only, those that the language model cannot tell apart are not all followed to the end.
    [only] = BeamDecoder(dataclasses.replace(chosen, nbest=1), ACOUSTICS).decode(posteriors)
    assert expected[text_of(only, AB)] >= max(expected.values()) - math.log(2)


@pytest.fixture(scope="module")
def all_texts_kept():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "LEAST_TOKEN", LEAST)
        patch.setattr(module, "LEAST_TEXT", -1e9)
        yield patch


@given(clips())
@settings(max_examples=60, deadline=None)
def test_tokens_have_the_frames_of_their_best_path(posteriors):
    """Of the paths of the text, none is more probable than that whose frames the tokens have."""
    best = BeamDecoder(DecoderSettings(beam=16), ACOUSTICS).decode(posteriors)[0].path
    scores = posteriors.log_probabilities(4, BLANK)
    states = np.full(posteriors.num_frames, BLANK)
    for token, start, end in zip(best.token_ids, best.start_frames, best.end_frames, strict=True):
        states[start:end] = token
    of_path = scores[np.arange(len(states)), states].sum()
    others = [
        scores[np.arange(len(path)), list(path)].sum()
        for path in itertools.product(range(4), repeat=posteriors.num_frames)
        if [token for token, _ in itertools.groupby(path) if token != BLANK] == best.token_ids.tolist()
    ]
    assert of_path == pytest.approx(max(others), abs=1e-4)
    assert best.num_frames == posteriors.num_frames


@given(st.integers(0, 2**32 - 1), st.integers(0, 12), st.sampled_from([0.5, 5.0, 20.0]))
@settings(max_examples=60, deadline=None)
def test_greedy_decoding_of_posteriors_is_that_of_the_logits(seed, frames, scale):
    tokenizer = CTCTokenizer(vocab={"<s>": 0, "a": 1, "<pad>": 2, "|": 3, "</s>": 4, "<unk>": 5})
    logits = (np.random.default_rng(seed).normal(size=(frames, 6)) * scale).astype(np.float32)
    expected = greedy_path(logits, BLANK, tokenizer.drop_ids)
    kept = keep(logits - np.logaddexp.reduce(logits, axis=1, keepdims=True), BLANK)
    [found] = load_decoder(DecoderSettings(), acoustics_of(tokenizer)).decode(kept)
    for name in ("token_ids", "start_frames", "end_frames"):
        np.testing.assert_array_equal(getattr(found.path, name), getattr(expected, name))
    np.testing.assert_allclose(found.path.probabilities, expected.probabilities, atol=0.02)
    assert found.path.num_frames == frames


def clip_of(tokenizer, tokens, doubt=-6.0, blank=BLANK):
    """A clip that says these tokens, one a frame, with little doubt."""
    ids = [blank if token is None else tokenizer.ids[token] for token in tokens]
    logits = np.full((len(ids), max(tokenizer.tokens) + 1), doubt)
    logits[np.arange(len(ids)), ids] = 0.0
    return posteriors_of(logits, blank)


@pytest.mark.parametrize("decoder", [DecoderSettings(), DecoderSettings(beam=8)], ids=["greedy", "beam"])
@pytest.mark.parametrize(
    ("tokens", "text"),
    [
        (["a", None, "a", "b", "b"], "aab"),
        (["a", "|", "b", "|"], "a b"),
        ([None, None, None], ""),
        ([None], ""),
        (["b"], "b"),
        (["|"], ""),
        (["a"] * 400 + [None] * 400 + ["a"], "aa"),
    ],
    ids=["double", "words", "blank", "one-blank", "one", "delimiter", "long"],
)
def test_plain_clips(decoder, tokens, text):
    posteriors = clip_of(AB, tokens, doubt=-12.0)
    found = load_decoder(decoder, ACOUSTICS).decode(posteriors)
    assert AB.text(found[0].path.token_ids) == text
    assert found[0].path.num_frames == len(tokens)


@pytest.mark.parametrize("chosen", [DecoderSettings(), DecoderSettings(beam=8)], ids=["greedy", "beam"])
def test_no_frames(chosen, arpa):
    nothing = Posteriors(np.zeros(0, np.uint8), np.zeros(0, np.uint16), np.zeros(0, np.uint8))
    [found] = load_decoder(chosen, ACOUSTICS).decode(nothing)
    assert (len(found.path.token_ids), found.path.num_frames, found.score) == (0, 0, 0.0)


def test_silence_stays_silent_with_a_language_model(arpa):
    decoder = BeamDecoder(DecoderSettings(beam=16, lm=arpa, word_bonus=5.0), ACOUSTICS)
    found = decoder.decode(clip_of(AB, [None] * 50, doubt=-12.0))
    assert text_of(found[0], AB) == ""


def test_what_is_dropped_separates_equal_tokens_as_a_blank_does():
    tokenizer = CTCTokenizer(vocab={"<s>": 0, "a": 1, "<pad>": 2, "|": 3, "</s>": 4, "<unk>": 5, "b": 6})
    posteriors = clip_of(tokenizer, ["<s>", "a", "</s>", "a", "b", "</s>"])
    for chosen in (DecoderSettings(), DecoderSettings(beam=8)):
        assert (
            tokenizer.text(load_decoder(chosen, acoustics_of(tokenizer)).decode(posteriors)[0].path.token_ids) == "aab"
        )


@pytest.mark.parametrize("has_lm", [False, True])
def test_special_tokens_and_tokens_of_several_characters_are_text(has_lm, arpa):
    names = ["a", "|", "<pad>", "b", "<unk>", "_", "▁", "th", "|a"]
    tokenizer = CTCTokenizer(vocab={name: index for index, name in enumerate(names)}, bos_token=None, eos_token=None)
    chosen = DecoderSettings(beam=8, lm=arpa if has_lm else None, lm_weight=0.01)
    found = load_decoder(chosen, acoustics_of(tokenizer)).decode(
        clip_of(tokenizer, ["th", "<unk>", "_", "|", "▁", "|a", "b"], doubt=-30.0)
    )
    assert tokenizer.text(found[0].path.token_ids) == "th<unk>_ ▁|ab"


@given(st.lists(st.sampled_from(["a", "b", "aa", "ab", "bcd", "c", "d"]), min_size=1, max_size=6), st.booleans())
@settings(max_examples=60, deadline=None)
def test_tokens_that_are_spelled_in_several_ways_fit_into_the_frames(tokens, has_hotword):
    tokenizer = CTCTokenizer(
        vocab={name: index for index, name in enumerate(["a", "|", "<pad>", "b", "aa", "ab", "bcd", "c", "d"])}
    )
    frames = [name for a, b in itertools.pairwise([*tokens, ""]) for name in ([a, "<pad>"] if a == b else [a])]
    chosen = DecoderSettings(beam=8, hotwords=("abcd",) if has_hotword else (), hotword_weight=0.0)
    found = load_decoder(chosen, acoustics_of(tokenizer)).decode(clip_of(tokenizer, frames, doubt=-30.0))
    assert tokenizer.text(found[0].path.token_ids) == "".join(tokens)


def test_threads_that_load_at_the_same_time_leave_standard_error_as_it_was(arpa):
    def load(_):
        for _ in range(10):
            load_decoder(DecoderSettings(beam=2, lm=arpa), ACOUSTICS)

    before = os.fstat(2)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(load, range(4)))
    assert (os.fstat(2).st_dev, os.fstat(2).st_ino) == (before.st_dev, before.st_ino)


@pytest.mark.parametrize("kind", [PROBING, TRIE, "gzip"], ids=["probing", "trie", "gzip"])
def test_a_binary_or_compressed_language_model_gives_the_same(kind, arpa, tmp_path):
    if kind == "gzip":
        other = tmp_path / "lm.arpa.gz"
        other.write_bytes(gzip.compress(Path(arpa).read_bytes()))
    else:
        other = write_binary(arpa, tmp_path / "lm.bin", kind)
    posteriors = posteriors_of(np.random.default_rng(3).normal(size=(12, 4)))
    first, second = (
        load_decoder(DecoderSettings(beam=32, nbest=8, lm=str(path)), ACOUSTICS).decode(posteriors)
        for path in (arpa, other)
    )
    assert [(text_of(h, AB), h.score) for h in first] == [(text_of(h, AB), h.score) for h in second]


def test_the_case_of_the_language_model_does_not_matter(arpa, tmp_path):
    upper = CTCTokenizer(
        vocab={"A": 0, "|": 1, "<pad>": 2, "B": 3}, bos_token=None, eos_token=None, unk_token=None, do_lower_case=True
    )
    posteriors = posteriors_of(np.random.default_rng(4).normal(size=(12, 4)))
    lines = [line.upper() if line.startswith("-") else line for line in TINY.splitlines(keepends=True)]
    content = "".join(lines).replace("<S>", "<s>").replace("</S>", "</s>")
    loud = write_tiny(tmp_path / "upper.arpa", content)
    chosen = [
        load_decoder(DecoderSettings(beam=32, lm=lm, hotwords=(word,)), acoustics_of(tokenizer)).decode(posteriors)[0]
        for lm, tokenizer, word in ((arpa, AB, "ab"), (arpa, upper, "AB"), (loud, AB, "ab"), (loud, upper, "Ab"))
    ]
    assert len({(tuple(h.path.token_ids.tolist()), h.score) for h in chosen}) == 1


def test_without_a_delimiter_each_token_is_a_word(tmp_path, all_texts_kept):
    tokenizer = CTCTokenizer(
        vocab={"b": 0, "<pad>": 1, "a": 2},
        **dict.fromkeys(("bos_token", "eos_token", "unk_token", "word_delimiter_token")),
    )
    arpa = write_tiny(tmp_path / "tiny.arpa")
    entries = read_arpa(arpa)
    decoder = BeamDecoder(
        DecoderSettings(beam=10_000, nbest=10_000, lm=arpa, lm_weight=0.7), acoustics_of(tokenizer, 1)
    )
    for seed in range(20):
        posteriors = posteriors_of(np.random.default_rng(seed).normal(size=(5, 3)), 1)
        expected = {
            text: total + sentence_score(entries, list(text), 0.7, 1.5, module.UNKNOWN_WORD)
            for text, total in brute_force(posteriors, tokenizer, 1).items()
        }
        assert {text_of(h, tokenizer): h.score for h in decoder.decode(posteriors)} == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("has_lm", [False, True])
def test_hot_words_get_a_bonus(has_lm, arpa, all_texts_kept):
    posteriors = clip_of(AB, ["a", "b", "|", "b", "a"], doubt=-1.0)
    plain, hot = (
        {
            text_of(h, AB): h.score
            for h in BeamDecoder(
                dataclasses.replace(WIDE, lm=arpa if has_lm else None, hotwords=words, hotword_weight=3.0), ACOUSTICS
            ).decode(posteriors)
        }
        for words in ((), ("b ba",))
    )
    bonus = {text: 3.0 * sum(word in ("b", "ba") for word in text.split()) for text in plain}
    assert {text: score - plain[text] for text, score in hot.items()} == pytest.approx(bonus, abs=1e-3)


@pytest.mark.parametrize("folder", ["", "long" * 12, "longer" * 25], ids=["short", "long", "longer"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "has no words"),
        ("hello\n", "has no words"),
        (TINY[:150], "lm: could not load"),
        (TINY[:-20], "End of file"),
        (TINY.replace("-0.8\ta b", "0.8\ta b"), "Positive log probability"),
        (TINY.replace("<s>", "c"), "missing <s>"),
        ("\x1f\x8b", "has no words"),
    ],
    ids=["empty", "text", "cut", "cut-late", "positive", "no-start", "not-gzip"],
)
def test_a_broken_language_model_is_one_line(content, message, folder, tmp_path, capfd):
    (tmp_path / folder).mkdir(exist_ok=True)
    path = write_tiny(tmp_path / folder / "broken.arpa", content)
    with pytest.raises(UsageError, match=r"^lm: ") as raised:
        load_decoder(DecoderSettings(beam=2, lm=path), ACOUSTICS)
    assert message in str(raised.value) or folder  # of long messages the library gives the beginning
    assert "\n" not in str(raised.value)
    assert "/home/" not in str(raised.value)
    assert capfd.readouterr() == ("", "")


def test_a_language_model_that_cannot_be_used(tmp_path, arpa):
    for path in (tmp_path / "missing.arpa", tmp_path):
        with pytest.raises(UsageError, match="lm: cannot read"):
            load_decoder(DecoderSettings(beam=2, lm=str(path)), ACOUSTICS)
    other = write_tiny(tmp_path / "greek.arpa", TINY.replace("\ta", "\tα").replace("\tb", "\tβ"))
    with pytest.raises(UsageError, match=r"0% of the words of .* can be spelled"):
        load_decoder(DecoderSettings(beam=2, lm=other), ACOUSTICS)
    binary = Path(write_binary(arpa, tmp_path / "lm.bin"))
    binary.write_bytes(binary.read_bytes()[:-10])
    with pytest.raises(UsageError, match="without its words"):
        load_decoder(DecoderSettings(beam=2, lm=str(binary)), ACOUSTICS)


def test_usage(tmp_path):
    with pytest.raises(UsageError, match="beam: 1 is greedy"):
        requested(beam=1, nbest=2)
    with pytest.raises(UsageError, match="nbest: 9 are more than the 4"):
        requested(beam=4, nbest=9)
    for name in ("lm", "hotwords"):
        with pytest.raises(UsageError, match=f"{name}: there is no file"):
            requested(**{name: str(tmp_path / "missing")})
        with pytest.raises(UsageError, match=f"{name}: there is no file"):
            requested(**{name: str(tmp_path)})
    assert requested() == DecoderSettings()
    assert requested(nbest=100).beam == 100
    with pytest.raises(UsageError, match="'über' cannot be spelled"):
        load_decoder(DecoderSettings(beam=2, hotwords=("über",)), ACOUSTICS)
    undelimited = CTCTokenizer(vocab={"b": 0, "<pad>": 1, "a": 2})
    with pytest.raises(UsageError, match="no spaces between words"):
        load_decoder(DecoderSettings(beam=2, hotwords=("a",)), acoustics_of(undelimited, 1))


def test_hotwords_of_a_file():
    assert hotwords_of("\ufeffada  lovelace\r\n\nBob\nBob\n".encode(), "f") == ("ada lovelace", "Bob")
    with pytest.raises(UsageError, match="has none"):
        hotwords_of(b"\n \n", "f")
    with pytest.raises(UsageError, match="not UTF-8"):
        hotwords_of(b"\xff", "f")


def test_settings_are_what_is_sent_to_workers(arpa):
    chosen = DecoderSettings(beam=16, lm=arpa, hotwords=("ab",))
    again = pickle.loads(pickle.dumps(chosen))
    assert again == chosen
    assert isinstance(load_decoder(DecoderSettings(), ACOUSTICS), GreedyDecoder)
    posteriors = posteriors_of(np.random.default_rng(5).normal(size=(30, 4)))
    results = [load_decoder(item, ACOUSTICS).decode(posteriors)[0] for item in (chosen, again)]
    assert results[0].path.token_ids.tolist() == results[1].path.token_ids.tolist()
    assert results[0].score == results[1].score
