"""`sewd calibrate`: confidences become probabilities, learned on a run with references."""

from __future__ import annotations

from typing import Annotated

import typer

import pipeline
from jobs.console import Exit, out, single
from jobs.evaluate import new_table, percent
from pipeline.evaluation.calibrate import calibrate as learn
from pipeline.evaluation.calibrate import encode
from pipeline.evaluation.calibration import CALIBRATION_FILE
from pipeline.storage import objects, uris


def calibrate(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run whose utterances have references.")],
    refs: Annotated[
        list[str] | None,
        typer.Option("--refs", metavar="FILE", help="References by utterance, as for evaluate, in place of its own."),
    ] = None,
    output: Annotated[
        str | None, typer.Option("--output", "-o", metavar="FILE", help=f"Default: RUN/{CALIBRATION_FILE}.")
    ] = None,
) -> int:
    """Learn which share of words and utterances is correct at each confidence, for --calibration of other verbs.

    Exit codes: 0 done, 1 failed, 2 usage.
    """
    opened = pipeline.Run.open(run)
    learned = learn(opened, tuple(refs or ()))
    table = new_table("calibration", "", "rows", "correct", "ECE", "calibrated")
    table.caption, table.caption_justify = (
        "ECE: calibration error; calibrated: on the half that was not learned",
        "left",
    )
    for kind, each in learned.items():
        shares = map(percent, (each.accuracy, each.ece, each.ece_calibrated))
        table.add_row(kind, f"{each.rows:,}", *shares)
    out.print(table)
    target = output or uris.join(opened.uri, CALIBRATION_FILE)
    objects.put(uris.absolute(target), encode(learned, opened))
    out.print(f"calibration: {target}", markup=False, soft_wrap=True)
    return Exit.DONE


if __name__ == "__main__":
    single(calibrate)
