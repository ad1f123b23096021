"""`sewd finetune`: manifests in, a SEW-D checkpoint with a CTC head, a classifier or both out."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from jobs.console import Exit, err, out, single
from pipeline.errors import UsageError


def finetune(
    train: Annotated[
        list[str],
        typer.Option("--train", metavar="[WEIGHT=]MANIFEST", help="JSON lines; WEIGHT times an epoch; repeat."),
    ],
    output: Annotated[str, typer.Option("--output", "-o", metavar="DIR", help="Checkpoints, log, model; resumable.")],
    valid: Annotated[
        list[str] | None, typer.Option("--valid", metavar="[NAME=]MANIFEST", help="Measured on; repeat.")
    ] = None,
    init: Annotated[str | None, typer.Option(metavar="DIR", help="SEW-D checkpoint to start from.")] = None,
    config: Annotated[str | None, typer.Option(metavar="FILE", help="From scratch: a SEW-D config.json.")] = None,
    steps: Annotated[int, typer.Option(help="Optimizer steps.")] = 1000,
    batch_seconds: Annotated[float, typer.Option(help="Audio a batch and worker.")] = 60.0,
    accumulate: Annotated[int, typer.Option(help="Batches a step.")] = 1,
    learning_rate: Annotated[float, typer.Option(help="Peak of the schedule.")] = 4e-4,
    warmup: Annotated[float, typer.Option(help="Share of the steps in which the rate rises.")] = 0.1,
    hold: Annotated[float, typer.Option(help="Share in which it stays; then it falls to 5 %.")] = 0.4,
    optimizer: Annotated[str, typer.Option(help="adamw, or muon: faster from scratch.")] = "adamw",
    weight_decay: Annotated[float, typer.Option(help="Of matrices.")] = 0.01,
    clip_norm: Annotated[float, typer.Option(help="Largest norm of the gradient.")] = 1.0,
    label_weight: Annotated[float, typer.Option(help="Of the classifier's loss beside CTC's.")] = 1.0,
    mel_steps: Annotated[
        int, typer.Option(help="From scratch: first steps that teach the convolutions a log-mel spectrum alone.")
    ] = 0,
    freeze_features: Annotated[bool, typer.Option("--freeze-features", help="The convolutions do not learn.")] = False,
    augment: Annotated[
        str,
        typer.Option(
            metavar="NAME=P,...", help="Chance of trim, speed, reverb, tilt, noise, gain, band, codec; or none."
        ),
    ] = "speed=0.5,reverb=0.1,tilt=0.2,noise=0.3,gain=0.3,band=0.2,codec=0.05",
    join: Annotated[
        str, typer.Option(metavar="MAX[:SECONDS]", help="Join up to MAX clips of a speaker, each below SECONDS.")
    ] = "1",
    precision: Annotated[str, typer.Option(help="auto (bfloat16 on a GPU), float32 or bfloat16.")] = "auto",
    seed: Annotated[int, typer.Option(help="Of order, augmentation, dropout, new weights.")] = 0,
    valid_every: Annotated[int, typer.Option(help="Steps between validations.")] = 200,
    checkpoint_every: Annotated[int, typer.Option(help="Steps between checkpoints.")] = 200,
    patience: Annotated[int | None, typer.Option(help="Stop after so many validations without a better one.")] = None,
    stop_after: Annotated[float | None, typer.Option(metavar="MINUTES", help="Stop then; go on another day.")] = None,
    save_dtype: Annotated[str, typer.Option(help="On disk: float32, float16 or bfloat16.")] = "float32",
    workers: Annotated[int, typer.Option(help="Processes that train together.")] = 1,
    gpu: Annotated[bool, typer.Option("--gpu", help="A GPU a worker.")] = False,
    threads: Annotated[int | None, typer.Option(help="torch threads a worker; else all, shared out.")] = None,
    address: Annotated[str, typer.Option(help="Ray to use: local, auto, or HOST:PORT.")] = "local",
) -> int:
    """Train a CTC head (rows with `text`), a classifier (rows with `label`) or both on one backbone.

    The same command goes on with a training that was interrupted. Exit codes: 0 done, 1 failed, 2 usage, 130 stopped
    by --stop-after.
    """
    from pipeline.training.augment import parse_augmentations  # noqa: PLC0415 - torch and Ray take seconds to load
    from pipeline.training.data import DataSettings  # noqa: PLC0415
    from pipeline.training.loop import MODEL_DIRECTORY, TrainSettings  # noqa: PLC0415
    from pipeline.training.ray_train import CURVE_FILE, Placement  # noqa: PLC0415
    from pipeline.training.ray_train import finetune as run  # noqa: PLC0415
    from sewd_model.files import CheckpointError  # noqa: PLC0415

    if precision not in ("auto", "float32", "bfloat16"):
        raise UsageError(f"precision: auto, float32 or bfloat16, not {precision!r}")
    if optimizer not in ("adamw", "muon"):
        raise UsageError(f"optimizer: adamw or muon, not {optimizer!r}")
    join_max, join_below_s = _join(join)
    data = DataSettings(
        batch_s=batch_seconds,
        join_max=join_max,
        join_below_s=join_below_s,
        augment=parse_augmentations(augment),
        seed=seed,
    )
    settings = TrainSettings(
        train=tuple(_weighted(item) for item in train),
        valid=dict(_named(item) for item in valid or ()),
        output=output,
        init=init,
        config=config,
        steps=steps,
        accumulate=accumulate,
        learning_rate=learning_rate,
        warmup=warmup,
        hold=hold,
        optimizer=optimizer,  # type: ignore[arg-type]
        weight_decay=weight_decay,
        clip_norm=clip_norm,
        label_weight=label_weight,
        mel_steps=mel_steps,
        freeze_features=freeze_features,
        data=data,
        precision=precision,  # type: ignore[arg-type]
        valid_every=valid_every,
        checkpoint_every=checkpoint_every,
        patience=patience,
        stop_after_s=None if stop_after is None else stop_after * 60,
        save_dtype=save_dtype,
        threads=threads or max(1, (os.cpu_count() or 1) // workers),
    )
    try:
        placement = Placement(workers=workers, gpus=gpu, address=address)
        result = run(settings, placement, lambda line: err.print(line, markup=False))
    except CheckpointError as error:
        raise UsageError(str(error)) from error
    best = f", best error {result['best']:.2%} at step {result['best_step']}" if settings.valid else ""
    out.print(f"{'done' if result['finished'] else 'stopped'} at step {result['step']}{best}")
    out.print(f"model: {output}/{MODEL_DIRECTORY}   curve: {output}/{CURVE_FILE}", markup=False, soft_wrap=True)
    return Exit.DONE if result["finished"] else Exit.STOPPED


def _weighted(item: str) -> tuple[str, float]:
    """`[WEIGHT=]MANIFEST`."""
    weight, equals, uri = item.partition("=")
    if not equals or "/" in weight:
        return item, 1.0
    try:
        value = float(weight)
    except ValueError:
        return item, 1.0
    if not uri or not 0 < value < 1e6:
        raise UsageError(f"train: {item!r} is not [WEIGHT=]MANIFEST, the weight above 0")
    return uri, value


def _named(item: str) -> tuple[str, str]:
    """`[NAME=]MANIFEST`; without a name, the file's."""
    name, equals, uri = item.partition("=")
    if equals and name and uri and "/" not in name:
        return name, uri
    return item.rpartition("/")[2].removesuffix(".jsonl"), item


def _join(text: str) -> tuple[int, float]:
    """`MAX[:SECONDS]`."""
    count, _, seconds = text.partition(":")
    try:
        values = int(count), float(seconds or DEFAULT_JOIN_BELOW_S)
    except ValueError:
        values = 0, 0.0
    if values[0] < 1 or values[1] <= 0:
        raise UsageError(f"join: {text!r} is not MAX[:SECONDS], such as 5:1.5")
    return values


DEFAULT_JOIN_BELOW_S = 1.5


if __name__ == "__main__":
    single(finetune)
