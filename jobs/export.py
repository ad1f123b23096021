"""`sewd export`: a run as subtitles, files for scoring and annotation, or manifests for training."""

from __future__ import annotations

from typing import Annotated, Final

import typer

import pipeline
from jobs.console import Exit, out, single, warn
from pipeline.evaluation.calibration import calibration_warnings, read_calibration
from pipeline.export.cues import CueSettings
from pipeline.export.export import FORMATS, AudioMode, ExportSettings
from pipeline.export.export import export as export_run
from pipeline.export.texts import OF_ALL, TextSettings
from pipeline.report.formats import plural
from pipeline.runs.status import RunStatus
from pipeline.settings import default_of
from pipeline.storage import uris

_CUE: Final = {name: default_of(CueSettings, name) for name in CueSettings.__dataclass_fields__}


def export(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Directory or prefix of the run.")],
    format: Annotated[str, typer.Option("--format", "-f", help=f"{', '.join(FORMATS)}.")],  # noqa: A002 - the option
    output: Annotated[
        str,
        typer.Option(
            "--output",
            "-o",
            metavar="PATH",
            help=f"A file for {', '.join(OF_ALL)}; else an empty directory. May be a URI.",
        ),
    ],
    where: Annotated[
        str | None,
        typer.Option(
            metavar="CONDITION",
            help="Which utterances: 'confidence > 0.9 and duration_s < 20', over columns of transcripts, TASK (its "
            "label) and TASK.score.",
        ),
    ] = None,
    audio: Annotated[
        AudioMode | None,
        typer.Option(help="Data sets for training: reference names the audio, cut cuts it out as FLAC."),
    ] = None,
    calibration: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Turn confidences into probabilities by what `sewd calibrate` wrote."),
    ] = None,
    line_chars: Annotated[int, typer.Option(help="Subtitles: most characters in a line.")] = _CUE["line_chars"],
    lines: Annotated[int, typer.Option(help="Subtitles: most lines.")] = _CUE["lines"],
    chars_per_s: Annotated[float, typer.Option(help="Subtitles: reading speed, characters a second.")] = _CUE[
        "chars_per_s"
    ],
    shortest: Annotated[float, typer.Option(help="Subtitles: shortest time on screen, seconds.")] = _CUE["shortest_s"],
    longest: Annotated[float, typer.Option(help="Subtitles: longest time on screen, seconds.")] = _CUE["longest_s"],
    gap: Annotated[float, typer.Option(help="Subtitles: time between two, seconds.")] = _CUE["gap_s"],
    pause: Annotated[float, typer.Option(help="Subtitles: a pause of this many seconds ends one.")] = _CUE["pause_s"],
) -> int:
    """Write the transcripts of a run in the format of other programs, the segments of a recording joined in order.

    Exit codes: 0 done, 1 failed, 2 usage, 3 done, and the audio of some utterances could not be read.
    """
    opened = pipeline.Run.open(run)
    if calibration is not None:
        warn(calibration_warnings(calibration, opened))
    limits = CueSettings(
        line_chars=line_chars,
        lines=lines,
        chars_per_s=chars_per_s,
        shortest_s=shortest,
        longest_s=longest,
        gap_s=gap,
        pause_s=pause,
    )
    settings = ExportSettings(
        format=format,
        audio=audio,
        calibration={} if calibration is None else read_calibration(calibration),
        where=where,
        texts=TextSettings(cues=limits),
    )
    done = export_run(opened, settings, uris.absolute(output))
    if opened.status != RunStatus.DONE:
        out.print(f"the run is not done ({opened.status}): these are its rows so far", style="yellow")
    if done.not_selected:
        out.print(f"{plural(done.not_selected, 'utterance')} left out by --where", markup=False)
    if done.failed:
        out.print(f"{plural(done.failed, 'error row')} of the run left out: they have no transcript", style="yellow")
    if done.left_out:
        reasons = ", ".join(f"{reason} {number:,}" for reason, number in sorted(done.left_out.items()))
        out.print(f"{plural(sum(done.left_out.values()), 'utterance')} left out, no audio: {reasons}", style="yellow")
    files = "" if done.files == 1 else f", {plural(done.files, 'file')}"
    of = f" of {plural(done.recordings, 'recording')}" if done.recordings else ""
    out.print(
        f"{plural(done.utterances, 'utterance')}{of}{files}: {output}",
        markup=False,
        soft_wrap=True,
    )
    return Exit.DONE_WITH_ERRORS if done.left_out else Exit.DONE


if __name__ == "__main__":
    single(export)
