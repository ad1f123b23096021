"""Measure the figures of the model card: the validation sets, as recorded and in a telephone's band.

    python benchmarks/bundled/measure.py CORPUS WORK MODEL

CORPUS holds the manifests `NAME-valid.jsonl` that `prepare.py` wrote; the runs are written to WORK. Prints a table in
Markdown: word and character error rate, and accuracy of the keywords, with 95 % intervals over speakers, or over
utterances where speakers are unknown or too few. The keywords are measured with and without `alexa`, which was recorded
elsewhere: a classifier could recognise it by the recording conditions.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import soundfile
import soxr
import typer

import pipeline
from pipeline.evaluation.intervals import Interval
from pipeline.evaluation.labels import LabelEvaluation, evaluate_labels
from pipeline.evaluation.results import Evaluation
from pipeline.evaluation.settings import EvaluationSettings

SETS = ("strings-known", "strings-fifth", "orders", "keywords", "keywords-not-alexa", "synthetic", "read")
TELEPHONE_RATE = 8_000


def main() -> None:
    """Transcribe and evaluate each set, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("corpus", type=Path, metavar="CORPUS")
    parser.add_argument("work", type=Path, metavar="WORK")
    parser.add_argument("model", metavar="MODEL")
    arguments = parser.parse_args()
    (arguments.corpus / "keywords-not-alexa-valid.jsonl").write_text(
        not_alexa(arguments.corpus / "keywords-valid.jsonl")
    )
    typer.echo("| set | band | utterances | audio | WER | CER | accuracy of labels |\n|---|---|---|---|---|---|---|")
    for name in SETS:
        recorded = arguments.corpus / f"{name}-valid.jsonl"
        for band, manifest in (
            ("recorded", recorded),
            ("telephone", telephone(recorded, arguments.work / "telephone")),
        ):
            output = arguments.work / f"{name}-{band}"
            shutil.rmtree(output, ignore_errors=True)
            run = pipeline.transcribe(
                pipeline.RunConfig((manifest,), output, arguments.model, classifiers=(f"keyword={arguments.model}",))
            )
            evaluation, [labels] = evaluate_with_intervals(run), evaluate_labels(run)
            typer.echo(f"| {name} | {band} | {cells(evaluation, labels)} |")


def not_alexa(manifest: Path) -> str:
    """The rows of a manifest with the other five keywords."""
    lines = manifest.read_text("utf-8").splitlines(keepends=True)
    return "".join(line for line in lines if json.loads(line)["label"] != "alexa")


def evaluate_with_intervals(run: pipeline.Run) -> Evaluation:
    """Evaluate a run with intervals over speakers, or over utterances if speakers are unknown or too few."""
    by_speaker = pipeline.evaluate_run(run)
    if by_speaker.intervals["wer"] is not None:
        return by_speaker
    return pipeline.evaluate_run(run, EvaluationSettings(unit="utterance"))


def telephone(manifest: Path, folder: Path) -> Path:
    """Write the files of a manifest at 8 kHz, so without anything above 4 kHz; returns their manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for number, line in enumerate(manifest.read_text("utf-8").splitlines()):
        row = json.loads(line)
        samples, rate = soundfile.read(row["audio_filepath"], dtype="float32")
        path = folder / f"{manifest.stem}-{number:05}.wav"
        soundfile.write(path, soxr.resample(samples, rate, TELEPHONE_RATE), TELEPHONE_RATE)
        rows.append(row | {"audio_filepath": str(path.resolve())})
    copy = folder / manifest.name
    copy.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return copy


def cells(evaluation: Evaluation, labels: LabelEvaluation) -> str:
    """The cells of a set's row, joined by bars."""
    figures = evaluation.figures
    accuracy = "" if not labels.counts.rows else share(labels.counts.accuracy, labels.interval)
    rates = [share(evaluation.rates[name], evaluation.intervals.get(name)) for name in ("wer", "cer")]
    return " | ".join([str(figures.utterances), f"{figures.audio_s / 60:.1f} min", *rates, accuracy])


def share(rate: float | None, interval: Interval | None) -> str:
    """A rate and its interval in percent; empty without a rate."""
    if rate is None:
        return ""
    return f"{rate:.1%}" + (f" ({interval.low:.1%}-{interval.high:.1%})" if interval else "")


if __name__ == "__main__":
    main()
