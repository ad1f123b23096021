"""Batches on a device: bounded, in order, halved if memory runs out, with a result for each clip."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sewd_model import SEWDConfig
from sewd_model.packed import gpu_batches
from sewd_model.packed.gpu import PackedDeviceModel
from sewd_model.packed.gpu_batches import DeviceEngine, budget_s, stream
from sewd_model.packed.gpu_check import CHECK_SAMPLES, DisagreementError, check
from sewd_model.packed.gpu_memory import out_of_memory
from tests.sewd_model.packed.test_cpu import SMALL, alone, assert_clips_close

CPU = torch.device("cpu")
RATE = 16_000  # the default of `stream`
pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")


class SmallMemory:
    """An engine with memory for a number of samples; the only logit of a clip is its first sample."""

    def __init__(self, samples, where="launch"):
        self.samples, self.where = samples, where
        self.splits = 0
        self.batches = []  # sizes of the batches that were computed

    def _need(self, clips, where):
        if where == self.where and sum(map(len, clips)) > self.samples:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")

    def launch(self, clips):
        self._need(clips, "launch")

        def wait():
            self._need(clips, "wait")
            self.batches.append([len(clip) for clip in clips])
            return self.compute(clips)

        return wait

    def compute(self, clips):
        return [(clip[:1],) for clip in clips]

    def is_finite(self, results):
        return all(logits.isfinite().all() for result in results for logits in result)


@pytest.mark.parametrize("words", ["CUDA out of memory.", "CUBLAS_STATUS_ALLOC_FAILED when calling"])
def test_out_of_memory_errors_of_other_libraries_are_recognised(words):
    assert out_of_memory(RuntimeError(words))
    assert not out_of_memory(RuntimeError("shapes do not match"))


def test_a_clip_that_does_not_fit_beside_other_processes_raises(monkeypatch):
    monkeypatch.setattr(gpu_batches, "used_by_other_processes", lambda: True)
    with pytest.raises(RuntimeError, match="other processes leave free"):
        list(stream(SmallMemory(5), numbered([3, 9])))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_batches_agree_with_transformers_and_memory_is_measured(oracle):
    reference, model = oracle.pair("ctc", **SMALL, num_hidden_layers=1)
    engine = DeviceEngine(PackedDeviceModel([model], device=torch.device("cuda")))
    waveforms = oracle.clips(9000, 90_001, 5333)
    actual = [logits for (logits,) in stream(engine, waveforms, gpu_batches.probed_budget_s(engine))]
    assert_clips_close(oracle, actual, alone(reference, waveforms))


def test_the_check_covers_whole_blocks_of_attention_and_a_batch_of_one_block():
    config = SEWDConfig()
    several, one = ([config.num_frames(n) // config.squeeze_factor for n in sizes] for sizes in CHECK_SAMPLES)
    assert max(several) >= 2 * 128 > sum(one) > 0
    assert len(several) > 1


def numbered(lengths):
    return [torch.full((length,), float(index)) for index, length in enumerate(lengths)]


@given(
    lengths=st.lists(st.integers(1, 40), max_size=12),
    memory=st.integers(1, 100),
    budget=st.integers(1, 100),
    where=st.sampled_from(["launch", "wait"]),
    rate=st.sampled_from([8_000, 16_000]),
)
def test_every_clip_has_a_result_in_order_and_none_only_if_it_does_not_fit_alone(lengths, memory, budget, where, rate):
    engine = SmallMemory(memory, where)
    actual = list(stream(engine, numbered(lengths), budget / rate + 1e-9, rate))
    assert [None if one is None else one[0].item() for one in actual] == [
        None if length > memory else index for index, length in enumerate(lengths)
    ]
    assert all(sum(batch) <= budget or len(batch) == 1 for batch in engine.batches)


def test_a_batch_is_always_split_into_the_same_halves(caplog):
    engine = SmallMemory(10)
    lengths = [4, 4, 4, 4, 11, 4]
    for time in range(2):
        actual = list(stream(engine, numbered(lengths), 100 / RATE))
        assert engine.splits == 4 * (time + 1)
        assert [one is None for one in actual] == [False, False, False, False, True, False]
    assert engine.batches == [[4], [4, 4], [4], [4]] * 2
    assert caplog.text.count("a clip of 11 samples does not fit") == 2


def test_other_errors_are_raised():
    class Broken(SmallMemory):
        def launch(self, clips):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        list(stream(Broken(10), numbered([1])))


def test_clips_beside_one_that_is_not_finite_are_run_alone():
    class Spreading(SmallMemory):
        def compute(self, clips):
            bad = any(clip.isnan().any() for clip in clips)
            return [(clip[:1] * (float("nan") if bad else 1.0),) for clip in clips]

    engine = Spreading(100)
    waveforms = [torch.ones(3), torch.full((3,), float("nan")), torch.ones(4)]
    actual = [logits.item() for (logits,) in stream(engine, waveforms)]
    assert actual[0] == actual[2] == 1.0
    assert actual[1] != actual[1]
    assert engine.batches == [[3, 3, 4], [3], [3], [4]]
    assert engine.splits == 0, "memory did not run out"


class Recording(SmallMemory):
    """Writes down what is asked of it."""

    def __init__(self, samples, events):
        super().__init__(samples)
        self.events = events

    def launch(self, clips):
        self.events.append(f"launch {len(clips[0])}")
        wait = super().launch(clips)
        return lambda: self.events.append(f"wait {len(clips[0])}") or wait()


def test_each_batch_is_launched_before_the_one_before_it_is_waited_for_and_yielded():
    events = []
    for (first,) in stream(Recording(10, events), numbered([1, 2, 3]), 3 / RATE):
        events.append(f"use {first.item():.0f}")
    assert events == [
        *("launch 1", "launch 3", "wait 1", "use 0", "use 1"),
        *("wait 3", "use 2"),
    ]


def test_clips_are_taken_as_the_batches_are_launched_and_not_all_before_the_first():
    events = []

    class Clip:
        def __init__(self, number):
            self.number = number

        def __len__(self):
            events.append(f"clip {self.number}")
            return 2

    class Engine(SmallMemory):
        def launch(self, clips):
            events.append("launch")
            return lambda: list(clips)

        def is_finite(self, results):
            return True

    clips = [Clip(number) for number in range(4)]
    assert list(stream(Engine(10), clips, 2 / RATE)) == clips
    assert events.index("launch") < events.index("clip 2")


def test_a_batch_that_does_not_fit_beside_the_one_before_it_is_launched_again_whole():
    class Crowded(SmallMemory):
        in_flight = 0

        def launch(self, clips):
            if self.in_flight:
                raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
            self.in_flight += 1
            wait = super().launch(clips)

            def leave():
                self.in_flight -= 1
                return wait()

            return leave

    engine = Crowded(10)
    assert [one.item() for (one,) in stream(engine, numbered([4, 4, 4, 4, 4]), 8 / RATE)] == [0, 1, 2, 3, 4]
    assert engine.batches == [[4, 4], [4, 4], [4]]
    assert engine.splits == 0


def test_batches_equal_transformers_on_each_clip_alone(oracle):
    reference, model = oracle.pair("ctc", **SMALL, num_hidden_layers=1)
    engine = DeviceEngine(PackedDeviceModel([model], device=CPU))
    waveforms = oracle.clips(9000, 720, 5333, 8000)
    actual = [logits for (logits,) in stream(engine, waveforms, 14_000 / RATE)]
    assert_clips_close(oracle, actual, alone(reference, waveforms))


def test_the_budget_is_a_share_of_the_free_memory_within_bounds():
    assert budget_s(free=100e6, bytes_per_second=1e6) == int(gpu_batches.MEMORY_SHARE * 100)
    assert budget_s(free=1e12, bytes_per_second=1e6) == gpu_batches.MAX_BUDGET_S
    assert budget_s(free=1e5, bytes_per_second=1e6) == 1.0


def one_by_one(model):
    return lambda waveforms: [(clip,) for clip in alone(model, waveforms)]


def test_the_check_accepts_a_model_that_agrees_and_rejects_one_that_does_not(oracle):
    reference, model = oracle.pair("ctc", **SMALL, num_hidden_layers=1)
    other, _ = oracle.pair("ctc", seed=7, **SMALL, num_hidden_layers=1)
    packed = PackedDeviceModel([model], device=CPU)
    check(packed, one_by_one(reference), "float32")
    with pytest.raises(DisagreementError, match=r"differ from those of the reference by .* of their spread"):
        check(packed, one_by_one(other), "float32")
    with torch.no_grad():
        model.lm_head.bias[0] = float("nan")
    with pytest.raises(DisagreementError, match="differ from those of the reference by nan"):
        check(PackedDeviceModel([model], device=CPU), one_by_one(reference), "float32")
