"""`sewd finetune`: train a SEW-D checkpoint with a CTC head, a classifier or both."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any

import typer

from jobs.console import Exit, err, out, single
from pipeline.errors import UsageError
from pipeline.settings import default_of
from pipeline.training.settings import (
    DataSettings,
    TrainSettings,
    default_augment,
    make_data_settings,
    make_placement,
    make_settings,
)

# Panels of `--help`.
DATA, OPTIMIZER, PROGRESS, RESOURCES = "Data", "Optimizer", "Validation and saving", "Resources"
_RULE = "By default another with --init than with --model-config, see docs/training.md."


def finetune(
    train: Annotated[
        list[str],
        typer.Option(
            "--train",
            metavar="[WEIGHT=]INPUT",
            help="As the INPUT of transcribe, with texts or labels; taken WEIGHT times per epoch. Can be repeated.",
        ),
    ],
    output: Annotated[str, typer.Option("--output", "-o", metavar="DIR", help="Directory or prefix to write to.")],
    valid: Annotated[
        list[str] | None,
        typer.Option("--valid", metavar="[NAME=]INPUT", help="Validation data. Can be repeated."),
    ] = None,
    init: Annotated[str | None, typer.Option(metavar="MODEL", help="Start from it, as --model of transcribe.")] = None,
    model_config: Annotated[
        str | None, typer.Option("--model-config", metavar="FILE", help="Train from scratch: a SEW-D config.json.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help=f"Number of optimizer steps. {_RULE}")] = None,
    batch_seconds: Annotated[
        float, typer.Option(help="Seconds of audio per batch and worker.", rich_help_panel=OPTIMIZER)
    ] = default_of(DataSettings, "batch_s"),
    accumulate: Annotated[int, typer.Option(help="Batches per step.", rich_help_panel=OPTIMIZER)] = default_of(
        TrainSettings, "accumulate"
    ),
    learning_rate: Annotated[
        float | None, typer.Option(help=f"Peak of the learning rate schedule. {_RULE}", rich_help_panel=OPTIMIZER)
    ] = None,
    warmup: Annotated[
        float | None,
        typer.Option(help=f"Share of the steps in which the rate rises. {_RULE}", rich_help_panel=OPTIMIZER),
    ] = None,
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
        str | None,
        typer.Option(
            metavar="NAME=P,...",
            help=f"Probability of trim, speed, reverb, tilt, noise, gain, band, codec; or none. {_RULE}",
            rich_help_panel=DATA,
        ),
    ] = None,
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
    valid_every: Annotated[
        int | None, typer.Option(help=f"Steps between validations. {_RULE}", rich_help_panel=PROGRESS)
    ] = None,
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
    max_error_rate: Annotated[
        float | None,
        typer.Option(
            help="Fail if more than this share of a set's rows cannot be used; by default 0.05, from 1,000 rows on.",
            rich_help_panel=DATA,
        ),
    ] = None,
    allow_any_path: Annotated[
        bool,
        typer.Option(
            "--allow-any-path",
            help="Read what a remote manifest names outside its own bucket or host, local files included.",
            rich_help_panel=DATA,
        ),
    ] = False,
    errors_ok: Annotated[
        bool, typer.Option("--errors-ok", help="Exit with 0 although rows failed.", rich_help_panel=DATA)
    ] = False,
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

    The same command resumes an interrupted training. Exit codes: 0 done, 1 failed, 2 usage,
    3 done but rows of the data failed, 130 stopped by --stop-after.
    """
    from pipeline.training.augment import parse_augmentations  # noqa: PLC0415 - torch and Ray take seconds to load
    from pipeline.training.loop import ERRORS_FILE, MODEL_DIRECTORY, describe_scores  # noqa: PLC0415
    from pipeline.training.ray_train import CURVE_FILE  # noqa: PLC0415
    from pipeline.training.ray_train import finetune as run  # noqa: PLC0415
    from sewd_model.files import CheckpointError  # noqa: PLC0415

    join_max, join_below_s = _join(join)
    data = make_data_settings(
        batch_s=batch_seconds,
        join_max=join_max,
        join_below_s=join_below_s,
        augment=parse_augmentations(default_augment(init) if augment is None else augment),
        seed=seed,
    )
    placement = make_placement(workers=workers, gpus=gpu, address=address)
    settings = make_settings(
        train=tuple(_weighted(item) for item in train),
        valid=_all_named(valid or ()),
        output=output,
        init=init,
        config=model_config,
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
        threads=max(1, (os.cpu_count() or 1) // workers) if threads is None else threads,
        max_error_rate=max_error_rate,
        allow_any_path=allow_any_path,
    )
    try:
        result = run(settings, placement, lambda line: err.print(line, markup=False))
    except CheckpointError as error:
        raise UsageError(str(error)) from error
    for line in _summary(result, describe_scores):
        out.print(line, markup=False, soft_wrap=True)
    out.print(f"model: {output}/{MODEL_DIRECTORY}   curve: {output}/{CURVE_FILE}", markup=False, soft_wrap=True)
    if result["errors"]:
        err.print(f"{result['errors']} rows of the data could not be used: {output}/{ERRORS_FILE}", markup=False)
    if not result["finished"]:
        return Exit.STOPPED
    return Exit.DONE_WITH_ERRORS if result["errors"] and not errors_ok else Exit.DONE


def _summary(result: Mapping[str, Any], shown: Callable[[Mapping[str, float]], str]) -> Iterator[str]:
    """Where the training ended, and each validation set before the first step and with the model that was kept."""
    yield f"{'done' if result['finished'] else 'stopped'} at step {result['step']}" + (
        f", best error {result['best']:.2%} at step {result['best_step']}" if result["best_scores"] else ""
    )
    for name, scores in result["best_scores"].items():
        before = result["initial_scores"].get(name)
        yield f"{name}: before {shown(before) if before else 'not measured'}; best {shown(scores)}"
    if not result["best_scores"]:
        yield "no --valid: the model is that of the last step, and whether it is better than the first is not known"
    elif result["best_step"] == 0:
        yield "no step was better than the initial model, which is kept"


def _weighted(item: str) -> tuple[str, float]:
    """(INPUT, weight) of `[WEIGHT=]INPUT`."""
    weight, equals, uri = item.partition("=")
    if not equals or "/" in weight:
        return item, 1.0
    try:
        value = float(weight)
    except ValueError:
        return item, 1.0
    if not uri or not 0 < value < 1e6:
        raise UsageError(f"train: {item!r} is not [WEIGHT=]INPUT with a weight above 0")
    return uri, value


def _named(item: str) -> tuple[str, str]:
    """(name, INPUT) of `[NAME=]INPUT`; without a name, that of the file, shard or directory."""
    name, equals, uri = item.partition("=")
    if equals and name and uri and "/" not in name:
        return name, uri
    return posixpath.splitext(posixpath.basename(item.rstrip("/")))[0] or item, item


def _all_named(items: Sequence[str]) -> dict[str, str]:
    """INPUTs by name, of which no two may be equal."""
    named: dict[str, str] = {}
    for name, uri in map(_named, items):
        if name in named:
            raise UsageError(
                f"valid: {named[name]} and {uri} have the name {name}: give them names, --valid NAME=INPUT"
            )
        named[name] = uri
    return named


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
