"""Options of the verbs that decode."""

from __future__ import annotations

from typing import Annotated

import typer

DECODING = "Decoding"  # panel of `--help`

Lm = Annotated[
    str | None,
    typer.Option(
        "--lm",
        metavar="FILE",
        help="Language model: an ARPA file, compressed or not, or a binary file of KenLM; see `sewd lm build`.",
        rich_help_panel=DECODING,
    ),
]
Hotwords = Annotated[
    str | None,
    typer.Option(metavar="FILE", help="Words that get a bonus: one word or phrase a line.", rich_help_panel=DECODING),
]
Beam = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="Texts that the beam search keeps. 1: greedy decoding, the default without --lm and --hotwords; else 32.",
        rich_help_panel=DECODING,
    ),
]
Nbest = Annotated[
    int, typer.Option(metavar="N", help="Keep the N best texts of each utterance.", rich_help_panel=DECODING)
]
LmWeight = Annotated[
    float, typer.Option(help="Weight of the language model; `sewd lm tune` finds it.", rich_help_panel=DECODING)
]
WordBonus = Annotated[
    float, typer.Option(help="Score of each word beside the language model.", rich_help_panel=DECODING)
]
HotwordWeight = Annotated[float, typer.Option(help="Score of each hot-word.", rich_help_panel=DECODING)]
