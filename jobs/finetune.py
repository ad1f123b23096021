"""`sewd finetune`: train a SEW-D checkpoint with a CTC head, a classifier or both from manifests."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from jobs.console import Exit, err, out, single
from pipeline.errors import UsageError
from pipeline.settings import default_of
from pipeline.training.settings import DataSettings, TrainSettings, make_data_settings, make_settings

# Panels of `--help`.
DATA, OPTIMIZER, PROGRESS, RESOURCES = "Data", "Optimizer", "Validation and saving", "Resources"


def finetune(
    train: Annotated[
        list[str],
        typer.Option(
            "--train",
            metavar="[WEIGHT=]MANIFEST",
            help="JSON Lines manifest, taken WEIGHT times per epoch. Can be repeated.",
        ),
    ],
    output: Annotated[str, typer.Option("--output", "-o", metavar="DIR", help="Directory or prefix to write to.")],
    valid: Annotated[
        list[str] | None,
        typer.Option("--valid", metavar="[NAME=]MANIFEST", help="Validation manifest. Can be repeated."),
    ] = None,
    init: Annotated[str | None, typer.Option(metavar="DIR", help="SEW-D checkpoint to start from.")] = None,
    config: Annotated[str | None, typer.Option(metavar="FILE", help="Train from scratch: a SEW-D config.json.")] = None,
    steps: Annotated[int, typer.Option(help="Number of optimizer steps.")] = default_of(TrainSettings, "steps"),
    batch_seconds: Annotated[
        float, typer.Option(help="Seconds of audio per batch and worker.", rich_help_panel=OPTIMIZER)
    ] = default_of(DataSettings, "batch_s"),
    accumulate: Annotated[int, typer.Option(help="Batches per step.", rich_help_panel=OPTIMIZER)] = default_of(
        TrainSettings, "accumulate"
    ),
    learning_rate: Annotated[
        float, typer.Option(help="Peak of the learning rate schedule.", rich_help_panel=OPTIMIZER)
    ] = default_of(TrainSettings, "learning_rate"),
    warmup: Annotated[
        float, typer.Option(help="Share of the steps in which the rate rises.", rich_help_panel=OPTIMIZER)
    ] = default_of(TrainSettings, "warmup"),
    hold: Annotated[
        float, typer.Option(help="Share in which it stays; then it falls to 5 %.", rich_help_panel=OPTIMIZER)
    ] = default_of(TrainSettings, "hold"),
    optimizer: Annotated[
        str, typer.Option(help="adamw, or muon, which is faster from scratch.", rich_help_panel=OPTIMIZER)
    ] = default_of(TrainSettings, "optimizer"),
    weight_decay: Annotated[
        float, typer.Option(help="Weight decay of matrices.", rich_help_panel=OPTIMIZER)
    ] = default_of(TrainSettings, "weight_decay"),
    clip_norm: Annotated[
        float, typer.Option(help="Largest norm of the gradient.", rich_help_panel=OPTIMIZER)
    ] = default_of(TrainSettings, "clip_norm"),
    label_weight: Annotated[
        float, typer.Option(help="Weight of the classifier's loss relative to the CTC loss.", rich_help_panel=OPTIMIZER)
    ] = default_of(TrainSettings, "label_weight"),
    mel_steps: Annotated[
        int,
        typer.Option(
            help="From scratch: first train the convolutions on log-mel spectra for this many steps.",
            rich_help_panel=OPTIMIZER,
        ),
    ] = default_of(TrainSettings, "mel_steps"),
    freeze_features: Annotated[
        bool, typer.Option("--freeze-features", help="Do not train the convolutions.", rich_help_panel=OPTIMIZER)
    ] = False,
    augment: Annotated[
        str,
        typer.Option(
            metavar="NAME=P,...",
            help="Probability of trim, speed, reverb, tilt, noise, gain, band, codec; or none.",
            rich_help_panel=DATA,
        ),
    ] = "speed=0.5,reverb=0.1,tilt=0.2,noise=0.3,gain=0.3,band=0.2,codec=0.05",
    join: Annotated[
        str,
        typer.Option(
            metavar="MAX[:SECONDS]",
            help="Join up to MAX clips of one speaker that are shorter than SECONDS.",
            rich_help_panel=DATA,
        ),
    ] = "1",
    precision: Annotated[
        str, typer.Option(help="auto (bfloat16 on a GPU), float32 or bfloat16.", rich_help_panel=RESOURCES)
    ] = default_of(TrainSettings, "precision"),
    seed: Annotated[
        int, typer.Option(help="Seed of order, augmentation, dropout and new weights.", rich_help_panel=DATA)
    ] = default_of(DataSettings, "seed"),
    valid_every: Annotated[int, typer.Option(help="Steps between validations.", rich_help_panel=PROGRESS)] = default_of(
        TrainSettings, "valid_every"
    ),
    checkpoint_every: Annotated[
        int, typer.Option(help="Steps between checkpoints.", rich_help_panel=PROGRESS)
    ] = default_of(TrainSettings, "checkpoint_every"),
    patience: Annotated[
        int | None,
        typer.Option(help="Stop after this many validations without a better one.", rich_help_panel=PROGRESS),
    ] = None,
    stop_after: Annotated[
        float | None,
        typer.Option(metavar="MINUTES", help="Stop after this time, to be resumed.", rich_help_panel=PROGRESS),
    ] = None,
    save_dtype: Annotated[
        str,
        typer.Option(
            help="Number format of the saved weights: float32, float16 or bfloat16.", rich_help_panel=PROGRESS
        ),
    ] = default_of(TrainSettings, "save_dtype"),
    workers: Annotated[int, typer.Option(help="Processes that train together.", rich_help_panel=RESOURCES)] = 1,
    gpu: Annotated[bool, typer.Option("--gpu", help="Use one GPU per worker.", rich_help_panel=RESOURCES)] = False,
    threads: Annotated[
        int | None, typer.Option(help="Threads per worker; by default all, divided.", rich_help_panel=RESOURCES)
    ] = None,
    address: Annotated[
        str, typer.Option(help="Ray cluster: local (start one here), auto, or HOST:PORT.", rich_help_panel=RESOURCES)
    ] = "local",
) -> int:
    """Train a CTC head (rows with `text`), a classifier (rows with `label`) or both on one backbone.

    The same command resumes an interrupted training. Exit codes: 0 done, 1 failed, 2 usage, 130 stopped by
    --stop-after.
    """
    from pipeline.training.augment import parse_augmentations  # noqa: PLC0415 - torch and Ray take seconds to load
    from pipeline.training.loop import MODEL_DIRECTORY  # noqa: PLC0415
    from pipeline.training.ray_train import CURVE_FILE, Placement  # noqa: PLC0415
    from pipeline.training.ray_train import finetune as run  # noqa: PLC0415
    from sewd_model.files import CheckpointError  # noqa: PLC0415

    join_max, join_below_s = _join(join)
    data = make_data_settings(
        batch_s=batch_seconds,
        join_max=join_max,
        join_below_s=join_below_s,
        augment=parse_augmentations(augment),
        seed=seed,
    )
    settings = make_settings(
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
        optimizer=optimizer,
        weight_decay=weight_decay,
        clip_norm=clip_norm,
        label_weight=label_weight,
        mel_steps=mel_steps,
        freeze_features=freeze_features,
        data=data,
        precision=precision,
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
    """(manifest, weight) of `[WEIGHT=]MANIFEST`."""
    weight, equals, uri = item.partition("=")
    if not equals or "/" in weight:
        return item, 1.0
    try:
        value = float(weight)
    except ValueError:
        return item, 1.0
    if not uri or not 0 < value < 1e6:
        raise UsageError(f"train: {item!r} is not [WEIGHT=]MANIFEST with a weight above 0")
    return uri, value


def _named(item: str) -> tuple[str, str]:
    """(name, manifest) of `[NAME=]MANIFEST`; without a name, the name of the file."""
    name, equals, uri = item.partition("=")
    if equals and name and uri and "/" not in name:
        return name, uri
    return item.rpartition("/")[2].removesuffix(".jsonl"), item


def _join(text: str) -> tuple[int, float]:
    """(most clips, longest clip in seconds) of `MAX[:SECONDS]`."""
    count, _, seconds = text.partition(":")
    try:
        values = int(count), float(seconds or default_of(DataSettings, "join_below_s"))
    except ValueError:
        values = 0, 0.0
    if values[0] < 1 or values[1] <= 0:
        raise UsageError(f"join: {text!r} is not MAX[:SECONDS], such as 5:1.5")
    return values


if __name__ == "__main__":
    single(finetune)
