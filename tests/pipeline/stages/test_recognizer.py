"""The recogniser in this process: the same results as a run, whatever form the audio has, and nothing left behind."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import soundfile
import torch

import pipeline
from pipeline import ErrorCode, Recognizer, RunConfig, TableRecognizer, UsageError
from pipeline.stages import recognizer as module
from pipeline.storage import uris
from tests.support.without_ray import without_ray

DEMO = Path(__file__).parents[3] / "jobs" / "demo_corpus" / "audio"
NAMES = ("order-0.wav", "order-1.flac", "order-2.mp3", "order-3.ogg", "cut-off.flac", "no-audio.mp3", "call.flac")


@pytest.fixture(scope="module")
def recognizer():
    return Recognizer.from_pretrained("bundled", classifiers=["keyword=bundled"], max_segment_s=8)


@pytest.fixture(scope="module")
def clip():
    return soundfile.read(DEMO / "order-0.wav", dtype="float32")


def test_it_gives_each_file_the_text_words_and_labels_that_a_run_gives_it(tmp_path, recognizer):
    for name in NAMES:
        shutil.copy(DEMO / name, tmp_path / name)
    stereo, rate = soundfile.read(DEMO / "order-1.flac", dtype="float32")
    soundfile.write(tmp_path / "stereo.wav", np.stack([stereo, 0.1 * stereo[::-1]], axis=1), rate)
    paths = sorted(path for path in tmp_path.iterdir())
    config = RunConfig(
        inputs=(str(tmp_path),), output=str(tmp_path / "run"), classifiers=("keyword=bundled",), max_segment_s=8
    )
    with without_ray():
        run = pipeline.transcribe(config)
    rows = run.dataset("transcripts").to_table().to_pylist()
    labels = {row["utt_id"]: row for row in run.dataset("labels").to_table().to_pylist()}
    errors = {row["uri"]: row["code"] for row in run.dataset("errors").to_table().to_pylist()}
    results = recognizer.transcribe(paths)
    assert {str(path): result.error_code for path, result in zip(paths, results, strict=True)} == {
        str(path): errors.get(str(path)) for path in paths
    }
    assert set(errors.values()) == {"TRUNCATED", "UNDECODABLE"}
    for path, result in zip(paths, results, strict=True):
        expected = sorted((row for row in rows if row["uri"] == str(path)), key=lambda row: row["start_s"])
        assert [segment.text for segment in result.segments] == [row["text"] for row in expected]
        assert result.text == " ".join(filter(None, (row["text"] for row in expected)))
        words = [word for row in expected for word in row["words"]]
        assert [word.word for word in result.words] == [word["word"] for word in words]
        assert [(word.start_s, word.end_s) for word in result.words] == [(w["start_s"], w["end_s"]) for w in words]
        for segment, row in zip(result.segments, expected, strict=True):
            assert (segment.start_s, segment.duration_s) == (row["start_s"], row["duration_s"])
            assert segment.confidence == pytest.approx(row["confidence"], abs=1e-5)
            scores = labels[row["utt_id"]]
            assert segment.labels["keyword"][0].label == scores["label"]
            assert [label.score for label in segment.labels["keyword"]] == pytest.approx(
                [top["score"] for top in scores["top_k"]], abs=1e-5
            )
    assert len(results[paths.index(tmp_path / "call.flac")].segments) > 1


def test_a_recording_may_be_a_path_bytes_or_samples(recognizer, clip):
    samples, rate = clip
    path = DEMO / "order-0.wav"
    wanted = recognizer.transcribe(path)
    assert wanted.text
    assert recognizer.transcribe(str(path)) == wanted
    for kind in (bytes, bytearray, memoryview):
        assert recognizer.transcribe(kind(path.read_bytes())) == wanted
    assert recognizer.transcribe(samples, sampling_rate=rate) == wanted
    assert recognizer.transcribe(samples.astype(np.float64), sampling_rate=rate) == wanted
    assert recognizer.transcribe((samples * 32768).astype(np.int16), sampling_rate=np.int64(rate)) == wanted
    assert recognizer.transcribe(torch.from_numpy(samples), sampling_rate=rate) == wanted
    assert recognizer.transcribe({"array": samples, "sampling_rate": rate}) == wanted
    assert recognizer.transcribe([samples, path], sampling_rate=rate) == [wanted, wanted]
    assert recognizer.transcribe([]) == []


def test_stereo_samples_are_mixed_or_a_channel_is_chosen(recognizer, clip):
    samples, rate = clip
    wanted = recognizer.transcribe(samples, sampling_rate=rate).text
    beside = np.stack([np.zeros_like(samples), samples], axis=1)
    second = Recognizer.from_pretrained("bundled", channels=1)
    assert second.transcribe(beside, sampling_rate=rate).text == wanted
    assert second.transcribe(samples, sampling_rate=rate).error_code == ErrorCode.NO_SUCH_CHANNEL
    assert recognizer.transcribe(np.stack([samples, samples], axis=1), sampling_rate=rate).text == wanted


def test_bad_audio_is_an_error_of_its_item_alone(tmp_path, recognizer, clip):
    samples, rate = clip
    spoiled = samples.copy()
    spoiled[100] = np.nan
    items = [b"", tmp_path / "no.wav", spoiled, samples[:0], samples[:50], samples, b"nothing", "odd://no/store.wav"]
    found = recognizer.transcribe(items, sampling_rate=rate)
    codes = ["EMPTY_FILE", "MISSING", "NON_FINITE", "NO_SAMPLES", "TOO_SHORT", None, "UNDECODABLE", "BAD_ROW"]
    assert [result.error_code for result in found] == codes
    assert found[5] == recognizer.transcribe(samples, sampling_rate=rate)
    assert all(result.error and not result.text for result in found if result.error_code)


def test_a_recording_that_ends_early_keeps_what_was_recognised(recognizer, tmp_path):
    whole = (DEMO / "call.flac").read_bytes()
    result = recognizer.transcribe(whole[: len(whole) * 3 // 4])
    assert result.error_code == ErrorCode.TRUNCATED
    complete = recognizer.transcribe(whole)
    assert [segment.text for segment in result.segments] == [
        segment.text for segment in complete.segments[: len(result.segments)]
    ]


@pytest.mark.parametrize(
    ("shape", "code"),
    [
        ((0, 2), "NO_SAMPLES"),
        ((1, 2), "TOO_SHORT"),
        ((100, 0), "UNSUPPORTED"),
        ((2000, 100), "TOO_LARGE"),
        ((2000, 1500), "UNSUPPORTED"),
    ],
    ids=str,
)
def test_an_odd_number_of_samples_or_channels_is_an_error_of_its_item_alone(recognizer, clip, shape, code):
    samples, rate = clip
    odd, good = recognizer.transcribe([np.zeros(shape, np.float32), samples], sampling_rate=rate)
    assert odd.error_code == code
    assert good.text
    assert good.error_code is None


def test_results_do_not_depend_on_the_batches(recognizer, monkeypatch):
    paths = [DEMO / name for name in NAMES]
    together = recognizer.transcribe(paths)
    monkeypatch.setattr(module, "BATCH_S", 5.0)
    apart = recognizer.transcribe(paths)
    assert [result.text for result in apart] == [result.text for result in together]
    assert [result.error_code for result in apart] == [result.error_code for result in together]


@pytest.mark.parametrize(
    ("audio", "rate", "message"),
    [
        (np.zeros(16_000), None, "audio: samples need their rate in Hz"),
        (np.zeros(16_000), 16_000.5, "sampling_rate: 16000.5 is not a whole number of Hz"),
        (np.zeros(16_000), "16k", "sampling_rate: '16k' is not"),
        (np.zeros(16_000), 0, "sampling_rate: 0 is not"),
        (np.zeros((2, 16_000)), 16_000, r"\(2, 16000\) is not \(samples, channels\): transpose it"),
        (np.zeros((1, 16_000)), 16_000, "transpose it"),
        (torch.zeros(9, requires_grad=True), 16_000, "audio: a Tensor cannot become an array of NumPy: .*detach"),
        (torch.zeros(9, dtype=torch.bfloat16), 16_000, "a Tensor cannot become an array of NumPy: .*BFloat16"),
        (np.zeros(10, complex), 16_000, "samples are int16, int32 or floats, not complex128"),
        (np.array(["a.wav"]), 16_000, "samples are int16, int32 or floats"),
        (7, None, "audio: a int is neither"),
        (None, None, "audio: a NoneType is neither"),
        ([0.1, 0.2], 16_000, r"audio\[0\]: a float is neither"),
        (["a.wav", None], None, r"audio\[1\]: a NoneType is neither"),
        ({"samples": np.zeros(9)}, None, "a mapping needs the keys array and sampling_rate"),
    ],
    ids=str,
)
def test_what_is_no_audio_is_bad_usage(recognizer, audio, rate, message):
    with pytest.raises(UsageError, match=message):
        recognizer.transcribe(audio, sampling_rate=rate)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "float8"}, "dtype: Input should be 'auto'"),
        ({"dtype": "bfloat16", "device": "cpu"}, "dtype: bfloat16 is for GPUs"),
        ({"device": "tpu"}, "device: cpu or cuda, not 'tpu'"),
        ({"threads": 0}, "threads: Input should be greater"),
        ({"channels": "split"}, "channels: mix, or the number of one channel"),
        ({"max_segment_s": 0.1}, "max_segment_s: Input should be greater"),
        ({"cut": "word"}, "cut: Input should be 'pause' or 'vad'"),
        ({"classifiers": "no/such/directory"}, "cannot load the model|no model at"),
    ],
    ids=str,
)
def test_wrong_options_are_bad_usage(options, message):
    with pytest.raises(UsageError, match=message):
        Recognizer.from_pretrained("bundled", **options)


def test_a_secret_in_a_uri_is_refused_without_showing_it():
    with pytest.raises(UsageError, match="name: holds a secret, which records and messages could show") as refused:
        Recognizer.from_pretrained("s3://user:hidden@bucket/model")
    assert "hidden" not in str(refused.value)


def test_it_says_what_computes(recognizer, monkeypatch):
    (status,) = recognizer.engines  # the model and its classifier share an encoder
    assert status.batching in ("packed", "clip by clip")
    assert f"dtype={status.dtype!r}" in repr(recognizer)
    monkeypatch.setattr(type(recognizer._heads.encoders[0].engine), "status", lambda _: replace(status, dtype="other"))
    assert "dtype='other'" in repr(recognizer)


def test_torchs_threads_are_given_back_after_uses_that_overlap():
    """The second starts while the first computes, and ends after it."""
    shared, seen = module._TorchThreads(), {}
    first_in, second_in, first_out = threading.Event(), threading.Event(), threading.Event()

    def first():
        with shared.one("cpu"):
            first_in.set()
            second_in.wait(60)
        seen["first"] = torch.get_num_threads()
        first_out.set()

    def second():
        first_in.wait(60)
        with shared.one("cpu"):
            second_in.set()
            first_out.wait(60)
            seen["inside"], seen["outside"] = torch.get_num_threads(), shared.number()
        seen["second"] = torch.get_num_threads()

    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        for calls in ((first, second), (lambda: seen.update(new=torch.get_num_threads()),)):
            threads = [threading.Thread(target=call) for call in calls]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
    finally:
        torch.set_num_threads(before)
    assert seen == {"first": 3, "inside": 1, "outside": 3, "second": 3, "new": 3}


def test_a_repr_says_what_was_loaded_and_recognised_in_a_line(recognizer):
    assert repr(recognizer).startswith("<Recognizer 'bundled', classifiers=['keyword'], device='")
    result = recognizer.transcribe(DEMO / "order-0.wav")
    assert repr(result).startswith(f"<Transcript {result.text!r}, 2.58 s, keyword: ")
    assert str(result) == result.text
    bad = recognizer.transcribe(b"x" * 99)
    assert "UNDECODABLE" in repr(bad)
    assert "\n" not in repr(bad) + repr(result) + repr(result.segments)


SCRIPT = """
import json, multiprocessing, signal, sys, threading
handlers = [signal.getsignal(number) for number in signal.valid_signals()]
import pipeline, numpy, torch
recognizer = pipeline.Recognizer.from_pretrained("bundled", threads=2)
threads = torch.get_num_threads()
text = recognizer.transcribe(sys.argv[1]).text
children = open(f"/proc/self/task/{threading.get_native_id()}/children").read().split()
same = handlers == [signal.getsignal(number) for number in signal.valid_signals()]
print(json.dumps([text, "ray" in sys.modules, children, same, threads == torch.get_num_threads()]))
"""


def test_it_imports_no_ray_prints_nothing_and_leaves_nothing(recognizer):
    path = DEMO / "order-0.wav"
    done = subprocess.run([sys.executable, "-c", SCRIPT, str(path)], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [recognizer.transcribe(path).text, False, [], True, True]
    assert done.stderr == ""


@pytest.fixture(scope="module")
def stage():
    return TableRecognizer("bundled", classifiers=["keyword=bundled"])


def test_a_table_keeps_its_rows_and_columns_and_gains_the_results(stage, tmp_path, clip):
    path = DEMO / "order-0.wav"
    files = [path.read_bytes(), None, b"", path.read_bytes()]
    kept = {"id": [3, 1, 2, 0], "nested": [[{"a": 1}], None, [], [{"a": 2}]]}
    out = stage(pa.table({"audio": pa.array(files, pa.binary()), **kept}))
    assert out.column_names[:3] == ["audio", "id", "nested"]
    assert {name: out[name].to_pylist() for name in kept} == kept
    text = stage.recognizer.transcribe(path).text
    assert out["text"].to_pylist() == [text, None, None, text]
    assert out["error_code"].to_pylist() == [None, "BAD_ROW", "EMPTY_FILE", None]
    assert [word["word"] for word in out["words"][0].as_py()] == text.split()
    assert out["labels"][0].as_py()[0]["task"] == "keyword"
    assert out.schema.equals(stage(out.select(["audio"]).slice(1, 1)).schema) is False  # other columns, same results
    paths = pa.table({"audio": [str(path), str(tmp_path / "no.wav")]})
    assert stage(paths)["error_code"].to_pylist() == [None, "MISSING"]
    structs = pa.table({"audio": [{"bytes": None, "path": str(path)}, {"bytes": path.read_bytes(), "path": "x"}]})
    assert stage(structs)["text"].to_pylist() == [text, text]


def test_a_table_of_samples_needs_their_rates(stage, clip):
    samples, rate = clip
    table = pa.table(
        {"samples": [samples, samples[:9], None, samples], "sampling_rate": pa.array([rate, rate, rate, None])}
    )
    out = stage(table)
    assert out["error_code"].to_pylist() == [None, "TOO_SHORT", "BAD_ROW", "BAD_ROW"]
    assert out["text"][0].as_py() == stage.recognizer.transcribe(samples, sampling_rate=rate).text


def _frames(kind, values):
    return pa.array([values.tolist()] * 2, pa.list_(kind)).slice(1)


@pytest.mark.parametrize(
    "column",
    [
        lambda mono: _frames(pa.list_(pa.float32()), np.stack([mono, mono], 1)),
        lambda mono: _frames(pa.large_list(pa.float32()), np.stack([mono, mono], 1)),
        lambda mono: _frames(pa.list_(pa.float32(), 2), np.stack([mono, mono], 1)),
        lambda mono: _frames(pa.list_(pa.float64()), mono[:, None].astype(np.float64)),
        lambda mono: pa.array([mono.tolist()], pa.large_list(pa.float32())),
        lambda mono: pa.array([mono.tolist()], pa.list_(pa.float32(), len(mono))),
        lambda mono: pa.FixedShapeTensorArray.from_numpy_ndarray(np.stack([np.stack([mono, mono], 1)] * 2)).slice(1),
        lambda mono: pa.FixedShapeTensorArray.from_numpy_ndarray(np.stack([mono] * 2)).slice(1),
        lambda mono: pa.array([(mono * 32768).astype(np.int64).tolist()], pa.list_(pa.int64())),
        lambda mono: _frames(pa.list_(pa.int64()), (np.stack([mono, mono], 1) * 32768).astype(np.int64)),
    ],
    ids=[
        "lists",
        "large",
        "fixed",
        "one",
        "flat-large",
        "flat-fixed",
        "tensors",
        "flat-tensors",
        "int64",
        "int64-lists",
    ],
)
def test_samples_may_be_lists_nested_lists_or_tensors(stage, clip, column):
    samples, rate = clip
    out = stage(pa.table({"samples": column(samples), "sampling_rate": [rate]}))
    assert out["error"].to_pylist() == [None]
    assert out["text"].to_pylist() == [stage.recognizer.transcribe(samples, sampling_rate=rate).text]


@pytest.mark.parametrize(
    ("samples", "code", "message"),
    [
        (pa.array([[[0.1, 0.2], [0.3]]]), "BAD_ROW", "samples are int16, int32 or floats, not object"),
        (pa.array([[[0.1], None]]), "BAD_ROW", "not object"),
        (pa.array([[1 << 20] * 9]), "BAD_ROW", "not int64"),
        (pa.array([["a"]]), "BAD_ROW", "samples are int16"),
        (pa.array([[]], pa.list_(pa.list_(pa.float32()))), "NO_SAMPLES", ""),
        (pa.array([[[], []]], pa.list_(pa.list_(pa.float32()))), "UNSUPPORTED", ""),
    ],
    ids=["ragged", "null", "int64", "texts", "empty", "no-channels"],
)
def test_samples_that_are_no_audio_are_an_error_of_their_row(stage, samples, code, message):
    out = stage(pa.table({"samples": samples, "sampling_rate": [16_000]}))
    assert out["error_code"].to_pylist() == [code]
    assert message in out["error"][0].as_py()


def test_rates_may_be_whole_floats(stage, clip):
    samples, rate = clip
    out = stage(pa.table({"samples": [samples] * 4, "sampling_rate": [float(rate), rate + 0.5, float("nan"), None]}))
    assert out["error_code"].to_pylist() == [None, "BAD_ROW", "BAD_ROW", "BAD_ROW"]
    assert out["error"][3].as_py() == "samples: samples need their rate in Hz, as sampling_rate"


def test_storage_that_no_package_serves_fails_the_pipeline_and_unknown_storage_its_row(stage, monkeypatch):
    odd = pa.table({"audio": ["odd://no/store.wav", "memory://no\0name.wav"]})
    assert stage(odd)["error_code"].to_pylist() == ["BAD_ROW", "BAD_ROW"]

    def missing(uri):
        raise ImportError("install some-client")

    monkeypatch.setattr(uris, "_open", missing)
    with pytest.raises(UsageError, match=r"cannot open s3://bucket/a\.wav: install some-client"):
        stage(pa.table({"audio": ["s3://bucket/a.wav"]}))


def test_a_warning_about_headers_is_a_column(stage):
    damaged = bytearray((DEMO / "order-0.wav").read_bytes())
    damaged[4:8] = damaged[40:44] = (2**32 - 1).to_bytes(4, "little")  # a stream's header
    wanted = stage.recognizer.transcribe(damaged)
    out = stage(pa.table({"audio": [bytes(damaged), (DEMO / "order-0.wav").read_bytes()]}))
    assert out["warning"].to_pylist() == [wanted.warning, None]


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"audio": np.array([b""])}, 'needs batch_format="pyarrow"'),
        (pa.table({"audio": [b""], "text": ["x"]}), "columns of the result already, rename them: text"),
        (pa.table({"bytes": [b""]}), "neither 'audio' nor 'samples' and 'sampling_rate' among their columns: bytes"),
    ],
    ids=["format", "taken", "none"],
)
def test_a_table_that_it_cannot_use_is_bad_usage(stage, batch, message):
    with pytest.raises(UsageError, match=message):
        stage(batch)


@pytest.mark.parametrize("kind", [">f4", ">i2", ">f8"])
def test_samples_of_the_other_byte_order_are_the_same_samples(kind):
    samples = (np.sin(np.arange(1600)) * (20_000 if kind == ">i2" else 0.5)).astype(kind)
    native = samples.astype(samples.dtype.newbyteorder("="))
    assert module._encoded(module._samples(samples, "x"), 16_000) == module._encoded(native, 16_000)
