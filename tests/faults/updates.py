"""Kill the driver of a run that is updated, at random moments, while its corpus grows, changes and loses files.

    python -m tests.faults.updates --kills 20 --seed 1 [--work DIR]

The corpus has files with references, a manifest, a table and shards. It changes three times; after each change
`sewd transcribe --update` is started and killed with signal 9 until the kills of this change are used, then it may end.
A kill comes at any time, after the plan is replaced, after a commit, or when the last part is done. One that comes too
late does not count, and a file changes, so that there is work again. At the end the run is compared with one of the
last state of the corpus, row for row, but for parts and chunks.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pipeline
from pipeline.runs.compact import read_compaction
from pipeline.runs.ledger import read_committed_chunks
from pipeline.runs.status import RunStatus
from pipeline.runs.verify import verify
from tests.faults.table import print_line
from tests.support import checkpoints, corpora
from tests.support.command import command
from tests.support.inputs import tar

CHANGES = 3
OPTIONS = ("--chunk-rows", 2, "--part-mib", 0.15, "--threads", 1, "--actors", 1)


class ChangingCorpus:
    """A corpus whose files, rows and shards come, change and go."""

    def __init__(self, folder: Path, choose: random.Random) -> None:
        self._folder, self._choose, self._number = folder, choose, 0
        self._names: list[str] = []
        self._rows: list[dict] = []
        self.inputs = (folder / "in", folder / "m.jsonl", folder / "t.csv", folder / "shards")
        self._add(16)
        self._add_rows(8)
        for name in "ab":
            self._shard(name, 3)

    def change(self) -> None:
        """Let it grow, change and lose something of each kind."""
        choose = self._choose
        for name in choose.sample(self._names, 3):
            self._names.remove(name)
            for path in (self._folder / "in").glob(f"{name}.*"):
                path.unlink()
        for name in choose.sample(self._names, 2):
            self._write(name)
        (self._folder / f"in/{choose.choice(self._names)}.txt").write_text(f"another reference {self._number}")
        self._add(5)
        self._rows.pop(choose.randrange(len(self._rows)))
        self._rows[choose.randrange(len(self._rows))]["text"] = f"another text {self._number}"
        self._add_rows(3)
        self._shard("a", 2 + self._number % 3)
        self._shard(f"new{self._number}", 2)
        shards = sorted((self._folder / "shards").glob("*.tar"))
        choose.choice(shards[1:]).unlink()

    def change_a_file(self) -> None:
        """Let one file change."""
        self._write(self._choose.choice(self._names))

    def _next(self) -> int:
        self._number += 1
        return self._number

    def _write(self, name: str) -> None:
        corpora.write_audio(self._folder / f"in/{name}.wav", self._choose.uniform(0.5, 2.5), self._next())

    def _add(self, count: int) -> None:
        for _ in range(count):
            name = f"{self._choose.randrange(100):02d}-{self._next()}"  # between the others in path order
            self._names.append(name)
            self._write(name)
            (self._folder / f"in/{name}.txt").write_text(f"reference number {self._number}")
        (self._folder / "in/broken.wav").write_bytes(b"RIFF")

    def _add_rows(self, count: int) -> None:
        for _ in range(count):
            number = self._next()
            corpora.write_audio(self._folder / f"named/{number}.wav", self._choose.uniform(0.5, 2.0), number)
            self._rows.append({"audio_filepath": f"named/{number}.wav", "text": f"row number {number}"})
        with (self._folder / "m.jsonl").open("w") as file:
            file.writelines(json.dumps(row | {"utt_id": f"m/{row['audio_filepath']}"}) + "\n" for row in self._rows)
        rows = sorted((row["audio_filepath"], row["text"]) for row in self._rows)
        lines = [f"{path},t/{path},{text}\n" for path, text in rows]
        (self._folder / "t.csv").write_text("".join(["path,utt_id,text\n", *lines, "missing.wav,t/missing,x\n"]))

    def _shard(self, name: str, members: int) -> None:
        source = corpora.write_audio(self._folder / "member.wav", self._choose.uniform(0.5, 1.5), self._next())
        (self._folder / "shards").mkdir(exist_ok=True)
        tar(self._folder / f"shards/{name}.tar", *((f"{name}{i}.wav", source.read_bytes()) for i in range(members)))


def transcription(corpus: ChangingCorpus, output: Path, model: Path, *options: object) -> list[str]:
    """The command that transcribes a corpus."""
    return command("transcribe", *corpus.inputs, "--output", output, "--model", model, *OPTIONS, *options)


def state(run: Path) -> str:
    """Where a run was left, in a few words."""
    try:
        opened = pipeline.Run.open(run)
        update, compaction = opened.plan_update(), read_compaction(opened.uri)
        done = f"{len(opened.parts_done())} of {opened.plan_size()} parts done"
        compacted = "never compacted" if compaction is None else f"compacted {compaction.update}"
        return f"{opened.status}, plan {update.number if update else 0}, {compacted}, {done}"
    except pipeline.UsageError as error:
        return str(error).partition(":")[0]


def difference(found: pipeline.Run, expected: pipeline.Run) -> list[str]:
    """In which tables two runs differ, but for parts and chunks."""
    differing = []
    for table in ("transcripts", "errors"):
        rows = [corpora.rows_of(run, table, drop=("part_id", "chunk")) for run in (found, expected)]
        try:
            if table == "transcripts":
                corpora.assert_same_transcripts(*rows)
            else:
                assert rows[0] == rows[1]
        except AssertionError as error:
            differing.append(f"{table}: {error}")
    return differing


def soak(work: Path, kills: int, seed: int) -> int:
    """Change, kill, compare in the directory `work`; returns the number of things that are wrong at the end."""
    choose = random.Random(seed)
    model = checkpoints.write_ctc(work / "model", checkpoints.SMALL)
    corpus = ChangingCorpus(work / "corpus", choose)
    run = work / "run"
    took_s = _finish(transcription(corpus, run, model), work)
    print_line(f"first state: done in {took_s:.0f} s")
    for change in range(CHANGES):
        corpus.change()
        for _ in range(kills * (change + 1) // CHANGES - kills * change // CHANGES):
            kind = choose.choice(sorted(MOMENTS))
            while not _kill(transcription(corpus, run, model, "--update"), run, kind, choose, took_s):
                corpus.change_a_file()
            print_line(f"change {change + 1}: killed {kind}: {state(run)}")
        # Every other time another command than the killed one ends it.
        _finish(transcription(corpus, run, model, *["--update"][: 1 - change % 2]), work)
        print_line(f"change {change + 1}: {state(run)}")
    _finish(transcription(corpus, run, model, "--update"), work)
    _finish(transcription(corpus, work / "fresh", model), work)
    updated, fresh = pipeline.Run.open(run), pipeline.Run.open(work / "fresh")
    problems = [*difference(updated, fresh), *map(str, verify(updated).problems)]
    totals, found = fresh.record.totals, updated.record.totals
    names = ("utterances", "errors", "error_codes")
    problems += [f"totals: {name}" for name in names if getattr(found, name) != getattr(totals, name)]
    print_line(f"{totals.utterances} transcripts and {totals.errors} errors: {len(problems)} differences")
    for problem in problems:
        print_line(problem)
    return len(problems)


def _kill(arguments: list[str], run: Path, kind: str, choose: random.Random, took_s: float) -> bool:
    """Start a driver, and kill it at a moment of this kind; returns whether it was still at work."""
    opened = pipeline.Run.open(run)
    before = _Seen.of(opened)
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    if kind == ANY_TIME:
        time.sleep(choose.uniform(0.5, took_s))
    while process.poll() is None and not MOMENTS[kind](before, _Seen.of(opened)):
        time.sleep(0.02)
    time.sleep(choose.expovariate(1 / 0.1))
    was_at_work = process.poll() is None and pipeline.Run.open(run).status != RunStatus.DONE
    process.kill()
    process.wait()
    return was_at_work


@dataclass(frozen=True)
class _Seen:
    """What can be seen of a run from outside: the number of its plan, its commits, and its parts that are not done."""

    plan: int
    commits: int
    left: int

    @staticmethod
    def of(run: pipeline.Run) -> _Seen:
        update = run.plan_update()
        chunks = read_committed_chunks(run.uri)
        return _Seen(update.number if update else 0, len(chunks), run.plan_size() - len(run.parts_done()))


ANY_TIME = "at any time"
MOMENTS: dict[str, Callable[[_Seen, _Seen], bool]] = {
    ANY_TIME: lambda before, now: True,
    "after the plan": lambda before, now: now.plan > before.plan or now.left < before.left,
    "after a commit": lambda before, now: now.commits > before.commits,
    "when all parts are done": lambda before, now: now.left == 0 and now != before,
}


def _finish(arguments: list[str], work: Path) -> float:
    """Run a command to its end; returns its seconds."""
    started = time.monotonic()
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 3):  # 3: rows failed
        raise RuntimeError(f"it ended with {done.returncode}: {done.stderr}; see {work}")
    return time.monotonic() - started


def main() -> int:
    """Run the command line; returns 1 if a row was lost, doubled or changed."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.updates")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--work", type=Path, help="directory that is kept")
    options = parser.parse_args()
    work = options.work or Path(tempfile.mkdtemp())
    try:
        return bool(soak(work.absolute(), options.kills, options.seed))
    finally:
        if options.work is None:
            shutil.rmtree(work)


if __name__ == "__main__":
    sys.exit(main())
