"""What has changed in the inputs of a run since it was planned."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from pipeline.config import make_config
from pipeline.runs.changes import CorpusChanges, corpus_changes
from pipeline.runs.lifecycle import create_run, plan_new_run
from tests.support import s3
from tests.support.inputs import manifest, parquet_of_bytes, tar_of, write, write_files


def planned(tmp_path: Path, *inputs: Path | str, **options):
    config = make_config(inputs=tuple(map(str, inputs)), output=str(tmp_path / "run"), model="m", **options)
    return create_run(config, {"schema": 2}, plan_new_run(config)), config


def test_files_that_were_added_removed_and_changed_are_counted_and_named(tmp_path):
    folder = write_files(tmp_path / "in", *(f"{i:02}.wav" for i in range(20)))
    run, config = planned(tmp_path, folder, part_mib=1e-5)
    assert not corpus_changes(run, config)
    write_files(folder, "05b.wav", "x/new.wav", "notes.md")  # part boundaries move, and change nothing
    (folder / "07.wav").unlink()
    write(folder / "09.wav", "longer than before")
    changes = corpus_changes(run, config)
    assert changes.added == (f"{folder}/05b.wav", f"{folder}/x/new.wav")
    assert changes.removed == (f"{folder}/07.wav",)
    assert changes.changed == (f"{folder}/09.wav",)
    assert changes.has_more
    assert f"2 added ({folder}/05b.wav, {folder}/x/new.wav), 1 removed ({folder}/07.wav), 1 changed" in changes.line
    assert "--update" in changes.line
    assert "\n" not in changes.line


def test_many_changes_are_counted_and_the_first_named(tmp_path):
    folder = write_files(tmp_path / "in", "a.wav")
    run, config = planned(tmp_path, folder)
    write_files(folder, *(f"b{i}.wav" for i in range(9)))
    assert f"9 added ({folder}/b0.wav, {folder}/b1.wav, {folder}/b2.wav, ...)" in corpus_changes(run, config).line


def test_a_corpus_that_only_shrank_has_no_more(tmp_path):
    folder = write_files(tmp_path / "in", "a.wav", "b.wav")
    run, config = planned(tmp_path, folder)
    (folder / "a.wav").unlink()
    changes = corpus_changes(run, config)
    assert (changes.removed, changes.has_more) == ((f"{folder}/a.wav",), False)


@pytest.mark.parametrize("kind", ["tar", "parquet", "manifest"])
@pytest.mark.parametrize("limit", [None, 3])
def test_containers_that_were_added_and_changed_are_found(tmp_path, kind, limit):
    make = {
        "tar": lambda name, number: tar_of(tmp_path / "in" / f"{name}.tar", *(f"{i}.wav" for i in range(number))),
        "parquet": lambda name, number: parquet_of_bytes(tmp_path / "in" / f"{name}.parquet", number, row_group=2),
        "manifest": lambda name, number: manifest(
            tmp_path / "in" / f"{name}.jsonl", *({"audio_filepath": f"{i}.wav"} for i in range(number))
        ),
    }[kind]
    (tmp_path / "in").mkdir()
    paths = [str(make(name, 1)) for name in "ab"]
    run, config = planned(tmp_path, f"{tmp_path}/in/*.{paths[0].rpartition('.')[2]}", part_mib=1e-5, limit=limit)
    assert not corpus_changes(run, config)
    make("b", 2)
    added = make("c", 1)
    changes = corpus_changes(run, config)
    assert changes.changed == (paths[1],)
    assert changes.added == ((str(added),) if limit is None else ())  # the limit is reached before it


def test_rows_of_a_manifest_that_changed_are_found_and_white_space_is_not(tmp_path):
    rows = [{"audio_filepath": f"{i}.wav", "text": "x"} for i in range(4)]
    path = manifest(tmp_path / "m.jsonl", *rows)
    run, config = planned(tmp_path, path)
    os.utime(path, (1, 1))
    assert not corpus_changes(run, config)
    manifest(path, *rows[:3], rows[3] | {"text": "y"})
    assert corpus_changes(run, config).changed == (str(path),)


def test_rows_that_changed_beside_a_shard_that_did_not_are_found(tmp_path):
    shard = tar_of(tmp_path / "audio_0.tar", "a.wav")
    path = manifest(tmp_path / "m.json", {"audio_filepath": "a.wav", "text": "x", "shard_id": 0})
    run, config = planned(tmp_path, path)
    assert not corpus_changes(run, config)
    manifest(path, {"audio_filepath": "a.wav", "text": "y", "shard_id": 0})
    assert corpus_changes(run, config).changed == (str(shard),)


@pytest.mark.parametrize("lost", ["inputs", "plan", "damaged plan"])
def test_what_cannot_be_compared_is_a_line_and_no_error(tmp_path, lost):
    folder = write_files(tmp_path / "in", "a.wav")
    run, config = planned(tmp_path, folder)
    if lost == "inputs":
        shutil.rmtree(folder)
    elif lost == "plan":
        (tmp_path / "run" / "plan.parquet").unlink()
    else:
        (tmp_path / "run" / "plan.parquet").write_bytes(b"PAR1")
    changes = corpus_changes(run, config)
    assert changes
    assert not changes.has_more
    assert changes.line.startswith("the inputs cannot be compared")


def test_a_run_within_its_own_input_changes_nothing(tmp_path):
    folder = write_files(tmp_path / "in", "a.wav")
    run, config = planned(folder, folder)
    write_files(folder / "run", "transcripts/x.parquet", "commits/a.json")
    assert not corpus_changes(run, config)


def test_an_object_that_changed_in_a_store_is_found(tmp_path):
    with s3.moto_server():
        from pipeline.storage import objects

        base = s3.make_bucket("bucket")
        for name in "ab":
            objects.put(f"{base}/in/{name}.wav", b"x")
        run, config = planned(tmp_path, f"{base}/in")
        assert not corpus_changes(run, config)
        objects.put(f"{base}/in/a.wav", b"y")  # of the same size: the ETag tells
        objects.put(f"{base}/in/c.wav", b"x")
        changes = corpus_changes(run, config)
        assert (changes.added, changes.changed) == ((f"{base}/in/c.wav",), (f"{base}/in/a.wav",))


def test_what_was_left_out_is_in_the_plan_and_in_the_record(tmp_path):
    folder = write_files(tmp_path / "in", "a.wav", "b.foo", "c.foo")
    run, _ = planned(tmp_path, folder)
    assert run.record.left_out.files == {"foo": 2}
    assert json.loads(run.plan().schema.metadata[b"sewd.left_out"])["files"] == {"foo": 2}
    assert run.plan_without(run.plan()["part_id"].combine_chunks()[:0]).num_rows == 1


def test_nothing_has_changed():
    assert not CorpusChanges()
