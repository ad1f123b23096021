"""Rows that failed are done again, and only those: the run is then that of one over what there is now."""

from __future__ import annotations

import json
import os
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import soundfile

import pipeline
from pipeline.driver import execution
from pipeline.runs.repair import repair
from pipeline.runs.retry import utterance_id
from pipeline.runs.verify import verify
from pipeline.stages.recognize import ChunkRecognizer
from tests.support import corpora
from tests.support.without_ray import killed_at_write, without_ray

CLIPS = 14
LATE = (1, 2, 7, 11)  # clips that are missing at first
SIZES = {
    "part_mib": 1.5,
    "chunk_rows": 2,
    "threads": 1,
}  # parts of some rows of the manifest, several chunks in each


class Corpus:
    """A manifest whose audio is partly missing at first, damaged, or named twice."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for index in range(CLIPS):
            corpora.write_audio(folder / f"{index:02d}.wav", 0.6 + index / 8, seed=index)
        self.long = (32767 * corpora.noise_bursts(14, 99)).astype(np.int16)
        soundfile.write(folder / "long.wav", self.long, 16_000)
        (folder / "broken.wav").write_text("no audio")
        names = [f"{index:02d}.wav" for index in range(CLIPS)]
        names[5:5] = ["long.wav", "broken.wav", "gone.wav"]
        rows = [{"audio_filepath": name, "text": name[:2], "label": "word1"} for name in names]
        rows.append({"audio_filepath": "00.wav"})  # a duplicate
        self.manifest = corpora.write_manifest(folder / "rows.jsonl", rows)

    def damage(self) -> None:
        for index in LATE:
            self._path(index).rename(self.folder / f"late-{index}")
        whole = (self.folder / "long.wav").read_bytes()
        (self.folder / "long.wav").write_bytes(whole[: len(whole) * 3 // 4])

    def mend(self) -> None:
        for index in LATE:
            (self.folder / f"late-{index}").rename(self._path(index))
        soundfile.write(self.folder / "long.wav", self.long, 16_000)

    def _path(self, index: int) -> Path:
        return self.folder / f"{index:02d}.wav"

    def transcribe(self, output: Path, model: Path, **options) -> pipeline.Run:
        values = {"max_segment_s": 4.0, "model": str(model), "output": str(output)} | SIZES | options
        with without_ray():
            return pipeline.transcribe(pipeline.RunConfig(inputs=(str(self.manifest),), **values))


@pytest.fixture(scope="module")
def made(tmp_path_factory, small_ctc, small_classifier) -> dict:
    """The corpus as it is now, a run over what it was before, and a fresh run over what it is. Not to be changed."""
    folder = tmp_path_factory.mktemp("retry")
    (folder / "in").mkdir()
    corpus = Corpus(folder / "in")
    heads = (f"kw={small_classifier}",)
    corpus.damage()
    failed = corpus.transcribe(folder / "failed", small_ctc, classifiers=heads)
    corpus.mend()
    fresh = corpus.transcribe(folder / "fresh", small_ctc, classifiers=heads)
    assert failed.record.parts > 2
    assert failed.record.totals.chunks > failed.record.parts
    assert failed.record.totals.error_codes.keys() >= {"MISSING", "TRUNCATED", "UNDECODABLE", "DUPLICATE_ID"}
    return {"corpus": corpus, "failed": folder / "failed", "fresh": fresh, "heads": heads}


@pytest.fixture
def run(made, tmp_path, small_ctc):
    """A copy of the run with failed rows, and the command that retries them."""
    shutil.copytree(made["failed"], tmp_path / "run")

    def retry(codes=("all",), **options) -> pipeline.Run:
        options = {"classifiers": made["heads"], "retry_errors": codes} | options
        return made["corpus"].transcribe(tmp_path / "run", small_ctc, **options)

    return retry


NEW_IDS = ("part_id", "chunk")


def assert_same_rows(run: pipeline.Run, expected: pipeline.Run) -> None:
    rows, others = (corpora.rows_of(each, drop=NEW_IDS) for each in (run, expected))
    corpora.assert_same_transcripts(rows, others)
    for table, columns in (("labels", ("task", "label", "reference_label")), ("errors", ("code", "message", "stage"))):
        found, wanted = (
            [(row["utt_id"], *(row[name] for name in columns)) for row in corpora.rows_of(each, table)]
            for each in (run, expected)
        )
        assert sorted(found) == sorted(wanted), table
    assert verify(run).problems == ()
    for name in ("utterances", "errors", "error_codes", "source_bytes"):
        assert getattr(run.record.totals, name) == getattr(expected.record.totals, name), name
    assert run.record.totals.audio_s == pytest.approx(expected.record.totals.audio_s)


def test_a_retry_gives_the_rows_of_a_fresh_run_and_computes_only_what_failed(run, made, monkeypatch):
    computed, results = [], ChunkRecognizer.results

    def recorded(recognizer, rows):
        computed.extend(rows.field("utt_id").to_pylist())
        return results(recognizer, rows)

    monkeypatch.setattr(ChunkRecognizer, "results", recorded)
    before = pipeline.Run.open(made["failed"])
    retried = run()
    assert_same_rows(retried, made["fresh"])
    assert {utterance_id(name) for name in computed} == {
        *(f"{index:02d}" for index in LATE),
        *("long", "broken", "gone"),
    }
    now = {row["utt_id"]: row for row in corpora.rows_of(retried, drop=NEW_IDS)}
    kept = [row for row in corpora.rows_of(before, drop=NEW_IDS) if "#" not in row["utt_id"]]
    assert kept == [now[row["utt_id"]] for row in kept]
    assert retried.record.parts == before.record.parts
    assert retried.record.fingerprint == before.record.fingerprint


def test_only_the_named_codes_are_retried_and_what_fails_again_has_its_new_row(run, made):
    retried = run(("MISSING",))
    codes = {row["utt_id"]: row["code"] for row in corpora.rows_of(retried, "errors")}
    assert codes == {"gone": "MISSING", "broken": "UNDECODABLE", "long": "TRUNCATED", "00": "DUPLICATE_ID"}
    assert {f"{index:02d}" for index in LATE} <= {row["utt_id"] for row in corpora.rows_of(retried)}
    assert verify(retried).problems == ()
    assert_same_rows(run(("TRUNCATED",)), made["fresh"])
    assert pipeline.Run.open(retried.uri).record.last_update.number == 2


def test_nothing_to_retry_changes_nothing(run, made):
    before = pipeline.Run.open(run(("HUNG",)).uri)
    assert before.record.last_update is None
    assert before.files() == pipeline.Run.open(made["failed"]).files()


@pytest.mark.parametrize("rolled_up", [False, True])
def test_readers_see_the_rows_of_before_or_of_after_whenever_the_driver_is_killed(
    run, made, tmp_path, rolled_up, monkeypatch
):
    if rolled_up:
        monkeypatch.setattr(execution, "ROLL_UP_COMMITS", 4)
    before = {row["utt_id"] for row in corpora.rows_of(pipeline.Run.open(made["failed"]))}
    after = {row["utt_id"] for row in corpora.rows_of(made["fresh"])}
    number = 0
    while True:
        number += 1
        with killed_at_write(3 + 4 * (number % 4)):
            run()
        opened = pipeline.Run.open(tmp_path / "run")
        assert {row["utt_id"] for row in corpora.rows_of(opened)} in (before, after)
        assert verify(opened).problems == ()
        if opened.status == "done" and opened.record.updates:
            break
        assert number < 100
    assert number > 5
    assert_same_rows(opened, made["fresh"])
    assert len(opened.record.updates) == 1


@pytest.mark.parametrize("moment", ["after", "during"])
def test_what_is_lost_of_a_retried_run_is_made_again(run, made, tmp_path, moment):
    if moment == "during":
        with killed_at_write(30):
            run()
    else:
        run()
    opened = pipeline.Run.open(tmp_path / "run")
    assert (opened.status == "done") == (moment == "after")
    (tmp_path / "run" / opened.files()["transcripts"][0].path).unlink()
    assert repair(opened.uri).run.status == "stopped"
    assert_same_rows(run(()), made["fresh"])


def test_heads_that_were_added_are_carried_over_and_computed_for_what_is_retried(
    made, tmp_path, small_ctc, small_classifier
):
    head = (f"kw={small_classifier}",)
    made["corpus"].damage()
    try:
        made["corpus"].transcribe(tmp_path / "run", small_ctc)
        made["corpus"].transcribe(tmp_path / "run", small_ctc, add_classifiers=head)
    finally:
        made["corpus"].mend()
    retried = made["corpus"].transcribe(tmp_path / "run", small_ctc, classifiers=head, retry_errors=("all",))
    assert_same_rows(retried, made["fresh"])
    assert any(commit.carried for commit in retried.commits())


def test_a_shard_whose_end_could_not_be_read_is_read_whole(tmp_path, small_ctc):
    folder = tmp_path / "audio"
    for index in range(4):
        corpora.write_audio(folder / f"{index}.wav", 0.6, seed=index)
    with tarfile.open(tmp_path / "shard.tar", "w") as tar:
        for path in sorted(folder.glob("*.wav")):
            corpora.add_member(tar, path.name, path.read_bytes())
    shard = tmp_path / "shard.tar"
    whole, stat = shard.read_bytes(), shard.stat()
    options = {"inputs": (str(shard),), "output": str(tmp_path / "run"), "model": str(small_ctc)}

    def write(data: bytes) -> None:
        """With the same size and time of change: damage that storage does not show."""
        shard.write_bytes(data)
        os.utime(shard, ns=(stat.st_atime_ns, stat.st_mtime_ns))

    write(whole[: len(whole) // 2] + b"\xa5" * (len(whole) - len(whole) // 2))
    with without_ray():
        run = pipeline.transcribe(pipeline.RunConfig(**options))
        assert run.record.totals.errors
        assert run.record.totals.utterances < 4
        write(whole)
        run = pipeline.transcribe(pipeline.RunConfig(**options, retry_errors=("all",)))
    assert [row["utt_id"] for row in corpora.rows_of(run)] == [str(index) for index in range(4)]
    assert corpora.rows_of(run, "errors") == []
    assert verify(run).problems == ()


def test_what_cannot_be_retried_is_refused_in_a_line(run, made, tmp_path, small_ctc):
    with pytest.raises(pipeline.UsageError, match="retry-errors: it is for a finished run, and there is none"):
        made["corpus"].transcribe(tmp_path / "none", small_ctc, retry_errors=("all",))
    with pytest.raises(ValueError, match="neither `all` nor an error code"):
        run(("CRASH",))
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    (tmp_path / "run" / "run.json").write_text(json.dumps(record | {"status": "stopped"}))
    (tmp_path / "run" / "compaction.json").unlink()
    with pytest.raises(pipeline.UsageError, match="rows are retried in a finished run"):
        run()


@pytest.mark.parametrize("status", ["running", "failed"])
def test_a_start_that_was_killed_before_it_changed_the_plan_is_repeated(run, made, tmp_path, status):
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    (tmp_path / "run" / "run.json").write_text(json.dumps(record | {"status": status}))
    again = run()
    assert again.status == "done"
    assert verify(again).problems == ()
    assert len(again.record.updates) == 1
