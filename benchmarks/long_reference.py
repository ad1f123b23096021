"""Time and memory to score one long recording against the reference of the whole.

    python -m benchmarks.long_reference WORK [--hours 10]

Makes a run of one recording of 10,000 words an hour in segments of a minute, with errors in a tenth of the words, and a
reference in an STM file with a line every 4 s. Prints how long the evaluation takes and its peak memory, and compares
the counts of words with jiwer's on the joined texts.
"""

from __future__ import annotations

import argparse
import random
import resource
import time
from pathlib import Path

import jiwer
import typer

from pipeline.evaluation.evaluate import evaluate_run
from pipeline.evaluation.settings import EvaluationSettings
from pipeline.scoring.rules import Scoring
from tests.support import runs

WORDS_AN_HOUR = 10_000
WORDS_A_LINE = 11
STEP_S = 3600 / WORDS_AN_HOUR


def make(work: Path, hours: float) -> tuple[str, str]:
    """Write the run and its reference.

    Returns:
        The reference and the transcript as texts.
    """
    rng = random.Random(0)
    vocabulary = ["".join(rng.choices("etaoinshrdlu", k=rng.randint(1, 10))) for _ in range(20_000)]
    said = [rng.choice(vocabulary) for _ in range(round(hours * WORDS_AN_HOUR))]
    heard: list[tuple[str, float]] = []
    for index, word in enumerate(said):
        kind = rng.random()
        if kind > 0.03:
            heard.append((rng.choice(vocabulary) if kind < 0.1 else word, index * STEP_S))
        if kind > 0.99:
            heard.append((rng.choice(vocabulary), index * STEP_S))
    rows = []
    for minute in range(-(-round(hours * 3600) // 60)):
        words = [(word, start) for word, start in heard if 60 * minute <= start < 60 * (minute + 1)]
        rows.append(
            {
                "utt_id": f"long#{60_000 * minute}-{60_000 * (minute + 1)}",
                "uri": "audio/long.wav",
                "start_s": 60.0 * minute,
                "duration_s": 60.0,
                "text": " ".join(word for word, _ in words),
                "words": [
                    {"word": word, "start_s": start, "end_s": start + STEP_S, "confidence": 0.9}
                    for word, start in words
                ],
            }
        )
    runs.write_run(work / "run", runs.transcripts(rows), chunk_rows=20)
    lines = [
        f"long 1 s {start * STEP_S:.3f} {(start + WORDS_A_LINE) * STEP_S:.3f} {' '.join(said[start:][:WORDS_A_LINE])}\n"
        for start in range(0, len(said), WORDS_A_LINE)
    ]
    (work / "long.stm").write_text("".join(lines))
    return " ".join(said), " ".join(word for word, _ in heard)


def main() -> None:
    """Make, score, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--hours", type=float, default=10)
    options = parser.parse_args()
    reference, transcript = make(options.work, options.hours)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    run = runs.Run.open(str(options.work / "run"))
    settings = EvaluationSettings(Scoring("basic", (str(options.work / "long.stm"),)))
    evaluation = evaluate_run(run, settings)
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    output = jiwer.process_words(reference, transcript)
    expected = (output.hits, output.substitutions, output.deletions, output.insertions)
    words = evaluation.figures.words
    found = (words.hits, words.substitutions, words.deletions, words.insertions)
    typer.echo(f"{options.hours:g} h, {words.reference:,} words: {seconds:.1f} s, peak {peak / 1024:,.0f} MiB")
    typer.echo(f"before the evaluation: peak {before / 1024:,.0f} MiB")
    typer.echo(f"WER {evaluation.wer:.4%}, tcWER {evaluation.tcwer:.4%}, CER {evaluation.cer:.4%}")
    typer.echo(f"H, S, D, I {found}; jiwer {expected}: {'equal' if found == expected else 'DIFFERENT'}")


if __name__ == "__main__":
    main()
