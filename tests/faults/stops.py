"""Stop a run from outside at seeded moments: exit code, seconds to the end, processes left, and the resumed run.

    python -m tests.faults.stops [--moments 30] [--seed 1] [--first 0] [--count 30] [--grace 25]

Each moment has a signal (SIGTERM, SIGINT, SIGHUP), a target, and a time after the start of the driver. The targets:

* `driver`: the process alone;
* `group`: its process group, as shells and `timeout` do;
* `tree`: the driver and every process below it, as systemd and schedulers with cgroups do;
* `node`: on a cluster, the processes of one of its nodes; the driver is not stopped, and the run is done.

The driver has the stand-in stages of `stand_in`. A line for each moment is printed, and 1 returned if any is wrong.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

import pipeline
from pipeline.errors import UsageError
from tests.faults.stand_in import MARKS, SECONDS
from tests.faults.table import print_line
from tests.faults.world import END_S, ROOT, difference, raylet_pid, wait_for_commits, world, write_corpus
from tests.support import checkpoints

CLIPS, CHUNK_S = 24, 0.3
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
TARGETS = ("driver", "group", "tree", "node")
TIMES_S = (1.0, 30.0)  # when a signal comes, after the start of the driver, in seconds
OWN = "SEWD_STOPS"  # in the environment of all processes of a driver


@dataclass(frozen=True)
class Moment:
    """A signal, where it goes, and when."""

    signum: signal.Signals
    target: str
    after_s: float


@dataclass(frozen=True)
class Outcome:
    """What came of a moment.

    Attributes:
        code: exit code of the driver.
        seconds: from the signal to the end of the driver.
        left: processes that were left a second later.
        status: status of the run; `none` if there was no run yet.
        same: the resumed run has the rows of the undisturbed one.
    """

    code: int
    seconds: float
    left: int
    status: str
    same: bool


def moments(number: int, seed: int) -> list[Moment]:
    """The moments, from a seed: each signal and target equally often."""
    choose = random.Random(seed)
    kinds = [(SIGNALS[i % 3], TARGETS[(i // 3) % 4]) for i in range(number)]
    return [Moment(signum, target, round(choose.uniform(*TIMES_S), 1)) for signum, target in kinds]


def is_right(moment: Moment, outcome: Outcome, grace_s: float) -> bool:
    """Whether a moment ended well. A signal that comes when all is done does not count."""
    if moment.target == "node":
        return outcome.code == 0 and outcome.same
    stopped = outcome.code == 128 + moment.signum and outcome.status in ("stopped", "none")
    done = outcome.code == 0 and outcome.status == "done"
    return (stopped or done) and outcome.seconds <= grace_s and outcome.left == 0 and outcome.same


def command(corpus: Path, output: Path, model: Path, grace_s: float) -> list[str]:
    """The command line of a driver with a Ray of its own."""
    return [
        *(sys.executable, "-m", "tests.faults.drive", "transcribe", str(corpus), "--output", str(output)),
        *("--model", str(model), "--chunk-rows", "2", "--part-mib", "0.15", "--grace", str(grace_s)),
    ]


def processes_of(mark: str) -> list[psutil.Process]:
    """The running processes that inherited a mark in their environment."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get(OWN) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def send(moment: Moment, process: subprocess.Popen) -> None:
    """Send the signal to its target."""
    if moment.target == "driver":
        process.send_signal(moment.signum)
    elif moment.target == "group":
        os.killpg(process.pid, moment.signum)
    else:
        driver = psutil.Process(process.pid)
        for each in [driver, *driver.children(recursive=True)]:
            with contextlib.suppress(psutil.Error):
                each.send_signal(moment.signum)


def stop_local(moment: Moment, start: list[str], output: Path, log: Path) -> tuple[int, float, int, str]:
    """Start a driver, send the signal; returns exit code, seconds to the end, processes left, and the run's status."""
    mark = output.name
    # What a shell starts in the background may ignore SIGINT and SIGHUP, and so would the driver.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    with log.open("ab") as file:
        process = subprocess.Popen(
            start, stdout=file, stderr=file, cwd=ROOT, start_new_session=True, env=os.environ | {OWN: mark}
        )
    time.sleep(moment.after_s)
    sent = time.monotonic()
    if process.poll() is None:
        send(moment, process)
    code = process.wait(END_S)
    seconds = time.monotonic() - sent
    time.sleep(1)
    try:
        status = str(pipeline.Run.open(output).status)
    except UsageError:
        status = "none"
    # A process that the signal ended before Python could follow it ends by the signal; shells report it alike.
    return (128 - code if code < 0 else code), seconds, len(processes_of(mark)), status


def stop_node(moment: Moment, corpus: Path, output: Path, model: Path, log: Path) -> tuple[int, float]:
    """Send the signal to every process of a node; returns the exit code of the driver, and the seconds to its end."""
    with world(model, CHUNK_S) as cluster:
        process = cluster.drive(str(corpus), str(output), log)
        wait_for_commits(str(output), 2, process)
        node = psutil.Process(raylet_pid(cluster.nodes[0]))
        sent = time.monotonic()
        for each in [*node.children(recursive=True), node]:
            with contextlib.suppress(psutil.Error):
                each.send_signal(moment.signum)
        return process.wait(END_S), time.monotonic() - sent


def main() -> int:
    """Print a line for each moment.

    Returns:
        1 if a moment did not end well, else 0.
    """
    parser = argparse.ArgumentParser(prog="python -m tests.faults.stops")
    parser.add_argument("--moments", type=int, default=30)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", type=int, default=0, help="begin at this moment")
    parser.add_argument("--count", type=int, default=None, help="so many of them")
    parser.add_argument("--grace", type=float, default=25.0)
    parser.add_argument("--target", choices=TARGETS, help="only this target")
    options = parser.parse_args()
    os.environ["PYTHONPATH"] = str(ROOT)
    os.chdir(ROOT)
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        (base / "marks").mkdir()
        os.environ |= {MARKS: str(base / "marks"), SECONDS: str(CHUNK_S), "RAY_USAGE_STATS_ENABLED": "0"}
        model = checkpoints.write_ctc(base / "model", checkpoints.SMALL)
        corpus = write_corpus(base / "in", CLIPS)
        started = time.monotonic()
        subprocess.run(command(corpus, base / "undisturbed", model, 25), check=True, capture_output=True, cwd=ROOT)
        print_line(f"undisturbed: {time.monotonic() - started:.0f} s")
        wrong = 0
        chosen = list(enumerate(moments(options.moments, options.seed)))[options.first :][: options.count]
        for number, moment in chosen:
            if options.target in (None, moment.target):
                wrong += not run_moment(number, moment, base, corpus, model, options.grace)
    return 1 if wrong else 0


def run_moment(number: int, moment: Moment, base: Path, corpus: Path, model: Path, grace_s: float) -> bool:
    """Stop a run at a moment, resume it, print a line; returns whether it ended well."""
    output, log = base / f"run-{number}", base / f"log-{number}"
    start = command(corpus, output, model, grace_s)
    if moment.target == "node":
        code, seconds = stop_node(moment, corpus, output, model, log)
        left, status = 0, str(pipeline.Run.open(output).status)
    else:
        code, seconds, left, status = stop_local(moment, start, output, log)
        if status != "done":
            subprocess.run(start, check=True, capture_output=True, cwd=ROOT)
    same = difference(str(output), str(base / "undisturbed")).none
    outcome = Outcome(code, seconds, left, status, same)
    right = is_right(moment, outcome, grace_s)
    print_line(
        f"{number:2} {moment.signum.name:8} {moment.target:7} at {moment.after_s:4.1f} s: exit {code:3} "
        f"in {seconds:4.1f} s, {status}, {left} left, rows {'same' if same else 'DIFFER'}{'' if right else '  WRONG'}"
    )
    if not right:
        print_line(log.read_text())
    return right


if __name__ == "__main__":
    sys.exit(main())
