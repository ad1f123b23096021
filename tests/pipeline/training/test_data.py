"""From clips to batches: the content of an epoch, which depends on (seed, epoch) alone."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.training.data import (
    Clip,
    ClipStore,
    epoch_batches,
    epoch_utterances,
    generator_for,
    padded_width,
    waveform,
)
from pipeline.training.settings import DataSettings


def clips(durations, **values):
    return [Clip(f"{i}", d, "a", None, f"s{i % 3}", **values) for i, d in enumerate(durations)]


DURATIONS = st.lists(st.floats(0.1, 20), min_size=1, max_size=80)


@given(durations=DURATIONS, epoch=st.integers(0, 3), join=st.integers(1, 5))
def test_an_epoch_has_every_clip_once(durations, epoch, join):
    settings = DataSettings(batch_s=10, join_max=join, join_below_s=3)
    corpus = clips(durations)
    batches = epoch_batches(corpus, settings, epoch)
    assert Counter(i for b in batches for u in b for i in u.clips) == Counter(range(len(corpus)))
    keys = [u.key for b in batches for u in b]
    assert len(set(keys)) == len(keys), "two utterances would be augmented in the same way"
    assert batches == epoch_batches(corpus, settings, epoch)


@given(durations=DURATIONS)
def test_a_batch_with_its_padding_stays_within_the_budget(durations):
    for batch in epoch_batches(clips(durations), DataSettings(batch_s=25), 0):
        assert len(batch) == 1 or len(batch) * max(u.duration_s for u in batch) <= 25


@given(durations=DURATIONS)
def test_batches_have_few_sizes(durations):
    batches = epoch_batches(clips(durations), DataSettings(batch_s=25), 0)
    sizes = {len(batch) for batch in batches}
    remainders = 1  # there is only one pool of clips
    assert len(sizes - {1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64}) <= remainders


@given(durations=st.lists(st.floats(0.1, 20), min_size=1, max_size=80, unique=True), together=st.integers(1, 4))
def test_batches_of_similar_length_stay_together(durations, together):
    corpus = clips(durations)
    ungrouped = sorted(epoch_batches(corpus, DataSettings(batch_s=25), 0), key=lambda b: -b[0].duration_s)
    grouped = epoch_batches(corpus, DataSettings(batch_s=25), 0, together)
    assert sorted(grouped, key=lambda b: -b[0].duration_s) == ungrouped
    in_groups = len(grouped) - len(grouped) % together
    left_out = [batch[0].duration_s for batch in grouped[in_groups:]]
    longest = [batch[0].duration_s for batch in ungrouped if batch[0].duration_s not in left_out]
    for start in range(0, in_groups, together):
        group = [batch[0].duration_s for batch in grouped[start : start + together]]
        index = longest.index(group[0])
        assert group == longest[index : index + together]


def test_batches_that_fill_no_group_are_others_in_each_epoch():
    corpus = clips([0.5 + n / 10 for n in range(60)])
    seen = set()
    for epoch in range(20):
        batches = epoch_batches(corpus, DataSettings(batch_s=12), epoch, 4)
        seen |= {i for batch in batches[: len(batches) - len(batches) % 4] for u in batch for i in u.clips}
    assert seen == set(range(60))


def test_an_empty_epoch_has_no_batches_and_empty_clips_share_one():
    assert epoch_batches([], DataSettings(), 0, 2) == []
    assert [len(batch) for batch in epoch_batches(clips([0.0, 0.0]), DataSettings(), 0)] == [2]


@given(samples=st.integers(1, 10**6))
def test_padding_to_a_width_adds_little_and_a_width_is_not_padded(samples):
    width = padded_width(samples)
    assert samples <= width < samples + max(8000, 0.26 * samples)
    assert padded_width(width) == width


def test_widths_up_to_half_a_minute_are_fewer_than_thirty():
    assert len({padded_width(samples) for samples in range(1, 480_000, 500)}) < 30


def test_epochs_and_seeds_have_different_orders():
    corpus = clips([1.0] * 50)
    orders = [
        [u.clips for b in epoch_batches(corpus, DataSettings(batch_s=5, seed=seed), epoch) for u in b]
        for seed, epoch in [(0, 0), (0, 1), (1, 0)]
    ]
    assert orders[0] != orders[1]
    assert orders[0] != orders[2]


def test_a_weight_is_the_mean_number_of_uses_in_an_epoch():
    corpus = [*clips([1.0] * 40, weight=0.25), *clips([1.0] * 40, weight=2.5)]
    counts = Counter(
        i for epoch in range(100) for u in epoch_utterances(corpus, DataSettings(), epoch) for i in u.clips
    )
    light, heavy = sum(counts[i] for i in range(40)) / 4000, sum(counts[i] for i in range(40, 80)) / 4000
    assert light == pytest.approx(0.25, abs=0.03)
    assert heavy == pytest.approx(2.5, abs=0.03)


def test_only_short_unlabelled_clips_of_one_speaker_are_joined():
    corpus = [
        *(Clip("a", 0.5, "one", None, "x") for _ in range(30)),
        *(Clip("b", 0.5, "two", None, "y") for _ in range(30)),
        *(Clip("c", 0.5, "three", "three", "x") for _ in range(5)),
        *(Clip("d", 4.0, "four", None, "x") for _ in range(5)),
        *(Clip("e", 0.5, "five", None, None) for _ in range(5)),
    ]
    utterances = epoch_utterances(corpus, DataSettings(join_max=4, join_below_s=1, join_total_s=3), 0)
    sizes = Counter(len(u.clips) for u in utterances)
    assert set(sizes) == {1, 2, 3, 4} or set(sizes) == {1, 2, 3}
    for utterance in utterances:
        members = [corpus[i] for i in utterance.clips]
        assert utterance.text == " ".join(clip.text for clip in members)
        if len(members) > 1:
            assert len({clip.speaker for clip in members}) == 1
            assert {clip.utt_id for clip in members} <= {"a", "b"}
            assert utterance.label is None
            assert sum(clip.duration_s for clip in members) <= 3
        else:
            assert utterance.label == members[0].label


def test_a_joined_waveform_has_its_clips_with_pauses_between():
    samples = [np.full(4000, level * 32768, np.int16) for level in (0.25, 0.5)]
    store = ClipStore([Clip(str(number), 0.25, "x", None, "s") for number in range(2)], samples)
    settings = DataSettings(join_max=2, seed=3)
    joined = next(u for e in range(20) for u in epoch_utterances(store.clips, settings, e) if len(u.clips) == 2)
    samples = waveform(store, joined, settings, 0)
    levels = [0.25, 0.5] if joined.clips == (0, 1) else [0.5, 0.25]
    for level in levels:
        assert np.isclose(samples, level, atol=1e-4).sum() == 4000
    positions = [np.flatnonzero(np.isclose(samples, level, atol=1e-4)) for level in levels]
    assert positions[0].max() < positions[1].min()
    pauses = len(samples) - 8000
    assert pauses >= 3 * 0.02 * 16_000 - 3
    assert pauses <= 3 * 0.5 * 16_000
    np.testing.assert_array_equal(samples, waveform(store, joined, settings, 0))
    assert len(waveform(store, joined, settings, 1)) != len(samples)


@pytest.mark.parametrize(("seconds", "kept"), [(1.0, 9600), (3.0, 48_000)])
def test_trim_cuts_single_words_but_not_sentences(seconds, kept):
    samples = np.full(int(seconds * 16_000), 16_384, np.int16)
    samples[:3200] = samples[-3200:] = 3  # 70 dB below the rest
    store = ClipStore([Clip("a", seconds, "x", None, "s")], [samples])
    settings = DataSettings(augment={"trim": 1.0})
    [utterance] = epoch_utterances(store.clips, settings, 0)
    assert {len(waveform(store, utterance, settings, epoch)) for epoch in range(9)} == {kept}


def test_generators_depend_on_their_keys_alone():
    assert generator_for(1, "a", 2).integers(2**62) == generator_for(1, "a", 2).integers(2**62)
    assert generator_for(1, "a", 2).integers(2**62) != generator_for(1, "a", 3).integers(2**62)
    assert generator_for("1a").integers(2**62) != generator_for(1, "a").integers(2**62)
