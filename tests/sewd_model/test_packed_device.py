"""Packed batches on a device: every clip's output is what transformers gives for it alone. On the CPU here."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sewd_model import packed_device
from sewd_model.device_batches import TOLERANCES, checked_model, in_batches
from sewd_model.packed_device import DevicePackedModel
from tests import configurations

CPU = torch.device("cpu")
# 20 samples a frame; frames: 61 (odd), 40, 25 (odd), 4, 2, and 60 with 7 samples that reach no frame.
LENGTHS = (1230, 810, 510, 90, 50, 1217)


def logits(packed, waveforms):
    return [output.logits[0] for output in packed(waveforms)]


def alone(model, waveforms):
    with torch.no_grad():
        return [model(waveform[None]).logits[0] for waveform in waveforms]


def assert_clips_close(oracle, found, expected, tolerance=1e-4):
    assert [clip.shape for clip in found] == [clip.shape for clip in expected]
    oracle.assert_close(torch.cat(found), torch.cat(expected), tolerance)


@pytest.mark.parametrize("overrides", configurations.CONFIGURATIONS.values(), ids=configurations.CONFIGURATIONS)
def test_each_clip_equals_transformers_on_that_clip_alone(oracle, overrides):
    theirs, ours = oracle.pair("ctc", **overrides)
    least = ours.config.min_samples
    waveforms = oracle.clips(*(max(least, length) for length in LENGTHS), least, least + 1, 4 * least)
    assert_clips_close(oracle, logits(DevicePackedModel([ours], device=CPU), waveforms), alone(theirs, waveforms))


def test_two_heads_share_a_pass_and_a_weighted_sum_has_all_layers(oracle):
    theirs, weighted = oracle.pair("classifier", use_weighted_layer_sum=True)
    _, plain = oracle.pair("classifier")
    _, ctc = oracle.pair("ctc")
    for other in (plain, ctc):
        other.sew_d.load_state_dict(weighted.sew_d.state_dict())
    waveforms = oracle.clips(*LENGTHS)
    outputs = DevicePackedModel([ctc, weighted, plain], device=CPU)(waveforms)
    assert_clips_close(oracle, [output.logits[1] for output in outputs], alone(theirs, waveforms))
    for head, model in ((0, ctc), (2, plain)):
        assert_clips_close(oracle, [output.logits[head] for output in outputs], alone(model, waveforms))


@pytest.fixture(scope="module")
def small(oracle):
    theirs, ours = oracle.pair("ctc")
    return theirs, ours, DevicePackedModel([ours], device=CPU)


def test_an_offset_costs_no_digits(oracle, small):
    theirs, _, packed = small
    waveforms = oracle.clips(*LENGTHS)
    shifted = [waveform + 100.0 for waveform in waveforms]
    assert_clips_close(oracle, logits(packed, shifted), alone(theirs.double(), [w.double() for w in shifted]))
    theirs.float()


def test_more_squeezed_frames_than_the_least_size(oracle, small):
    theirs, _, packed = small
    waveforms = oracle.clips(*[3210] * 14, 5010)  # 80 squeezed frames each, and 125: 1245, filled up to 2048
    assert_clips_close(oracle, logits(packed, waveforms), alone(theirs, waveforms))


def test_order_and_company_change_nothing(oracle, small):
    *_, packed = small
    waveforms = oracle.clips(*LENGTHS)
    forwards = logits(packed, waveforms)
    assert_clips_close(oracle, logits(packed, waveforms[::-1])[::-1], forwards, 1e-5)
    assert_clips_close(oracle, [logits(packed, [waveform])[0] for waveform in waveforms], forwards, 1e-5)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(50, 900), min_size=1, max_size=6))
def test_any_lengths(oracle, small, lengths):
    _, ours, packed = small
    waveforms = oracle.clips(*lengths)
    assert_clips_close(oracle, logits(packed, waveforms), alone(ours, waveforms))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_within_its_tolerance(oracle, small, dtype):
    _, ours, _ = small
    waveforms = oracle.clips(*LENGTHS)
    found = logits(DevicePackedModel([ours], device=CPU, dtype=dtype), waveforms)
    assert all(clip.dtype == torch.float32 for clip in found)
    assert_clips_close(oracle, found, alone(ours, waveforms), TOLERANCES[dtype])


def test_a_batch_that_does_not_fit_is_halved_down_to_one_clip(oracle):
    asked = []

    def run(batch):
        asked.append([len(waveform) for waveform in batch])
        if sum(asked[-1]) > 100:
            raise torch.OutOfMemoryError
        return asked[-1]

    waveforms = oracle.clips(60, 40, 30, 101, 20, 90)
    assert list(in_batches(run, waveforms, budget=251)) == [60, 40, 30, None, 20, 90]
    assert asked == [[60, 40, 30, 101, 20], [60, 40], [30, 101, 20], [30], [101, 20], [101], [20], [90]]


def test_a_clip_over_the_budget_goes_alone(oracle):
    asked = []
    run = lambda batch: asked.append(len(batch)) or batch  # noqa: E731
    waveforms = oracle.clips(10, 500, 10, 10)
    assert [len(waveform) for waveform in in_batches(run, waveforms, budget=100)] == [10, 500, 10, 10]
    assert asked == [1, 1, 2]


def test_an_engine_that_agrees_passes_its_check(small):
    _, ours, _ = small
    assert checked_model([ours], CPU, torch.float32, 16_000) is not None


@pytest.mark.parametrize("fault", ["wrong", "raises"])
def test_an_engine_that_is_wrong_or_cannot_be_compiled_is_not_used_and_it_is_said(small, monkeypatch, caplog, fault):
    _, ours, _ = small

    def attend(query, key, value, **_):
        if fault == "raises":
            raise torch._dynamo.exc.Unsupported("no kernel here")
        return value

    monkeypatch.setattr(packed_device, "_flex_attention", lambda _: attend)
    assert checked_model([ours], CPU, torch.float32, 16_000) is None
    (record,) = caplog.records
    assert ("no kernel here" if fault == "raises" else "differ from the reference's") in record.getMessage()
