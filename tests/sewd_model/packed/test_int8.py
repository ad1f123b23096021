"""Models packed in int8: close to float32, bit-equal in any batch, and in float32 if int8 products are not exact."""

import io
import logging
import tarfile
from pathlib import Path

import jiwer
import pytest
import soundfile
import soxr
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sewd_model import CTCTokenizer, FeatureExtractor, SEWDForCTC, SEWDForSequenceClassification, greedy_path
from sewd_model.packed import int8
from sewd_model.packed.cpu import PackedModel
from sewd_model.packed.int8 import BFloat16Linear, Int8Linear
from sewd_model.packed.products import OneDNNLinear
from tests.support import configurations

SHARDS = Path(__file__).parents[3] / "jobs" / "demo_corpus" / "shards"
CONFIGURATIONS = configurations.CONFIGURATIONS


def in_int8(model, **options):
    return PackedModel(model, dtype="int8", **options)


needs_int8 = pytest.mark.skipif(not int8._is_exact(), reason="this processor has no exact int8 products")


@pytest.fixture(scope="module")
def recordings():
    """Waveforms of the demo's spoken orders and digits, at 16 kHz."""
    features, waveforms = FeatureExtractor.from_pretrained("bundled"), []
    for name in ("orders", "digits"):
        with tarfile.open(SHARDS / f"{name}-000000.tar") as shard:
            for member in shard:
                if member.name.endswith((".flac", ".wav", ".ogg", ".mp3")):
                    samples, rate = soundfile.read(io.BytesIO(shard.extractfile(member).read()), dtype="float32")
                    mono = samples if rate == 16_000 else soxr.resample(samples, rate, 16_000)
                    waveforms.append(torch.from_numpy(features.prepare(mono)))
    assert len(waveforms) > 10
    return waveforms


@needs_int8
def test_texts_and_labels_of_the_bundled_model_are_close_to_float32(recordings):
    heads = [SEWDForCTC.from_pretrained("bundled"), SEWDForSequenceClassification.from_pretrained("bundled")]
    tokenizer = CTCTokenizer.from_pretrained("bundled")

    def text(logits):
        return tokenizer.text(greedy_path(logits, heads[0].blank, tokenizer.drop_ids).token_ids.tolist())

    clips = recordings[::2]
    outputs, references = in_int8(heads)(clips), PackedModel(heads)(clips)
    texts, expected = ([text(result.logits[0]) for result in results] for results in (outputs, references))
    assert jiwer.cer(expected, texts) < 0.01
    logits, in_float32 = (torch.cat([result.logits[0] for result in results]) for results in (outputs, references))
    assert (logits - in_float32).square().mean().sqrt() < 0.03 * in_float32.std()
    for output, reference in zip(outputs, references, strict=True):
        # For speech without a keyword, two labels may have almost equal scores.
        score_of_label = reference.logits[1][output.logits[1].argmax()]
        assert reference.logits[1].max() - score_of_label < 0.05


@needs_int8
def test_a_clip_has_bit_equal_results_alone_and_in_any_batch(recordings):
    model = SEWDForCTC.from_pretrained("bundled")
    packed, clips = in_int8([model]), recordings[15:25]  # orders and digits
    alone = [packed([clip])[0].logits[0] for clip in clips]
    together, reversed_batch = packed(clips), in_int8([model], threads=3)(clips[::-1])[::-1]
    for one, other, third in zip(alone, together, reversed_batch, strict=True):
        assert torch.equal(one, other.logits[0])
        assert torch.equal(one, third.logits[0])


@needs_int8
@pytest.mark.parametrize("overrides", CONFIGURATIONS.values(), ids=CONFIGURATIONS)
def test_every_configuration_is_near_float32(oracle, overrides):
    _, model = oracle.pair("ctc", **overrides)
    least = model.config.min_samples
    waveforms = oracle.clips(*(max(least, length) for length in (1230, 810, 90, 1217)))
    actual, expected = (
        torch.cat([one.logits[0].flatten() for one in packed(waveforms)])
        for packed in (in_int8([model]), PackedModel([model]))
    )
    assert actual.dtype == torch.float32
    assert (actual - expected).square().mean().sqrt() < 0.15 * expected.std()


@needs_int8
def test_a_nan_affects_only_its_own_clip(recordings):
    packed = in_int8([SEWDForCTC.from_pretrained("bundled")])
    assert packed.dtype.startswith("int8")
    one, two, three = recordings[:3]
    expected = [packed([clip])[0].logits[0] for clip in (one, three)]
    for bad in (float("nan"), float("inf")):
        actual = packed([one, torch.full_like(two, bad), three])
        assert actual[1].logits[0].isnan().any()
        assert torch.equal(actual[0].logits[0], expected[0])
        assert torch.equal(actual[2].logits[0], expected[1])


FLOATS = st.floats(-(2.0**100), 2.0**100, width=32)


@given(st.lists(FLOATS, min_size=1, max_size=40))
@settings(deadline=None)
def test_rows_are_quantized_to_within_half_a_scale_and_zeros_are_kept(values):
    rows = torch.tensor([values])
    rounded, scale, zero = int8._quantize(rows)
    assert rounded.dtype == torch.uint8
    back = (rounded.double() - zero) * scale
    assert (back - rows.double()).abs().max() <= 0.5001 * scale
    assert not back[rows == 0].any()


@pytest.mark.parametrize("bounds", [(0.0, 3.0), (-3.0, 0.0), (-1.5, 252.5), (-0.5, 253.5), (5.0, 5.0), (0.0, 0.0)])
def test_the_extremes_do_not_wrap_around(bounds):
    rounded, scale, zero = int8._quantize(torch.tensor([bounds]))
    back = (rounded.double() - zero) * scale
    assert (back - torch.tensor([bounds])).abs().max() <= 0.5001 * scale


def fails(*_):
    raise RuntimeError("could not create a primitive")


@pytest.mark.parametrize(
    "call", [fails, lambda linear, rows: torch.full((16, 32), 100.0)], ids=["no kernel", "sums that are cut off"]
)
def test_products_that_fail_or_are_wrong_do_not_count_as_exact(monkeypatch, call):
    monkeypatch.setattr(Int8Linear, "__call__", call)
    assert not int8._is_exact.__wrapped__()


def test_a_torch_without_the_operators_does_not_count_as_exact(monkeypatch):
    monkeypatch.delattr(torch.ops, "onednn", raising=False)
    monkeypatch.setattr(torch.ops, "onednn", object(), raising=False)
    assert not int8._is_exact.__wrapped__()


def test_without_exact_products_the_model_is_packed_in_float32_with_a_warning(oracle, monkeypatch, caplog):
    monkeypatch.setattr(int8, "_is_exact", lambda: False)
    _, model = oracle.pair("ctc")
    waveforms = oracle.clips(1230, 810)
    with caplog.at_level(logging.WARNING):
        packed = in_int8([model])
    actual = packed(waveforms)
    assert "computing in float32" in caplog.text
    assert (packed.dtype, packed.fallback) == ("float32", int8.FALLBACK_REASON)
    for one, other in zip(actual, PackedModel([model])(waveforms), strict=True):
        assert torch.equal(one.logits[0], other.logits[0])


@pytest.mark.parametrize(("bfloat16", "convolution"), [(True, BFloat16Linear), (False, OneDNNLinear)])
def test_convolutions_use_bfloat16_if_the_processor_has_it(monkeypatch, bfloat16, convolution):
    monkeypatch.setattr(int8, "_is_exact", lambda: True)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bfloat16, raising=False)
    assert int8.linear_types() == (convolution, Int8Linear)


def test_an_unsupported_dtype_is_refused(oracle):
    _, model = oracle.pair("ctc")
    with pytest.raises(ValueError, match="float32 or int8, not in float16"):
        PackedModel([model], dtype="float16")
