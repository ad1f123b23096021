"""The settings of a training, checked before anything starts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from typing import Annotated, Any, Final, Literal, Self

from pydantic import ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass

from pipeline.settings import checked

_CHECKS: Final = ConfigDict(extra="forbid", allow_inf_nan=False)
# Names of the command line that differ from those of the fields.
OPTIONS: Final = {"batch_s": "batch-seconds", "join_max": "join", "join_below_s": "join", "stop_after_s": "stop-after"}

Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]


@dataclass(frozen=True, config=_CHECKS)
class DataSettings:
    """How clips become batches.

    Attributes:
        batch_s: seconds of audio per batch, with padding, before augmentation.
        join_max: join up to this many clips of one speaker into one utterance, with pauses; 1: join none.
        join_below_s: join only clips that have a text, have no label, and are shorter than this.
        join_total_s: longest joined utterance, in seconds.
        augment: probability of each augmentation by name; `trim` applies only to clips shorter than `join_below_s`.
        seed: seed of order, joins and augmentation.
    """

    batch_s: Positive = 60.0
    join_max: Count = 1
    join_below_s: Positive = 1.5
    join_total_s: Positive = 12.0
    augment: Mapping[str, float] = field(default_factory=dict)
    seed: int = 0


@dataclass(frozen=True, kw_only=True, config=_CHECKS)
class TrainSettings:
    """A training run.

    Attributes:
        train: manifests and their weights: (URI, how often an epoch takes each row, on average).
        valid: validation manifests by name; without one, the last weights are the result.
        output: directory or prefix of the training.
        init: checkpoint to start from; None: train from scratch, with `config`.
        config: `config.json` of a new model; None with `init`.
        steps: number of optimizer steps.
        accumulate: micro-batches per step.
        learning_rate: peak of the schedule.
        warmup: share of the steps in which the rate rises linearly to the peak.
        hold: share of the steps in which it stays there; in the rest it falls exponentially to 5 % of the peak.
        optimizer: "adamw", or "muon" for the matrices of the transformer, see `make_optimizers`.
        weight_decay: on matrices and kernels only.
        clip_norm: largest norm of the gradients.
        label_weight: weight of the classifier's loss relative to the CTC loss.
        mel_steps: train only the convolutions in the first steps, on a log-mel regression (`MelRegression`); the
            schedule starts after them.
        freeze_features: do not train the convolutions.
        data: how clips become batches.
        precision: "bfloat16" computes matrix products in it; "auto" does so on a GPU.
        valid_every: steps between validations.
        checkpoint_every: steps between checkpoints, beside those at validations.
        patience: stop after this many validations without a better one; None: never.
        stop_after_s: stop at the next step after this many seconds, to be resumed later; None: never.
        save_dtype: number format of the saved weights.
        threads: torch threads; None: torch's default.
        prefetch: batches that a thread makes in advance.
    """

    train: tuple[tuple[str, float], ...]
    valid: Mapping[str, str] = field(default_factory=dict)
    output: str
    init: str | None = None
    config: str | None = None
    steps: Count = 1000
    accumulate: Count = 1
    learning_rate: Positive = 4e-4
    warmup: NotNegative = 0.1
    hold: NotNegative = 0.4
    optimizer: Literal["adamw", "muon"] = "adamw"
    weight_decay: NotNegative = 0.01
    clip_norm: Positive = 1.0
    label_weight: NotNegative = 1.0
    mel_steps: Annotated[int, Field(ge=0)] = 0
    freeze_features: bool = False
    data: DataSettings = field(default_factory=DataSettings)
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    valid_every: Count = 200
    checkpoint_every: Count = 200
    patience: int | None = None
    stop_after_s: float | None = None
    save_dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    threads: int | None = None
    prefetch: int = 4

    @model_validator(mode="after")
    def _fields_agree(self) -> Self:
        if (self.init is None) == (self.config is None):
            raise ValueError("give either a checkpoint to start from (--init) or a configuration (--config)")
        if self.warmup + self.hold > 1:
            raise ValueError(f"warmup and hold: {self.warmup:g} + {self.hold:g} is more than 1")
        if self.mel_steps >= self.steps:
            raise ValueError(f"mel-steps: {self.mel_steps} is not less than steps, {self.steps}")
        return self


def make_settings(**values: Any) -> TrainSettings:
    """`TrainSettings` from its fields.

    Raises:
        UsageError: a value is missing, unknown or out of range.
    """
    return checked(TrainSettings, values, OPTIONS)


def make_data_settings(**values: Any) -> DataSettings:
    """`DataSettings` from its fields.

    Raises:
        UsageError: a value is unknown or out of range.
    """
    return checked(DataSettings, values, OPTIONS)


def settings_from_json(values: Mapping[str, Any]) -> TrainSettings:
    """The settings from what `dataclasses.asdict` made of them, also by way of JSON."""
    data = DataSettings(**values["data"])
    manifests = tuple((str(uri), float(weight)) for uri, weight in values["train"])
    return TrainSettings(**{**values, "data": data, "train": manifests})
