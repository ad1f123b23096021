"""The choice of an engine: every engine computes what the models compute, and one that cannot work falls back."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch._dynamo.exc import TorchDynamoException

import sewd_model
from sewd_model import EngineStatus, FeatureExtractor, SEWDForCTC, SEWDForSequenceClassification, load_engine
from sewd_model.ctc import greedy_paths
from sewd_model.engines import _ClipByClip, _default_dtype, _OnDevice, _PackedOnCpu, _PackedOnDevice, _Padded
from sewd_model.packed import gpu_check, int8
from sewd_model.packed.cpu import PackedModel
from sewd_model.packed.gpu import PackedDeviceModel
from sewd_model.packed.gpu_batches import BUDGET_S
from sewd_model.packed.gpu_check import DisagreementError
from sewd_model.packed.gpu_memory import device_failed
from sewd_model.packed.gpu_recognition import best_tokens
from sewd_model.packed.products import OneDNNLinear
from sewd_model.posteriors import LARGEST_COST
from sewd_model.recognition import Decoding, Failure
from tests.support import corpora

CPU = torch.device("cpu")
KINDS = (_PackedOnDevice, _Padded, _ClipByClip)
CPU_NAME = f"cpu {torch.backends.cpu.get_cpu_capability()}"
NO_COMPILER = "ignore:flex_attention called without torch.compile"


@pytest.fixture
def load_heads(small_ctc, small_classifier):
    """Loads a CTC head and a classifier of one backbone anew: an engine changes the heads that it is given."""

    def load():
        return [
            SEWDForCTC.from_pretrained(small_ctc).eval(),
            SEWDForSequenceClassification.from_pretrained(small_classifier).eval(),
        ]

    return load


def clips(count):
    """Clips of different lengths: (num_samples,) float32."""
    return [torch.from_numpy(corpora.noise_bursts(0.5 + 0.3 * index, index)) for index in range(count)]


DECODING = Decoding(FeatureExtractor(), blank=0, drop=(1, 2))


def clip_by_clip(heads, dtype="float32"):
    return _ClipByClip(heads, CPU, dtype, DECODING)


def on_device(heads, features=DECODING.features):
    """The engine for a GPU, on the CPU."""
    return _OnDevice(heads, CPU, "float32", Decoding(features, DECODING.blank, DECODING.drop))


def decoded(count):
    """Clips as they are decoded: int16 and float32 in turns."""
    waves = [clip.numpy() for clip in clips(count)]
    return [(wave * 32767).astype(np.int16) if index % 2 else wave for index, wave in enumerate(waves)]


def assert_results_close(found, expected):
    found, expected = list(found), list(expected)
    assert len(found) == len(expected)
    for (path, scores), (expected_path, expected_scores) in zip(found, expected, strict=True):
        for name in ("token_ids", "start_frames", "end_frames"):
            np.testing.assert_array_equal(getattr(path, name), getattr(expected_path, name))
        assert path.num_frames == expected_path.num_frames
        np.testing.assert_allclose(path.probabilities, expected_path.probabilities, rtol=1e-4, atol=2e-5)
        torch.testing.assert_close(scores, expected_scores, rtol=1e-4, atol=1e-4)


def assert_logits_close(found, expected):
    found, expected = list(found), list(expected)
    assert len(found) == len(expected)
    for logits, expected_logits in zip(found, expected, strict=True):
        for head, expected_head in zip(logits, expected_logits, strict=True):
            torch.testing.assert_close(head, expected_head, rtol=1e-4, atol=1e-4)


def test_on_cpus_packed_clips_have_the_logits_that_the_models_compute_clip_by_clip(load_heads):
    found = list(load_engine(load_heads(), "cpu").encode(clips(4)))
    assert len(found) == 4
    assert_logits_close(found, clip_by_clip(load_heads()).encode(clips(4)))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_gives_logits_in_float32_near_those_of_float32(load_heads, dtype):
    half = clip_by_clip(load_heads(), dtype).encode(clips(2))
    for logits, expected in zip(half, clip_by_clip(load_heads()).encode(clips(2)), strict=True):
        for head, expected_head in zip(logits, expected, strict=True):
            assert head.dtype == torch.float32
            assert 0 < (head - expected_head).abs().max() < 0.1 * expected_head.std()


@pytest.mark.filterwarnings(NO_COMPILER)
def test_on_a_device_packed_batches_have_the_results_of_the_models(load_heads, caplog):
    engine = on_device(load_heads())
    assert engine.status() == EngineStatus("packed", "float32", CPU_NAME, BUDGET_S, None)
    assert engine.splits == 0
    reference = clip_by_clip(load_heads())
    expected, results = list(reference.encode(clips(3))), list(reference.recognize(decoded(4)))
    assert all(len(path.token_ids) for path, _ in results)
    with pytest.MonkeyPatch.context() as patch:  # from here on the unpacked models compute nothing
        patch.setattr(SEWDForCTC, "head", None)
        assert_logits_close(engine.encode(clips(3)), expected)
        assert_results_close(engine.recognize(decoded(4)), results)
        assert_results_close(engine.recognize(decoded(4)[1:2]), results[1:2])
    assert "the model runs" not in caplog.text


@pytest.mark.filterwarnings(NO_COMPILER)
@pytest.mark.parametrize("do_normalize", [True, False])
def test_on_a_device_samples_are_prepared_as_on_the_processor(load_heads, do_normalize):
    decoding = Decoding(FeatureExtractor(do_normalize=do_normalize), 0, (1, 2))
    waves = [
        *decoded(3),
        (20_000 + 200 * decoded(1)[0]).astype(np.int16),
        1e-3 * decoded(1)[0],
        np.full(8000, 0.7, "f4"),
        *([1e25 * decoded(1)[0]] if do_normalize else []),  # the sum of its squares is infinite in float32
    ]
    engine = _OnDevice(load_heads(), CPU, "float32", decoding)
    reference = _ClipByClip(load_heads(), CPU, "float32", decoding)
    assert_results_close(engine.recognize(waves), reference.recognize(waves))


@pytest.mark.filterwarnings(NO_COMPILER)
@pytest.mark.parametrize(
    "make",
    [
        lambda heads, decoding: _PackedOnCpu(PackedModel(heads), decoding),
        *(lambda heads, decoding, kind=kind: kind(heads, CPU, "float32", decoding) for kind in KINDS),
    ],
    ids=["cpu", *(kind.__name__ for kind in KINDS)],
)
def test_every_engine_gives_the_posteriors_of_the_logits_of_the_models(load_heads, make):
    decoding = replace(DECODING, posteriors=True)
    reference = clip_by_clip(load_heads())
    waves = [*decoded(4), np.zeros(720, np.float32)]
    prepared = [
        torch.from_numpy(DECODING.features.prepare(wave / np.float32(np.abs(wave).max() or 1))) for wave in waves
    ]
    results = list(make(load_heads(), decoding).recognize(waves))
    expected = zip(reference.encode(prepared), reference.recognize(waves), strict=True)
    for (posteriors, scores), ((logits, _), (path, expected_scores)) in zip(results, expected, strict=True):
        torch.testing.assert_close(scores, expected_scores, rtol=1e-4, atol=1e-4)
        (found,) = greedy_paths(*posteriors.best(DECODING.blank), [posteriors.num_frames], 0, DECODING.drop)
        np.testing.assert_array_equal(found.token_ids, path.token_ids)
        np.testing.assert_array_equal(found.start_frames, path.start_frames)
        full = torch.log_softmax(logits, -1).numpy()
        dense = posteriors.log_probabilities(full.shape[1], DECODING.blank)
        kept = dense > -LARGEST_COST
        assert np.array_equal(kept.sum(1), posteriors.counts)
        np.testing.assert_allclose(dense[kept], full[kept], atol=LARGEST_COST / 255 + 1e-3)


@given(st.integers(1, 9), st.integers(0, 2**32 - 1))
def test_the_best_token_on_a_device_is_the_lowest_id_of_equal_ones(count, seed):
    logits = torch.from_numpy(np.random.default_rng(seed).integers(-3, 3, (20, 9)).astype(np.float32))
    tokens, log_probabilities = best_tokens(logits, count)
    assert torch.equal(tokens[:, 0].long(), logits.argmax(-1))
    torch.testing.assert_close(log_probabilities, torch.log_softmax(logits, -1).topk(count, -1).values)
    assert all(len(set(row)) == count for row in tokens.tolist())


@pytest.mark.filterwarnings(NO_COMPILER)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 3e38])
def test_on_a_device_a_clip_that_cannot_be_normalised_fails_alone(load_heads, value):
    waves = [decoded(1)[0], decoded(3)[2].copy(), decoded(1)[0]]
    waves[1][100:200] = value
    first, failed, last = on_device(load_heads()).recognize(waves)
    assert failed is Failure.BAD_OUTPUT
    expected = list(clip_by_clip(load_heads()).recognize(waves))
    assert expected[1] is Failure.BAD_OUTPUT
    assert_results_close([first, last], [expected[0], expected[2]])


@pytest.mark.filterwarnings(NO_COMPILER)
@pytest.mark.parametrize("make", [on_device, clip_by_clip, lambda heads: load_engine(heads, "cpu")])
def test_samples_whose_scale_is_not_known_are_refused(load_heads, make):
    engine = make(load_heads())
    for clip in (decoded(1)[0].astype(np.float64), decoded(1)[0].astype(np.int32), decoded(1)[0].reshape(-1, 2)):
        with pytest.raises(ValueError, match=r"must be int16 or float32 \(num_samples,\), not "):
            list(engine.recognize([clip]))


def test_padded_batches_have_the_results_of_the_models_in_the_order_of_the_clips(load_heads):
    order = [2, 0, 3, 1]
    padded = _Padded(load_heads(), CPU, "float32", DECODING)
    padded.budget_s = 2.0  # two batches
    reference = clip_by_clip(load_heads())
    waves = [decoded(4)[index] for index in order]
    assert_logits_close(
        padded.encode([clips(4)[index] for index in order]), reference.encode(clips(4)[i] for i in order)
    )
    assert_results_close(padded.recognize(waves), reference.recognize(waves))


def test_a_padded_batch_is_bounded_with_its_padding(load_heads, monkeypatch):
    padded = _Padded(load_heads(), CPU, "float32", DECODING)
    padded.budget_s = 3.0
    sizes, launch = [], padded.launch

    def launched(waveforms):
        sizes.append([len(waveform) for waveform in waveforms])
        return launch(waveforms)

    monkeypatch.setattr(padded, "launch", launched)
    lengths = [16_000 * 2, *[4000] * 6]  # as one batch, 3.5 s of audio would be 14 s
    assert len(list(padded.encode([torch.zeros(length) for length in lengths]))) == 7
    assert sizes == [[4000] * 6, [32_000]]


@pytest.mark.filterwarnings(NO_COMPILER)
@pytest.mark.parametrize(
    ("error", "after_loading"),
    [
        (DisagreementError("by 3"), False),
        (NotImplementedError("no such head size"), False),
        (TorchDynamoException("no graph"), False),
        (TorchDynamoException("no graph"), True),
    ],
)
@pytest.mark.parametrize("padded_works", [True, False])
def test_on_a_device_the_next_engine_takes_the_place_of_one_that_fails(
    load_heads, monkeypatch, caplog, error, after_loading, padded_works
):
    def fail(*_):
        raise error

    if not after_loading:
        monkeypatch.setattr(PackedDeviceModel, "compute", fail)
    if not padded_works:
        monkeypatch.setattr(_Padded, "launch", fail)
    engine = on_device(load_heads())
    batching, budget_s = ("padded", BUDGET_S) if padded_works else ("clip by clip", None)
    assert engine.status().batching == ("packed" if after_loading else batching)
    monkeypatch.setattr(PackedDeviceModel, "compute", fail)
    expected = list(clip_by_clip(load_heads()).recognize(decoded(3)))
    for _ in range(2):
        assert_results_close(engine.recognize(decoded(3)), expected)
    assert caplog.text.count("the model runs in padded batches on cpu") == 1
    assert caplog.text.count("the model runs clip by clip on cpu") == (not padded_works)
    assert str(error) in caplog.text
    reasons = [f"no {name} batches: {type(error).__name__}: {error}" for name in ("packed", "padded")]
    reason = "; ".join(reasons[: 1 if padded_works else 2])
    assert engine.status() == EngineStatus(batching, "float32", CPU_NAME, budget_s, reason)
    assert engine.splits == 0


@pytest.mark.filterwarnings(NO_COMPILER)
def test_packed_batches_that_lacked_memory_at_the_start_are_tried_again(load_heads, monkeypatch):
    tries, memory = [], 4  # memory: the try for which there is some

    def check(model, *arguments, check=gpu_check.check):
        tries.append(type(model).__name__)
        if tries.count("PackedDeviceModel") < memory and isinstance(model, PackedDeviceModel):
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        check(model, *arguments)

    monkeypatch.setattr(gpu_check, "check", check)
    engine = on_device(load_heads())
    expected = list(clip_by_clip(load_heads()).recognize(decoded(2)))
    batching = []
    for _ in range(9):
        batching.append(engine.status().batching)
        assert_results_close(engine.recognize(decoded(2)), expected)
    # Tried when it is loaded, with the first call, and after two and four more.
    assert batching == ["padded"] * 7 + ["packed"] * 2
    assert engine.status().fallback is None
    assert tries.count("PackedDeviceModel") == memory


@pytest.mark.filterwarnings(NO_COMPILER)
def test_a_reference_that_does_not_fit_in_memory_is_a_lack_of_memory(load_heads, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(_ClipByClip, "encode", lambda _, waveforms: iter([None] * len(waveforms)))
        engine = on_device(load_heads())
    reasons = [f"no {name} batches: the model and one batch do not fit in its memory" for name in ("packed", "padded")]
    assert engine.status().fallback == "; ".join(reasons)
    list(engine.recognize(decoded(1)))
    assert engine.status() == EngineStatus("packed", "float32", CPU_NAME, BUDGET_S, None)


def test_a_device_that_does_not_work_is_no_reason_for_a_slower_engine(load_heads, monkeypatch):
    def fail(*_):
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(PackedDeviceModel, "compute", fail)
    with pytest.raises(torch.AcceleratorError):
        on_device(load_heads())


def test_which_errors_mean_that_a_device_failed():
    assert device_failed(RuntimeError("CUDA error: uncorrectable ECC error encountered"))
    assert device_failed(torch.AcceleratorError("unspecified launch failure"))
    # The second and the third: a compiled kernel, launched after the failure. The last two: GPUs of AMD.
    for source in (
        "CUDA error",
        "CUDA driver error",
        "Triton Error [CUDA]",
        "HIP error",
        "Triton Error [HIP]: Code: 1",
    ):
        assert device_failed(RuntimeError(f"{source}: an illegal memory access was encountered"))
        assert not device_failed(RuntimeError(f"{source}: out of memory"))
        assert not device_failed(RuntimeError(f"{source}: invalid argument"))
    assert not device_failed(torch.AcceleratorError("CUDA error: out of memory"))
    assert not device_failed(torch.cuda.OutOfMemoryError("CUDA out of memory."))
    assert not device_failed(RuntimeError("shapes do not match"))
    # One operation that this GPU cannot run: another engine may.
    assert not device_failed(torch.AcceleratorError("CUDA error: too many resources requested for launch"))
    assert not device_failed(RuntimeError("CUDA error: CUBLAS_STATUS_NOT_SUPPORTED when calling `cublasLtMatmul`"))
    assert device_failed(RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasLtMatmul`"))
    assert not device_failed(ValueError("CUDA error: not of the device"))


def test_the_dtype_of_gpus_is_bfloat16_where_they_have_instructions_for_it(load_heads, monkeypatch):
    assert load_engine(load_heads(), "cpu").status().dtype == "float32"
    cuda = torch.device("cuda")
    for capability, dtype in (((7, 5), "float32"), ((8, 0), "bfloat16"), ((9, 0), "bfloat16")):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, found=capability: found)
        assert _default_dtype(cuda) == dtype


def test_the_status_names_the_dtype_in_use_and_why_it_is_not_the_requested_one(load_heads, monkeypatch):
    monkeypatch.setattr(int8, "linear_types", lambda: int8.LinearTypes(OneDNNLinear, OneDNNLinear))
    status = load_engine(load_heads(), "cpu", "int8").status()
    assert status == EngineStatus("packed", "float32", CPU_NAME, 20.0, int8.FALLBACK_REASON)


def test_the_budget_of_a_pack_is_in_seconds_of_the_clips_rate(load_heads):
    assert load_engine(load_heads(), "cpu", features=FeatureExtractor()).status().budget_s == 20.0
    assert load_engine(load_heads(), "cpu", features=FeatureExtractor(sampling_rate=8_000)).status().budget_s == 40.0


def test_heads_with_different_backbones_are_refused(tmp_path, load_heads):
    heads = load_heads()
    with torch.no_grad():
        heads[1].sew_d.layer_norm.weight.add_(1.0)
    with pytest.raises(ValueError, match="backbone"):
        load_engine(heads, "cpu")


def test_the_status_in_words_is_what_commits_of_earlier_versions_hold():
    packed = EngineStatus("packed", "bfloat16", "NVIDIA L4", 300.0, None)
    assert str(packed) == "packed bfloat16 on NVIDIA L4, batches of 300 s"
    assert str(EngineStatus("clip by clip", "float32", "cpu AVX2", None, "a reason")) == (
        "clip by clip float32 on cpu AVX2"
    )


def test_the_status_is_imported_without_torch():
    program = "import sys; from sewd_model import EngineStatus; sys.exit('torch' in sys.modules)"
    root = str(next(iter(sewd_model.__path__))).rpartition("/")[0]
    assert subprocess.run([sys.executable, "-c", program], cwd=root, check=False).returncode == 0


@pytest.mark.parametrize("dtype", ["int8", "float8"])
def test_a_dtype_that_devices_do_not_compute_in_is_refused(load_heads, dtype):
    with pytest.raises(ValueError, match=f"run on meta in float32, bfloat16, float16, not in {dtype}"):
        load_engine(load_heads(), "meta", dtype)


def test_on_a_device_the_budget_is_seconds_at_the_rate_of_the_waveforms(load_heads):
    engine = on_device(load_heads(), FeatureExtractor(sampling_rate=8_000))
    assert len(list(engine.encode(clips(4)))) == 4
    assert engine.status().budget_s == BUDGET_S
