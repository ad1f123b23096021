"""Runs whose checkpoints are on the hub: the commit is looked up once, recorded, and kept."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

import pipeline
from pipeline.errors import UsageError
from pipeline.runs.run import Run
from pipeline.storage.checkpoints import checkpoint_digest
from sewd_model import SEWDForCTC
from tests.support import corpora
from tests.support.hub import model_hub
from tests.support.without_ray import killed_at_write, without_ray

CTC, HEAD = "org/ctc", "org/head"
TOKEN = "hf_CanaryCanaryCanary"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    for index in range(4):
        corpora.write_audio(folder / f"{index}.wav", 0.6, seed=index)
    return folder


@pytest.fixture
def hub(tmp_path, monkeypatch, small_ctc, small_classifier):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with model_hub(tmp_path / "cache", token=TOKEN) as models:
        models.ctc, models.head = models.publish(CTC, small_ctc), models.publish(HEAD, small_classifier)
        yield models


def transcribe(corpus: Path, output: Path, model: str = CTC, **options) -> Run:
    config = pipeline.RunConfig(inputs=(str(corpus),), output=str(output), model=model, threads=1, **options)
    with without_ray():
        return pipeline.transcribe(config)


def texts(run: Run) -> list[str]:
    return run.dataset("transcripts").to_table(columns=["text"])["text"].to_pylist()


def other_ctc(folder: Path, small_ctc: Path) -> Path:
    """The model with letters of its vocabulary exchanged: it writes other texts."""
    shutil.copytree(small_ctc, folder)
    model = SEWDForCTC.from_pretrained(folder)
    model.lm_head.weight.data = model.lm_head.weight.data.roll(3, 0)
    model.save_pretrained(folder)
    return folder


def test_the_commits_are_in_the_record_and_the_rows_are_those_of_the_directory(hub, corpus, tmp_path, small_ctc):
    run = transcribe(corpus, tmp_path / "run", f"hf://{CTC}", classifiers=(HEAD, f"again={HEAD}@main"))
    record = run.record
    assert record.commits == record.fingerprint["commits"] == {f"hf://{CTC}": hub.ctc, f"hf://{HEAD}": hub.head}
    assert record.config["model"] == f"hf://{CTC}@{hub.ctc}"
    assert record.config["classifiers"] == [f"{task}=hf://{HEAD}@{hub.head}" for task in ("head", "again")]
    by_directory = transcribe(corpus, tmp_path / "other", str(small_ctc))
    assert texts(run) == texts(by_directory)
    assert record.model_digest == by_directory.record.model_digest
    assert "commits" not in by_directory.record.fingerprint
    stored = b"".join(path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file())
    assert TOKEN.encode() not in stored


def test_a_resume_keeps_the_commit_when_the_branch_has_moved(hub, corpus, tmp_path, small_ctc):
    undisturbed = transcribe(corpus, tmp_path / "whole")
    with killed_at_write(4):
        transcribe(corpus, tmp_path / "run", chunk_rows=1)
    assert Run.open(tmp_path / "run").status == "running"
    second = hub.publish(CTC, other_ctc(tmp_path / "second", small_ctc), "main", "v2")
    hub.requests()
    run = transcribe(corpus, tmp_path / "run", chunk_rows=1)
    assert run.status == "done"
    assert texts(run) == texts(undisturbed)
    assert hub.requests() == []
    assert run.record.commits == {f"hf://{CTC}": hub.ctc}
    # A name that the run does not know is looked up.
    assert transcribe(corpus, tmp_path / "run", f"{CTC}@{hub.ctc}", chunk_rows=1).status == "done"
    with pytest.raises(UsageError, match=r"holds a different run; .* It differs in model: "):
        transcribe(corpus, tmp_path / "run", f"{CTC}@v2", chunk_rows=1)
    replaced = transcribe(corpus, tmp_path / "run", chunk_rows=1, existing="overwrite")
    assert replaced.record.commits == {f"hf://{CTC}": second}
    assert texts(replaced) != texts(undisturbed)


def of_version_0_1_0(run: Path, folder: Path, head: Path) -> None:
    """Make the record of a run from the hub as that version wrote it: digests of all weights of a commit, no commit."""
    record = json.loads((run / "run.json").read_bytes())
    record["fingerprint"].pop("commits", None)
    digests = {"model": checkpoint_digest(str(folder)), "classifiers": {"head": checkpoint_digest(str(head))}}
    record["fingerprint"] |= digests
    record["config"] |= {"model": f"hf://{CTC}", "classifiers": [f"hf://{HEAD}"]}
    (run / "run.json").write_text(json.dumps(record))


def test_a_run_of_version_0_1_0_from_a_commit_with_more_weights_than_are_loaded_resumes(
    hub, corpus, tmp_path, small_ctc, small_classifier
):
    folder = shutil.copytree(small_ctc, tmp_path / "both")
    torch.save(SEWDForCTC.from_pretrained(small_ctc).state_dict(), folder / "pytorch_model.bin")
    commit = hub.publish(CTC, folder, "main")
    options = {"classifiers": (HEAD,), "chunk_rows": 1}
    undisturbed = transcribe(corpus, tmp_path / "whole", **options)
    with killed_at_write(6):
        transcribe(corpus, tmp_path / "run", **options)
    of_version_0_1_0(tmp_path / "run", folder, small_classifier)
    run = transcribe(corpus, tmp_path / "run", **options)
    assert run.status == "done"
    assert texts(run) == texts(undisturbed)
    assert run.record.fingerprint == undisturbed.record.fingerprint
    assert run.record.commits == {f"hf://{CTC}": commit, f"hf://{HEAD}": hub.head}
    # A finished one is found again, and one of other weights is refused.
    of_version_0_1_0(tmp_path / "run", folder, small_classifier)
    assert transcribe(corpus, tmp_path / "run", **options).status == "done"
    of_version_0_1_0(tmp_path / "run", other_ctc(tmp_path / "second", folder), small_classifier)
    with pytest.raises(UsageError, match=r"holds a different run; .* It differs in model: "):
        transcribe(corpus, tmp_path / "run", **options)


def test_a_commit_that_changes_no_file_of_the_model_is_the_same_run(hub, corpus, tmp_path, small_ctc):
    transcribe(corpus, tmp_path / "run")
    shutil.copytree(small_ctc, tmp_path / "second")
    (tmp_path / "second/README.md").write_text("a model")
    hub.publish(CTC, tmp_path / "second", "described")
    assert transcribe(corpus, tmp_path / "run", f"{CTC}@described").status == "done"
    assert transcribe(corpus, tmp_path / "run", str(small_ctc)).status == "done"


def test_an_added_classifier_has_its_commit(hub, corpus, tmp_path):
    transcribe(corpus, tmp_path / "run")
    with killed_at_write(4):
        transcribe(corpus, tmp_path / "run", add_classifiers=(HEAD,))
    assert Run.open(tmp_path / "run").record.adding.commits[f"hf://{HEAD}"] == hub.head
    hub.publish(HEAD, tmp_path, "main")  # the branch moves to what is no model
    run = transcribe(corpus, tmp_path / "run", add_classifiers=(HEAD,))
    assert run.record.fingerprint["commits"] == {f"hf://{CTC}": hub.ctc, f"hf://{HEAD}": hub.head}
    assert run.record.config["classifiers"] == [f"head=hf://{HEAD}@{hub.head}"]
    assert run.dataset("labels").count_rows() == 4
    assert transcribe(corpus, tmp_path / "run", classifiers=(HEAD,)).status == "done"


def test_another_architecture_is_refused_before_anything_is_written(hub, corpus, tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other/config.json").write_text(json.dumps({"model_type": "whisper"}))
    commit = hub.publish("org/whisper", tmp_path / "other")
    wanted = f"cannot load the model org/whisper: org/whisper@{commit[:12]} is a whisper checkpoint; a SEW-D"
    with pytest.raises(UsageError, match=wanted):
        transcribe(corpus, tmp_path / "run", "org/whisper")
    assert not (tmp_path / "run").exists()
