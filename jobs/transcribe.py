"""`sewd transcribe`: a corpus and checkpoints in, a committed run out."""

from __future__ import annotations

import re
import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

import pipeline
from jobs.console import Exit, duration, err, out, single, warn
from jobs.last_words import last_words
from jobs.logs import log_to
from jobs.status import how_to_go_on, last_start
from pipeline.config import make_config
from pipeline.errors import UsageError
from pipeline.runs.run import Totals
from sewd_model.files import BUNDLED


def transcribe(
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT...",
            help="Audio files, directories, globs, .jsonl manifests, .tar shards, .parquet files; any fsspec URI.",
        ),
    ],
    output: Annotated[str, typer.Option("--output", "-o", metavar="RUN", help="Directory or prefix of the run.")],
    model: Annotated[
        str, typer.Option("--model", metavar="DIR", help="SEW-D checkpoint with a CTC head; or the bundled one.")
    ] = BUNDLED,
    classifier: Annotated[
        list[str] | None,
        typer.Option("--classifier", metavar="[NAME=]DIR", help="Checkpoint with a classification head; repeat."),
    ] = None,
    channels: Annotated[str, typer.Option(help="mix, split, or the number of one channel, from 0.")] = "mix",
    max_segment: Annotated[float, typer.Option(metavar="SECONDS", help="Longer audio is cut, at its quietest.")] = 60.0,
    normalizer: Annotated[str, typer.Option(help="Applied to both texts before errors are counted.")] = "basic",
    limit: Annotated[int | None, typer.Option(help="Only the first N utterances.")] = None,
    actors: Annotated[
        str | None, typer.Option(metavar="N or MIN:MAX", help="Recogniser actors; a range follows the work there is.")
    ] = None,
    gpus_per_actor: Annotated[float | None, typer.Option(help="GPUs an actor holds, also a fraction of one.")] = None,
    cpus_per_actor: Annotated[float | None, typer.Option(help="Ray CPUs an actor holds.")] = None,
    threads: Annotated[int | None, typer.Option(help="Threads an actor computes with.")] = None,
    dtype: Annotated[
        str, typer.Option(help="In what the model computes: float32; int8 on CPUs; bfloat16, float16 on GPUs.")
    ] = "float32",
    chunk_seconds: Annotated[float, typer.Option(help="Audio a chunk, the unit of commit.")] = 1200.0,
    chunk_rows: Annotated[int, typer.Option(help="Rows a chunk, at most.")] = 2000,
    part_mib: Annotated[float, typer.Option(help="Input a part, the unit of planning, in MiB.")] = 32.0,
    max_error_rate: Annotated[
        float, typer.Option(help="Stop above this share of failed rows, from 1,000 rows on.")
    ] = 0.05,
    deadline: Annotated[
        float, typer.Option(metavar="SECONDS", help="What gives nothing for so long hangs: an error row.")
    ] = 600.0,
    strict: Annotated[bool, typer.Option("--strict", help="Stop at the first row that fails.")] = False,
    errors_ok: Annotated[bool, typer.Option("--errors-ok", help="Exit with 0 also where rows failed.")] = False,
    new_run: Annotated[bool, typer.Option("--new-run", help="Refuse to go on with a run that is there.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Remove a run that is there, and begin anew.")] = False,
    address: Annotated[str, typer.Option(help="Ray to use: local, auto, or HOST:PORT.")] = "local",
    log: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Append a JSON object for each chunk and its first failed rows.")
    ] = None,
) -> int:
    """Transcribe a corpus into a run, or go on with one that was interrupted.

    Exit codes: 0 done, 1 failed, 2 usage, 3 done with failed rows, 130 stopped.
    """
    if new_run and overwrite:
        raise UsageError("--new-run refuses a run that is there, and --overwrite removes it: choose one of them")
    fewest, most = _range(actors)
    config = make_config(
        inputs=tuple(inputs),
        output=output,
        model=model,
        classifiers=tuple(classifier or ()),
        channels=int(channels) if channels.isdecimal() else channels,
        max_segment_s=max_segment,
        normalizer=normalizer,
        limit=limit,
        part_mib=part_mib,
        chunk_s=chunk_seconds,
        chunk_rows=chunk_rows,
        max_error_rate=max_error_rate,
        strict=strict,
        deadline_s=deadline,
        existing="refuse" if new_run else "overwrite" if overwrite else "resume",
        address=address,
        actors=most,
        min_actors=fewest,
        gpus_per_actor=gpus_per_actor,
        cpus_per_actor=cpus_per_actor,
        threads=threads,
        dtype=dtype,
    )
    log_to(log)
    stop = threading.Event()
    head = "" if address == "local" else f", or lost the head of the cluster at {address}"
    go_on = how_to_go_on(config.existing)
    killed = f"sewd: the driver was killed{head}. Nothing that is committed is lost: {go_on}"
    worked = False
    with last_words(killed), _progress() as show:

        def on_progress(progress: pipeline.Progress) -> None:
            nonlocal worked
            worked = worked or progress.elapsed_s > 0
            _stop_on_signal(stop)  # again: Ray takes SIGTERM for itself when it starts, and ends the process
            show(progress)

        _stop_on_signal(stop)
        run = pipeline.transcribe(config, on_progress, stop)
    if worked and (told := last_start(run)):
        out.print(told, markup=False, soft_wrap=True)
    return _report(run, errors_ok, go_on)


def _range(text: str | None) -> tuple[int | None, int | None]:
    """`N` or `MIN:MAX`: fewest, None where there are always as many, and most."""
    if text is None:
        return None, None
    match = re.fullmatch(r"(?:([0-9]+):)?([0-9]+)", text)
    if match is None:
        raise UsageError(f"actors: {text!r} is neither a number nor a range, as 2:8")
    return int(match[1]) if match[1] else None, int(match[2])


def _stop_on_signal(stop: threading.Event) -> None:
    """First Ctrl-C or SIGTERM: finish the chunk and stop. A second Ctrl-C ends the program; commits stay."""

    def handle(signum: int, _frame: FrameType | None) -> None:
        if stop.is_set() and signum == signal.SIGINT:
            raise KeyboardInterrupt
        err.print("stopping: chunks that are under way are finished first (Ctrl-C again to end at once)")
        stop.set()

    signal.signal(signal.SIGINT, handle)
    signal.signal(signal.SIGTERM, handle)


class _progress:  # noqa: N801 - used as a function: a context that gives one
    """Shows progress: a bar on a terminal, a line each 10 % elsewhere."""

    def __init__(self) -> None:
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            TaskProgressColumn(),
            TextColumn("{task.fields[done]}"),
            TimeElapsedColumn(),
            TextColumn("eta"),
            TimeRemainingColumn(elapsed_when_finished=False),
            console=err,
            disable=not err.is_terminal,
        )
        self._task = self._bar.add_task("starting Ray", total=1.0, done="")
        self._tenth = -1

    def __enter__(self) -> _progress:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def __call__(self, progress: pipeline.Progress) -> None:
        hours = f"{progress.totals.audio_s / 3600:.2f} h audio"
        errors = f", {progress.totals.errors} errors" if progress.totals.errors else ""
        speed = f", {progress.speed:.0f}x real time" if progress.elapsed_s else ""
        self._bar.update(self._task, description="transcribing", completed=progress.share, done=hours + speed + errors)
        tenth = int(progress.share * 10)
        if not err.is_terminal and tenth > self._tenth:
            self._tenth = tenth
            err.print(f"{progress.share:4.0%}  {hours}{speed}{errors}")


def _report(run: pipeline.Run, errors_ok: bool, go_on: str) -> int:
    totals = Totals(**run.record["totals"])
    codes = ", ".join(f"{code} {count}" for code, count in totals.error_codes.items())
    failed = f", {totals.errors} failed ({codes})" if totals.errors else ""
    out.print(
        f"{run.status}: {totals.utterances} transcripts of {duration(totals.audio_s)} audio{failed}", markup=False
    )
    warn(totals.warnings)
    out.print(f"run: {run.uri}", markup=False, soft_wrap=True)
    if run.status == "stopped":
        out.print(go_on)
        return Exit.STOPPED
    if totals.errors and not errors_ok:
        return Exit.DONE_WITH_ERRORS
    return Exit.DONE


if __name__ == "__main__":
    single(transcribe)
