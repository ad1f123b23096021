"""The recogniser without Ray: its passes, its rows, and what it reports about its engines."""

from __future__ import annotations

import dataclasses
import time

import numpy as np
import pyarrow as pa
import pytest
import torch
import transformers

from pipeline.decoding.rows import posteriors_of
from pipeline.errors import InputChangedError
from pipeline.schemas import READ_CHUNK, RECOGNIZED_CHUNK
from pipeline.stages import heads
from pipeline.stages.recognize import ChunkRecognizer, RecognizeSettings
from pipeline.storage.checkpoints import checkpoint_digest, local_copy
from pipeline.storage.objects import put
from sewd_model import CTCTokenizer, EngineStatus, PackedModel
from sewd_model.ctc import greedy_paths
from sewd_model.packed import int8
from sewd_model.packed.products import OneDNNLinear
from sewd_model.recognition import Failure, recognize
from tests.support import checkpoints, corpora


def make(model, *classifiers, stop="/nowhere/stop", threads=1, dtype="float32", posteriors=False):
    uris = tuple(map(str, (model, *classifiers)))
    digests = tuple(map(checkpoint_digest, uris))
    common = (uris[0], uris[1:], digests, "cpu", dtype, threads)
    return ChunkRecognizer(
        RecognizeSettings(*common, deadline_s=600.0, stop_uri=str(stop), run="/nowhere", posteriors=posteriors)
    )


def chunk_table(waves: list[np.ndarray | None]) -> pa.Table:
    rows = [
        {
            "utt_id": str(index),
            "uri": "x",
            "start_s": 0.0,
            "duration_s": 1.0,
            "code": "MISSING" if wave is None else None,
            "samples": None if wave is None else wave.tobytes(),
            "sample_type": None if wave is None else wave.dtype.name,
        }
        for index, wave in enumerate(waves)
    ]
    head = {
        "part_id": "p",
        "chunk": 3,
        "first_row": 0,
        "last": True,
        "part_rows": len(rows),
        "part_audio_s": 1.0,
        "audio_s": 1.0,
    }
    head |= {"source_bytes": 1, "reader": "r", "read_s": 0.1, "read_at": time.time() - 5}
    return pa.Table.from_pylist([head | {"rows": rows}], schema=READ_CHUNK)


def count_passes(recognizer: ChunkRecognizer, waves: list[np.ndarray]) -> int:
    passes = []

    def counted(packed, waveforms, stream=PackedModel.stream):
        passes.append(1)
        return stream(packed, waveforms)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PackedModel, "stream", counted)
        recognizer.recognize(waves)
    return len(passes)


def test_heads_with_equal_backbones_share_one_pass(tmp_path, small_ctc, small_classifier):
    other = checkpoints.write_classifier(tmp_path / "other", checkpoints.SMALL, seed=5)
    waves = [corpora.noise_bursts(1.0, 0), corpora.noise_bursts(0.7, 1)]
    assert count_passes(make(small_ctc), waves) == 1
    assert count_passes(make(small_ctc, small_classifier), waves) == 1
    assert count_passes(make(small_ctc, small_classifier, other, small_classifier), waves) == 2


def test_a_shared_pass_gives_each_classifier_the_scores_of_its_reference_model(tmp_path, small_ctc, small_classifier):
    weighted = checkpoints.write_classifier(
        tmp_path / "weighted", checkpoints.SMALL | {"use_weighted_layer_sum": True}, backbone=small_ctc
    )
    wave = corpora.noise_bursts(1.3, 1)
    shared = make(small_ctc, small_classifier, weighted)
    (result,) = shared.recognize([wave])
    assert len(result.label_scores) == 2
    for folder, scores in zip((small_classifier, weighted), result.label_scores, strict=True):
        model = transformers.SEWDForSequenceClassification.from_pretrained(folder).eval()
        features = transformers.Wav2Vec2FeatureExtractor.from_pretrained(folder)
        with torch.inference_mode():
            logits = model(features(wave, sampling_rate=16_000, return_tensors="pt").input_values).logits[0]
        assert scores == pytest.approx(torch.softmax(logits, -1).tolist(), abs=1e-5)


def test_the_score_of_a_regression_head_is_its_value(tmp_path, small_ctc):
    single = checkpoints.write_classifier(tmp_path / "single", checkpoints.SMALL, labels=1)
    wave = corpora.noise_bursts(1.0, 2)
    model = transformers.SEWDForSequenceClassification.from_pretrained(single).eval()
    features = transformers.Wav2Vec2FeatureExtractor.from_pretrained(single)
    with torch.inference_mode():
        value = model(features(wave, sampling_rate=16_000, return_tensors="pt").input_values).logits[0].tolist()
    (result,) = make(small_ctc, single).recognize([wave])
    assert result.label_scores == [pytest.approx(value, abs=1e-5)]


def test_each_row_of_a_chunk_gets_a_row_with_its_result_in_order(small_ctc):
    float_wave, int_wave = corpora.noise_bursts(1.0, 3), (corpora.noise_bursts(0.5, 4) * 32767).astype(np.int16)
    table = make(small_ctc)(chunk_table([float_wave, None, int_wave]))
    assert table.schema.equals(RECOGNIZED_CHUNK)
    (chunk,) = table.to_pylist()
    assert (chunk["part_id"], chunk["chunk"], chunk["last"], chunk["part_rows"]) == ("p", 3, True, 3)
    assert chunk["queue_s"] >= 5
    rows = chunk["rows"]
    assert [row["utt_id"] for row in rows] == ["0", "1", "2"]
    assert [row["token_ids"] is None for row in rows] == [False, True, False]
    assert rows[1]["code"] == "MISSING"
    assert rows[2]["num_frames"] == 24
    assert all(
        len(rows[0][name]) == len(rows[0]["token_ids"]) for name in ("start_frames", "end_frames", "probabilities")
    )


EXACT = ("token_ids", "start_frames", "end_frames", "num_frames")


def assert_equal_up_to_rounding(rows, others):
    assert len(rows) == len(others)
    for one, other in zip(rows, others, strict=True):
        assert [one[name] for name in EXACT] == [other[name] for name in EXACT]
        assert one["probabilities"] == pytest.approx(other["probabilities"], rel=1e-4)
        for scores, expected in zip(one["label_scores"], other["label_scores"], strict=True):
            assert scores == pytest.approx(expected, rel=1e-4)


def test_the_neighbours_of_a_clip_change_its_result_by_rounding_at_most(small_ctc, small_classifier):
    recognizer = make(small_ctc, small_classifier)
    waves = [corpora.noise_bursts(0.3 + 0.2 * index, index) for index in range(5)]
    together = recognizer(chunk_table(waves)).to_pylist()[0]["rows"]
    reversed_order = recognizer(chunk_table(waves[::-1])).to_pylist()[0]["rows"][::-1]
    alone = [recognizer(chunk_table([wave])).to_pylist()[0]["rows"][0] for wave in waves]
    assert all(row["token_ids"] for row in together)
    assert_equal_up_to_rounding(together, reversed_order)
    assert_equal_up_to_rounding(together, alone)


def test_the_same_chunk_gives_the_same_bits_with_any_number_of_threads(small_ctc, small_classifier):
    waves = [corpora.noise_bursts(4.0 + index, index) for index in range(9)]  # more than one pack
    chunk = chunk_table(waves)
    first = make(small_ctc, small_classifier)(chunk)
    for threads in (1, 3):
        again = make(small_ctc, small_classifier, threads=threads)(chunk)
        assert again["rows"].combine_chunks().equals(first["rows"].combine_chunks())


def test_in_int8_the_neighbours_of_a_clip_do_not_change_its_result(small_ctc, small_classifier):
    recognizer = make(small_ctc, small_classifier, dtype="int8", threads=2)
    waves = [corpora.noise_bursts(0.3 + 0.2 * index, index) for index in range(5)]
    alone = [row for wave in waves for row in recognizer.recognize([wave])]
    for one, other in zip(alone, recognizer.recognize(waves[::-1])[::-1], strict=True):
        for name in ("token_ids", "start_frames", "end_frames", "probabilities"):
            np.testing.assert_array_equal(getattr(one.path, name), getattr(other.path, name))
        assert one.path.num_frames == other.path.num_frames
        assert one.label_scores == other.label_scores
        assert one.error is other.error is None


CPU = f"cpu {torch.backends.cpu.get_cpu_capability()}"


def test_a_chunk_records_the_engine_that_computed_it(small_ctc, small_classifier, monkeypatch):
    def engines_of(recognizer):
        (chunk,) = recognizer(chunk_table([corpora.noise_bursts(0.5, 1)])).to_pylist()
        assert chunk["splits"] == 0
        return [EngineStatus(**engine) for engine in chunk["engines"]]

    assert engines_of(make(small_ctc, small_classifier)) == [EngineStatus("packed", "float32", CPU, 20.0, None)]
    monkeypatch.setattr(int8, "linear_types", lambda: int8.LinearTypes(OneDNNLinear, OneDNNLinear))
    assert engines_of(make(small_ctc, dtype="int8")) == [
        EngineStatus("packed", "float32", CPU, 20.0, int8.FALLBACK_REASON)
    ]


def test_a_chunk_records_one_engine_per_backbone(tmp_path, small_ctc):
    other = checkpoints.write_classifier(tmp_path / "other", checkpoints.SMALL, seed=5)
    (chunk,) = make(small_ctc, other)(chunk_table([])).to_pylist()
    assert len(chunk["engines"]) == 2


def test_a_halved_batch_counts_in_its_own_chunk_only(small_ctc):
    recognizer = make(small_ctc)
    (encoder,) = recognizer.encoders
    splits_so_far = iter([3, 3, 4])

    class Splitting:
        recognize, status = encoder.engine.recognize, encoder.engine.status
        splits = property(lambda self: next(splits_so_far))

    recognizer.encoders = [dataclasses.replace(encoder, engine=Splitting())]
    assert [recognizer(chunk_table([])).to_pylist()[0]["splits"] for _ in range(3)] == [3, 0, 1]


def test_a_clip_that_does_not_fit_in_memory_becomes_an_error_row(small_ctc, small_classifier):
    recognizer = make(small_ctc, small_classifier)
    (encoder,) = recognizer.encoders
    results = [*encoder.engine.recognize([np.zeros(8000, np.float32)]), Failure.TOO_LARGE]

    class SmallMemory:
        status, splits = encoder.engine.status, 0

        def recognize(self, _):
            return iter(results)

    recognizer.encoders = [dataclasses.replace(encoder, engine=SmallMemory())]
    waves = [corpora.noise_bursts(0.5, index) for index in range(2)]
    (chunk,) = recognizer(chunk_table(waves)).to_pylist()
    recognized, failed = chunk["rows"]
    assert recognized["code"] is None
    assert recognized["num_frames"] == 24
    assert (failed["stage"], failed["code"]) == ("model", "TOO_LARGE")
    assert failed["token_ids"] is failed["num_frames"] is failed["label_scores"] is None
    assert "--max-segment" in failed["message"]


def test_a_waiting_chunk_is_dropped_once_the_run_stops(tmp_path, small_ctc):
    recognizer = make(small_ctc, stop=tmp_path / "stop")
    table = chunk_table([corpora.noise_bursts(0.5, 1)])
    assert recognizer(table).num_rows == 1
    put(str(tmp_path / "stop"), b"")
    assert recognizer(table).num_rows == 0


def test_a_chunk_without_rows_is_returned_without_rows(small_ctc):
    (chunk,) = make(small_ctc)(chunk_table([])).to_pylist()
    assert chunk["rows"] == []


def test_a_checkpoint_that_is_not_the_runs_is_reported_with_the_first_chunk(tmp_path, small_ctc, monkeypatch):
    monkeypatch.setattr(local_copy, "__defaults__", (tmp_path,))
    common = (f"file://{small_ctc}", (), ("0" * 64,), "cpu", "float32", 1)
    recognizer = ChunkRecognizer(RecognizeSettings(*common, deadline_s=600.0, stop_uri="/no", run="/no"))
    with pytest.raises(InputChangedError, match="not the checkpoint that the run was started with"):
        recognizer(chunk_table([]))


def with_spans(waves: list[np.ndarray], spans: list[list[int] | None]) -> pa.Table:
    table = chunk_table(waves)
    (chunk,) = table.to_pylist()
    for row, edges in zip(chunk["rows"], spans, strict=True):
        row["spans"] = edges
        row["duration_s"] = len(row["samples"]) / 4 / 16_000
    return pa.Table.from_pylist([chunk], schema=READ_CHUNK)


def test_spans_are_computed_as_clips_of_their_own_and_keep_their_times(small_ctc):
    recognizer = make(small_ctc)
    wave = corpora.noise_bursts(6.0, 1)
    spans = [(0, 20_000), (40_100, 70_000)]  # the second begins in a frame, and is computed from its start on
    table = with_spans([wave, wave], [[edge for span in spans for edge in span], None])
    (chunk,) = recognizer(table).to_pylist()
    row, whole = chunk["rows"]
    alone = [recognizer.recognize([wave[start:stop]])[0].path for start, stop in ((0, 20_000), (40_000, 70_000))]
    assert row["token_ids"] == [token for path in alone for token in path.token_ids]
    assert row["start_frames"] == [*alone[0].start_frames, *(alone[1].start_frames + 125)]
    assert row["end_frames"] == [*alone[0].end_frames, *(alone[1].end_frames + 125)]
    assert row["skipped_s"] == pytest.approx((96_000 - 50_000) / 16_000)
    assert chunk["skipped_s"] == pytest.approx(row["skipped_s"])
    expected = recognizer.recognize([wave])[0].path
    assert (whole["token_ids"], whole["start_frames"]) == (list(expected.token_ids), list(expected.start_frames))
    assert whole["skipped_s"] == 0


def test_posteriors_of_a_row_are_those_of_its_spans_and_blanks_between(small_ctc):
    wave = corpora.noise_bursts(6.0, 1)
    table = with_spans([wave, wave, wave], [[0, 20_000, 40_100, 70_000], None, []])
    recognizer = make(small_ctc, posteriors=True)
    chunks = recognizer(table), make(small_ctc)(table)
    rows, expected = (pa.Table.from_struct_array(chunk["rows"].combine_chunks().flatten()) for chunk in chunks)
    assert rows["token_ids"].null_count == rows.num_rows
    for name in ("num_frames", "skipped_s", "label_scores"):
        assert rows[name].to_pylist() == expected[name].to_pylist()
    alone = [recognizer.recognize([wave[start:stop]])[0].posteriors for start, stop in ((0, 20_000), (40_000, 70_000))]
    joined = posteriors_of(rows)
    assert joined[0].tokens.tolist() == [token for piece in alone for token in piece.tokens]
    assert joined[0].counts[alone[0].num_frames : 125].sum() == 0
    for posteriors, path in zip(joined, expected.select(["token_ids", "start_frames"]).to_pylist(), strict=True):
        best = posteriors.best(0)
        (found,) = greedy_paths(*best, [posteriors.num_frames], 0, drop_ids(small_ctc))
        assert (found.token_ids.tolist(), found.start_frames.tolist()) == (path["token_ids"], path["start_frames"])


def drop_ids(model):
    return CTCTokenizer.from_pretrained(model).drop_ids


def test_a_row_that_is_all_silence_is_an_empty_transcript_unless_it_needs_a_label(small_ctc, small_classifier):
    wave = np.zeros(16_000, np.float32)
    (chunk,) = make(small_ctc)(with_spans([wave], [[]])).to_pylist()
    assert (chunk["rows"][0]["token_ids"], chunk["rows"][0]["code"]) == ([], None)
    assert chunk["rows"][0]["skipped_s"] == pytest.approx(1.0)
    labelled = make(small_ctc, small_classifier)
    (chunk,) = labelled(with_spans([wave], [[]])).to_pylist()
    assert chunk["rows"][0]["label_scores"] == labelled.recognize([wave])[0].label_scores
    assert chunk["rows"][0]["skipped_s"] == 0


def test_the_scores_of_spans_are_averaged_by_their_lengths(small_ctc, small_classifier):
    recognizer = make(small_ctc, small_classifier)
    wave = corpora.noise_bursts(6.0, 1)
    (chunk,) = recognizer(with_spans([wave], [[0, 16_000, 48_000, 80_000]])).to_pylist()
    first, second = (r.label_scores[0] for r in recognizer.recognize([wave[:16_000], wave[48_000:80_000]]))
    expected = (np.array(first) + 2 * np.array(second)) / 3
    assert chunk["rows"][0]["label_scores"][0] == pytest.approx(expected.tolist(), abs=1e-6)


@pytest.mark.parametrize("value", [3e38, np.inf, np.nan])
def test_samples_that_overflow_are_a_non_finite_row_of_the_model_and_spare_their_neighbours(small_ctc, value):
    good = corpora.noise_bursts(1.0, 3)
    bad = good.copy()
    bad[5_000:5_100] = value
    recognizer = make(small_ctc)
    (chunk,) = recognizer(chunk_table([good, bad, good])).to_pylist()
    first, row, last = chunk["rows"]
    assert (row["stage"], row["code"], row["token_ids"]) == ("model", "NON_FINITE", None)
    expected = list(recognizer.recognize([good])[0].path.token_ids)
    assert first["token_ids"] == last["token_ids"] == expected


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("lasting", [True, False])
def test_output_that_is_not_finite_is_computed_alone_and_then_a_row_of_the_model(
    small_ctc, small_classifier, value, lasting
):
    """As in half precision: what overflows spoils its batch, and alone only itself."""
    recognizer = make(small_ctc, small_classifier)
    (encoder,) = recognizer.encoders
    waves = [corpora.noise_bursts(seconds, 3) for seconds in (1.0, 1.5, 2.0)]
    expected = [result.path.token_ids for result in recognizer.recognize(waves)]
    calls = []

    class Overflowing:
        def encode(self, inputs):
            calls.append(len(inputs))
            for logits in encoder.engine.encode(inputs):
                spoiled = len(inputs) > 1 or (lasting and len(inputs[0]) == len(waves[1]))
                yield tuple(head * value if spoiled else head for head in logits)

        def recognize(self, clips):
            return recognize(self.encode, clips, encoder.engine._decoding)

    recognizer.encoders = [dataclasses.replace(encoder, engine=Overflowing())]
    results = recognizer.recognize(waves)
    assert calls == [3, 1, 1, 1]
    assert [result.error and result.error.code for result in results] == [None, "NON_FINITE" if lasting else None, None]
    for result, tokens in zip(results, expected, strict=True):
        assert result.error is not None or np.array_equal(result.path.token_ids, tokens)


def test_the_samples_of_a_chunk_are_not_copied(small_ctc, monkeypatch):
    """A chunk of 20 minutes is 77 MB in Ray's object store."""
    recognizer, table = make(small_ctc), chunk_table([np.zeros(16_000, np.float32)] * 64)
    before, during = pa.total_allocated_bytes(), []
    results = recognizer.results

    def measured(rows):
        during.append(pa.total_allocated_bytes() - before)
        return results(rows)

    monkeypatch.setattr(recognizer, "results", measured)
    recognizer(table)
    assert during[0] < table.nbytes / 10


def test_samples_that_begin_between_two_multiples_of_their_size_give_the_same_bits(small_ctc):
    """Behind an odd number of int16 samples, float32 ones are not aligned, and NumPy sums them in another order."""
    odd = (corpora.noise_bursts(0.5, 4) * 32767).astype(np.int16)[:-1]
    wave = corpora.noise_bursts(2.0, 3)
    rows = chunk_table([odd, wave])["rows"].combine_chunks().flatten()
    behind = heads._waveforms(rows)[1]
    np.testing.assert_array_equal(behind, wave)
    assert behind.flags.aligned
