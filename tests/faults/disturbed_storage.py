"""Runs whose object storage throttles, resets, stalls, cuts and delays, and stops accepting the keys in the middle.

    python -m tests.faults.disturbed_storage [--storage rclone|moto] [--rate 0.2] [--seed 1] [--clips 60]

A corpus of files, a tar shard and a Parquet file, the model and the run are in a bucket behind
`tests.support.fault_proxy`. The run is first made without faults. Then a share of all requests meets a fault, and the
keys expire after half of the requests of the undisturbed run; the driver is started again with good keys until the run
is done. Prints the requests, faults, starts and seconds of both, and the rows lost, duplicated and changed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from pipeline.storage import objects
from tests.faults.stand_in import MARKS, SECONDS
from tests.faults.table import print_line
from tests.faults.world import END_S, ROOT, Difference, difference, write_corpus
from tests.support import checkpoints, corpora, s3
from tests.support.fault_proxy import EXPIRED, FaultProxy, fault_proxy, seeded, with_expiry
from tests.support.inputs import parquet, tar

MAX_STARTS = 5
STALL_S = 6.0
READ_TIMEOUT_S = 2.0  # of the client; s3fs itself has 15 s, and the runs would take minutes longer


@dataclass(frozen=True)
class Disturbed:
    """A run with faults, beside one without.

    Attributes:
        undisturbed_s: duration of the run without faults, seconds.
        seconds: duration of the run with faults, over all starts.
        requests: of the run with faults.
        faults: their numbers by kind.
        refusals: what the starts that failed said, the last line each.
        errors: error rows of the run with faults.
        difference: from the run without faults.
    """

    undisturbed_s: float
    seconds: float
    requests: int
    faults: Counter[str]
    refusals: list[str]
    errors: int
    difference: Difference


def disturbed_run(
    endpoint: str, model: Path, folder: Path, *, clips: int, rate: float, seed: int, stall_s: float = STALL_S
) -> Disturbed:
    """Make the two runs on the server at `endpoint`, which has a bucket `speech`."""
    base = "s3://speech"
    _write_inputs(folder, clips)
    for path in (path for path in folder.rglob("*") if path.is_file()):
        objects.put(f"{base}/in/{path.relative_to(folder)}", path.read_bytes())
    for path in model.iterdir():
        objects.put(f"{base}/model/{path.name}", path.read_bytes())
    with fault_proxy(endpoint) as proxy:
        undisturbed_s, code, said = _drive(f"{base}/undisturbed")
        if code != 0:
            raise RuntimeError(said)
        enough = proxy.requests // 2
    with fault_proxy(endpoint) as proxy:
        proxy.stall_s = stall_s
        faults = seeded(seed, rate)
        proxy.choose = with_expiry(faults, enough)
        seconds, refusals = _drive_until_done(f"{base}/disturbed", proxy, faults)
    with s3.use_endpoint(endpoint):
        return Disturbed(
            undisturbed_s,
            seconds,
            proxy.requests,
            proxy.faults,
            refusals,
            len(corpora.rows_of(f"{base}/disturbed", "errors")),
            difference(f"{base}/disturbed", f"{base}/undisturbed"),
        )


def _write_inputs(folder: Path, clips: int) -> None:
    audio = sorted(write_corpus(folder / "files", clips).iterdir())
    shard = [(f"shard-{path.name}", path.read_bytes()) for path in audio[: clips // 4]]
    rows = [{"audio": {"bytes": path.read_bytes(), "path": f"./row-{path.name}"}} for path in audio[: clips // 4]]
    tar(folder / "t.tar", *shard)
    parquet(folder / "p.parquet", rows, row_group=10)


def _drive_until_done(run: str, proxy: FaultProxy, faults) -> tuple[float, list[str]]:
    seconds, refusals = 0.0, []
    while len(refusals) < MAX_STARTS:
        took, code, said = _drive(run)
        seconds += took
        if code == 0:
            return seconds, refusals
        refusals.append(said)
        proxy.choose = faults  # the keys are renewed
    raise RuntimeError(f"not done after {MAX_STARTS} starts: {refusals}")


def _drive(run: str) -> tuple[float, int, str]:
    """Start a driver; return its seconds, its exit code and the last line of its standard error."""
    command = [
        *(sys.executable, "-m", "tests.faults.drive", "transcribe", "s3://speech/in", "--output", run),
        *("--model", "s3://speech/model", "--chunk-rows", "4", "--part-mib", "0.2", "--threads", "1"),
    ]
    with tempfile.TemporaryDirectory() as marks:
        client = {"config_kwargs": {"read_timeout": READ_TIMEOUT_S}}
        environment = os.environ | {SECONDS: "0", MARKS: marks, "FSSPEC_S3": json.dumps(client)}
        began = time.monotonic()
        done = subprocess.run(
            command, capture_output=True, text=True, cwd=ROOT, env=environment, check=False, timeout=END_S
        )
        return time.monotonic() - began, done.returncode, (done.stderr.strip().splitlines() or [""])[-1]


def main() -> int:
    """Make the runs and print how they differ; 1 if a row was lost, duplicated or changed."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.disturbed_storage")
    parser.add_argument("--storage", choices=("rclone", "moto"), default="rclone")
    parser.add_argument("--rate", type=float, default=0.2)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--clips", type=int, default=60)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        (base / "buckets").mkdir()
        model = checkpoints.write_ctc(base / "model", checkpoints.SMALL)
        server = s3.moto_server() if arguments.storage == "moto" else s3.rclone_server(base / "buckets")
        with server as endpoint:
            s3.make_bucket("speech")
            result = disturbed_run(
                endpoint, model, base / "in", clips=arguments.clips, rate=arguments.rate, seed=arguments.seed
            )
    d = result.difference
    print_line(f"without faults  {result.undisturbed_s:6.1f} s")
    print_line(
        f"with faults     {result.seconds:6.1f} s, {1 + len(result.refusals)} starts, {result.requests} requests"
    )
    print_line(", ".join(f"{count} {kind}" for kind, count in sorted(result.faults.items())))
    print_line("\n".join(result.refusals))
    print_line(f"rows lost {d.lost}, duplicated {d.duplicated}, changed {d.changed}; error rows {result.errors}")
    return 0 if d.none and not result.errors and result.faults[EXPIRED] else 1


if __name__ == "__main__":
    sys.exit(main())
