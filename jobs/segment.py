"""`sewd segment`: long recordings and their texts become short utterances for training."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from jobs.console import Exit, out, single
from jobs.kept_posteriors import DEFAULT_MODEL, Model, Source, Text, Workers, run_of, warn_of_unknown
from pipeline.alignment.align import alignments
from pipeline.alignment.segment import SegmentSettings, segments
from pipeline.corpus.naming import stem
from pipeline.errors import UsageError
from pipeline.report.formats import duration, plural
from pipeline.runs.status import RunStatus
from pipeline.settings import checked, default_of
from pipeline.storage import objects, uris


def segment(
    source: Source,
    output: Annotated[
        str,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="A .jsonl manifest. What is left out is in FILE's name with .left-out.jsonl, with the reason.",
        ),
    ],
    text: Text = None,
    model: Model = DEFAULT_MODEL,
    workers: Workers = 1,
    min_s: Annotated[float, typer.Option("--min", help="Shortest utterance, seconds.")] = default_of(
        SegmentSettings, "min_s"
    ),
    max_s: Annotated[float, typer.Option("--max", help="Longest utterance, seconds.")] = default_of(
        SegmentSettings, "max_s"
    ),
    min_pause: Annotated[float, typer.Option(help="Cut in pauses of at least this many seconds.")] = default_of(
        SegmentSettings, "min_pause_s"
    ),
    min_score: Annotated[
        float, typer.Option(help="Leave out utterances whose text fits less well, 0 to 1; see `sewd align`.")
    ] = default_of(SegmentSettings, "min_score"),
) -> int:
    """Cut recordings and their texts into utterances, as a manifest that `sewd finetune` and `transcribe` read.

    Exit codes: 0 done, 1 failed, 2 usage, 3 done, but no utterance is left.
    """
    if not output.lower().endswith(".jsonl"):
        raise UsageError(f"output: {output}: its name must end in .jsonl")
    values = {"min_s": min_s, "max_s": max_s, "min_pause_s": min_pause, "min_score": min_score}
    settings = checked(SegmentSettings, values, {"min_s": "min", "max_s": "max", "min_pause_s": "min-pause"})
    run = run_of(source, output, model)
    kept: list[str] = []
    left_out: list[str] = []
    seconds: Counter[str | None] = Counter()
    numbers: Counter[str | None] = Counter()
    channels = run.record.config.get("channels", "mix")
    for row in _rows(alignments(run, text, on_unknown=warn_of_unknown, workers=workers), settings, channels):
        why = row.get("left_out")
        (kept if why is None else left_out).append(json.dumps(row, ensure_ascii=False))
        numbers[why] += 1
        seconds[why] += row.get("duration", 0.0)
    if not numbers:
        raise UsageError("segment: no recording has a text: give them with --text")
    others = f"{stem(output)}.left-out.jsonl"
    for path, lines in ((output, kept), (others, left_out)):
        objects.put(uris.absolute(path), "".join(f"{line}\n" for line in lines).encode())
    if run.status != RunStatus.DONE:
        out.print(f"the run is not done ({run.status}): these are its rows so far", style="yellow")
    out.print(
        f"{plural(numbers[None], 'utterance')}, {duration(seconds[None])}: {output}", markup=False, soft_wrap=True
    )
    for why, number in numbers.most_common():
        if why is not None:
            out.print(f"left out: {number:,}, {duration(seconds[why])}: {why}", markup=False)
    if left_out:
        out.print(f"left out: {others}", markup=False, soft_wrap=True)
    return Exit.DONE if kept else Exit.DONE_WITH_ERRORS


def _rows(found: Iterator[Any], settings: SegmentSettings, channels: str | int) -> Iterator[dict[str, Any]]:
    for alignment in found:
        for piece in segments(alignment, settings, channels):
            yield piece.to_row(alignment)


if __name__ == "__main__":
    single(segment)
