"""`sewd redecode`: the kept posteriors of a run in, a run with other transcripts out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

import pipeline
from jobs.console import out, single
from jobs.decoding import Beam, Hotwords, HotwordWeight, Lm, LmWeight, Nbest, WordBonus
from jobs.logs import log_to
from jobs.status import how_to_resume
from jobs.transcribe import AUDIO, EXISTING, FAILURES, GRACE_S, LOGGING, Grace, ProgressDisplay, report, stoppable
from pipeline.config import DECODING, RedecodeConfig, make_redecode_config
from pipeline.decoding.settings import HOTWORD_WEIGHT, LM_WEIGHT, WORD_BONUS
from pipeline.errors import UsageError
from pipeline.report.formats import duration
from pipeline.settings import default_of


def redecode(
    run: Annotated[
        str, typer.Argument(metavar="RUN", help="Finished run that was transcribed with --keep-posteriors.")
    ],
    output: Annotated[
        str, typer.Option("--output", "-o", metavar="RUN", help="Directory or prefix to write the new run to.")
    ],
    word_gap: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS",
            help="A word ends where no letter follows for this long; 0: only where the model ends it. Default: that of "
            "RUN.",
            rich_help_panel=AUDIO,
        ),
    ] = default_of(RedecodeConfig, "word_gap_s"),
    normalizer: Annotated[
        str | None,
        typer.Option(
            help="How both texts are normalised before errors are counted. Default: that of RUN.", rich_help_panel=AUDIO
        ),
    ] = default_of(RedecodeConfig, "normalizer"),
    lm: Lm = None,
    hotwords: Hotwords = None,
    beam: Beam = None,
    nbest: Nbest = 1,
    lm_weight: LmWeight = LM_WEIGHT,
    word_bonus: WordBonus = WORD_BONUS,
    hotword_weight: HotwordWeight = HOTWORD_WEIGHT,
    new_run: Annotated[
        bool, typer.Option("--new-run", help="Fail if the output already holds a run.", rich_help_panel=EXISTING)
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a run that the output holds.", rich_help_panel=EXISTING)
    ] = False,
    errors_ok: Annotated[
        bool, typer.Option("--errors-ok", help="Exit with code 0 even if rows failed.", rich_help_panel=FAILURES)
    ] = False,
    grace: Grace = GRACE_S,
    address: Annotated[str, typer.Option(help="Ray cluster: local (start one here), auto, or HOST:PORT.")] = default_of(
        RedecodeConfig, "address"
    ),
    log: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Append a JSON object for each chunk to this file.", rich_help_panel=LOGGING),
    ] = None,
) -> int:
    """Make another run of the posteriors that a run keeps, without the model and without the audio.

    The new run has the same utterances, failed rows and labels; its transcripts are decoded anew. A run that exists at
    the output is resumed.

    Exit codes: 0 done; 1 failed; 2 usage; 3 done, but rows failed in RUN, or there are none; stopped by a signal: 143
    SIGTERM, 130 Ctrl-C, 129 SIGHUP.
    """
    config = configuration(locals())
    log_to(log)
    last: pipeline.Progress | None = None
    with ProgressDisplay("decoding", "starting") as show:

        def on_progress(progress: pipeline.Progress) -> None:
            nonlocal last
            last = progress
            show(progress)

        with stoppable(config, grace) as stop:
            made = pipeline.redecode(config, on_progress, stop.requested, show.step)
    if last is not None and last.audio_s:
        out.print(f"{duration(last.audio_s)} audio in {duration(last.elapsed_s)}, {last.speed:.0f}x real time")
    return report(made, errors_ok, how_to_resume(config.existing), stop)


def configuration(options: Mapping[str, Any]) -> RedecodeConfig:
    """The configuration that the options of `redecode` say, by the names of its parameters.

    Raises:
        UsageError: a value is wrong, or two options exclude each other.
    """
    if options["new_run"] and options["overwrite"]:
        raise UsageError("--new-run and --overwrite exclude each other: choose one")
    return make_redecode_config(
        run=options["run"],
        output=options["output"],
        word_gap_s=options["word_gap"],
        normalizer=options["normalizer"],
        **{name: options[name] for name in DECODING},
        existing="refuse" if options["new_run"] else "overwrite" if options["overwrite"] else "resume",
        address=options["address"],
    )


if __name__ == "__main__":
    single(redecode)
