"""Classifiers that are added to a finished run: its rows are those of one run with all heads, also after kills."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import pipeline
from pipeline.driver import execution
from pipeline.evaluation.labels import evaluate_labels
from pipeline.runs import additions, ledger
from pipeline.runs.compact import read_compaction
from pipeline.runs.repair import repair
from pipeline.runs.verify import verify
from pipeline.stages.recognize import ChunkRecognizer
from pipeline.storage import objects
from tests.support import checkpoints, corpora
from tests.support.without_ray import killed_at_write, without_ray

CLIPS = 9
SIZES = {"part_mib": 0.12, "chunk_rows": 2, "chunk_s": 3.0, "threads": 1}  # several parts, several chunks in each


@pytest.fixture(scope="module")
def models(tmp_path_factory, small_ctc, small_classifier) -> dict[str, Path]:
    """Two heads: one with the backbone of the CTC model, one with another."""
    other = checkpoints.write_classifier(tmp_path_factory.mktemp("other-head"), checkpoints.SMALL, seed=7, labels=3)
    return {"keyword": small_classifier, "emotion": other}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    for index in range(CLIPS):
        corpora.write_audio(folder / f"{index:02d}.wav", 0.6 + index / 8, seed=index)
    (folder / "broken.wav").write_text("no audio")
    rows = [{"audio_filepath": f"{index:02d}.wav", "utt_id": "same", "label": "word1"} for index in (2, 3)]
    corpora.write_manifest(folder / "twice.jsonl", rows)
    return folder


def transcribe(corpus: Path, output: Path, model: Path, **options) -> pipeline.Run:
    inputs = (str(corpus), str(corpus / "twice.jsonl"))
    config = pipeline.RunConfig(inputs=inputs, output=str(output), model=str(model), **SIZES | options)
    with without_ray():
        return pipeline.transcribe(config)


@pytest.fixture(scope="module")
def plain(tmp_path_factory, corpus, small_ctc) -> Path:
    """A finished run without classifiers. Not to be changed."""
    run = transcribe(corpus, tmp_path_factory.mktemp("plain") / "run", small_ctc)
    assert run.record.parts > 2
    assert run.record.totals.chunks > run.record.parts
    return Path(run.uri)


@pytest.fixture(scope="module")
def both(tmp_path_factory, corpus, small_ctc, models) -> pipeline.Run:
    """A fresh run with both heads."""
    heads = tuple(f"{task}={uri}" for task, uri in models.items())
    return transcribe(corpus, tmp_path_factory.mktemp("both") / "run", small_ctc, classifiers=heads)


def add(corpus: Path, output: Path, model: Path, models: dict[str, Path], *tasks: str) -> pipeline.Run:
    heads = tuple(f"{task}={models[task]}" for task in tasks)
    return transcribe(corpus, output, model, add_classifiers=heads)


def assert_equal_runs(run: pipeline.Run, expected: pipeline.Run) -> None:
    for table in ("transcripts", "labels", "errors"):
        assert corpora.rows_of(run, table) == corpora.rows_of(expected, table), table
    assert verify(run).problems == ()
    assert run.record.fingerprint == expected.record.fingerprint
    assert run.record.totals.utterances == expected.record.totals.utterances


def test_labels_that_are_added_are_those_of_a_run_with_all_heads_and_nothing_else_changes(
    tmp_path, corpus, small_ctc, models, plain, both
):
    shutil.copytree(plain, tmp_path / "run")
    before = {file.path for file in pipeline.Run.open(plain).files()["transcripts"]}
    add(corpus, tmp_path / "run", small_ctc, models, "keyword")
    run = add(corpus, tmp_path / "run", small_ctc, models, "emotion")
    assert_equal_runs(run, both)
    assert {file.path for file in run.files()["transcripts"]} == before
    assert [addition.digests.keys() for addition in run.record.added] == [{"keyword"}, {"emotion"}]
    assert run.record.adding is None
    assert not list((tmp_path / "run" / "heads").rglob("*.parquet"))
    assert {task.task for task in evaluate_labels(run)} == {"keyword", "emotion"}


def test_two_heads_are_added_in_one_pass_and_the_ctc_head_is_not_computed(
    tmp_path, corpus, small_ctc, models, plain, both, monkeypatch
):
    shutil.copytree(plain, tmp_path / "run")
    computed, results = [], ChunkRecognizer.results

    def recorded(recognizer, rows):
        computed.extend(found := results(recognizer, rows))
        return found

    monkeypatch.setattr(ChunkRecognizer, "results", recorded)
    assert_equal_runs(add(corpus, tmp_path / "run", small_ctc, models, "keyword", "emotion"), both)
    assert {result.path for result in computed} == {None}
    assert sum(result.label_scores is not None for result in computed) == both.record.totals.utterances


def test_a_finished_addition_is_not_repeated_and_later_commands_name_all_heads(
    tmp_path, corpus, small_ctc, models, plain
):
    shutil.copytree(plain, tmp_path / "run")
    add(corpus, tmp_path / "run", small_ctc, models, "keyword")
    stored = objects.list_objects(str(tmp_path / "run"))
    add(corpus, tmp_path / "run", small_ctc, models, "keyword")
    transcribe(corpus, tmp_path / "run", small_ctc, classifiers=(f"keyword={models['keyword']}",))
    assert objects.list_objects(str(tmp_path / "run")) == stored
    with pytest.raises(pipeline.UsageError, match="classifiers: "):
        transcribe(corpus, tmp_path / "run", small_ctc)


@pytest.mark.parametrize("rolled_up", [False, True])
def test_readers_see_all_labels_or_none_whenever_the_driver_is_killed(
    tmp_path, corpus, small_ctc, models, plain, both, rolled_up, monkeypatch
):
    if rolled_up:
        monkeypatch.setattr(execution, "ROLL_UP_COMMITS", 3)
    shutil.copytree(plain, tmp_path / "run")
    transcripts = corpora.rows_of(both)
    number, step = 1, 3
    states = set()
    while True:
        with killed_at_write(step):
            add(corpus, tmp_path / "run", small_ctc, models, "keyword", "emotion")
        run = pipeline.Run.open(tmp_path / "run")
        assert run.status == "done"
        assert corpora.rows_of(run) == transcripts
        states.add(labels := run.rows("labels"))
        assert labels in (0, 2 * len(transcripts))
        assert verify(run).problems == ()
        if run.record.adding is None and labels:
            break
        number += 1
        step = 2 + number % 5
        assert number < 100
    assert number > 5
    assert_equal_runs(run, both)


def test_a_kill_between_the_labels_and_the_record_is_completed_by_any_start(
    tmp_path, corpus, small_ctc, models, plain, both, monkeypatch
):
    shutil.copytree(plain, tmp_path / "run")

    def dies(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(additions, "remove_leftovers", dies)
    with pytest.raises(KeyboardInterrupt):
        add(corpus, tmp_path / "run", small_ctc, models, "keyword")
    monkeypatch.undo()
    run = pipeline.Run.open(tmp_path / "run")
    assert read_compaction(run.uri).additions == (run.record.adding.folder,)
    assert verify(run).problems == ()
    assert_equal_runs(add(corpus, tmp_path / "run", small_ctc, models, "emotion"), both)


def test_an_utterance_that_cannot_be_read_any_more_has_no_label_and_one_that_failed_gets_none(
    tmp_path, corpus, small_ctc, models
):
    shutil.copytree(corpus, tmp_path / "audio")
    rows = [{"audio_filepath": f"{index:02d}.wav"} for index in range(4)]
    (tmp_path / "audio" / "03.wav").rename(tmp_path / "late.wav")
    manifest = corpora.write_manifest(tmp_path / "audio" / "rows.jsonl", rows)
    options = {"inputs": (str(manifest),), "output": str(tmp_path / "run"), "model": str(small_ctc), **SIZES}
    with without_ray():
        pipeline.transcribe(pipeline.RunConfig(**options))
        (tmp_path / "late.wav").rename(tmp_path / "audio" / "03.wav")
        (tmp_path / "audio" / "01.wav").unlink()
        head = f"keyword={models['keyword']}"
        run = pipeline.transcribe(pipeline.RunConfig(**options, add_classifiers=(head,)))
    assert [row["utt_id"] for row in corpora.rows_of(run)] == ["00", "01", "02"]
    assert [row["utt_id"] for row in corpora.rows_of(run, "errors")] == ["03"]
    assert [row["utt_id"] for row in corpora.rows_of(run, "labels")] == ["00", "02"]
    assert verify(run).problems == ()


@pytest.mark.parametrize("table", ["labels", "transcripts"])
def test_what_is_lost_of_a_run_with_an_added_head_is_made_again(
    tmp_path, corpus, small_ctc, models, plain, both, table
):
    shutil.copytree(plain, tmp_path / "run")
    add(corpus, tmp_path / "run", small_ctc, models, "keyword")
    run = add(corpus, tmp_path / "run", small_ctc, models, "emotion")
    (tmp_path / "run" / run.files()[table][-1].path).unlink()
    assert repair(run.uri).run.status == "stopped"
    heads = tuple(f"{task}={uri}" for task, uri in models.items())
    assert_equal_runs(transcribe(corpus, tmp_path / "run", small_ctc, classifiers=heads), both)


def test_a_lost_compaction_of_a_run_with_an_added_head_is_made_again(tmp_path, corpus, small_ctc, models, plain, both):
    shutil.copytree(plain, tmp_path / "run")
    add(corpus, tmp_path / "run", small_ctc, models, "keyword", "emotion")
    (tmp_path / "run" / "compaction.json").unlink()
    result = repair(str(tmp_path / "run"))
    assert result.run.status == "done"
    assert_equal_runs(result.run, both)


def test_one_lost_commit_of_an_addition_reopens_its_part_only(tmp_path, corpus, small_ctc, models, plain, both):
    shutil.copytree(plain, tmp_path / "run")
    run = add(corpus, tmp_path / "run", small_ctc, models, "keyword", "emotion")
    commit = sorted((tmp_path / "run" / run.record.added[0].folder / "commits").rglob("*.json"))[0]
    commit.unlink()
    assert any("has no labels of keyword and emotion" in problem.message for problem in verify(run).problems)
    result = repair(run.uri)
    assert (result.run.status, result.open_parts) == ("stopped", 1)
    assert verify(result.run).problems == ()
    heads = tuple(f"{task}={uri}" for task, uri in models.items())
    assert_equal_runs(transcribe(corpus, tmp_path / "run", small_ctc, classifiers=heads), both)


def test_what_cannot_be_added_is_refused_in_a_line(tmp_path, corpus, small_ctc, models, plain):
    with pytest.raises(pipeline.UsageError, match="there is none at"):
        add(corpus, tmp_path / "none", small_ctc, models, "keyword")
    shutil.copytree(plain, tmp_path / "run")
    add(corpus, tmp_path / "run", small_ctc, models, "keyword")
    with pytest.raises(pipeline.UsageError, match="has another classifier keyword"):
        add(corpus, tmp_path / "run", small_ctc, {"keyword": models["emotion"]}, "keyword")
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    (tmp_path / "run" / "run.json").write_text(json.dumps(record | {"status": "stopped"}))
    with pytest.raises(pipeline.UsageError, match="added to a finished run"):
        add(corpus, tmp_path / "run", small_ctc, models, "emotion")


def test_an_addition_that_is_given_up_for_another_leaves_nothing(tmp_path, corpus, small_ctc, models, plain):
    shutil.copytree(plain, tmp_path / "run")
    with killed_at_write(9):
        add(corpus, tmp_path / "run", small_ctc, models, "keyword")
    run = pipeline.Run.open(tmp_path / "run")
    assert ledger.read_ledger(f"{run.uri}/{run.record.adding.folder}").table.num_rows > 0
    run = add(corpus, tmp_path / "run", small_ctc, models, "emotion")
    assert verify(run).problems == ()
    assert {row["task"] for row in corpora.rows_of(run, "labels")} == {"emotion"}
    folder = tmp_path / "run" / run.record.added[0].folder / "commits"
    assert all(path.is_relative_to(folder) for path in (tmp_path / "run" / "heads").rglob("*") if path.is_file())
