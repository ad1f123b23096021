"""What a command takes until it is of use: wall and CPU seconds, of one checkout or of two in turns.

    python -m benchmarks.startup [--against CHECKOUT] [--rounds N]

* `first row`: from the start of `sewd transcribe` to its first commit, for a minute of audio in four files with the
  bundled model and a Ray of its own; `whole run`: to its end.
* `sewd --help`, `sewd evaluate RUN` and `sewd status RUN`, from start to end.

CPU seconds are those of every process that the command has started, at that moment. Linux only.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import soundfile
import typer
from rich.console import Console
from rich.table import Table

HERE = Path(__file__).resolve().parents[1]
FILES, FILE_S, RATE = 4, 15, 16_000
POLL_S = 0.01
PR_SET_CHILD_SUBREAPER = 36  # see prctl(2)
TICKS = os.sysconf("SC_CLK_TCK")


class Cost(NamedTuple):
    """Seconds, and the processes that are alive at the end of them."""

    wall_s: float
    cpu_s: float | None
    processes: int


def main(
    against: Annotated[Path | None, typer.Option(help="Another checkout, measured in turns with this one.")] = None,
    rounds: Annotated[int, typer.Option(help="How often each is measured; medians are shown.")] = 5,
) -> None:
    """Measure what commands take until they are of use."""
    # Processes whose parent has ended become children of this one, so that they and their seconds stay in its tree.
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    checkouts = {"here": HERE} if against is None else {"against": against.resolve(), "here": HERE}
    costs: dict[str, dict[str, list[Cost]]] = defaultdict(lambda: defaultdict(list))
    with tempfile.TemporaryDirectory() as root:
        corpus = write_corpus(Path(root) / "corpus")
        for turn in range(rounds + 1):
            for name, checkout in checkouts.items():
                for what, cost in measure(checkout, corpus, Path(root) / f"{name}-{turn}"):
                    if turn:  # the first round warms the page cache and writes byte code
                        costs[what][name].append(cost)
    table = Table(
        "median (lowest - highest)", *(f"{name}: {column}" for name in checkouts for column in ("wall s", "CPU s"))
    )
    for what, by_checkout in costs.items():
        table.add_row(what, *(cell for name in checkouts for cell in cells(by_checkout[name])))
    Console(width=140).print(table)


def cells(costs: Sequence[Cost]) -> Iterator[str]:
    """Wall and CPU seconds of several measurements, and the number of processes, as text."""
    processes = round(statistics.median(cost.processes for cost in costs))
    yield spread([cost.wall_s for cost in costs])
    spent = [cost.cpu_s for cost in costs if cost.cpu_s is not None]
    yield spread(spent) + f" in {processes}" * bool(processes) if spent else "-"


def spread(values: Sequence[float]) -> str:
    """The median, the lowest and the highest."""
    return f"{statistics.median(values):.2f} ({min(values):.2f} - {max(values):.2f})"


def write_corpus(folder: Path) -> Path:
    """A minute of noise in files, with a reference each, so that it can be evaluated."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for index in range(FILES):
        samples = (rng.standard_normal(FILE_S * RATE) * 3000).astype(np.int16)
        soundfile.write(folder / f"{index}.wav", samples, RATE)
        (folder / f"{index}.txt").write_text("one two three")
    return folder


def measure(checkout: Path, corpus: Path, run: Path) -> Iterator[tuple[str, Cost]]:
    """Every command once, in a fresh run."""
    first, whole = transcribed(checkout, corpus, run)
    yield "transcribe, first row", first
    yield "transcribe, whole run", whole
    for words in (["--help"], ["evaluate", str(run)], ["status", str(run)]):
        yield f"sewd {words[0]}", finished(checkout, words)


def transcribed(checkout: Path, corpus: Path, run: Path) -> tuple[Cost, Cost]:
    """Transcribe the corpus; the costs to the first commit, and to the end."""
    with clock() as cost, started(checkout, ["transcribe", str(corpus), "--output", str(run)]) as process:
        commits = run / "commits"
        while not any(path.is_file() for path in commits.rglob("*")):
            if process.poll() is not None:
                sys.exit(f"sewd transcribe of {checkout} ended with code {process.returncode}, without a commit")
            time.sleep(POLL_S)
        first = cost()
        process.wait()
        reap()
        # Ray does not wait for workers that it ends: their seconds are lost.
        return first, cost()._replace(cpu_s=None)


def finished(checkout: Path, words: Sequence[str]) -> Cost:
    """The cost of a command, to its end."""
    with clock() as cost, started(checkout, words) as process:
        process.wait()
        reap()
        return cost()


@contextlib.contextmanager
def started(checkout: Path, words: Sequence[str]) -> Iterator[subprocess.Popen[bytes]]:
    """A command of a checkout."""
    environment = os.environ | {"PYTHONPATH": str(checkout)}
    process = subprocess.Popen(
        [sys.executable, "-c", "from jobs.main import main; main()", *words],
        cwd=checkout,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    yield process


def reap() -> None:
    """Wait for every process that is left below this one."""
    with contextlib.suppress(ChildProcessError):
        while True:
            os.wait()


@contextlib.contextmanager
def clock() -> Iterator[Callable[[], Cost]]:
    """What has been spent since then, by the processes below this one: those that ended, and those that are alive."""
    began, ended_before = time.perf_counter(), ended_cpu_s()

    def cost() -> Cost:
        wall_s = time.perf_counter() - began
        alive = list(alive_cpu_s())
        return Cost(wall_s, ended_cpu_s() - ended_before + sum(alive), len(alive))

    yield cost


def ended_cpu_s() -> float:
    """CPU seconds of the children that this process has waited for."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def alive_cpu_s() -> Iterator[float]:
    """CPU seconds of each process below this one, with those of the children that it has waited for."""
    parents: dict[int, int] = {}
    spent: dict[int, float] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = stat.read_text().rpartition(")")[2].split()
            pid = int(stat.parent.name)
            parents[pid], spent[pid] = int(fields[1]), sum(map(int, fields[11:15])) / TICKS
    for pid, seconds in spent.items():
        above = parents[pid]
        while above in parents and above != os.getpid():
            above = parents[above]
        if above == os.getpid():
            yield seconds


if __name__ == "__main__":
    typer.run(main)
