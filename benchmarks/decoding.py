"""Word errors and cost of each way to decode: greedy, beam search, with a language model, and with hot-words.

    python -m benchmarks.decoding CORPUS TEXTS WORK [--lm-weight W] [--word-bonus B] [--beam N]

CORPUS holds the manifests `NAME-valid.jsonl` that `benchmarks/bundled/prepare.py` wrote, TEXTS the texts that
`benchmarks/bundled/texts.py` wrote: those of training recordings, novels, verses and definitions, none of a recording
that is measured. Writes a language model of all of them and the runs to WORK, and prints a table in Markdown.

The hot-words of a set are the words of its references that are rare in TEXTS, as a user knows the names of a recording,
and as many rare words of TEXTS that do not occur: a bonus that helps must not put these in. Cost is that of decoding,
from kept posteriors to transcripts: CPU time of one core, the best of three interleaved rounds.
"""

from __future__ import annotations

import argparse
import functools
import re
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import typer

import pipeline
from pipeline.decoding.rows import unpacked_levels
from pipeline.decoding.settings import DEFAULT_BEAM, LM_WEIGHT, WORD_BONUS, DecoderSettings
from pipeline.language_models.build import build
from pipeline.language_models.texts import sentences
from pipeline.scoring.normalize import normalize
from pipeline.stages.texts import TextSettings, transcripts

SETS = ("strings-known", "strings-fifth", "orders", "keywords", "synthetic", "read")
RARE = 5  # times in the texts, at most
ROUNDS = 3
TITLES = {r"\bMr\b\.?": "Mister", r"\bMrs\b\.?": "Missus"}


def main() -> None:
    """Build the model, decode each set in each way, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("corpus", type=Path, metavar="CORPUS")
    parser.add_argument("texts", type=Path, metavar="TEXTS")
    parser.add_argument("work", type=Path, metavar="WORK")
    parser.add_argument("--lm-weight", type=float, default=LM_WEIGHT)
    parser.add_argument("--word-bonus", type=float, default=WORD_BONUS)
    parser.add_argument("--beam", type=int, default=DEFAULT_BEAM)
    parser.add_argument("--sets", nargs="*", default=SETS)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    lm, counts = options.work / "all.arpa", Counter[str]()
    built = build(counted(spoken(options.texts), counts), lm, 3, (0, 0, 1))
    typer.echo(f"language model: {built.words:,} words, {built.ngrams} n-grams, {lm.stat().st_size / 1e6:.0f} MB\n")
    weighted = functools.partial(
        DecoderSettings, beam=options.beam, lm=str(lm), lm_weight=options.lm_weight, word_bonus=options.word_bonus
    )
    columns = ("set", "audio", "decoding", "WER", "relative", "CER", "rare words found", "wrong", "x real time a core")
    typer.echo("".join(f"| {column} " for column in columns) + "|\n" + "|---" * len(columns) + "|")
    for name in options.sets:
        run = recognised(options.corpus / f"{name}-valid.jsonl", options.work / name)
        rows = run.to_arrow("posteriors").combine_chunks()
        rows = rows.set_column(rows.schema.get_field_index("levels"), "levels", unpacked_levels(rows["levels"]))
        ways = {
            "greedy": DecoderSettings(),
            "beam": DecoderSettings(beam=options.beam),
            "beam, LM": weighted(),
            "beam, LM, hot-words": weighted(hotwords=hotwords(rows, counts)),
        }
        report(name, run, rows, {way: item for way, item in ways.items() if item.hotwords or "hot" not in way})


def spoken(texts: Path) -> Iterator[str]:
    """The sentences of all texts, with titles as they are said."""
    for line in sentences(sorted(str(path) for path in texts.glob("*.txt")), str):
        plain = line
        for short, title in TITLES.items():
            plain = re.sub(short, title, plain)
        yield normalize(plain)


def counted(lines: Iterator[str], counts: Counter[str]) -> Iterator[str]:
    """The lines, whose words are counted."""
    for line in lines:
        counts.update(line.split())
        yield line


def recognised(manifest: Path, output: Path) -> pipeline.Run:
    """The run over a manifest, with its posteriors."""
    return pipeline.transcribe(pipeline.RunConfig((manifest,), output, keep_posteriors=True))


def hotwords(rows: pa.Table, counts: Counter[str]) -> tuple[str, ...]:
    """The rare words of the references, and as many others."""
    said = {word for text in rows["reference"].to_pylist() for word in normalize(text).split()}
    rare = sorted(word for word in said if counts[word] <= RARE and len(word) > 3)
    others = sorted(word for word, count in counts.items() if count <= RARE and len(word) > 3 and word not in said)
    others = [word for word in others if re.fullmatch(r"[a-z]+", word)]
    return (*rare, *others[:: max(1, len(others) // max(1, len(rare)))][: len(rare)])


def report(name: str, run: pipeline.Run, rows: pa.Table, ways: dict[str, DecoderSettings]) -> None:
    """Print the lines of a set."""
    settings = {
        way: TextSettings(
            acoustics=run.acoustics,
            decoder=decoder,
            word_gap_s=0.5,
            extend_words=True,
            normalizer="basic",
            classifiers=(),
        )
        for way, decoder in ways.items()
    }
    rare = frozenset(next((item.hotwords for item in ways.values() if item.hotwords), ()))
    audio_s, results = pc.sum(rows["duration_s"]).as_py(), {}
    seconds = dict.fromkeys(settings, float("inf"))
    for _ in range(ROUNDS):
        for way, chosen in settings.items():
            transcripts(rows.slice(0, 1), chosen)  # loads the model
            started = time.process_time()
            results[way] = transcripts(rows, chosen)
            seconds[way] = min(seconds[way], time.process_time() - started)
    greedy = rate(results["greedy"])
    for way, made in results.items():
        relative = f"{rate(made) / greedy - 1:+.0%}" if greedy else ""
        count = f" ({len(settings[way].decoder.hotwords)})" if settings[way].decoder.hotwords else ""
        cells = (
            *(name, f"{audio_s / 60:.1f} min", f"{way}{count}", f"{rate(made):.1%}", relative),
            *(f"{rate(made, 'char_', 'ref_chars'):.1%}", *found(made, rare), f"{audio_s / seconds[way]:,.0f}"),
        )
        typer.echo("".join(f"| {cell} " for cell in cells) + "|")


def found(made: pa.Table, rare: frozenset[str]) -> tuple[str, str]:
    """How many of the rare words in references the transcripts have, and how many they have that were not said."""
    right = wrong = total = 0
    for text, reference in zip(
        *(made[f"normalized_{name}"].to_pylist() for name in ("text", "reference")), strict=True
    ):
        said = Counter(word for word in reference.split() if word in rare)
        heard = Counter(word for word in text.split() if word in rare)
        total += said.total()
        right += (said & heard).total()
        wrong += (heard - said).total()
    return (f"{right} of {total}", str(wrong)) if rare else ("", "")


def rate(made: pa.Table, prefix: str = "", reference: str = "ref_words") -> float:
    """The error rate of transcripts."""
    errors = sum(pc.sum(made[f"{prefix}{kind}"]).as_py() for kind in ("substitutions", "deletions", "insertions"))
    return float(errors / pc.sum(made[reference]).as_py())


if __name__ == "__main__":
    main()
