"""Probabilities of a built model: those of the formula, and all that may follow sum to one."""

from __future__ import annotations

import gzip
import itertools
import math
from collections import Counter, defaultdict
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("duckdb")

from pipeline.errors import UsageError
from pipeline.language_models import build as module
from pipeline.language_models.build import build
from tests.support.language_models import log10_probability, read_arpa

TEXT = ["a b c", "", "a  b", "c a b b", "b c a", "d", "a b c d a b"]
sentences = st.lists(st.lists(st.sampled_from("abcd"), min_size=1, max_size=6).map(" ".join), min_size=1, max_size=25)


@pytest.fixture(scope="module")
def arpa(tmp_path_factory):
    return tmp_path_factory.mktemp("lm") / "lm.arpa"


def histories(vocabulary, order):
    words = sorted(vocabulary - {"<s>", "</s>"})
    for length in range(order + 1):
        yield from itertools.product(words, repeat=length)
        if length:
            yield from (("<s>", *rest) for rest in itertools.product(words, repeat=length - 1))


@given(sentences, st.integers(2, 4), st.sampled_from([(), (0, 1), (0, 0, 1), (0, 1, 2)]))
@settings(max_examples=12, deadline=None)
def test_all_that_may_follow_sums_to_one(arpa, lines, order, prune):
    built = build(lines, arpa, order, prune)
    entries = read_arpa(str(arpa))
    vocabulary = {ngram[0] for ngram in entries if len(ngram) == 1}
    assert Counter(map(len, entries)) == {n: c + (n == 1) for n, c in enumerate(built.ngrams, 1) if c}
    for history in histories(vocabulary, min(order, 3)):
        total = sum(10 ** log10_probability(entries, history, word) for word in vocabulary - {"<s>"})
        assert total == pytest.approx(1.0, abs=2e-4), history
    for ngram in entries:  # what a decoder needs to find it
        assert all(ngram[start:stop] in entries for start, stop in ((1, None), (0, -1)) if len(ngram) > 1)


def brute_force(lines, order):
    """The probability of each word behind each history, by the formula; a dictionary of dictionaries, by history."""
    texts = [["<s>", *line.split(), "</s>"] for line in lines if line.split()]
    counts = defaultdict(Counter)
    for n in range(1, order + 1):
        seen = Counter(tuple(text[i : i + n]) for text in texts for i in range(len(text) - n + 1))
        longer = {tuple(text[i : i + n + 1]) for text in texts for i in range(len(text) - n)}
        for ngram, count in seen.items():
            lower = n < order and ngram[0] != "<s>"
            counts[n][ngram] = sum(other[1:] == ngram for other in longer) if lower else count
    counts[1].pop(("<s>",), None)
    vocabulary = sorted({word for text in texts for word in text} - {"<s>"} | {"<unk>"})

    def discount(n, count):
        of = Counter(counts[n].values())
        y = of[1] / (of[1] + 2 * of[2]) if of[1] else 0
        found = [(k - (k + 1) * y * of[k + 1] / of[k]) if of[k] else -1 for k in (1, 2, 3)]
        valid = all(of[k] for k in (1, 2, 3)) and all(0 < d <= k for k, d in enumerate(found, 1))
        return ((0.5, 1.0, 1.5) if not valid else found)[min(count, 3) - 1] if count else 0.0

    def probability(history, word):
        n = len(history) + 1
        lower = 1 / len(vocabulary) if n == 1 else probability(history[1:], word)
        total = sum(count for ngram, count in counts[n].items() if ngram[:-1] == history)
        if not total:
            return lower
        left = sum(discount(n, count) for ngram, count in counts[n].items() if ngram[:-1] == history) / total
        own = counts[n][*history, word]
        return (own - discount(n, own)) / total + left * lower

    return vocabulary, probability


@given(sentences, st.integers(2, 3))
@settings(max_examples=10, deadline=None)
def test_probabilities_are_those_of_the_formula(arpa, lines, order):
    build(lines, arpa, order)
    entries = read_arpa(str(arpa))
    vocabulary, probability = brute_force(lines, order)
    assert {ngram[0] for ngram in entries if len(ngram) == 1} == {*vocabulary, "<s>"}
    for history in histories(set(vocabulary), order - 1):
        for word in vocabulary:
            found = log10_probability(entries, history, word)
            assert 10**found == pytest.approx(probability(history, word), abs=1e-5), (history, word)


def test_discounts_are_estimated_where_counts_allow_it(arpa):
    lines = [f"w{i % (1 + i % 50)} w{(i * i) % 37} x{i % 300}" for i in range(2000)]
    built = build(lines, arpa, 2)
    assert built.discounts[1] != (0.5, 1.0, 1.5)
    assert all(0 < value < 3 for value in built.discounts[1])
    assert (built.sentences, built.words) == (2000, 6000)


def test_batches_and_compression_change_nothing(arpa, tmp_path, monkeypatch):
    build(TEXT, arpa, 3)
    monkeypatch.setattr(module, "_BATCH_WORDS", 5)
    monkeypatch.setattr(module, "_LINES", 2)
    build(TEXT, tmp_path / "lm.arpa.gz", 3)
    assert gzip.decompress((tmp_path / "lm.arpa.gz").read_bytes()) == arpa.read_bytes()


def test_the_decoder_reads_what_is_built(arpa):
    pytest.importorskip("ctc_beam_decoder")
    from pipeline.decoding.beam import BeamDecoder
    from pipeline.decoding.settings import DecoderSettings
    from tests.pipeline.decoding.test_beam import AB, ACOUSTICS, clip_of

    build([*TEXT, "<unk> </s> <s>"], arpa, 3, (0, 0, 1))
    decoder = BeamDecoder(DecoderSettings(beam=8, lm=str(arpa), lm_weight=1.0, word_bonus=0.0), ACOUSTICS)
    [found] = decoder.decode(clip_of(AB, ["a", "|", "b"], doubt=-20.0))
    entries = read_arpa(str(arpa))
    expected = sum(
        log10_probability(entries, history, word) * math.log(10)
        for history, word in ((["<s>"], "a"), (["<s>", "a"], "b"), (["<s>", "a", "b"], "</s>"))
    )
    assert found.language == pytest.approx(expected, abs=1e-3)


def test_wrong_settings(tmp_path):
    for memory, message in (("1.2.3GB", "no size"), ("1KB", "too small")):
        with pytest.raises(UsageError, match=f"^memory: .*{message}"):
            build(TEXT, tmp_path / "x", 3, memory=memory)
    for order, prune, message in (
        (1, (), "order"),
        (9, (), "order"),
        (3, (1,), "begin with 0"),
        (3, (0, 2, 1), "fall"),
    ):
        with pytest.raises(UsageError, match=message):
            build(TEXT, tmp_path / "x", order, prune)
    with pytest.raises(UsageError, match="no words"):
        build(["", " "], tmp_path / "x", 2)
    assert not list(Path(tmp_path).iterdir())
