"""Flip bits of audio files of every container and decode them: `python -m tests.support.fuzz --files 20000`.

Each file must give audio or an `AudioError`. A child process decodes them; if it dies or exceeds the deadline, the file
that it was at is reported, and another child goes on behind it.
"""

from __future__ import annotations

import argparse
import collections
import json
import random
import resource
import signal
import subprocess
import sys
import time

from pipeline.audio.decode import AudioSettings, read_segments
from pipeline.errors import AudioError
from tests.support.containers import kinds, written
from tests.support.mutations import mutate

DEADLINE_S = 60


def damaged(seed: int) -> tuple[str, bytes]:
    """A name and a file with some flipped bits, at times also cut, joined or tagged; the same for the same seed."""
    rng = random.Random(seed)
    if rng.random() < 0.3:
        mutated = mutate(rng)
        name, data = mutated.name, bytearray(mutated.data)
    else:
        name = rng.choice(kinds()).name
        data = bytearray(written(name))
    count = rng.choice((1, 1, 2, 5, 20, 200))
    stop = rng.choice((len(data), len(data), min(len(data), 200)))  # headers are short
    for _ in range(count if stop else 0):
        data[rng.randrange(stop)] ^= 1 << rng.randrange(8)
    if rng.random() < 0.1:
        data = data[: rng.randrange(len(data) + 1)]
    return name, bytes(data)


def outcome(data: bytes) -> str:
    """`audio`, or the code of the error; an error that a decoder raised in another type has its name too."""
    try:
        for _ in read_segments(data, AudioSettings(max_duration_s=3600)):
            pass
    except AudioError as error:
        _, raised, rest = error.message.partition("the decoder raised ")
        return f"{error.code.value} ({rest.partition(':')[0]})" if raised else error.code.value
    return "audio"


def _decode(start: int, stop: int) -> None:
    """Decode the files [start, stop), and print a line before and after each."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # ends the process
    for seed in range(start, stop):
        name, data = damaged(seed)
        print(json.dumps({"seed": seed, "name": name}), flush=True)  # noqa: T201
        signal.alarm(DEADLINE_S)
        began = time.perf_counter()
        found = outcome(data)
        signal.alarm(0)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps({"outcome": found, "s": time.perf_counter() - began, "peak_mib": peak}), flush=True)  # noqa: T201


def fuzz(start: int, stop: int) -> tuple[collections.Counter[str], list[str], float, float]:
    """Decode the files [start, stop) in child processes.

    Returns:
        Outcomes with their numbers; what killed, hung or failed a child; the slowest file, in seconds; the highest
        memory of a child, in MiB.
    """
    outcomes, failures, slowest, peak_mib = collections.Counter[str](), list[str](), 0.0, 0.0
    while start < stop:
        command = [sys.executable, "-m", "tests.support.fuzz", "--child", str(start), str(stop)]
        child = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        lines = [json.loads(line) for line in child.stdout.splitlines() if line.startswith("{")]
        for line in lines:
            if "outcome" in line:
                outcomes[line["outcome"]] += 1
                slowest, peak_mib = max(slowest, line["s"]), max(peak_mib, line["peak_mib"])
        if child.returncode == 0:
            break
        last = next((line for line in reversed(lines) if "seed" in line), {"seed": start, "name": "start"})
        failures.append(f"seed {last['seed']}, {last['name']}: exit {child.returncode}: {child.stderr[-300:]}")
        start = last["seed"] + 1
    return outcomes, failures, slowest, peak_mib


def main() -> int:
    """Run from the command line; exit code 1 if a file killed, hung or failed a child."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--child", type=int, nargs=2)
    arguments = parser.parse_args()
    if arguments.child:
        _decode(*arguments.child)
        return 0
    outcomes, failures, slowest, peak_mib = fuzz(arguments.seed, arguments.seed + arguments.files)
    for name, count in outcomes.most_common():
        print(f"{count:7,} {name}")  # noqa: T201
    print(f"slowest file {slowest:.2f} s, peak memory {peak_mib:.0f} MiB, {len(failures)} failures")  # noqa: T201
    for failure in failures:
        print(failure)  # noqa: T201
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
