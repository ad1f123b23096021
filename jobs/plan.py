"""`sewd plan`: what a run would read, by INPUT, and with a model what it would take. Writes nothing."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from jobs.console import Exit, err, out, single, warn
from pipeline.audio.decode import AudioSettings
from pipeline.config import FORMAT_HELP, RunConfig, make_config
from pipeline.corpus.survey import Found, InputSurvey, survey, total_of
from pipeline.errors import UsageError
from pipeline.report.formats import duration, plural
from pipeline.settings import default_of

UNKNOWN: Final = "?"  # a number that only reading shards would show
MODEL, MACHINES = "Prediction of a run with a model", "Machines of the run"
GIB: Final = 2**30


def plan(
    inputs: Annotated[list[str], typer.Argument(metavar="INPUT...", help="As of sewd transcribe.")],
    column: Annotated[
        list[str] | None, typer.Option(metavar="KEY=NAME", help="As of sewd transcribe. Can be repeated.")
    ] = None,
    input_format: Annotated[str | None, typer.Option(metavar="KIND", help=FORMAT_HELP)] = default_of(
        RunConfig, "input_format"
    ),
    allow_any_path: Annotated[bool, typer.Option("--allow-any-path", help="As of sewd transcribe.")] = default_of(
        RunConfig, "allow_any_path"
    ),
    part_mib: Annotated[float, typer.Option(help="MiB of input per part.")] = default_of(RunConfig, "part_mib"),
    model: Annotated[
        str | None,
        typer.Option("--model", metavar="MODEL", help="Predict a run with this model.", rich_help_panel=MODEL),
    ] = None,
    classifier: Annotated[
        list[str] | None,
        typer.Option(metavar="[NAME=]MODEL", help="And with this classifier. Can be repeated.", rich_help_panel=MODEL),
    ] = None,
    channels: Annotated[str, typer.Option(help="As of sewd transcribe.", rich_help_panel=MODEL)] = default_of(
        RunConfig, "channels"
    ),
    max_segment: Annotated[
        float, typer.Option(metavar="SECONDS", help="As of sewd transcribe.", rich_help_panel=MODEL)
    ] = default_of(RunConfig, "max_segment_s"),
    dtype: Annotated[str, typer.Option(help="As of sewd transcribe.", rich_help_panel=MODEL)] = default_of(
        RunConfig, "dtype"
    ),
    actors: Annotated[int | None, typer.Option(help="Number of recogniser actors.", rich_help_panel=MACHINES)] = None,
    gpus_per_actor: Annotated[float | None, typer.Option(help="GPUs per actor.", rich_help_panel=MACHINES)] = None,
    cpus_per_actor: Annotated[float | None, typer.Option(help="Ray CPUs per actor.", rich_help_panel=MACHINES)] = None,
    threads: Annotated[int | None, typer.Option(help="Compute threads per actor.", rich_help_panel=MACHINES)] = None,
    cluster: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="cluster.yaml: predict for all its workers, not this machine.",
            rich_help_panel=MACHINES,
        ),
    ] = None,
    speed: Annotated[
        float | None,
        typer.Option(
            min=0.001,
            help="Seconds of audio per second of one recogniser, where it cannot be timed here.",
            rich_help_panel=MACHINES,
        ),
    ] = None,
    cost_per_hour: Annotated[
        float | None, typer.Option(min=0, help="Price of all machines together, per hour.", rich_help_panel=MACHINES)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> int:
    """Say what each INPUT holds, what is left out, and what cannot be read; with --model, what a run would take.

    Reads tables, and headers of audio: at most 2,000 of a format, with the sampling error. With --model, it starts Ray,
    times the model on clips of the lengths that were found, and decodes some of the files for a few seconds. It writes
    nothing. A number that only reading shards or Parquet files would show is `?`, and null in JSON.

    Exit codes: 0; 2 if a run would refuse an INPUT; 3 if rows are known to be errors.
    """
    age_s = _age_s()
    config = make_config(
        inputs=tuple(inputs),
        output=".",  # nothing is written there, and no run is read
        existing="overwrite",
        columns=tuple(column or ()),
        input_format=input_format,
        allow_any_path=allow_any_path,
        part_mib=part_mib,
        classifiers=tuple(classifier or ()),
        channels=int(channels) if channels.isdecimal() else channels,
        max_segment_s=max_segment,
        dtype=dtype,
        actors=actors,
        gpus_per_actor=gpus_per_actor,
        cpus_per_actor=cpus_per_actor,
        threads=threads,
        **({} if model is None else {"model": model}),
    )
    if model is None and (classifier or cluster or speed or cost_per_hour is not None):
        raise UsageError("model: a run is predicted with --model MODEL, for example --model bundled")
    started = time.perf_counter()
    surveys = survey(config.inputs, int(config.part_mib * 2**20), config.choice, config.allow_any_path)
    for of_input in surveys:
        if of_input.problem is not None:
            err.print(f"sewd: {of_input.problem}", markup=False)
    refused = any(of_input.problem is not None for of_input in surveys)
    values: dict[str, Any] = {"inputs": [of_input.to_json() for of_input in surveys]}
    if not as_json:
        _show_inputs(surveys)
    from pipeline.prediction.recordings import examine, row_settings  # noqa: PLC0415 - takes a while

    settings = row_settings(AudioSettings(channels=config.channels, max_segment_s=config.max_segment_s))
    if model is not None:
        from pipeline.prediction.predict import Machines, predict  # noqa: PLC0415 - as above
        from pipeline.runs.hub_commits import pin_commits  # noqa: PLC0415 - as above
        from pipeline.stages.models import load_model_info  # noqa: PLC0415 - as above

        config, _ = pin_commits(config)
        models = load_model_info(config)
        prepare_s = age_s + time.perf_counter() - started
        settings = row_settings(models.audio, models.min_samples)
    parts = [part for of_input in surveys for found in of_input.found for part in found.planned]
    recordings = examine(parts, settings, allow_any_path=config.allow_any_path, timed=model is not None)
    values["recordings"] = recordings.to_json()
    if not as_json:
        _show_recordings(values["recordings"])
    if recordings.unstated:
        warn([f"{recordings.unstated:,} of these state no length: their hours and their work are not counted"])
    if model is not None and not refused and not recordings.work.read_s:
        warn(["no recording that was tried has a length and could be decoded: there is nothing to predict from"])
    elif model is not None and not refused:
        machines = Machines(cluster, speed, cost_per_hour)
        predicted = predict(config, models, machines, recordings, len(parts), prepare_s)
        values["prediction"] = predicted.to_json()
        if not as_json:
            show_prediction(values["prediction"], model, cluster)
    if as_json:
        _print(json.dumps(values, indent=2, ensure_ascii=False))
    if refused:
        return Exit.USAGE
    return Exit.DONE_WITH_ERRORS if total_of(surveys).errors or recordings.failed else Exit.DONE


def _age_s() -> float:
    """Seconds since this process was started; 0 where the system does not tell."""
    try:
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError):
        return 0.0


def _show_inputs(surveys: Sequence[InputSurvey]) -> None:
    for of_input in surveys:
        _print(of_input.uri)
        for found in of_input.found:
            _show_found(found)
        warn(of_input.left_out)
    if len(surveys) > 1:
        _show_found(total_of(surveys))


def _show_found(found: Found) -> None:
    _print(f"  {found.format}: {found.objects:,} objects in {found.parts:,} parts, {found.bytes / 2**20:,.1f} MiB")
    utterances, references, labels = (
        UNKNOWN if number is None else f"{number:,}" for number in (found.utterances, found.references, found.labels)
    )
    _print(f"    utterances {utterances}, with a reference {references}, with a label only {labels}")
    if found.suffixes:
        _print("    audio: " + ", ".join(_kind(found, name) for name, _ in found.suffixes.most_common()))
    if found.errors:
        codes = ", ".join(f"{code} {number:,}" for code, number in found.errors.most_common())
        _print(f"    rows that will be errors: {codes}")


def _kind(found: Found, name: str) -> str:
    size = f" ({found.suffix_bytes[name] / 2**20:,.1f} MiB)" if name in found.suffix_bytes else ""
    return f"{name or 'no suffix'} {found.suffixes[name]:,}{size}"


def _show_recordings(found: Mapping[str, Any]) -> None:
    if not found["headers_read"]:
        return
    is_sample = found["headers_read"] < found["recordings"]
    error = f" ± {found['hours_error']:.2g} h (95 %, by sampling)" if is_sample else ""
    _print(f"headers: {found['headers_read']:,} of {found['recordings']:,} recordings; {found['hours']:,.2f} h{error}")
    rates = ", ".join(f"{rate:,} Hz {number:,}" for rate, number in sorted(found["rates"].items()))
    channels = ", ".join(f"{count} channel{'s' * (count > 1)} {n:,}" for count, n in sorted(found["channels"].items()))
    _print(f"  {rates or 'no rate'}; {channels or 'no channels'}")
    if found["failed"]:
        codes = ", ".join(f"{code} {number:,}" for code, number in found["failed"].items())
        _print(f"  cannot be read: {found['failed_share']:.2%} ({codes})")
        for example in found["examples"]:
            _print(f"    {example['uri']}: {example['code']}: {example['message']}")


def show_prediction(found: Mapping[str, Any], model: str, cluster: Path | None) -> None:
    """Print a prediction, as its JSON has it."""
    where = "this machine" if cluster is None else f"{plural(found['nodes'], 'node')} of {cluster}"
    recognizers, threads = plural(found["recognizers"], "recogniser"), plural(found["threads"], "thread")
    _print(f"prediction for {model} on {where}: {recognizers}, {threads} each")
    _print(
        f"  time {duration(found['time_s'])}, of which {duration(found['start_s'])} to start and end; "
        f"model {duration(found['model_s'])}, decoding {duration(found['decode_cpu_s'])} of CPU time"
    )
    _print(
        f"  {found['actor_hours']:,.2f} actor hours; {found['memory_bytes'] / GIB:,.1f} GiB of memory, "
        f"{found['store_bytes'] / GIB:,.1f} GiB of object store"
    )
    speeds = ", ".join(f"{length} s {speed:,.0f}x" for length, speed in found["speeds"].items())
    _print(f"  timed here ({found['engine']}), by the length of clips: {speeds} real time")
    if found["cost"] is not None:
        _print(f"  cost {found['cost']:,.2f}")


def _print(line: str) -> None:
    out.print(line, markup=False, soft_wrap=True)


if __name__ == "__main__":
    single(plan)
