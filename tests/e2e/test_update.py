"""`transcribe --update` on real audio: a run that follows its corpus has the rows of a new run."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest

import pipeline
from pipeline.driver import transcribe as driver
from pipeline.runs.changes import CorpusChanges
from pipeline.runs.lease import hold_lease, lease_uri
from pipeline.runs.verify import verify
from pipeline.storage import objects
from tests.faults import updates
from tests.support.command import sewd_in_process

OPTIONS = {"threads": 1, "actors": 1, "chunk_rows": 2, "part_mib": 0.15}


def transcribe(corpus, output: Path, model, changes=None, **options) -> pipeline.Run:
    config = pipeline.RunConfig(
        inputs=tuple(map(str, corpus.inputs)), output=str(output), model=str(model), **OPTIONS | options
    )
    return pipeline.transcribe(config, on_changes=(changes if changes is not None else []).append)


def assert_as_new(run: pipeline.Run, corpus, model, output: Path) -> None:
    """The run has the rows of a run of the corpus as it is now."""
    fresh = transcribe(corpus, output, model)
    assert updates.difference(run, fresh) == []
    assert [str(problem) for problem in verify(run).problems] == []
    assert (run.record.totals.utterances, run.record.totals.errors) == (
        fresh.record.totals.utterances,
        fresh.record.totals.errors,
    )


@pytest.fixture
def corpus(tmp_path):
    return updates.ChangingCorpus(tmp_path / "corpus", random.Random(3))


def test_a_run_follows_its_corpus(tmp_path, local_ray, small_ctc, corpus, monkeypatch):
    changes: list[CorpusChanges] = []
    run = transcribe(corpus, tmp_path / "run", small_ctc, existing="update")  # creates it
    assert (run.status, run.record.updates) == ("done", ())
    before = objects.list_objects(run.uri)
    assert transcribe(corpus, tmp_path / "run", small_ctc, changes, existing="update").status == "done"
    assert (objects.list_objects(run.uri), changes) == (before, []), "nothing has changed, and nothing is written"

    corpus.change()
    with monkeypatch.context() as patch:  # killed before it is finished
        patch.setattr(driver, "finish_run", lambda run, *_: run.save(status="failed", reason="killed"))
        killed = transcribe(corpus, tmp_path / "run", small_ctc, changes, existing="update")
    assert all((changes[0].added, changes[0].changed, changes[0].removed))
    assert killed.record.last_update.removed == len(changes[0].removed)
    seen = updates.corpora.rows_of(killed)
    assert seen == updates.corpora.rows_of(run), "readers see the state before"
    run = transcribe(corpus, tmp_path / "run", small_ctc, changes)  # any start finishes it
    assert len(changes) == 1
    corpus.change()
    kept = {commit.part_id for commit in run.commits()}
    run = transcribe(corpus, tmp_path / "run", small_ctc, changes, existing="update")
    assert len(run.record.updates) == 2
    assert kept & {commit.part_id for commit in run.commits()}, "what has not changed is not done again"
    assert_as_new(run, corpus, small_ctc, tmp_path / "fresh")
    shown = sewd_in_process("status", run.uri).stdout
    assert f"last update {run.record.last_update.at}" in " ".join(shown.split())
    for verb in ("evaluate", "report", "verify"):
        assert sewd_in_process(verb, run.uri).returncode == 0
    assert sewd_in_process("repair", run.uri).returncode == 0


def test_an_update_with_a_limit_has_the_rows_of_a_new_run_with_it(tmp_path, local_ray, small_ctc, corpus):
    run = transcribe(corpus, tmp_path / "run", small_ctc, limit=6)
    corpus.change()
    run = transcribe(corpus, tmp_path / "run", small_ctc, limit=6, existing="update")
    fresh = transcribe(corpus, tmp_path / "fresh", small_ctc, limit=6)
    assert updates.difference(run, fresh) == []


def test_an_input_that_holds_nothing_any_more_changes_nothing(tmp_path, local_ray, small_ctc, corpus):
    run = transcribe(corpus, tmp_path / "run", small_ctc, limit=2)
    before = objects.list_objects(run.uri)
    shutil.rmtree(corpus.inputs[0])
    corpus.inputs[0].mkdir()
    with pytest.raises(pipeline.UsageError, match=r"no audio in .*; the run at .* stays as it is"):
        transcribe(corpus, tmp_path / "run", small_ctc, limit=2, existing="update")
    assert objects.list_objects(run.uri) == before


def test_an_update_needs_the_lease(tmp_path, small_ctc, corpus):
    output = str(tmp_path / "run")
    with hold_lease(output, "other"), pytest.raises(pipeline.UsageError, match="is working on this run"):
        transcribe(corpus, output, small_ctc, existing="update")
    assert not objects.exists(lease_uri(output))


@pytest.mark.slow
def test_a_run_whose_updates_are_killed_at_twenty_moments_has_the_rows_of_a_new_one(tmp_path):
    assert updates.soak(tmp_path, kills=20, seed=1) == 0
