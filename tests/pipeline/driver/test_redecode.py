"""`redecode`: greedy decoding of kept posteriors gives the rows of the run that kept them, whatever became of it."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile

import pipeline
from pipeline.config import make_redecode_config
from pipeline.errors import UsageError
from pipeline.runs import compact
from pipeline.runs.repair import repair
from pipeline.runs.verify import verify
from pipeline.stages import models
from tests.support import corpora
from tests.support.language_models import write_tiny
from tests.support.without_ray import killed_at_write, without_ray

CLIPS = 6
# Several parts, and several chunks in each; long recordings are cut.
OPTIONS = {"chunk_rows": 3, "part_mib": 0.2, "max_segment_s": 16, "threads": 1}


@pytest.fixture(autouse=True)
def _without_ray():
    with without_ray():
        yield


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """Clips with references, a file of two channels, a long one, one with a long pause, and one that is no audio."""
    folder = tmp_path_factory.mktemp("corpus")
    for index in range(CLIPS):
        corpora.write_audio(folder / f"{index:02d}.wav", 0.5 + index / 5, index)
        (folder / f"{index:02d}.txt").write_text(f"reference number {index}\n")
    stereo = np.stack([corpora.noise_bursts(2.0, 50), corpora.noise_bursts(2.0, 51)], axis=1)
    soundfile.write(folder / "stereo.flac", stereo, 16_000)
    corpora.write_audio(folder / "long.wav", 20.0, 60)
    pause = np.zeros(7 * 16_000, np.float32)
    soundfile.write(
        folder / "pause.wav", np.r_[corpora.noise_bursts(1.5, 70), pause, corpora.noise_bursts(1.0, 71)], 16_000
    )
    (folder / "broken.wav").write_bytes(b"RIFF no audio")
    return folder


def transcribe(corpus: Path, output: Path, model: Path, **options: object) -> pipeline.Run:
    values = {"channels": "split", "keep_posteriors": True, **OPTIONS, **options}
    return pipeline.transcribe(
        pipeline.RunConfig(inputs=(str(corpus),), output=str(output), model=str(model), **values)
    )


def redecode(run: pipeline.Run, output: Path | str, **options: object) -> pipeline.Run:
    return pipeline.redecode(pipeline.RedecodeConfig(run=run.uri, output=str(output), **options))


@pytest.fixture(scope="module")
def source(tmp_path_factory, corpus, small_ctc, small_classifier) -> pipeline.Run:
    """A finished run with kept posteriors and labels. Not to be changed."""
    with without_ray():
        output = tmp_path_factory.mktemp("source") / "run"
        return transcribe(corpus, output, small_ctc, classifiers=(f"keyword={small_classifier}",))


def assert_same_rows(made: pipeline.Run, source: pipeline.Run) -> None:
    """Every row of every table but the posteriors, in the order of each chunk, and what is counted."""
    assert made.status == "done"
    for table in ("transcripts", "labels", "errors"):
        assert rows_by_chunk(made, table) == rows_by_chunk(source, table), table
    assert made.rows("posteriors") == 0
    for name in ("chunks", "utterances", "errors", "error_codes", "audio_s", "skipped_s", "source_bytes", "engines"):
        assert getattr(made.record.totals, name) == pytest.approx(getattr(source.record.totals, name)), name
    assert verify(made).problems == ()


def rows_by_chunk(run: pipeline.Run, table: str) -> list[dict]:
    rows = run.to_arrow(table).to_pylist()
    return sorted(rows, key=lambda row: (row["part_id"], row["chunk"], row.get("task")))


def test_the_source_has_a_row_of_posteriors_for_each_transcript(source):
    columns = ["utt_id", "part_id", "chunk", "start_s", "channel", "reference", "skipped_s"]
    transcripts = source.to_arrow("transcripts", columns)
    assert source.to_arrow("posteriors", columns).equals(
        transcripts.cast(source.to_arrow("posteriors", columns).schema)
    )
    assert verify(source).problems == ()
    assert source.record.totals.chunks > source.record.parts > 2
    assert {0, 1} == set(transcripts["channel"].to_pylist())
    assert any(transcripts["skipped_s"].to_pylist())
    assert any("#" in name for name in transcripts["utt_id"].to_pylist())
    assert source.record.totals.error_codes
    assert source.acoustics.frame_s == 0.02


def test_a_run_that_keeps_posteriors_has_the_words_and_times_of_one_that_does_not(tmp_path, corpus, small_ctc, source):
    plain = transcribe(corpus, tmp_path / "plain", small_ctc, keep_posteriors=False)
    for row, other in zip(corpora.rows_of(source), corpora.rows_of(plain), strict=True):
        for each in (row, *row["words"], other, *other["words"]):
            each["confidence"] = each["confidence"] and round(each["confidence"], 1)
        assert row == pytest.approx(other, nan_ok=True) if not row["words"] else without(row) == without(other)
    with pytest.raises(UsageError, match="has no posteriors: they are kept by `sewd transcribe --keep-posteriors`"):
        redecode(plain, tmp_path / "made")


def test_a_vocabulary_whose_ids_do_not_fit_is_refused(tmp_path, corpus, small_ctc, monkeypatch):
    monkeypatch.setattr(models, "LARGEST_VOCABULARY", 8)
    with pytest.raises(UsageError, match=r"the model has \d+ tokens, and kept posteriors and a beam search at most 8"):
        transcribe(corpus, tmp_path / "run", small_ctc)
    assert transcribe(corpus, tmp_path / "plain", small_ctc, keep_posteriors=False, limit=1).status == "done"


def without(row: dict) -> dict:
    words = [{name: value for name, value in word.items() if name != "confidence"} for word in row["words"]]
    return {name: value for name, value in row.items() if name != "confidence"} | {"words": words}


def test_greedy_decoding_gives_the_rows_of_the_run(tmp_path, source):
    made = redecode(source, tmp_path / "made")
    assert_same_rows(made, source)
    assert made.record.source == source.uri
    again = redecode(source, tmp_path / "made")
    assert again.record == made.record
    with pytest.raises(UsageError, match=f"has no posteriors.*are in {source.uri}"):
        redecode(made, tmp_path / "other")


def test_row_groups_that_hold_many_parts_and_parts_in_many_row_groups(tmp_path, corpus, small_ctc, monkeypatch):
    for frames, size in ((1, 1 << 28), (100, 20_000)):
        monkeypatch.setattr(compact, "ROW_GROUP_FRAMES", frames)
        monkeypatch.setattr(compact, "FILE_BYTES", size)
        run = transcribe(corpus, tmp_path / str(frames), small_ctc)
        files = run.files()["posteriors"]
        groups = sum(pq.read_metadata(f"{run.uri}/{file.path}").num_row_groups for file in files)
        assert groups > 3
        assert (len(files) > 1) == (size == 20_000)
        assert_same_rows(redecode(run, tmp_path / f"made-{frames}"), run)


def test_other_options_give_what_a_run_with_them_gives(tmp_path, corpus, small_ctc, source):
    options = {"word_gap_s": 0.04, "normalizer": "none"}
    expected = transcribe(corpus, tmp_path / "run", small_ctc, **options)
    made = redecode(source, tmp_path / "made", **options)
    assert made.to_arrow().to_pylist() == expected.to_arrow().to_pylist()
    assert made.to_arrow()["text"].to_pylist() != source.to_arrow()["text"].to_pylist()
    assert made.record.normalizer == "none"


def test_a_beam_search_gives_what_a_run_with_it_gives(tmp_path, corpus, small_ctc, source):
    pytest.importorskip("ctc_beam_decoder")
    (tmp_path / "hot.txt").write_text("ab ba\n", "utf-8")
    options = {"lm": write_tiny(tmp_path / "lm.arpa"), "hotwords": str(tmp_path / "hot.txt"), "beam": 4, "nbest": 2}
    expected = transcribe(corpus, tmp_path / "run", small_ctc, keep_posteriors=False, **options)
    made = redecode(source, tmp_path / "made", **options)
    assert made.to_arrow().to_pylist() == expected.to_arrow().to_pylist()
    assert made.to_arrow()["text"].to_pylist() != source.to_arrow()["text"].to_pylist()
    assert made.to_arrow()["nbest"].null_count == 0
    with pytest.raises(UsageError, match=r"It differs in .*beam: 4 -> 8"):
        redecode(source, made.uri, **options | {"beam": 8})
    with pytest.raises(UsageError, match="lm: there is no file"):
        redecode(source, tmp_path / "none", lm=str(tmp_path / "none"))
    kept = transcribe(corpus, tmp_path / "kept", small_ctc, **options)
    greedy = redecode(kept, tmp_path / "greedy")
    assert greedy.to_arrow().to_pylist() == transcribe(corpus, tmp_path / "plain", small_ctc).to_arrow().to_pylist()


def test_runs_that_were_updated_retried_and_given_a_classifier(tmp_path, small_ctc, small_classifier):
    folder = tmp_path / "in"
    for index in range(CLIPS):
        corpora.write_audio(folder / f"{index:02d}.wav", 0.5 + index / 5, index)
    rows = [{"audio_filepath": f"{index:02d}.wav", "text": "one"} for index in range(CLIPS)]
    rows.append({"audio_filepath": "late.wav"})
    manifest = corpora.write_manifest(folder / "rows.jsonl", rows)
    run = transcribe(manifest, tmp_path / "run", small_ctc)
    assert_same_rows(redecode(run, tmp_path / "first"), run)

    corpora.write_audio(folder / "late.wav", 0.7, 99)
    run = transcribe(manifest, tmp_path / "run", small_ctc, retry_errors=("MISSING",))
    assert run.record.totals.errors == 0
    assert any(commit.carried for commit in run.commits())
    assert_same_rows(redecode(run, tmp_path / "retried"), run)

    run = transcribe(manifest, tmp_path / "run", small_ctc, add_classifiers=(f"keyword={small_classifier}",))
    assert run.rows("labels") == run.rows("posteriors") == CLIPS + 1
    assert_same_rows(redecode(run, tmp_path / "labelled"), run)

    corpora.write_manifest(manifest, [*rows[2:], {"audio_filepath": "00.wav", "text": "two"}])
    run = transcribe(
        manifest, tmp_path / "run", small_ctc, classifiers=(f"keyword={small_classifier}",), existing="update"
    )
    assert run.rows("posteriors") == CLIPS
    assert_same_rows(redecode(run, tmp_path / "updated"), run)
    with pytest.raises(UsageError, match=r"holds a different run.* It differs in source: "):
        redecode(run, tmp_path / "labelled")


@pytest.mark.parametrize("number", [1, 2, 3, 5, 9, 20, 32])
def test_a_redecoding_that_dies_at_any_write_is_resumed(tmp_path, source, number):
    with killed_at_write(number):
        redecode(source, tmp_path / "made")
    assert_same_rows(redecode(source, tmp_path / "made"), source)


def test_a_redecoding_that_is_stopped_is_resumed_and_does_not_decode_again(tmp_path, source):
    config = pipeline.RedecodeConfig(run=source.uri, output=str(tmp_path / "made"))
    stop = threading.Event()
    shown = []

    def on_progress(progress: pipeline.Progress) -> None:
        shown.append(progress)
        if progress.totals.chunks == 2:
            stop.set()
            (tmp_path / "made" / "control" / f"stop-{next(iter(attempts(tmp_path / 'made')))}").touch()

    stopped = pipeline.redecode(config, on_progress, stop)
    assert stopped.status == "stopped"
    assert [progress.totals.chunks for progress in shown] == [0, 1, 2]
    assert verify(stopped).problems == ()
    made = redecode(source, tmp_path / "made")
    assert_same_rows(made, source)
    assert len({commit.attempt for commit in made.commits()}) == 2


def attempts(run: Path) -> list[str]:
    return [attempt.values["id"] for attempt in pipeline.Run.open(run).record.attempts][-1:]


def test_refusals(tmp_path, corpus, small_ctc, source):
    made = redecode(source, tmp_path / "made")
    with pytest.raises(UsageError, match=r"holds a different run.* It differs in normalizer: basic -> none"):
        redecode(source, made.uri, normalizer="none")
    with pytest.raises(UsageError, match="already holds a run"):
        redecode(source, made.uri, existing="refuse")
    with pytest.raises(UsageError, match=f"different run, made by `sewd redecode {source.uri}`; choose"):
        transcribe(corpus, tmp_path / "made", small_ctc)
    with pytest.raises(UsageError, match="one inside the other"):
        redecode(source, f"{source.uri}/made")
    with pytest.raises(UsageError, match="normalizer: there is no normalizer"):
        make_redecode_config(run=source.uri, output="x", normalizer="x")
    unknown = Path(shutil.copytree(source.uri, tmp_path / "unknown"), "run.json")
    unknown.write_text(unknown.read_text("utf-8").replace('"config": {', '"config": {"later": 1, '), "utf-8")
    with pytest.raises(UsageError, match=r"run\.json has a configuration .* \(later: "):
        redecode(pipeline.Run.open(unknown.parent), tmp_path / "x")
    with pytest.raises(UsageError, match=r"english@0\.0"):
        redecode(source, tmp_path / "x", normalizer="english@0.0")
    with pytest.raises(UsageError, match=r"english@0\.0"):
        transcribe(corpus, tmp_path / "x", small_ctc, normalizer="english@0.0")
    assert not (tmp_path / "x").exists()
    again = redecode(source, made.uri, normalizer="none", existing="overwrite")
    assert again.record.normalizer == "none"
    unfinished = pipeline.Run.open(shutil.copytree(source.uri, tmp_path / "unfinished")).save(status="stopped")
    with pytest.raises(UsageError, match="is stopped: run its command first"):
        redecode(unfinished, tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_a_lost_file_of_the_source_and_a_lost_plan_are_named(tmp_path, source):
    copy = pipeline.Run.open(shutil.copytree(source.uri, tmp_path / "copy"))
    stop = threading.Event()
    stop.set()
    config = pipeline.RedecodeConfig(run=copy.uri, output=str(tmp_path / "made"))
    pipeline.redecode(config, stop=stop)
    (file,) = (tmp_path / "copy" / "posteriors").iterdir()
    data = file.read_bytes()
    file.unlink()
    with pytest.raises(pipeline.StorageError, match=f"was changed: posteriors/{file.name} is gone"):
        pipeline.redecode(config)
    file.write_bytes(data)
    (tmp_path / "made" / "plan.parquet").unlink()
    assert any("decode the posteriors of" in line for line in repair(str(tmp_path / "made")).impossible)
    with pytest.raises(UsageError, match=r"plan\.parquet is lost"):
        pipeline.redecode(config)


def test_lost_posteriors_are_noticed_and_computed_again(tmp_path, corpus, small_ctc):
    run = transcribe(corpus, tmp_path / "run", small_ctc)
    (file,) = (tmp_path / "run" / "posteriors").iterdir()
    file.unlink()
    assert any(problem.path == f"posteriors/{file.name}" for problem in verify(run).problems)
    with pytest.raises(UsageError, match=f"posteriors/{file.name} is lost"):
        redecode(run, tmp_path / "made")
    repaired = repair(run.uri)
    assert repaired.chunks > 0
    assert_same_rows(redecode(transcribe(corpus, tmp_path / "run", small_ctc), tmp_path / "made"), run)


def test_the_made_run_is_evaluated_as_any_run(tmp_path, source):
    assert pipeline.evaluate_run(redecode(source, tmp_path / "made")).wer == pipeline.evaluate_run(source).wer
