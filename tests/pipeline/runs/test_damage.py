"""Damaged objects of a run: one line that names the object, whatever reads it; and what a repair makes of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from jobs.app import application_for
from jobs.console import run as run_app
from pipeline.config import make_config
from pipeline.driver.remaining import find_remaining
from pipeline.errors import UsageError
from pipeline.runs import compact, ledger
from pipeline.runs.commit import Commit, write_chunk
from pipeline.runs.compact import compact_group
from pipeline.runs.fingerprint import fingerprint
from pipeline.runs.lifecycle import create_run, find_existing_run, finish_run, plan_new_run
from pipeline.runs.repair import repair
from pipeline.runs.run import Run
from pipeline.runs.verify import verify
from tests.support import corpora, runs

CLIPS, ROWS = 8, 3  # rows of a chunk; a part has two clips, each of which counts for several rows here


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> dict[str, Path]:
    """Runs of four parts with two chunks each, made without Ray: finished, stopped, and with commits rolled up."""
    folder = tmp_path_factory.mktemp("damage")
    for index in range(CLIPS):
        corpora.write_audio(folder / "in" / f"{index:02d}.wav", seconds=0.5, seed=index)
    for name in ("done", "stopped", "rolled"):
        config = make_config(
            inputs=(str(folder / "in"),),
            output=str(folder / name),
            model="bundled",
            part_mib=0.03,
            classifiers=("kw=bundled",),
        )
        run = create_run(config, fingerprint(config), plan_new_run(config))
        run = run.save(attempts=[{"id": "0", "started": "2026-01-01", "host": "h", "python": "3.11"}])
        run.save_copy()
        for number, part in enumerate(run.plan(["part_id"])["part_id"].to_pylist()):
            commit_part(run, part, number)
        if name == "done":
            finish_run(run, lambda: None, compact_groups)
        else:
            run.save(status="stopped", totals=run.totals())
        if name == "rolled":
            ledger.roll_up(run.uri, ledger.read_ledger(run.uri).objects)
    return {name: folder / name for name in ("done", "stopped", "rolled")}


def compact_groups(run, groups):
    return [compact_group(run, *group) for group in groups]


def commit_part(run: Run, part: str, number: int, chunks: tuple[int, ...] = (0, 1)) -> None:
    """Commit the chunks of a part: always the same rows, as a deterministic model gives."""
    for chunk in chunks:
        last = chunk == 1
        identity = {"part_id": part, "chunk": chunk, "reference": "one two"}
        rows = [{"utt_id": f"{number}-{chunk}-{row}", "text": "one"} | identity for row in range(ROWS)]
        keys = {"part_id": part, "chunk": chunk}
        tables = {
            "transcripts": runs.transcripts(rows),
            "labels": runs.labels([{"utt_id": row["utt_id"], "task": "kw"} | keys for row in rows]),
            "errors": runs.errors([{"utt_id": f"{number}-{chunk}-x"} | keys]),
        }
        end = (ROWS + 1) * (chunk + 1)
        commit = Commit(
            *(part, chunk, (ROWS + 1) * chunk, last, end if last else None, 1.0 if last else None, ROWS, 1),
            *({"UNDECODABLE": 1}, 6.0, 10, "0", {}, {"read": 0.1, "queue": 0.0, "compute": 0.1, "rows": 0.1}),
        )
        write_chunk(run.uri, commit, tables)


def resume(run: Run) -> Run:
    """Do what the next start of the same command does, without a model: commit what is not committed, and finish."""
    ids = run.plan(["part_id"])["part_id"].to_pylist()
    for part in find_remaining(run).parts.to_pylist():
        chunks = tuple(chunk for chunk in (0, 1) if chunk not in part["committed"])
        commit_part(run, part["part_id"], ids.index(part["part_id"]), chunks)
    return finish_run(run, lambda: None, compact_groups)


def resume_problem(path: Path, sound: Path) -> str | None:
    """Read all that a resume of the run at `path` reads; returns what it says about damage."""
    record = json.loads((sound / "run.json").read_text())
    config = make_config(**record["config"] | {"output": str(path)})
    try:
        if (run := find_existing_run(config, record["fingerprint"])) is not None:
            find_remaining(run)
            finish_run(run, lambda: None, compact_groups)
    except UsageError as error:
        return str(error)
    except RuntimeError as error:  # a chunk is left
        return str(error)
    return None


def sewd(capsys, *arguments: object) -> tuple[int, str, str]:
    """Exit code, output and errors of `sewd ARGUMENTS`, in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["sewd", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            run_app(application_for())
    captured = capsys.readouterr()
    return ended.value.code, captured.out, captured.err


def all_rows(run: Run) -> dict[str, list[dict]]:
    return {table: corpora.rows_of(run, table) for table in ("transcripts", "labels", "errors")}


# ---------------------------------------------------------------------------------------------------- the damages
def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 0x10
    path.write_bytes(bytes(data))


def garbage(path: Path) -> None:
    path.write_bytes(b"\x00\xffgarbage\n" * 20)


def write(text: str) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        path.write_text(text)

    damage.__name__ = text[:30]
    return damage


def gone(path: Path) -> None:
    path.unlink()


def change(**values) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    damage.__name__ = json.dumps(values)
    return damage


BYTES = [cut, flip, garbage, write(""), gone]
JSON = [*map(write, ("[]", "{}", "null", "3", '"text"', "[" * 100_000, '{"files": null}', '{"files": [{}]}'))]
RECORD_VALUES = [
    change(totals=None),
    change(totals=[]),
    change(totals={"chunks": "many"}),
    change(attempts=None),
    change(attempts=[{}]),
    change(attempts=[3]),
    change(attempts=[{"elapsed_s": 1.0, "rtfx": 1.0, "audio_s": 1.0}]),
    change(config=None),
    change(config={}),
    change(fingerprint=None),
    change(fingerprint={"classifiers": 3}),
    change(parts="all"),
    change(input_bytes=-1),
    change(status=None),
    change(reason=["no"], created=7),
    change(created="yesterday"),
    change(finished="2026-01-01", attempts=[{"started": "never"}]),
]
OBJECTS = {
    "run.json": ("run.json", [*BYTES, *JSON, *RECORD_VALUES]),
    "plan": ("plan.parquet", BYTES),
    "compaction": ("compaction.json", [*BYTES, *JSON]),
    "commit": ("commits/??/*.json", [*BYTES, *JSON, change(utterances="3"), change(files=[3])]),
    "rolled": ("commits/rolled/*.parquet", BYTES),
    "transcripts": ("transcripts/*.parquet", BYTES),
    "labels": ("labels/*.parquet", BYTES),
    "errors": ("errors/*.parquet", BYTES),
    "lease": ("control/lease.json", [*BYTES, *JSON]),
    "quarantine": ("quarantine/*.json", [*BYTES, *JSON]),
}
FEW = (gone, garbage, JSON[1], RECORD_VALUES[0], BYTES[0])  # the others are slow tests
CASES = [
    pytest.param(
        (state, pattern, damage),
        id=f"{state}-{name}-{damage.__name__}",
        marks=() if damage in FEW and state != "stopped" else pytest.mark.slow,
    )
    for state in ("done", "stopped", "rolled")
    for name, (pattern, damages) in OBJECTS.items()
    for damage in damages
    if (name == "rolled") <= (state == "rolled") and (name == "compaction") <= (state == "done")
    if (name != "commit" or state != "rolled") and (state != "rolled" or name in ("rolled", "transcripts"))
]


@pytest.fixture
def damaged(made, tmp_path, request):
    state, pattern, damage = request.param
    path = tmp_path / "run"
    shutil.copytree(made[state], path)
    for name in ("control/lease.json", "quarantine/00.json"):
        if name.startswith(pattern.partition("/")[0]):
            (path / name).parent.mkdir(exist_ok=True)
            (path / name).write_text("{}")
    [first, *_] = sorted(path.glob(pattern))
    damage(first)
    return path, first


VERBS = [("status",), ("verify",), ("evaluate",), ("report", "--output", "{}/out.html"), ("compare", "{run}")]


@pytest.mark.parametrize("damaged", CASES, indirect=True)
def test_every_verb_gives_one_line_and_a_repair_makes_the_same_rows(damaged, made, tmp_path, capsys):
    path, changed = damaged
    name = str(changed.relative_to(path))
    for verb in VERBS:
        code, _, err = sewd(capsys, *(word.format(tmp_path, run=path) for word in (verb[0], "{run}", *verb[1:])))
        lines = [line for line in err.splitlines() if not line.startswith("warning: ")]
        assert code in (0, 1, 2), err
        if verb[0] != "verify" and code:
            assert (code, len(lines)) == (2, 1), (verb, err)
            if "no scored utterance" in lines[0]:  # all commits are lost, and nothing says that there were any
                continue
            # Without its compaction, a run seems to lack the files of its commits.
            assert any(word in lines[0] for word in (name, "run.json", " is lost; "))
            assert "sewd repair" in lines[0]
        if verb[0] == "verify" and code:
            assert "sewd repair" in lines[-1]
    said = resume_problem(shutil.copytree(path, tmp_path / "resumed"), made["done"])
    assert said is None or any(word in said for word in (name, "run.json", " is lost", "not completely committed"))

    code, out, err = sewd(capsys, "repair", path)
    assert (code, err) == (0, ""), (out, err)
    repaired = Run.open(path)
    if repaired.status != "done":
        repaired = resume(repaired)
    assert verify(repaired).problems == ()
    assert all_rows(repaired) == all_rows(Run.open(made["done"]))
    assert sewd(capsys, "verify", path)[0] == 0
    assert sewd(capsys, "status", path)[0] == 0


def test_commits_that_a_repair_renewed_are_the_only_ones(made, tmp_path, monkeypatch):
    """Were the old ones left among the rolled-up commits, either could count once the renewed ones are rolled up."""
    path = shutil.copytree(made["rolled"], tmp_path / "run")
    monkeypatch.setattr(compact, "MAX_GROUP_FILES", 4)  # two compacted files of each table, one of which is lost
    finish_run(Run.open(path), lambda: None, compact_groups)
    old = {(commit.part_id, commit.chunk): commit.files for commit in Run.open(path).commits()}
    [lost, *_] = sorted((path / "transcripts").glob("*.parquet"))
    lost.unlink()
    repair(str(path))
    renewed = {(commit.part_id, commit.chunk): commit.files for commit in Run.open(path).commits()}
    assert len(renewed) == 4
    assert not any(old[key] == files for key, files in renewed.items())
    ledger.roll_up(str(path), ledger.read_ledger(str(path)).objects)
    rolled_up = [row for uri in ledger.rolled_up_files(str(path)) for row in ledger.read_rolled_up(uri)]
    assert len(rolled_up) == len(renewed)
    assert {(c.part_id, c.chunk): c.files for c in Run.open(path).commits()} == renewed
