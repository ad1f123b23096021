"""`sewd transcribe`: a corpus and checkpoints in, a committed run out."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, cast

import typer
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

import pipeline
from jobs.console import Exit, err, out, single, warn
from jobs.decoding import Beam, Hotwords, HotwordWeight, Lm, LmWeight, Nbest, WordBonus
from jobs.kill_notice import kill_notice
from jobs.logs import log_to
from jobs.status import against_prediction, audio_of, describe_addition, how_to_resume, last_start
from jobs.stop_signals import Stop, stop_on_signals
from pipeline.cluster.local_ray import end_local_ray
from pipeline.config import DECODING, FORMAT_HELP, RedecodeConfig, RunConfig, make_config
from pipeline.corpus.plan import check_inputs
from pipeline.decoding.settings import HOTWORD_WEIGHT, LM_WEIGHT, WORD_BONUS
from pipeline.driver.stop import record_stop
from pipeline.errors import UsageError
from pipeline.report.formats import duration
from pipeline.runs.additions import find_named
from pipeline.runs.changes import CorpusChanges
from pipeline.runs.hub_commits import pin_commits
from pipeline.runs.record import Addition, check_prediction
from pipeline.runs.status import RunStatus
from pipeline.runs.totals import Totals
from pipeline.settings import default_of

# Panels of `--help`; an option without one is among those that most runs need.
AUDIO, EXISTING, FAILURES = "Audio and text", "Existing runs", "Failed rows"
RESOURCES, SIZES, LOGGING = "Resources", "Sizes of parts and chunks", "Logging"
GRACE_S: Final = 25.0  # schedulers and clouds give 30 s
PRINT_S: Final = 0.5  # for the last message: nobody may read what it is written to

Grace = Annotated[
    float,
    typer.Option(
        min=0,
        metavar="SECONDS",
        help="After SIGTERM, Ctrl-C or SIGHUP, finish the current chunks for at most so long, then end.",
        rich_help_panel=FAILURES,
    ),
]


def transcribe(
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT...",
            help="Audio files, directories, globs, .jsonl manifests, .tar shards, .parquet files, CSV and TSV tables, "
            "directories of Kaldi, manifests of lhotse; any fsspec URI.",
        ),
    ],
    output: Annotated[
        str, typer.Option("--output", "-o", metavar="RUN", help="Directory or prefix to write the run to.")
    ],
    model: Annotated[
        str,
        typer.Option(
            "--model",
            metavar="MODEL",
            help="SEW-D checkpoint with a CTC head: directory, URI, ORG/NAME[@REVISION] on the Hugging Face Hub, or "
            "`bundled`.",
        ),
    ] = default_of(RunConfig, "model"),
    classifier: Annotated[
        list[str] | None,
        typer.Option(
            "--classifier",
            metavar="[NAME=]MODEL",
            help="Checkpoint with a classification head, as --model. Can be repeated.",
        ),
    ] = None,
    add_classifier: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[NAME=]MODEL",
            help="Add the labels of one more classifier to the finished run at RUN; its transcripts stay as they are. "
            "Can be repeated.",
            rich_help_panel=EXISTING,
        ),
    ] = None,
    retry_errors: Annotated[
        str | None,
        typer.Option(
            metavar="CODE,...",
            help="Do rows of the finished run at RUN again that failed with one of these codes, or `all`; the other "
            "rows are not computed again.",
            rich_help_panel=EXISTING,
        ),
    ] = None,
    channels: Annotated[
        str, typer.Option(help="mix, split, or the number of one channel, from 0.", rich_help_panel=AUDIO)
    ] = default_of(RunConfig, "channels"),
    max_segment: Annotated[
        float,
        typer.Option(
            metavar="SECONDS",
            help="Cut longer audio into segments of an eighth to a quarter of this.",
            rich_help_panel=AUDIO,
        ),
    ] = default_of(RunConfig, "max_segment_s"),
    cut: Annotated[
        str,
        typer.Option(
            help="Where to cut: in the longest pause, or by voice activity (vad; needs the extra vad).",
            rich_help_panel=AUDIO,
        ),
    ] = default_of(RunConfig, "cut"),
    skip_silence: Annotated[
        bool,
        typer.Option(help="Do not compute long pauses; they are counted as skipped seconds.", rich_help_panel=AUDIO),
    ] = default_of(RunConfig, "skip_silence"),
    word_gap: Annotated[
        float,
        typer.Option(
            metavar="SECONDS",
            help="A word ends where no letter follows for this long; 0: only where the model ends it.",
            rich_help_panel=AUDIO,
        ),
    ] = default_of(RunConfig, "word_gap_s"),
    normalizer: Annotated[
        str,
        typer.Option(
            help="How both texts are normalised before errors are counted: basic, none, english, or rules:FILE.",
            rich_help_panel=AUDIO,
        ),
    ] = default_of(RunConfig, "normalizer"),
    keep_posteriors: Annotated[
        bool,
        typer.Option(
            "--keep-posteriors",
            help="Keep the probable tokens of each frame, about 1 MB an hour, for `sewd redecode`.",
            rich_help_panel=AUDIO,
        ),
    ] = False,
    lm: Lm = None,
    hotwords: Hotwords = None,
    beam: Beam = None,
    nbest: Nbest = 1,
    lm_weight: LmWeight = LM_WEIGHT,
    word_bonus: WordBonus = WORD_BONUS,
    hotword_weight: HotwordWeight = HOTWORD_WEIGHT,
    column: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=NAME",
            help="Column NAME of tables and manifests holds KEY: audio, id, text, speaker, label, offset or duration. "
            "Can be repeated.",
            rich_help_panel=AUDIO,
        ),
    ] = None,
    input_format: Annotated[
        str | None, typer.Option(metavar="KIND", help=FORMAT_HELP, rich_help_panel=AUDIO)
    ] = default_of(RunConfig, "input_format"),
    allow_any_path: Annotated[
        bool,
        typer.Option(
            "--allow-any-path",
            help="Read what a remote manifest names outside its own bucket or host, local files included.",
            rich_help_panel=FAILURES,
        ),
    ] = False,
    limit: Annotated[int | None, typer.Option(help="Transcribe only the first N utterances.")] = None,
    actors: Annotated[
        str | None,
        typer.Option(metavar="N or MIN:MAX", help="Number of recogniser actors; a range scales with the work."),
    ] = None,
    gpus_per_actor: Annotated[
        float | None, typer.Option(help="GPUs per actor; can be a fraction.", rich_help_panel=RESOURCES)
    ] = None,
    cpus_per_actor: Annotated[float | None, typer.Option(help="Ray CPUs per actor.", rich_help_panel=RESOURCES)] = None,
    threads: Annotated[int | None, typer.Option(help="Compute threads per actor.", rich_help_panel=RESOURCES)] = None,
    dtype: Annotated[
        str,
        typer.Option(
            help="Number format of the model: float32; int8 on CPUs; bfloat16 or float16 on GPUs; auto: bfloat16 on "
            "GPUs with instructions for it, else float32.",
            rich_help_panel=RESOURCES,
        ),
    ] = default_of(RunConfig, "dtype"),
    chunk_seconds: Annotated[
        float, typer.Option(help="Seconds of audio per chunk, the unit of commit.", rich_help_panel=SIZES)
    ] = default_of(RunConfig, "chunk_s"),
    chunk_rows: Annotated[int, typer.Option(help="Most rows per chunk.", rich_help_panel=SIZES)] = default_of(
        RunConfig, "chunk_rows"
    ),
    part_mib: Annotated[
        float, typer.Option(help="MiB of input per part, the unit of planning.", rich_help_panel=SIZES)
    ] = default_of(RunConfig, "part_mib"),
    max_error_rate: Annotated[
        float,
        typer.Option(
            help="Stop the run when more than this share of its rows failed, checked from 1,000 rows on.",
            rich_help_panel=FAILURES,
        ),
    ] = default_of(RunConfig, "max_error_rate"),
    deadline: Annotated[
        float,
        typer.Option(
            metavar="SECONDS",
            help="Kill a decoder or model process that makes no progress for this long; its file becomes an error row.",
            rich_help_panel=FAILURES,
        ),
    ] = default_of(RunConfig, "deadline_s"),
    strict: Annotated[
        bool, typer.Option("--strict", help="Stop the run at the first failed row.", rich_help_panel=FAILURES)
    ] = False,
    errors_ok: Annotated[
        bool,
        typer.Option(
            "--errors-ok", help="Exit with code 0 even if rows failed, or INPUT has grown.", rich_help_panel=FAILURES
        ),
    ] = False,
    new_run: Annotated[
        bool, typer.Option("--new-run", help="Fail if RUN already holds a run.", rich_help_panel=EXISTING)
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a run that RUN already holds.", rich_help_panel=EXISTING)
    ] = False,
    update: Annotated[
        bool,
        typer.Option(
            "--update",
            help="Transcribe what was added to INPUT or has changed since, and drop the rows of what is gone.",
            rich_help_panel=EXISTING,
        ),
    ] = False,
    grace: Grace = GRACE_S,
    address: Annotated[str, typer.Option(help="Ray cluster: local (start one here), auto, or HOST:PORT.")] = default_of(
        RunConfig, "address"
    ),
    prediction: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Output of `sewd plan --model MODEL --json`: the record and the report compare it with the run.",
            rich_help_panel=LOGGING,
        ),
    ] = None,
    log: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Append a JSON object for each chunk and its first failed rows to this file.",
            rich_help_panel=LOGGING,
        ),
    ] = None,
) -> int:
    """Transcribe a corpus into a run, or resume an interrupted run.

    A run that exists at RUN is resumed; --update makes it follow INPUT. Most runs need INPUT and --output, and --model
    for a model of your own.

    Exit codes: 0 done; 1 failed; 2 usage; 3 done, but rows failed, there are none, or INPUT has grown since; stopped by
    a signal: 143 SIGTERM, 130 Ctrl-C, 129 SIGHUP.
    """
    config = configuration(locals())
    check_inputs(config.inputs, config.input_format)
    predicted = None if prediction is None else read_prediction(prediction)
    log_to(log)
    pin_commits(config)  # what is downloaded shows its progress, which the bar below would disturb
    worked = has_more = has_changes = False
    with ProgressDisplay() as show:

        def on_progress(progress: pipeline.Progress) -> None:
            nonlocal worked
            worked = worked or progress.elapsed_s > 0
            show(progress)

        def on_changes(changes: CorpusChanges) -> None:
            nonlocal has_more, has_changes
            has_changes = True
            if update:
                err.print(f"update: {changes.numbers}", markup=False)
                return
            has_more = changes.has_more
            warn([changes.line])

        with stoppable(config, grace) as stop:
            run = pipeline.transcribe(config, on_progress, stop.requested, on_changes, predicted, show.step)
    addition = find_named(run, config.added_tasks)
    if update and not has_changes and not worked:
        err.print("update: nothing has changed")
    if worked and (summary := last_start((addition or run.record).attempts)):
        out.print(summary, markup=False, soft_wrap=True)
        if compared := against_prediction(run.record):
            out.print(compared, markup=False, soft_wrap=True)
    code = report(run, errors_ok, how_to_resume(config.existing), stop, addition)
    return Exit.DONE_WITH_ERRORS if code == Exit.DONE and has_more and not errors_ok else code


def read_prediction(path: Path) -> Mapping[str, Any]:
    """The prediction in what `sewd plan --json` has printed.

    Raises:
        UsageError: the file holds none.
    """
    try:
        predicted = json.loads(path.read_bytes())["prediction"]
        check_prediction(predicted)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        why = " ".join(f"{type(error).__name__}: {error}".split())
        raise UsageError(f"prediction: {path} is no output of `sewd plan --model MODEL --json`: {why}") from error
    return cast(Mapping[str, Any], predicted)


def configuration(options: Mapping[str, Any]) -> RunConfig:
    """The configuration that the options of `transcribe` say, by the names of its parameters.

    Raises:
        UsageError: a value is wrong, or two options exclude each other.
    """
    existing = {"new_run": "refuse", "overwrite": "overwrite", "update": "update"}
    chosen = [name for name in existing if options[name]]
    exclusive = [*chosen, *["add_classifier"] * bool(options["add_classifier"] and options["update"])]
    if len(exclusive) > 1:
        first, second = (f"--{name.replace('_', '-')}" for name in exclusive[:2])
        raise UsageError(f"{first} and {second} exclude each other: choose one")
    min_actors, max_actors = _range(options["actors"])
    channels = options["channels"]
    return make_config(
        inputs=tuple(options["inputs"]),
        output=options["output"],
        model=options["model"],
        classifiers=tuple(options["classifier"] or ()),
        add_classifiers=tuple(options["add_classifier"] or ()),
        retry_errors=tuple(options["retry_errors"].split(",")) if options["retry_errors"] else (),
        channels=int(channels) if channels.isdecimal() else channels,
        max_segment_s=options["max_segment"],
        cut=options["cut"],
        skip_silence=options["skip_silence"],
        word_gap_s=options["word_gap"],
        normalizer=options["normalizer"],
        keep_posteriors=options["keep_posteriors"],
        **{name: options[name] for name in DECODING},
        columns=tuple(options["column"] or ()),
        input_format=options["input_format"],
        allow_any_path=options["allow_any_path"],
        limit=options["limit"],
        part_mib=options["part_mib"],
        chunk_s=options["chunk_seconds"],
        chunk_rows=options["chunk_rows"],
        max_error_rate=options["max_error_rate"],
        strict=options["strict"],
        deadline_s=options["deadline"],
        existing=existing[chosen[0]] if chosen else "resume",
        address=options["address"],
        actors=max_actors,
        min_actors=min_actors,
        gpus_per_actor=options["gpus_per_actor"],
        cpus_per_actor=options["cpus_per_actor"],
        threads=options["threads"],
        dtype=options["dtype"],
    )


@contextlib.contextmanager
def stoppable(config: RunConfig | RedecodeConfig, grace_s: float) -> Iterator[Stop]:
    """Stop a run on signals within the grace period, and say how to resume it also if this process is killed."""
    head = "" if config.address == "local" else f", or lost the head of the cluster at {config.address}"
    resume_hint = how_to_resume(config.existing)
    with kill_notice(f"sewd: the driver was killed{head}. No committed work is lost: {resume_hint}") as ended:
        message = f"stopped before the chunks in the model were done: {resume_hint}"
        end = functools.partial(_end, config.output, ended, message)
        with stop_on_signals(grace_s, functools.partial(_announce, grace_s), end) as stop:
            yield stop


def _range(text: str | None) -> tuple[int | None, int | None]:
    """(minimum, maximum) of `N` or `MIN:MAX`; the minimum of a single number is None."""
    if text is None:
        return None, None
    match = re.fullmatch(r"(?:([0-9]+):)?([0-9]+)", text)
    if match is None:
        raise UsageError(f"actors: {text!r} is not a number or a range such as 2:8")
    return int(match[1]) if match[1] else None, int(match[2])


def _announce(grace_s: float, signum: int) -> None:
    at_once = " (press Ctrl-C again to stop at once)" if signum == signal.SIGINT else ""
    err.print(f"stopping after the current chunks, within {grace_s:g} s{at_once}")


def _end(output: str, ended: Callable[[], None], message: str, stop: Stop) -> None:
    """Record that the run was stopped, end every process of this driver, and this process."""
    try:
        record_stop(output)
        end_local_ray()
        ended()
        printing = threading.Thread(target=_print_and_flush, args=(message,), daemon=True)
        printing.start()
        printing.join(PRINT_S)
    finally:  # whatever fails: the grace period is over
        os._exit(stop.exit_code)


def _print_and_flush(message: str) -> None:
    err.print(message, markup=False)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()


class ProgressDisplay:
    """Shows progress: a bar on a terminal, a line for each 10 % elsewhere.

    Args:
        work: what is shown while it is done.
        start: what is shown before the first chunk is done.
    """

    def __init__(self, work: str = "transcribing", start: str = "loading the model") -> None:
        self._work, self._start = work, start
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
        self._task = self._bar.add_task("loading packages", total=1.0, done="")
        self._tenth = -1

    def __enter__(self) -> ProgressDisplay:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def step(self, what: str) -> None:
        """Show what is done before anything is transcribed."""
        self._bar.update(self._task, description=what)

    def __call__(self, progress: pipeline.Progress) -> None:
        """Show how far the run is."""
        audio = f"{duration(progress.totals.audio_s)} audio"
        errors = f", {progress.totals.errors} errors" if progress.totals.errors else ""
        speed = f", {progress.speed:.0f}x real time" if progress.elapsed_s else ""
        what = self._work if progress.elapsed_s else self._start
        self._bar.update(self._task, description=what, completed=progress.share, done=audio + speed + errors)
        tenth = int(progress.share * 10)
        if not err.is_terminal and tenth > self._tenth:
            self._tenth = tenth
            err.print(f"{progress.share:4.0%}  {audio}{speed}{errors}")


def report(run: pipeline.Run, errors_ok: bool, resume_hint: str, stop: Stop, addition: Addition | None = None) -> int:
    """Print what a run holds, and how to resume one that is not done; returns the exit code."""
    totals = run.record.totals or run.totals()
    codes = ", ".join(f"{code} {count}" for code, count in totals.error_codes.items())
    failed = f", {totals.errors} failed ({codes})" if totals.errors else ""
    out.print(f"{run.status}: {totals.utterances} transcripts of {audio_of(totals)}{failed}", markup=False)
    warn([*totals.warnings, *_corpus_warnings(run, totals)])
    if addition is not None:
        out.print(describe_addition(run, addition), markup=False, soft_wrap=True)
    out.print(f"run: {run.uri}", markup=False, soft_wrap=True)
    if RunStatus.STOPPED in (run.status, addition and addition.status):
        out.print(resume_hint)
        return stop.exit_code
    has_no_rows = not totals.utterances + totals.errors
    if (totals.errors and not errors_ok) or has_no_rows:
        return Exit.DONE_WITH_ERRORS
    return Exit.DONE


def _corpus_warnings(run: pipeline.Run, totals: Totals) -> list[str]:
    """What of the inputs has no row, and what nothing is compared with."""
    left_out = run.record.left_out
    warnings = list(left_out.lines)
    if left_out.labels_only and not run.record.classifier_digests:
        warnings.append(
            f"{left_out.labels_only:,} rows have a label and no text, and labels are compared with those of a "
            "classifier: add --add-classifier MODEL"
        )
    if run.status == RunStatus.DONE and not totals.utterances + totals.errors:
        warnings.append("the inputs hold no utterances: nothing was transcribed")
    return warnings


if __name__ == "__main__":
    single(transcribe)
