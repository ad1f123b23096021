"""The main job's contracts on small corpora: stages apart, composition, long audio, channels, labels, stops."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import threading
import time

import numpy as np
import pyarrow.dataset as pads
import pytest
import ray
import soundfile
import torch
import transformers

import pipeline
from pipeline.cluster.object_store import data_context
from pipeline.cluster.resources import Resources, machines
from pipeline.driver import transcribe as driver
from pipeline.driver.transcribe import _Execution, _load_models
from pipeline.errors import LeaseLostError
from pipeline.runs import lifecycle
from pipeline.runs.lease import hold, lease_uri
from pipeline.runs.verify import verify
from pipeline.stages.recognize import RecognizeSettings
from pipeline.stages.write import TOP_K
from pipeline.storage import objects
from pipeline.storage.checkpoints import checkpoint_digest
from tests.support import corpora
from tests.support.command import command, sewd
from tests.support.oracle import Reference, samples


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Forty clips with side-car references, of several formats and rates."""
    folder = tmp_path_factory.mktemp("corpus")
    for index in range(40):
        rate = (8_000, 16_000, 22_050, 44_100)[index % 4]
        kind = ("wav", "flac", "ogg")[index % 3]
        corpora.write_audio(folder / f"{index % 5}/{index:02d}.{kind}", 0.5 + index / 10, index, rate)
        (folder / f"{index % 5}/{index:02d}.txt").write_text(f"reference number {index}\n")
    return folder


def transcribe(corpus, output, model, **options):
    return pipeline.transcribe(
        pipeline.RunConfig(inputs=(str(corpus),), output=str(output), model=str(model), **options)
    )


def test_texts_are_the_references_on_each_clip_alone_also_resampled(tmp_path, local_ray, corpus, small_ctc):
    run = transcribe(corpus, tmp_path / "run", small_ctc, chunk_s=30)

    reference = Reference(small_ctc)
    rows = corpora.rows_of(run)
    assert len(rows) == 40
    for row in rows:
        path = next(corpus.glob(row["utt_id"] + ".[wfo]*"))
        assert reference.expect(samples(path)).allows(row["text"]), row["utt_id"]
        assert row["reference"] == f"reference number {int(path.stem)}"
        assert [word["word"] for word in row["words"]] == row["text"].split()
        ends = [0.0] + [t for word in row["words"] for t in (word["start_s"], word["end_s"])]
        assert ends == sorted(ends)
        assert ends[-1] <= row["duration_s"] + 0.02


def test_chunks_and_actors_change_no_row(tmp_path, local_ray, corpus, small_ctc):
    drop = ("part_id", "chunk")
    calm = corpora.rows_of(transcribe(corpus, tmp_path / "a", small_ctc, threads=1), drop=drop)
    split = transcribe(corpus, tmp_path / "b", small_ctc, actors=2, threads=1, chunk_s=7, chunk_rows=3, part_mib=0.2)

    assert split.record["parts"] > 3
    assert split.record["totals"]["chunks"] > 10
    corpora.assert_same_transcripts(corpora.rows_of(split, drop=drop), calm)


def test_reading_and_recognising_run_in_processes_of_their_own(tmp_path, local_ray, corpus, small_ctc):
    run = transcribe(corpus, tmp_path / "run", small_ctc, part_mib=0.2)

    commits = list(run.commits())
    readers = {commit.workers["reader"] for commit in commits}
    recognizers = {commit.workers["recognizer"] for commit in commits}
    assert not readers & recognizers
    assert len(recognizers) == 1


@pytest.mark.parametrize(
    "resources", [Resources(1, 1, 2.5, 0, 0.25, 0.25, 2, 1), Resources(2, 1, 1.25, 0, 0.25, 0.25, 4, 1)]
)
def test_ray_fuses_no_two_stages(resources, tmp_path, local_ray, corpus, small_ctc):
    run = transcribe(corpus, tmp_path / "run", small_ctc, limit=1)
    config = pipeline.RunConfig(inputs=(str(corpus),), output=run.uri, model=str(small_ctc))
    execution = _Execution(run, config, _load_models(config), machines("local"), resources, "0", lambda _: None)

    with hold(run.uri, "0"), ray.data.DataContext.current(data_context(machines("local"), resources, 1e6)):
        wave = [run.plan().append_column("committed", [[[]]]).append_column("record", [[None]])]
        dataset = execution.dataset(wave).materialize()

    stats = dataset.stats()
    for stage in ("MapBatches(read_parts)", "MapBatches(Recognizer)", "MapBatches(write_chunks)"):
        assert f"{stage}:" in stats
    assert "->" not in stats


def test_ray_takes_the_stages_also_with_gpus(tmp_path, local_ray, corpus, small_ctc):
    run = transcribe(corpus, tmp_path / "run", small_ctc, limit=1)
    config = pipeline.RunConfig(inputs=(str(corpus),), output=run.uri, model=str(small_ctc))
    resources = Resources(2, 1, 1, 0.5, 1, 0.25, 4, 1)
    execution = _Execution(run, config, _load_models(config), machines("local"), resources, "0", lambda _: None)
    assert execution.dataset([run.plan()]) is not None  # it refuses requests that it does not like


def test_heads_keep_their_digests_when_a_resume_names_them_in_another_order(
    tmp_path, local_ray, corpus, small_ctc, small_classifier, monkeypatch
):
    heads = (f"a={small_classifier}", "b=bundled")
    run = transcribe(corpus, tmp_path / "run", small_ctc, limit=1, classifiers=heads)
    config = pipeline.RunConfig(
        inputs=(str(corpus),), output=run.uri, model=str(small_ctc), classifiers=tuple(reversed(heads))
    )
    made = []
    monkeypatch.setattr(driver, "RecognizeSettings", lambda **values: made.append(values))
    resources = Resources(1, 1, 1, 0, 0.25, 0.25, 2, 1)
    models = _load_models(config)
    _Execution(run, config, models, machines("local"), resources, "0", lambda _: None).dataset([run.plan()])
    (settings,) = made
    assert settings["classifiers"] == ("bundled", str(small_classifier))
    assert settings["digests"] == tuple(map(checkpoint_digest, (str(small_ctc), "bundled", str(small_classifier))))


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_the_recognisers_compute_in_the_dtype_that_is_asked_for(
    tmp_path, local_ray, corpus, small_ctc, monkeypatch, dtype
):
    made = []
    monkeypatch.setattr(
        driver, "RecognizeSettings", lambda **values: made.append(values) or RecognizeSettings(**values)
    )
    run = transcribe(corpus, tmp_path / "run", small_ctc, limit=2, threads=1, dtype=dtype)
    assert made[0]["dtype"] == run.record["config"]["dtype"] == run.record["fingerprint"]["dtype"] == dtype
    assert len(corpora.rows_of(run)) == 2


def test_labels_are_transformers_labels_and_come_from_the_same_pass(
    tmp_path, local_ray, corpus, small_ctc, small_classifier
):
    run = transcribe(corpus, tmp_path / "run", small_ctc, classifiers=(f"keyword={small_classifier}",))

    model = transformers.SEWDForSequenceClassification.from_pretrained(small_classifier).eval()
    features = transformers.Wav2Vec2FeatureExtractor.from_pretrained(small_classifier)
    rows = corpora.rows_of(run, "labels")
    assert len(rows) == 40
    for row in rows:
        audio = samples(next(corpus.glob(row["utt_id"] + ".[wfo]*")))
        with torch.inference_mode():
            logits = model(features(audio, sampling_rate=16_000, return_tensors="pt").input_values).logits[0]
        probabilities = torch.softmax(logits, -1)
        order = probabilities.argsort(descending=True).tolist()
        assert row["task"] == "keyword"
        assert row["label"] == f"word{order[0]}"
        assert row["score"] == pytest.approx(probabilities.max().item(), abs=1e-5)
        assert [top["label"] for top in row["top_k"]] == [f"word{index}" for index in order[:TOP_K]]


def test_long_audio_is_cut_into_segments_that_tile_it(tmp_path, local_ray, small_ctc):
    corpora.write_audio(tmp_path / "in" / "long.wav", seconds=130, seed=3)
    (tmp_path / "in" / "long.txt").write_text("of the whole recording")

    run = transcribe(tmp_path / "in", tmp_path / "run", small_ctc, max_segment_s=20)

    rows = sorted(corpora.rows_of(run), key=lambda row: row["start_s"])
    assert rows[0]["start_s"] == 0
    for row, after in itertools.pairwise(rows):
        assert row["start_s"] + row["duration_s"] == pytest.approx(after["start_s"], abs=1e-9)
    assert rows[-1]["start_s"] + rows[-1]["duration_s"] == pytest.approx(130)
    assert max(row["duration_s"] for row in rows) <= 20
    assert {row["reference"] for row in rows} == {None}
    for row in rows:
        start, end = round(row["start_s"] * 1000), round((row["start_s"] + row["duration_s"]) * 1000)
        assert row["utt_id"] == f"long#{start}-{end}"
        assert all(row["start_s"] <= word["start_s"] for word in row["words"])


def test_channels_split_are_utterances_of_their_own(tmp_path, local_ray, small_ctc):
    left, right = corpora.noise_bursts(2, 1), corpora.noise_bursts(2, 2)
    (tmp_path / "in").mkdir()
    soundfile.write(tmp_path / "in" / "call.wav", np.stack([left, right], 1), 16_000, subtype="FLOAT")

    run = transcribe(tmp_path / "in", tmp_path / "run", small_ctc, channels="split")

    rows = corpora.rows_of(run)
    assert [row["utt_id"] for row in rows] == ["call#c0", "call#c1"]
    reference = Reference(small_ctc)
    assert reference.expect(left).allows(rows[0]["text"])
    assert reference.expect(right).allows(rows[1]["text"])


def test_a_run_that_is_done_is_left_as_it_is(tmp_path, local_ray, corpus, small_ctc):
    first = transcribe(corpus, tmp_path / "run", small_ctc, limit=5)
    again = transcribe(corpus, tmp_path / "run", small_ctc, limit=5)

    assert again.record == first.record
    assert len(corpora.rows_of(again)) == 5


def test_another_model_or_option_is_refused_with_what_differs(tmp_path, local_ray, corpus, small_ctc, small_classifier):
    transcribe(corpus, tmp_path / "run", small_ctc, limit=5)

    with pytest.raises(pipeline.UsageError, match=r"limit: 5 -> 6"):
        transcribe(corpus, tmp_path / "run", small_ctc, limit=6)
    with pytest.raises(pipeline.UsageError, match="classifiers: "):
        transcribe(corpus, tmp_path / "run", small_ctc, limit=5, classifiers=(str(small_classifier),))


def test_a_stop_finishes_what_is_in_the_model_and_the_next_start_does_the_rest(tmp_path, local_ray, corpus, small_ctc):
    calm = transcribe(corpus, tmp_path / "calm", small_ctc, chunk_rows=1, part_mib=0.2)
    stop = threading.Event()

    def stop_at_the_third(progress):
        if progress.totals.chunks >= 3:
            stop.set()

    config = pipeline.RunConfig(
        inputs=(str(corpus),), output=str(tmp_path / "run"), model=str(small_ctc), chunk_rows=1, part_mib=0.2
    )
    stopped = pipeline.transcribe(config, stop_at_the_third, stop)

    assert stopped.status == "stopped"
    assert 3 <= stopped.record["totals"]["chunks"] < 40
    assert not list((tmp_path / "run" / "control").glob("*"))
    done = pipeline.transcribe(config)
    assert done.status == "done"
    assert corpora.rows_of(done) == corpora.rows_of(calm)


def test_commits_come_while_reading_goes_on_and_a_stop_ends_that_too(tmp_path, local_ray, small_ctc):
    for index in range(40):
        corpora.write_audio(tmp_path / "in" / f"{index:02d}.wav", seconds=30, seed=index)
    stop = threading.Event()
    config = pipeline.RunConfig(
        inputs=(tmp_path / "in",), output=tmp_path / "run", model=small_ctc, part_mib=0.001, threads=1
    )
    # Forty parts. Were the sink starved, or a stop not looked for before a part, nearly all would be done at the end.
    stopped = pipeline.transcribe(config, lambda progress: progress.totals.chunks and stop.set(), stop)

    assert stopped.status == "stopped"
    assert stopped.record["totals"]["chunks"] <= 20


def test_chunks_that_were_cut_from_different_inputs_are_no_run(tmp_path, local_ray, small_ctc):
    for index in range(6):
        corpora.write_audio(tmp_path / f"{index}.wav", seconds=1, seed=index)
    corpora.write_manifest(tmp_path / "m.jsonl", [{"audio_filepath": f"{index}.wav"} for index in range(6)])
    run = transcribe(tmp_path / "m.jsonl", tmp_path / "run", small_ctc, chunk_s=2)
    commits = sorted((tmp_path / "run").glob("commits/*/*.json"))
    assert len(commits) == 3
    commits[2].unlink()
    run.save(status="failed")
    corpora.write_audio(tmp_path / "0.wav", seconds=9, seed=0)

    with pytest.raises(pipeline.StorageError, match="changed between two starts"):
        transcribe(tmp_path / "m.jsonl", tmp_path / "run", small_ctc, chunk_s=2)


def test_a_worker_that_dies_at_every_try_fails_the_run(tmp_path, local_ray, corpus, small_ctc, monkeypatch):
    tries = tmp_path / "tries"

    def die(parts, settings):
        with tries.open("a") as file:
            file.write("x")
        os._exit(1)

    monkeypatch.setattr(driver, "read_parts", die)
    with pytest.raises(pipeline.RunFailedError, match="workers died again and again"):
        transcribe(corpus, tmp_path / "run", small_ctc)
    assert tries.read_text() == "xxxxx"
    assert pipeline.Run.open(tmp_path / "run").status == "failed"


@pytest.mark.parametrize("signum", [pytest.param(signal.SIGTERM, marks=pytest.mark.slow), signal.SIGINT])
def test_a_signal_stops_the_command_cleanly(signum, tmp_path, corpus, small_ctc):
    arguments = (
        "transcribe",
        corpus,
        "-o",
        tmp_path / "run",
        "--model",
        small_ctc,
        "--chunk-rows",
        1,
        "--part-mib",
        0.2,
    )
    process = subprocess.Popen(command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not list((tmp_path / "run").glob("commits/*/*.json")):
        assert process.poll() is None
        time.sleep(0.05)
    if signum == signal.SIGTERM:  # and a second command meanwhile is refused
        os.kill(process.pid, signal.SIGSTOP)
        second = sewd(*arguments)
        os.kill(process.pid, signal.SIGCONT)
        assert second.returncode == 2
        assert second.stderr.count("\n") == 1
        assert f":{process.pid} is at work on this run" in second.stderr
    os.kill(process.pid, signum)
    out, err = process.communicate(timeout=120)

    run = pipeline.Run.open(str(tmp_path / "run"))
    assert "stopping" in err
    assert "Traceback" not in err
    # On a fast machine the last chunk may have been the one in the model.
    assert (process.returncode, run.status) in [(130, "stopped"), (0, "done")], out + err


def test_a_driver_that_slept_while_another_did_its_work_gives_up_and_harms_nothing(
    tmp_path, local_ray, corpus, small_ctc
):
    options = {"chunk_rows": 1, "part_mib": 0.2, "limit": 15}
    calm = transcribe(corpus, tmp_path / "calm", small_ctc, **options)
    arguments = ("transcribe", corpus, "-o", tmp_path / "run", "--model", small_ctc, "--chunk-rows", 1)
    sleeper = subprocess.Popen(
        command(*arguments, "--part-mib", 0.2, "--limit", 15), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while not list((tmp_path / "run").glob("commits/*/*.json")):
        assert sleeper.poll() is None
        time.sleep(0.05)
    os.kill(sleeper.pid, signal.SIGSTOP)
    # From another machine it would look dead by now.
    (tmp_path / "run" / "control" / "lease.json").unlink()
    done = transcribe(corpus, tmp_path / "run", small_ctc, **options)
    os.kill(sleeper.pid, signal.SIGCONT)
    _, err = sleeper.communicate(timeout=120)

    assert sleeper.returncode == 1, err
    assert "took this run over" in err
    assert "Traceback" not in err
    assert pipeline.Run.open(tmp_path / "run").status == "done"
    assert corpora.rows_of(done) == corpora.rows_of(calm)
    assert verify(pipeline.Run.open(tmp_path / "run")).problems == ()


@pytest.mark.parametrize("stage", ["read_parts", "write_chunks"])
def test_what_a_stage_says_of_the_weather_arrives_as_it_was_said(
    stage, tmp_path, local_ray, corpus, small_ctc, monkeypatch
):
    def fail(chunks, settings):
        raise pipeline.StorageError("no room is left")

    monkeypatch.setattr(driver, stage, fail)
    with pytest.raises(pipeline.StorageError, match=r"^no room is left$"):
        transcribe(corpus, tmp_path / "run", small_ctc, limit=2)
    assert pipeline.Run.open(tmp_path / "run").record["reason"] == "no room is left"


def test_a_driver_that_is_refused_has_touched_nothing(tmp_path, corpus, small_ctc):
    with hold(str(tmp_path / "run"), "other"), pytest.raises(pipeline.UsageError, match="is at work on this run"):
        transcribe(corpus, tmp_path / "run", small_ctc, limit=2)
    assert [path for path in (tmp_path / "run").rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("point", ["compact", "remove_orphans"])
def test_a_driver_whose_run_was_taken_over_while_it_finished_changes_nothing(
    point, tmp_path, local_ray, corpus, small_ctc, monkeypatch
):
    do = getattr(lifecycle, point)
    lease = tmp_path / "run" / "control" / "lease.json"

    def slowly(*arguments):
        lease.write_text('{"attempt": "other"}')
        return do(*arguments)

    monkeypatch.setattr(lifecycle, point, slowly)
    with pytest.raises(LeaseLostError):
        transcribe(corpus, tmp_path / "run", small_ctc, limit=2)
    assert pipeline.Run.open(tmp_path / "run").status == "running"
    assert (tmp_path / "run" / "compaction.json").exists() == (point == "remove_orphans")
    assert len(corpora.rows_of(pipeline.Run.open(tmp_path / "run"))) == 2
    assert lease.exists()


def test_a_driver_whose_run_was_taken_over_leaves_no_word_of_its_own_failure(
    tmp_path, local_ray, corpus, small_ctc, monkeypatch
):
    def fail(*_):
        (tmp_path / "run" / "control" / "lease.json").write_text('{"attempt": "other"}')
        raise pipeline.StorageError("the network is gone")

    monkeypatch.setattr(lifecycle, "missing_parts", fail)
    with pytest.raises(pipeline.StorageError, match="the network is gone"):
        transcribe(corpus, tmp_path / "run", small_ctc, limit=2)
    assert pipeline.Run.open(tmp_path / "run").status == "running"


def test_a_part_that_was_half_committed_is_taken_up_where_it_was(tmp_path, local_ray, corpus, small_ctc):
    want = corpora.rows_of(transcribe(corpus, tmp_path / "whole", small_ctc, chunk_rows=5))
    with pytest.MonkeyPatch.context() as patch:  # ends before its files are compacted, as a driver killed there does
        patch.setattr(driver, "finish", lambda run, *_: run.save(status="failed"))
        transcribe(corpus, tmp_path / "run", small_ctc, chunk_rows=5)
    commits = sorted((tmp_path / "run").glob("commits/*/*.json"))
    kept = {path: path.stat().st_mtime_ns for path in commits[::2]}
    for path in commits[1::2]:
        path.unlink()

    again = transcribe(corpus, tmp_path / "run", small_ctc, chunk_rows=5)

    assert corpora.rows_of(again) == want
    assert {path: path.stat().st_mtime_ns for path in kept} == kept, "a committed chunk was done again"
    lying = {str(path.relative_to(tmp_path / "run")) for path in (tmp_path / "run").glob("transcripts/*")}
    assert lying == {file.path for file in again.files()["transcripts"]}, "orphans are removed when the run is done"
    assert len(lying) == 1, "the files of a run that is done are compacted"
    globbed = pads.dataset([str(path) for path in (tmp_path / "run").glob("transcripts/*.parquet")])
    assert globbed.count_rows() == len(want)


@pytest.mark.parametrize("point", ["write_compaction", "remove_orphans"])
def test_a_driver_that_dies_while_it_finishes_loses_and_doubles_nothing(point, tmp_path, local_ray, corpus, small_ctc):
    class Killed(BaseException):
        pass

    def die(*_):
        raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lifecycle, point, die)
        with pytest.raises(Killed):
            transcribe(corpus, tmp_path / "run", small_ctc, chunk_rows=5)
    left = pipeline.Run.open(tmp_path / "run")
    assert left.status == "running"
    rows = corpora.rows_of(left)

    again = transcribe(corpus, tmp_path / "run", small_ctc, chunk_rows=5)

    assert again.status == "done"
    assert corpora.rows_of(again) == rows
    lying = {str(path.relative_to(tmp_path / "run")) for path in (tmp_path / "run").glob("transcripts/*")}
    assert lying == {file.path for file in again.files()["transcripts"]}


def test_the_command_resumes_and_reports(tmp_path, corpus, small_ctc):
    arguments = ("transcribe", corpus, "--output", tmp_path / "run", "--model", small_ctc, "--limit", 6)
    done = sewd(*arguments)
    assert done.returncode == 0, done.stderr
    assert "6 transcripts" in done.stdout
    assert "Traceback" not in done.stderr

    status = sewd("status", tmp_path / "run")
    assert status.returncode == 0
    assert "1 of 1 done" in status.stdout

    evaluated = sewd("evaluate", tmp_path / "run")
    assert evaluated.returncode == 0
    assert "WER" in evaluated.stdout
    assert "6 scored, 0 without a reference, 0 failed" in evaluated.stdout


# ------------------------------------------------------------------------------------- runs that are there already
def test_the_log_has_an_object_for_each_chunk_and_failed_row(tmp_path, small_ctc):
    corpora.write_audio(tmp_path / "in" / "a.wav", 1.0)
    corpora.write_audio(tmp_path / "in" / "b.wav", 1.0)
    (tmp_path / "in" / "broken.wav").write_bytes(b"RIFF")
    log = tmp_path / "log.jsonl"
    arguments = ("transcribe", tmp_path / "in", "-o", tmp_path / "run", "--model", small_ctc, "--chunk-rows", 2)
    assert sewd(*arguments, "--log", log, "--max-error-rate", 1).returncode == 3

    events = [json.loads(line) for line in log.read_text().splitlines()]
    assert [event["event"] for event in events].count("started") == 1
    chunks = [event for event in events if event["event"] == "chunk committed"]
    assert sorted((chunk["chunk"], chunk["utterances"], chunk["errors"]) for chunk in chunks) == [(0, 2, 0), (1, 0, 1)]
    (failed,) = (event for event in events if event["event"] == "row failed")
    assert (failed["utt_id"], failed["code"], failed["part_id"]) == ("broken", "TRUNCATED", chunks[0]["part_id"])
    assert sewd(*arguments, "--log", tmp_path / "nowhere" / "log").returncode == 2


def test_a_run_that_is_there_is_gone_on_with_or_refused_as_asked(tmp_path, local_ray, corpus, small_ctc):
    output = tmp_path / "run"
    first = transcribe(corpus, output, small_ctc, threads=1)
    with pytest.raises(pipeline.UsageError, match="holds a run already"):
        transcribe(corpus, output, small_ctc, threads=1, existing="refuse")
    with pytest.raises(pipeline.UsageError, match=r"max_segment_s: 60\.0 -> 30\.0"):
        transcribe(corpus, output, small_ctc, threads=1, max_segment_s=30)
    with pytest.raises(pipeline.UsageError, match="dtype: float32 -> int8"):
        transcribe(corpus, output, small_ctc, threads=1, dtype="int8")
    assert transcribe(corpus, output, small_ctc, threads=1).record["created"] == first.record["created"]


def test_a_run_is_overwritten_by_a_new_one_as_asked(tmp_path, local_ray, corpus, small_ctc, monkeypatch):
    output = tmp_path / "run"
    transcribe(corpus, output, small_ctc, threads=1, max_segment_s=2)
    with pytest.raises(pipeline.UsageError, match="nothing there"):
        transcribe(tmp_path / "nothing there", output, small_ctc, existing="overwrite")
    assert pipeline.Run.open(output).status == "done"

    delete = objects.delete

    def delete_one(uris):
        delete(uris[:1])
        if uris != [lease_uri(str(output))]:  # which a thread of its own gives back
            raise ZeroDivisionError

    monkeypatch.setattr(objects, "delete", delete_one)
    with pytest.raises(ZeroDivisionError):
        transcribe(corpus, output, small_ctc, threads=1, limit=3, existing="overwrite")
    monkeypatch.undo()
    with pytest.raises(pipeline.UsageError, match="was being overwritten: ask for that again"):
        transcribe(corpus, output, small_ctc, threads=1, limit=3)

    run = transcribe(corpus, output, small_ctc, threads=1, limit=3, existing="overwrite")
    assert len(corpora.rows_of(run)) == 3
    assert verify(run).problems == ()


def test_overwriting_takes_no_more_than_the_run_and_no_run_that_may_be_written_to(tmp_path, local_ray, small_ctc):
    output = tmp_path / "run"
    corpora.write_audio(tmp_path / "in" / "a.wav", 1.0)
    run = transcribe(tmp_path / "in", output, small_ctc, threads=1)
    (output / "notes.txt").write_text("mine")
    inside = corpora.write_audio(output / "in" / "b.wav", 1.0).parent
    with pytest.raises(pipeline.UsageError, match="lies in"):
        transcribe(inside, output, small_ctc, threads=1, existing="overwrite")
    run.save(status="running")
    with pytest.raises(pipeline.UsageError, match="its workers may write still"):
        transcribe(tmp_path / "in", output, small_ctc, threads=1, existing="overwrite")
    assert len(corpora.rows_of(run)) == 1
    run.save(status="stopped")
    transcribe(tmp_path / "in", output, small_ctc, threads=1, existing="overwrite")
    assert (output / "notes.txt").read_text() == "mine"
    assert (inside / "b.wav").exists()


def test_what_is_no_run_is_not_overwritten(tmp_path, corpus, small_ctc):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(pipeline.UsageError, match="is not empty and holds no run"):
        transcribe(corpus, tmp_path, small_ctc, existing="overwrite")
    assert (tmp_path / "mine.txt").read_text() == "mine"
