"""The main job's contracts on small corpora: stages, composition, long audio, channels, labels, stops, resumes.

A Ray Data execution takes seconds to start, and a process with a Ray of its own more. So tests that only read a run
share it, and tests of how a driver ends start from a copy of a run whose chunks are committed.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads
import pytest
import ray
import soundfile
import torch
import transformers

import pipeline
from pipeline.cluster.object_store import data_context
from pipeline.cluster.resources import Resources, cluster_nodes
from pipeline.decoding.settings import DecoderSettings
from pipeline.driver import dataset
from pipeline.driver import transcribe as driver
from pipeline.driver.dataset import build_dataset, configure_stages
from pipeline.errors import LeaseLostError
from pipeline.runs import lifecycle
from pipeline.runs.fingerprint import fingerprint
from pipeline.runs.lease import hold_lease, lease_uri
from pipeline.runs.verify import verify
from pipeline.stages.models import load_model_info
from pipeline.stages.recognize import ChunkRecognizer, RecognizeSettings
from pipeline.stages.texts import TOP_K
from pipeline.storage import objects
from pipeline.storage.checkpoints import checkpoint_digest
from tests.support import corpora
from tests.support.command import command, sewd
from tests.support.oracle import Reference, samples

CLIPS = 30
WAIT_S = 60.0  # for what takes milliseconds, on a busy machine
# Several parts, and several chunks in each.
SMALL_CHUNKS = {"threads": 1, "chunk_s": 4, "chunk_rows": 2, "part_mib": 0.2}
SMALL_CHUNKS_COMMAND = ("--threads", 1, "--chunk-seconds", 4, "--chunk-rows", 2, "--part-mib", 0.2)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """Clips with side-car references, in each combination of three formats and four rates."""
    folder = tmp_path_factory.mktemp("corpus")
    for index in range(CLIPS):
        rate = (8_000, 16_000, 22_050, 44_100)[index % 4]
        kind = ("wav", "flac", "ogg")[index % 3]
        corpora.write_audio(folder / f"{index % 5}/{index:02d}.{kind}", 0.5 + index / 10, index, rate)
        (folder / f"{index % 5}/{index:02d}.txt").write_text(f"reference number {index}\n")
    return folder


def configuration(corpus, output, model, **options) -> pipeline.RunConfig:
    return pipeline.RunConfig(inputs=(str(corpus),), output=str(output), model=str(model), **options)


def transcribe(corpus, output, model, **options) -> pipeline.Run:
    return pipeline.transcribe(configuration(corpus, output, model, **options))


def planned_run(config) -> pipeline.Run:
    """A run of which only the plan exists."""
    return lifecycle.create_run(config, fingerprint(config), lifecycle.plan_new_run(config))


@pytest.fixture(scope="module")
def whole(tmp_path_factory, local_ray, corpus, small_ctc, small_classifier) -> pipeline.Run:
    """A finished run of one part, one chunk and one actor, with labels. Not to be changed."""
    output = tmp_path_factory.mktemp("whole") / "run"
    return transcribe(corpus, output, small_ctc, threads=1, classifiers=(f"keyword={small_classifier}",))


@pytest.fixture(scope="module")
def committed(tmp_path_factory, local_ray, corpus, small_ctc) -> pipeline.Run:
    """A run of `SMALL_CHUNKS` whose driver was killed between the last commit and compaction. Not to be changed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(driver, "finish_run", lambda run, *_: run.save(status="failed"))
        return transcribe(corpus, tmp_path_factory.mktemp("committed") / "run", small_ctc, actors=2, **SMALL_CHUNKS)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, committed, corpus, small_ctc) -> pipeline.Run:
    """The same, finished by another start of the driver. Not to be changed."""
    output = copy(committed, tmp_path_factory.mktemp("finished") / "run")
    return transcribe(corpus, output, small_ctc, **SMALL_CHUNKS)


def copy(run: pipeline.Run, output: Path) -> Path:
    return shutil.copytree(run.uri, output)


def in_process(capsys, monkeypatch, *arguments: object) -> tuple[int, str]:
    """Exit code and output of `sewd ARGUMENTS`, in this process."""
    from jobs.app import application_for
    from jobs.console import run as run_app

    monkeypatch.setattr("sys.argv", ["sewd", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        run_app(application_for())
    return ended.value.code, capsys.readouterr().out


# ------------------------------------------------------------------------------------------------------------- results
def test_texts_equal_the_reference_on_each_clip_alone_also_resampled(whole, corpus, small_ctc):
    reference = Reference(small_ctc)
    rows = corpora.rows_of(whole)
    assert len(rows) == CLIPS
    for row in rows:
        path = next(corpus.glob(row["utt_id"] + ".[wfo]*"))
        assert reference.expect(samples(path)).allows(row["text"]), row["utt_id"]
        assert row["reference"] == f"reference number {int(path.stem)}"
        assert [word["word"] for word in row["words"]] == row["text"].split()
        ends = [0.0] + [t for word in row["words"] for t in (word["start_s"], word["end_s"])]
        assert ends == sorted(ends)
        assert ends[-1] <= row["duration_s"] + 0.02


def test_rows_do_not_depend_on_chunks_and_actors(whole, finished):
    assert (whole.record.parts, whole.record.totals.chunks) == (1, 1)
    assert finished.record.parts > 3
    assert finished.record.totals.chunks > 10
    rows, expected = (corpora.rows_of(run, drop=("part_id", "chunk")) for run in (finished, whole))
    corpora.assert_same_transcripts(rows, expected)


def test_labels_equal_those_of_transformers_and_come_from_the_same_pass(whole, corpus, small_classifier):
    model = transformers.SEWDForSequenceClassification.from_pretrained(small_classifier).eval()
    features = transformers.Wav2Vec2FeatureExtractor.from_pretrained(small_classifier)
    rows = corpora.rows_of(whole, "labels")
    assert len(rows) == CLIPS
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


def test_long_audio_is_cut_into_segments_without_gaps(tmp_path, local_ray, small_ctc):
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
    assert [row["recording_reference"] for row in rows] == ["of the whole recording"] + [None] * (len(rows) - 1)
    [joined] = pa.concat_tables(pipeline.recordings(run)).to_pylist()
    assert (joined["recording"], joined["reference"]) == ("long", "of the whole recording")
    assert joined["text"] == " ".join(row["text"] for row in rows if row["text"])
    assert [word["word"] for word in joined["words"]] == joined["text"].split()
    figures = pipeline.evaluate_run(run)
    assert (figures.figures.words.reference, figures.coverage, figures.recordings.scored) == (4, 1.0, 1)
    for row in rows:
        start, end = round(row["start_s"] * 1000), round((row["start_s"] + row["duration_s"]) * 1000)
        assert row["utt_id"] == f"long#{start}-{end}"
        assert all(row["start_s"] <= word["start_s"] for word in row["words"])


def test_split_channels_are_separate_utterances(tmp_path, local_ray, small_ctc):
    left, right = corpora.noise_bursts(2, 1), corpora.noise_bursts(2, 2)
    (tmp_path / "in").mkdir()
    soundfile.write(tmp_path / "in" / "call.wav", np.stack([left, right], 1), 16_000, subtype="FLOAT")

    run = transcribe(tmp_path / "in", tmp_path / "run", small_ctc, channels="split")

    rows = corpora.rows_of(run)
    assert [row["utt_id"] for row in rows] == ["call#c0", "call#c1"]
    reference = Reference(small_ctc)
    assert reference.expect(left).allows(rows[0]["text"])
    assert reference.expect(right).allows(rows[1]["text"])


# -------------------------------------------------------------------------------------------------------------- stages
def test_reading_and_recognising_run_in_separate_processes(whole, committed):
    for run, actors in ((whole, 1), (committed, 2)):
        commits = list(run.commits())
        readers = {commit.workers["reader"] for commit in commits}
        recognizers = {commit.workers["recognizer"] for commit in commits}
        assert not readers & recognizers
        assert 1 <= len(recognizers) <= actors


@pytest.mark.parametrize(
    "resources",
    [
        Resources(1, 1, 2.5, 0, 0.25, 0.25, 2, 1),
        Resources(2, 1, 1.25, 0, 0.25, 0.25, 4, 1),
        Resources(2, 1, 1, 0.5, 1, 0.25, 4, 1),  # Ray has conditions of its own for stages with GPUs
    ],
)
def test_ray_does_not_fuse_stages(resources, tmp_path, local_ray, corpus, small_ctc, capsys):
    config = configuration(corpus, tmp_path / "run", small_ctc, limit=1)
    run = planned_run(config)
    stages = configure_stages(run, config, load_model_info(config), DecoderSettings(), resources, "0")

    with ray.data.DataContext.current(data_context(cluster_nodes("local"), resources, 1e6)):
        build_dataset(stages, [run.plan()]).explain()

    plan = capsys.readouterr().out.partition("Physical Plan (Optimized)")[2]
    for stage in ("MapBatches(read_parts)", "MapBatches(RecognizerActor)", "MapBatches(write_chunks)"):
        assert f"[{stage}]" in plan
    assert "->" not in plan


def test_heads_keep_their_digests_when_a_resume_names_them_in_another_order(
    tmp_path, corpus, small_ctc, small_classifier
):
    heads = (f"a={small_classifier}", "b=bundled")
    run = planned_run(configuration(corpus, tmp_path / "run", small_ctc, limit=1, classifiers=heads))
    config = configuration(corpus, tmp_path / "run", small_ctc, limit=1, classifiers=tuple(reversed(heads)))
    resources = Resources(1, 1, 1, 0, 0.25, 0.25, 2, 1)
    recognize = configure_stages(run, config, load_model_info(config), DecoderSettings(), resources, "0").recognize
    assert recognize.classifiers == ("bundled", str(small_classifier))
    assert recognize.digests == tuple(map(checkpoint_digest, (str(small_ctc), "bundled", str(small_classifier))))


def test_the_recognisers_compute_in_float32_by_default(whole):
    assert whole.record.config["dtype"] == whole.record.fingerprint["dtype"] == "auto"
    assert {commit.engines[0].dtype for commit in whole.commits()} == {"float32"}


def test_the_recognisers_compute_in_the_requested_dtype(tmp_path, local_ray, corpus, small_ctc, monkeypatch):
    settings = []

    def recorded(**values):
        settings.append(RecognizeSettings(**values))
        return settings[-1]

    monkeypatch.setattr(dataset, "RecognizeSettings", recorded)
    run = transcribe(corpus, tmp_path / "run", small_ctc, limit=2, threads=1, dtype="int8")
    assert settings[0].dtype == run.record.config["dtype"] == run.record.fingerprint["dtype"] == "int8"
    assert len(corpora.rows_of(run)) == 2


# --------------------------------------------------------------------------------------------------------------- stops
class WaitsForStop(ChunkRecognizer):
    """Holds its fourth chunk until the run is stopped."""

    def recognize(self, waveforms):
        deadline = time.monotonic() + WAIT_S
        while self.chunks == 3 and not objects.exists(self.settings.stop_uri):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        return super().recognize(waveforms)


def test_a_stop_finishes_the_chunk_in_the_model_and_the_next_start_does_the_rest(
    tmp_path, local_ray, corpus, small_ctc, finished, monkeypatch
):
    stop = threading.Event()

    def stop_at_the_third(progress):
        if progress.totals.chunks >= 3:
            stop.set()

    config = configuration(corpus, tmp_path / "run", small_ctc, **SMALL_CHUNKS)
    monkeypatch.setattr(dataset, "RecognizerActor", WaitsForStop)
    stopped = pipeline.transcribe(config, stop_at_the_third, stop)
    monkeypatch.undo()

    assert stopped.status == "stopped"
    assert stopped.record.totals.chunks == 4
    assert [path.name for path in (tmp_path / "run" / "control").glob("*")] == ["run.json"]  # a copy of the record
    done = pipeline.transcribe(config)
    assert done.status == "done"
    assert corpora.rows_of(done) == corpora.rows_of(finished)


def test_chunks_are_committed_while_reading_continues_and_a_stop_ends_the_reading(tmp_path, local_ray, small_ctc):
    first = corpora.write_audio(tmp_path / "in" / "00.wav", seconds=30)
    for index in range(1, 40):
        os.link(first, tmp_path / "in" / f"{index:02d}.wav")
    stop = threading.Event()
    config = configuration(tmp_path / "in", tmp_path / "run", small_ctc, part_mib=0.001, threads=1)
    # 40 parts. If writers were starved, or if the stop was not looked for before each part, nearly all would be done.
    stopped = pipeline.transcribe(config, lambda progress: progress.totals.chunks and stop.set(), stop)

    assert stopped.status == "stopped"
    assert stopped.record.parts == 40
    assert stopped.record.totals.chunks <= 30


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
    before = signal.signal(
        signum, signal.default_int_handler
    )  # in a shell's background it is ignored, also by children
    process = subprocess.Popen(command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    signal.signal(signum, before)
    wait_for_a_commit(process, tmp_path / "run")
    if signum == signal.SIGTERM:  # a second command is refused meanwhile
        os.kill(process.pid, signal.SIGSTOP)
        second = sewd(*arguments)
        os.kill(process.pid, signal.SIGCONT)
        assert second.returncode == 2
        assert second.stderr.count("\n") == 1
        assert f":{process.pid} is working on this run" in second.stderr
    os.kill(process.pid, signum)
    out, err = process.communicate(timeout=120)

    run = pipeline.Run.open(str(tmp_path / "run"))
    assert "stopping" in err
    assert "Traceback" not in err
    # On a fast machine the last chunk may have been in the model.
    assert (process.returncode, run.status) in [(128 + signum, "stopped"), (0, "done")], out + err


def wait_for_a_commit(process: subprocess.Popen, output: Path) -> None:
    while not list(output.glob("commits/*/*.json")):
        assert process.poll() is None
        time.sleep(0.02)


# ------------------------------------------------------------------------------------------------------------ failures
def test_a_worker_that_dies_at_every_try_fails_the_run(tmp_path, local_ray, corpus, small_ctc, monkeypatch):
    tries = tmp_path / "tries"

    def die(parts, settings):
        with tries.open("a") as file:
            file.write("x")
        os._exit(1)

    monkeypatch.setattr(dataset, "read_parts", die)
    with pytest.raises(pipeline.RunFailedError, match="workers died at every try"):
        transcribe(corpus, tmp_path / "run", small_ctc)
    assert tries.read_text() == "xxxxx"
    assert pipeline.Run.open(tmp_path / "run").status == "failed"


@pytest.mark.parametrize("stage", ["read_parts", "write_chunks"])
def test_a_storage_error_of_a_stage_is_raised_with_its_message(
    stage, tmp_path, local_ray, corpus, small_ctc, monkeypatch
):
    def fail(chunks, settings):
        raise pipeline.StorageError("no room is left")

    monkeypatch.setattr(dataset, stage, fail)
    with pytest.raises(pipeline.StorageError, match=r"^no room is left$"):
        transcribe(corpus, tmp_path / "run", small_ctc, limit=2)
    assert pipeline.Run.open(tmp_path / "run").record.reason == "no room is left"


def test_chunks_that_were_cut_from_different_inputs_are_refused(tmp_path, local_ray, small_ctc):
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


# ---------------------------------------------------------------------------------------------------- several drivers
def test_a_driver_that_was_replaced_while_it_slept_gives_up_and_changes_nothing(
    tmp_path, local_ray, corpus, small_ctc, finished
):
    arguments = ("transcribe", corpus, "-o", tmp_path / "run", "--model", small_ctc, *SMALL_CHUNKS_COMMAND)
    sleeper = subprocess.Popen(command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for_a_commit(sleeper, tmp_path / "run")
    os.kill(sleeper.pid, signal.SIGSTOP)
    # From another machine it would look dead by now.
    (tmp_path / "run" / "control" / "lease.json").unlink()
    done = transcribe(corpus, tmp_path / "run", small_ctc, **SMALL_CHUNKS)
    os.kill(sleeper.pid, signal.SIGCONT)
    _, err = sleeper.communicate(timeout=120)

    assert sleeper.returncode == 1, err
    assert "took over the run" in err
    assert "Traceback" not in err
    assert pipeline.Run.open(tmp_path / "run").status == "done"
    assert corpora.rows_of(done) == corpora.rows_of(finished)
    assert verify(pipeline.Run.open(tmp_path / "run")).problems == ()


def test_a_driver_that_is_refused_has_written_nothing(tmp_path, corpus, small_ctc):
    with hold_lease(str(tmp_path / "run"), "other"), pytest.raises(pipeline.UsageError, match="is working on this run"):
        transcribe(corpus, tmp_path / "run", small_ctc, limit=2)
    assert [path for path in (tmp_path / "run").rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("point", ["compact_files", "remove_orphans"])
def test_a_driver_that_is_replaced_while_it_finishes_the_run_changes_nothing(
    point, tmp_path, corpus, small_ctc, committed, monkeypatch
):
    output = copy(committed, tmp_path / "run")
    step = getattr(lifecycle, point)
    lease = output / "control" / "lease.json"

    def replaced_meanwhile(*arguments):
        lease.write_text('{"attempt": "other"}')
        return step(*arguments)

    monkeypatch.setattr(lifecycle, point, replaced_meanwhile)
    with pytest.raises(LeaseLostError):
        transcribe(corpus, output, small_ctc, **SMALL_CHUNKS)
    assert pipeline.Run.open(output).status == "running"
    assert (output / "compaction.json").exists() == (point == "remove_orphans")
    assert corpora.rows_of(output) == corpora.rows_of(committed)
    assert lease.exists()


def test_a_driver_that_was_replaced_does_not_record_its_failure(tmp_path, corpus, small_ctc, committed, monkeypatch):
    output = copy(committed, tmp_path / "run")

    def fail(*_):
        (output / "control" / "lease.json").write_text('{"attempt": "other"}')
        raise pipeline.StorageError("the network is gone")

    monkeypatch.setattr(pipeline.Run, "unfinished_parts", fail)
    with pytest.raises(pipeline.StorageError, match="the network is gone"):
        transcribe(corpus, output, small_ctc, **SMALL_CHUNKS)
    assert pipeline.Run.open(output).status == "running"


# ------------------------------------------------------------------------------------------------------------- resumes
def test_a_half_committed_part_resumes_without_repeating_committed_chunks(
    tmp_path, corpus, small_ctc, committed, finished
):
    output = copy(committed, tmp_path / "run")
    commits = sorted(output.glob("commits/*/*.json"))
    kept = {path: path.stat().st_mtime_ns for path in commits[::2]}
    for path in commits[1::2]:
        path.unlink()

    resumed = transcribe(corpus, output, small_ctc, **SMALL_CHUNKS)

    assert corpora.rows_of(resumed) == corpora.rows_of(finished)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept, "a committed chunk was processed again"
    stored = {str(path.relative_to(output)) for path in output.glob("transcripts/*")}
    assert stored == {file.path for file in resumed.files()["transcripts"]}, "orphaned files are removed at the end"
    assert len(stored) == 1, "the files of a finished run are compacted"
    globbed = pads.dataset([str(path) for path in output.glob("transcripts/*.parquet")])
    assert globbed.count_rows() == CLIPS


@pytest.mark.parametrize("point", ["write_compaction", "remove_orphans"])
def test_a_driver_that_dies_while_it_finishes_loses_and_duplicates_nothing(
    point, tmp_path, corpus, small_ctc, committed, finished
):
    class KilledError(BaseException):
        pass

    def die(*_):
        raise KilledError

    output = copy(committed, tmp_path / "run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lifecycle, point, die)
        with pytest.raises(KilledError):
            transcribe(corpus, output, small_ctc, **SMALL_CHUNKS)
    killed = pipeline.Run.open(output)
    assert killed.status == "running"
    assert corpora.rows_of(killed) == corpora.rows_of(finished)

    resumed = transcribe(corpus, output, small_ctc, **SMALL_CHUNKS)

    assert resumed.status == "done"
    assert corpora.rows_of(resumed) == corpora.rows_of(finished)
    stored = {str(path.relative_to(output)) for path in output.glob("transcripts/*")}
    assert stored == {file.path for file in resumed.files()["transcripts"]}


def test_a_finished_run_is_returned_unchanged(corpus, small_ctc, finished):
    again = transcribe(corpus, finished.uri, small_ctc, **SMALL_CHUNKS)

    assert again.record == finished.record
    assert len(corpora.rows_of(again)) == CLIPS


def test_another_model_or_option_is_refused_with_the_difference(corpus, small_ctc, small_classifier, finished):
    with pytest.raises(pipeline.UsageError, match=r"differs in limit: None -> 6$"):
        transcribe(corpus, finished.uri, small_ctc, limit=6, **SMALL_CHUNKS)
    with pytest.raises(pipeline.UsageError, match=r"differs in classifiers: "):
        transcribe(corpus, finished.uri, small_ctc, classifiers=(str(small_classifier),), **SMALL_CHUNKS)


def test_an_existing_run_is_resumed_or_refused_as_requested(corpus, small_ctc, finished):
    with pytest.raises(pipeline.UsageError, match="already holds a run"):
        transcribe(corpus, finished.uri, small_ctc, existing="refuse", **SMALL_CHUNKS)
    with pytest.raises(pipeline.UsageError, match=r"max_segment_s: 60\.0 -> 30\.0"):
        transcribe(corpus, finished.uri, small_ctc, max_segment_s=30, **SMALL_CHUNKS)
    with pytest.raises(pipeline.UsageError, match="dtype: auto -> int8"):
        transcribe(corpus, finished.uri, small_ctc, dtype="int8", **SMALL_CHUNKS)
    assert transcribe(corpus, finished.uri, small_ctc, **SMALL_CHUNKS).record.created == finished.record.created


# ---------------------------------------------------------------------------------------------------------- overwriting
def test_a_run_is_overwritten_by_a_new_one_as_requested(tmp_path, local_ray, corpus, small_ctc, finished, monkeypatch):
    output = copy(finished, tmp_path / "run")
    with pytest.raises(pipeline.UsageError, match="nothing there"):
        transcribe(tmp_path / "nothing there", output, small_ctc, existing="overwrite")
    assert pipeline.Run.open(output).status == "done"

    delete = objects.delete

    def delete_one(uris):
        delete(uris[:1])
        if uris != [lease_uri(str(output))]:  # which the thread that renews it removes
            raise ZeroDivisionError

    monkeypatch.setattr(objects, "delete", delete_one)
    with pytest.raises(ZeroDivisionError):
        transcribe(corpus, output, small_ctc, threads=1, limit=3, existing="overwrite")
    monkeypatch.undo()
    with pytest.raises(pipeline.UsageError, match="was being overwritten"):
        transcribe(corpus, output, small_ctc, threads=1, limit=3)

    run = transcribe(corpus, output, small_ctc, threads=1, limit=3, existing="overwrite")
    assert len(corpora.rows_of(run)) == 3
    assert verify(run).problems == ()


def test_overwriting_removes_only_the_run_and_no_run_that_may_be_written_to(tmp_path, local_ray, small_ctc, finished):
    output = copy(finished, tmp_path / "run")
    run = pipeline.Run.open(output)
    corpora.write_audio(tmp_path / "in" / "a.wav", 1.0)
    (output / "notes.txt").write_text("mine")
    inside = corpora.write_audio(output / "in" / "b.wav", 1.0).parent
    with pytest.raises(pipeline.UsageError, match="is inside"):
        transcribe(inside, output, small_ctc, threads=1, existing="overwrite")
    run.save(status="running")
    with pytest.raises(pipeline.UsageError, match="its workers may"):
        transcribe(tmp_path / "in", output, small_ctc, threads=1, existing="overwrite")
    assert len(corpora.rows_of(run)) == CLIPS
    run.save(status="stopped")
    new = transcribe(tmp_path / "in", output, small_ctc, threads=1, existing="overwrite")
    assert len(corpora.rows_of(new)) == 1
    assert (output / "notes.txt").read_text() == "mine"
    assert (inside / "b.wav").exists()


def test_a_directory_without_a_run_is_not_overwritten(tmp_path, corpus, small_ctc):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(pipeline.UsageError, match="is not empty and holds no run"):
        transcribe(corpus, tmp_path, small_ctc, existing="overwrite")
    assert (tmp_path / "mine.txt").read_text() == "mine"


# --------------------------------------------------------------------------------------------------------- the command
@pytest.fixture(scope="module")
def by_command(tmp_path_factory, small_ctc) -> Path:
    """The directory of a run that the command made of two clips and a broken file, with its log."""
    folder = tmp_path_factory.mktemp("command")
    for name in ("a", "b"):
        corpora.write_audio(folder / "in" / f"{name}.wav", 1.0)
        (folder / "in" / f"{name}.txt").write_text("a reference")
    (folder / "in" / "broken.wav").write_bytes(b"RIFF")
    arguments = ("transcribe", folder / "in", "-o", folder / "run", "--model", small_ctc, "--chunk-rows", 2)
    done = sewd(*arguments, "--log", folder / "log.jsonl", "--max-error-rate", 1)
    assert done.returncode == 3, done.stderr
    assert "2 transcripts" in done.stdout
    assert "Traceback" not in done.stderr
    return folder


def test_the_run_of_the_command_is_reported_and_evaluated(by_command, capsys, monkeypatch):
    code, out = in_process(capsys, monkeypatch, "status", by_command / "run")
    assert code == 0
    assert "1 of 1 done" in out

    code, out = in_process(capsys, monkeypatch, "evaluate", by_command / "run")
    assert code == 0
    assert "WER" in out
    assert "2 scored, 0 without a reference, 1 failed" in out


def test_the_log_has_an_object_for_each_chunk_and_failed_row(by_command, small_ctc, capsys, monkeypatch):
    events = [json.loads(line) for line in (by_command / "log.jsonl").read_text().splitlines()]
    assert [event["event"] for event in events].count("started") == 1
    chunks = [event for event in events if event["event"] == "chunk committed"]
    assert sorted((chunk["chunk"], chunk["utterances"], chunk["errors"]) for chunk in chunks) == [(0, 2, 0), (1, 0, 1)]
    (failed,) = (event for event in events if event["event"] == "row failed")
    assert (failed["utt_id"], failed["code"], failed["part_id"]) == ("broken", "TRUNCATED", chunks[0]["part_id"])
    arguments = ("transcribe", by_command / "in", "-o", by_command / "run", "--model", small_ctc)
    assert in_process(capsys, monkeypatch, *arguments, "--log", by_command / "nowhere" / "log")[0] == 2
