"""`sewd verify` finds each kind of damage to a run, and reports nothing in a sound run."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

import pipeline
from pipeline.driver import transcribe as driver
from pipeline.runs import verify as module
from pipeline.runs.verify import verify
from tests.support import corpora
from tests.support.command import sewd


@pytest.fixture(scope="module")
def made(tmp_path_factory, local_ray, small_ctc, small_classifier) -> dict[str, Path]:
    """A finished run of several parts and chunks, with labels and errors; and the same before it was compacted."""
    folder = tmp_path_factory.mktemp("verify")
    for index in range(12):
        corpora.write_audio(folder / "in" / f"{index:02d}.wav", seconds=1, seed=index)
    (folder / "in" / "broken.wav").write_text("no audio")
    options = {"inputs": (folder / "in",), "model": small_ctc, "classifiers": (f"kw={small_classifier}",)}
    options |= {"part_mib": 0.1, "chunk_rows": 2}
    pipeline.transcribe(pipeline.RunConfig(output=folder / "done", **options))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(driver, "finish_run", lambda run, *_: run.save(status="stopped"))
        pipeline.transcribe(pipeline.RunConfig(output=folder / "open", **options))
    return {"done": folder / "done", "open": folder / "open"}


@pytest.fixture(params=["done", "open"])
def run(request, made, tmp_path) -> Path:
    shutil.copytree(made[request.param], tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def done(made, tmp_path) -> Path:
    shutil.copytree(made["done"], tmp_path / "run")
    return tmp_path / "run"


def messages(run: Path) -> list[str]:
    return [f"{problem.path}: {problem.message}" for problem in verify(pipeline.Run.open(run)).problems]


def change(path: Path, **values) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def commits(run: Path) -> list[Path]:
    return sorted(run.glob("commits/*/*.json"))


def data_file(run: Path, table: str = "transcripts") -> Path:
    return sorted((run / table).glob("*.parquet"))[0]


def test_a_sound_run_has_no_problem(run):
    found = verify(pipeline.Run.open(run))
    assert found.problems == ()
    assert found.parts >= 3
    assert found.commits >= 6
    assert found.rows == 12 + 12 + 1


def test_a_lost_file_is_found(run):
    path = data_file(run)
    path.unlink()
    assert any(path.name in line and "is lost" in line for line in messages(run))


def test_a_truncated_file_is_found(run):
    path = data_file(run, "errors")
    path.write_bytes(path.read_bytes()[:-1])
    assert any(path.name in line and "was written with" in line for line in messages(run))


def test_a_changed_bit_is_found(run):
    path = data_file(run, "labels")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    assert any(path.name in line and "SHA-256" in line for line in messages(run))


def test_a_lost_commit_of_a_done_run_is_found(done):
    path = commits(done)[0]
    part = path.name.partition("-")[0]
    path.unlink()
    assert f"plan.parquet: part {part} is not completely committed, although the run is done" in messages(done)


def test_chunks_of_an_unfinished_run_may_be_committed_in_any_order(made, tmp_path):
    shutil.copytree(made["open"], tmp_path / "run")
    for path in commits(tmp_path / "run"):
        if json.loads(path.read_text())["first_row"] == 0:
            for file in json.loads(path.read_text())["files"]:
                (tmp_path / "run" / file["path"]).unlink()
            path.unlink()
    assert messages(tmp_path / "run") == []


@pytest.mark.parametrize("content", [b"no Parquet", None])
def test_a_plan_that_is_lost_or_cannot_be_read_is_found(run, content):
    (run / "plan.parquet").unlink()
    if content:
        (run / "plan.parquet").write_bytes(content)
    assert any(line.startswith("plan.parquet: ") for line in messages(run))


def test_a_file_that_is_not_parquet_is_found_even_if_its_checksum_is_right(done):
    compaction = json.loads((done / "compaction.json").read_text())
    file = compaction["files"][0]
    (done / file["path"]).write_bytes(b"text")
    file |= {"size": 4, "sha256": hashlib.sha256(b"text").hexdigest()}
    (done / "compaction.json").write_text(json.dumps(compaction))
    assert any("is not a Parquet file" in line for line in messages(done))


def test_a_run_that_is_finished_meanwhile_is_checked_again(made, tmp_path, monkeypatch):
    shutil.copytree(made["open"], tmp_path / "run")
    opened = pipeline.Run.open(tmp_path / "run")
    shutil.rmtree(tmp_path / "run")
    shutil.copytree(made["done"], tmp_path / "run")
    (tmp_path / "run" / "compaction.json").rename(tmp_path / "hidden")

    def late(uri):
        return None if (tmp_path / "hidden").exists() else read_compaction(uri)

    def show(file, *rest):
        with contextlib.suppress(FileNotFoundError):  # files are checked by threads, and one of them is the first
            (tmp_path / "hidden").rename(tmp_path / "run" / "compaction.json")
        return check_file(file, *rest)

    read_compaction, check_file = module.read_compaction, module.check_file
    monkeypatch.setattr(module, "read_compaction", late)
    monkeypatch.setattr(module, "check_file", show)
    assert verify(opened).problems == ()


def test_a_commit_with_other_counts_is_found(run):
    path = next(path for path in commits(run) if json.loads(path.read_text())["utterances"] == 2)
    change(path, utterances=3)
    lines = messages(run)
    assert any("2 rows of transcripts are stored, but 3 are committed" in line for line in lines)
    assert any("labels" in line for line in lines)


def test_a_commit_that_cannot_be_parsed_is_found(run):
    first, second = commits(run)[:2]
    first.write_text(first.read_text()[:40])
    change(second, error_codes=None)
    for path in (first, second):
        assert any(path.name in line and "cannot be read" in line for line in messages(run))


def test_a_commit_of_a_part_that_is_not_in_the_plan_is_found(run):
    plan = run / "plan.parquet"
    pq.write_table(pq.read_table(plan).slice(1), plan)
    assert any("the plan has no part" in line for line in messages(run))


def test_a_commit_whose_name_does_not_match_its_content_is_found(run):
    path = next(path for path in commits(run) if not path.stem.endswith(".last"))
    change(path, chunk=77)
    assert any("its content belongs to" in line for line in messages(run))


def test_overlapping_chunks_are_found(run):
    path = next(path for path in commits(run) if json.loads(path.read_text())["first_row"] > 0)
    change(path, first_row=0)
    assert any("begins at row 0, but the chunks before it hold 2 rows" in line for line in messages(run))


def test_a_compaction_json_that_cannot_be_parsed_is_found(done):
    (done / "compaction.json").write_text('{"files": [{"table": 1}]}')
    assert any(line.startswith("compaction.json: cannot be read") for line in messages(done))


def test_duplicated_rows_are_found(done):
    compaction = json.loads((done / "compaction.json").read_text())
    [first] = [file for file in compaction["files"] if file["table"] == "transcripts"]
    compaction["files"].append(first)
    (done / "compaction.json").write_text(json.dumps(compaction))
    assert any("4 rows of transcripts are stored, but 2 are committed" in line for line in messages(done))


def test_an_orphaned_file_is_found(done):
    shutil.copy(data_file(done), done / "transcripts" / "more.parquet")
    assert messages(done) == [
        "transcripts/more.parquet: is an orphaned data file: neither a commit nor the compaction names it"
    ]


def test_totals_that_are_not_the_sums_of_the_commits_are_found(done):
    record = json.loads((done / "run.json").read_text())
    change(done / "run.json", totals=record["totals"] | {"utterances": 13})
    assert messages(done) == ["run.json: totals: utterances is 13, but the commits add up to 12"]


def test_a_done_run_with_an_unfinished_part_is_found(made, tmp_path):
    shutil.copytree(made["open"], tmp_path / "run")
    commits(tmp_path / "run")[-1].unlink()
    totals = pipeline.Run.open(tmp_path / "run").totals()
    change(tmp_path / "run" / "run.json", status="done", totals=totals.__dict__)
    assert any("is not completely committed" in line for line in messages(tmp_path / "run"))


def test_the_command_prints_a_line_for_each_problem_and_exits_with_1(done):
    sound = sewd("verify", done)
    assert (sound.returncode, sound.stderr) == (0, "")
    assert sound.stdout.startswith("sound: ")
    data_file(done).unlink()
    broken = sewd("verify", done)
    assert broken.returncode == 1
    assert "is lost" in broken.stderr
    assert broken.stderr.splitlines()[-1].startswith("`sewd repair ")
    assert "problem" in broken.stdout
    assert broken.stdout.count("\n") == 1
