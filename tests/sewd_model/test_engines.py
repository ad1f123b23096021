"""The choice of an engine: every engine computes what the models compute, and one that cannot work falls back."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch._dynamo.exc import TorchDynamoException

import sewd_model
from sewd_model import EngineStatus, SEWDForCTC, SEWDForSequenceClassification, load_engine
from sewd_model.engines import _ClipByClip, _load_on_device
from sewd_model.packed import int8
from sewd_model.packed.gpu import PackedDeviceModel
from sewd_model.packed.gpu_batches import BUDGET_S
from sewd_model.packed.gpu_check import DisagreementError
from sewd_model.packed.products import OneDNNLinear
from tests.support import corpora

CPU = torch.device("cpu")
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


def clip_by_clip(heads, dtype="float32"):
    return _ClipByClip(heads, dtype, CPU, None)


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
def test_on_a_device_packed_batches_have_the_logits_of_the_models(load_heads, caplog):
    engine = _load_on_device(load_heads(), CPU, "float32")
    assert engine.status() == EngineStatus("packed", "float32", CPU_NAME, BUDGET_S, None)
    assert engine.splits == 0
    expected = list(clip_by_clip(load_heads()).encode(clips(3)))
    with pytest.MonkeyPatch.context() as patch:  # from here on the unpacked models compute nothing
        patch.setattr(SEWDForCTC, "head", None)
        found = list(engine.encode(clips(3)))
    assert_logits_close(found, expected)
    assert "no packed batches" not in caplog.text


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
def test_on_a_device_where_packed_batches_fail_the_models_run_clip_by_clip(
    load_heads, monkeypatch, caplog, error, after_loading
):
    def fail(*_):
        raise error

    if not after_loading:
        monkeypatch.setattr(PackedDeviceModel, "compute", fail)
    engine = _load_on_device(load_heads(), CPU, "float32")
    assert engine.status().batching == ("packed" if after_loading else "clip by clip")
    monkeypatch.setattr(PackedDeviceModel, "compute", fail)
    expected = list(clip_by_clip(load_heads()).encode(clips(3)))
    for _ in range(2):
        assert_logits_close(engine.encode(clips(3)), expected)
    assert caplog.text.count("no packed batches on cpu, the model runs clip by clip") == 1
    assert str(error) in caplog.text
    reason = f"no packed batches: {type(error).__name__}: {error}"
    assert engine.status() == EngineStatus("clip by clip", "float32", CPU_NAME, None, reason)
    assert engine.splits == 0


def test_the_status_names_the_dtype_in_use_and_why_it_is_not_the_requested_one(load_heads, monkeypatch):
    monkeypatch.setattr(int8, "linear_types", lambda: int8.LinearTypes(OneDNNLinear, OneDNNLinear))
    status = load_engine(load_heads(), "cpu", "int8").status()
    assert status == EngineStatus("packed", "float32", CPU_NAME, 20.0, int8.FALLBACK_REASON)


def test_the_budget_of_a_pack_is_in_seconds_of_the_clips_rate(load_heads):
    assert load_engine(load_heads(), "cpu", rate=16_000).status().budget_s == 20.0
    assert load_engine(load_heads(), "cpu", rate=8_000).status().budget_s == 40.0


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
    engine = _load_on_device(load_heads(), CPU, "float32", rate=8_000)
    assert len(list(engine.encode(clips(4)))) == 4
    assert engine.status().budget_s == BUDGET_S
