"""`sewd plan`: what a run would read, by INPUT. Decodes nothing, writes nothing, and needs no Ray."""

from __future__ import annotations

import json
from typing import Annotated, Final

import typer

from jobs.console import Exit, err, out, single, warn
from pipeline.config import FORMAT_HELP, RunConfig, make_config
from pipeline.corpus.survey import Found, InputSurvey, survey, total_of
from pipeline.settings import default_of

UNKNOWN: Final = "?"  # a number that only reading shards would show


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
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> int:
    """Say what is recognised in each INPUT, and what is left out. Reads manifests, decodes no audio, writes nothing.

    A number that only reading shards or Parquet files would show is `?`, and null in JSON.

    Exit codes: 0; 2 if a run would refuse an INPUT; 3 if rows are known to be errors.
    """
    config = make_config(
        inputs=tuple(inputs),
        output=".",  # nothing is written
        columns=tuple(column or ()),
        input_format=input_format,
        allow_any_path=allow_any_path,
        part_mib=part_mib,
    )
    surveys = survey(config.inputs, int(config.part_mib * 2**20), config.choice, config.allow_any_path)
    total = total_of(surveys)
    if as_json:
        values = {"inputs": [of_input.to_json() for of_input in surveys]}
        _print(json.dumps(values, indent=2, ensure_ascii=False))
    else:
        for of_input in surveys:
            _show(of_input)
        if len(surveys) > 1:
            _show_found(total)
    for of_input in surveys:
        if of_input.problem is not None:
            err.print(f"sewd: {of_input.problem}", markup=False)
    if any(of_input.problem is not None for of_input in surveys):
        return Exit.USAGE
    return Exit.DONE_WITH_ERRORS if total.errors else Exit.DONE


def _show(of_input: InputSurvey) -> None:
    _print(of_input.uri)
    for found in of_input.found:
        _show_found(found)
    warn(of_input.left_out)


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


def _print(line: str) -> None:
    out.print(line, markup=False, soft_wrap=True)


if __name__ == "__main__":
    single(plan)
