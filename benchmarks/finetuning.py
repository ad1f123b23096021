"""Fine-tune the bundled model on few orders for few steps, and compare the word error rate before and after.

    python -m benchmarks.finetuning DATA WORK [--orders 50 100 300] [--steps 12 100 500] [--minutes 20]

DATA is the directory of recordings with `coffee-orders`. The orders that the bundled model was not trained on are the
validation set; all settings are the defaults of `sewd finetune --init bundled --steps STEPS`. Each training is appended
to WORK/results.jsonl when it ends. After `--minutes`, or a kill, the same command continues.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
import typer

sys.path.insert(0, str(Path(__file__).parent / "bundled"))
from prepare import orders  # type: ignore[import-not-found]

from pipeline.training.augment import parse_augmentations
from pipeline.training.loop import train
from pipeline.training.settings import default_augment, make_data_settings, make_settings


def main() -> None:
    """Run each training that has not ended yet, the short ones first."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, metavar="DATA")
    parser.add_argument("work", type=Path, metavar="WORK")
    parser.add_argument("--orders", type=int, nargs="+", default=[50, 100, 300])
    parser.add_argument("--steps", type=int, nargs="+", default=[12, 100, 500])
    parser.add_argument("--minutes", type=float, default=20.0)
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    ends_at = time.monotonic() + arguments.minutes * 60
    sets = orders(arguments.data / "coffee-orders")
    order = np.random.default_rng(0).permutation(len(sets["orders"]))
    valid = write(arguments.work / "valid.jsonl", sets["orders-valid"])
    results = arguments.work / "results.jsonl"
    done = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    for steps in sorted(arguments.steps):
        for number in arguments.orders:
            if any((row["orders"], row["steps"]) == (number, steps) for row in done):
                continue
            left_s = ends_at - time.monotonic()
            if left_s <= 0:
                return
            chosen = write(arguments.work / f"train-{number}.jsonl", [sets["orders"][i] for i in order[:number]])
            row = {"orders": number, "steps": steps} | finetune(chosen, valid, arguments.work, steps, left_s)
            if not row.pop("finished"):
                return
            with results.open("a") as file:
                file.write(json.dumps(row) + "\n")
            typer.echo(json.dumps(row))


def write(path: Path, rows: list[dict[str, object]]) -> str:
    """Write a manifest, and return its path."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def finetune(chosen: str, valid: str, work: Path, steps: int, seconds: float) -> dict[str, object]:
    """Train with the defaults; the error rates on the validation set: before, of the kept model, of the last step."""
    output = work / f"{Path(chosen).stem}-{steps}"
    settings = make_settings(
        train=((chosen, 1.0),),
        valid={"orders": valid},
        output=str(output),
        init="bundled",
        steps=steps,
        data=make_data_settings(augment=parse_augmentations(default_augment("bundled"))),
        threads=1,
        checkpoint_every=20,
        stop_after_s=seconds,
    )
    outcome = train(settings, report=typer.echo)
    rows = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    measured = [row["valid"]["orders"]["wer"] for row in rows if "valid" in row]
    return {
        "finished": outcome["finished"],
        "before": outcome["initial_scores"]["orders"]["wer"],
        "kept": outcome["best_scores"]["orders"]["wer"],
        "kept_step": outcome["best_step"],
        "last": measured[-1],
        "worst": max(measured),
        "train_s": round(sum(row["wall_s"] for row in rows if "loss" in row)),
    }


if __name__ == "__main__":
    main()
