"""The settings of a training, checked before anything starts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from typing import Annotated, Any, Final, Literal, Self

from pydantic import AfterValidator, ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass

from pipeline.settings import checked
from sewd_model.hub import HubName, hub_name

_CHECKS: Final = ConfigDict(extra="forbid", allow_inf_nan=False)
# Names of the command line that differ from those of the fields.
OPTIONS: Final = {
    "config": "model-config",
    "batch_s": "batch-seconds",
    "join_max": "join",
    "join_below_s": "join",
    "stop_after_s": "stop-after",
}

MAX_STEPS: Final = 10_000_000  # names of checkpoints have eight digits


def _between(low: int, high: int) -> AfterValidator:
    """An integer in a range, which the message of the error states."""

    def check(value: int) -> int:
        if not low <= value <= high:
            raise ValueError(f"must be from {low:,} to {high:,}")
        return value

    return AfterValidator(check)


Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Steps = Annotated[int, _between(1, MAX_STEPS)]
Count = Annotated[int, _between(1, 1_000_000)]


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
    """A training run. Where None says "by rule", the rule is that of `schedule_of`.

    Attributes:
        train: INPUTs and their weights: (URI, how often an epoch takes each row, on average).
        valid: validation INPUTs by name; without one, the last weights are the result.
        output: directory or prefix of the training.
        init: checkpoint to start from; None: train from scratch, with `config`.
        init_commit: commit of `init`, if it is on the hub; a resume keeps it.
        config: `config.json` of a new model; None with `init`.
        steps: number of optimizer steps; None: by rule.
        accumulate: micro-batches per step.
        learning_rate: peak of the schedule; None: by rule.
        warmup: share of the steps in which the rate rises linearly to the peak; None: by rule.
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
        valid_every: steps between validations; None: by rule.
        checkpoint_every: steps between checkpoints, beside those at validations.
        patience: stop after this many validations without a better one; None: never.
        stop_after_s: stop at the next step after this many seconds, to be resumed later; None: never.
        save_dtype: number format of the saved weights.
        threads: torch threads; None: torch's default.
        prefetch: batches that a thread makes in advance.
        max_error_rate: largest share of the rows of a set that may fail; None: 5 %, for sets of 1,000 rows or more.
        allow_any_path: a manifest, table or Parquet file may name objects outside the store that it is in.
    """

    train: tuple[tuple[str, float], ...]
    valid: Mapping[str, str] = field(default_factory=dict)
    output: str
    init: str | None = None
    init_commit: str | None = None
    config: str | None = None
    steps: Steps | None = None
    accumulate: Count = 1
    learning_rate: Positive | None = None
    warmup: Share | None = None
    hold: Share = 0.4
    optimizer: Literal["adamw", "muon"] = "adamw"
    weight_decay: NotNegative = 0.01
    clip_norm: Positive = 1.0
    label_weight: NotNegative = 1.0
    mel_steps: Annotated[int, _between(0, MAX_STEPS)] = 0
    freeze_features: bool = False
    data: DataSettings = field(default_factory=DataSettings)
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    valid_every: Steps | None = None
    checkpoint_every: Steps = 200
    patience: Count | None = None
    stop_after_s: NotNegative | None = None
    save_dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    threads: Count | None = None
    prefetch: Annotated[int, _between(0, 1000)] = 4
    max_error_rate: Share | None = None
    allow_any_path: bool = False

    @property
    def start(self) -> str | None:
        """The checkpoint to start from, with its commit if it is on the hub."""
        name = hub_name(self.init) if self.init else None
        return self.init if name is None else HubName(name.repo, self.init_commit or name.revision).uri

    @model_validator(mode="after")
    def _fields_agree(self) -> Self:
        if (self.init is None) == (self.config is None):
            raise ValueError("give either a checkpoint to start from (--init) or a configuration (--model-config)")
        warmup = SCRATCH.warmup if self.warmup is None else self.warmup
        if warmup + self.hold > 1:
            raise ValueError(f"warmup and hold: {warmup:g} + {self.hold:g} is more than 1")
        if self.mel_steps and self.mel_steps >= (self.steps or SCRATCH.steps):
            raise ValueError(f"mel-steps: {self.mel_steps} is not less than steps, {self.steps or SCRATCH.steps}")
        return self


@dataclass(frozen=True, config=_CHECKS)
class Placement:
    """Where to train.

    Attributes:
        workers: processes that train together, each on its own batches.
        gpus: one GPU per worker.
        cpus_per_worker: Ray CPUs per worker.
        address: Ray cluster; "local" starts one.
    """

    workers: Count = 1
    gpus: bool = False
    cpus_per_worker: float = 1.0
    address: str = "local"


@dataclass(frozen=True)
class Schedule:
    """The length of a training and its learning rate, where `TrainSettings` leaves them to the rule.

    Attributes:
        steps: number of optimizer steps.
        learning_rate: the peak.
        warmup: share of the steps, after `mel_steps`, in which the rate rises to the peak.
        hold: share of them in which it stays there.
        mel_steps: steps of the log-mel regression, which come first.
        valid_every: steps between validations.
    """

    steps: int
    learning_rate: float
    warmup: float
    hold: float = 0.4
    mel_steps: int = 0
    valid_every: int = 200


SCRATCH: Final = Schedule(steps=1000, learning_rate=4e-4, warmup=0.1)
"""The defaults with `--model-config`."""
SCRATCH_AUGMENT: Final = "speed=0.5,reverb=0.1,tilt=0.2,noise=0.3,gain=0.3,band=0.2,codec=0.05"

# The defaults with `--init`, by the measurements in docs/training.md.
_INIT_RATE: Final = 3e-5
_INIT_WARMUP: Final = 0.1
_INIT_EPOCHS: Final = 12
_INIT_STEPS: Final = (100, 1000)  # fewest and most
_INIT_VALIDATIONS: Final = 10
_INIT_VALID_EVERY: Final = 10  # at least
INIT_AUGMENT: Final = "speed=0.5,reverb=0.1,tilt=0.2,noise=0.3,gain=0.3,band=0.2,codec=0.05"


def default_augment(init: str | None) -> str:
    """The augmentations of the command line without `--augment`."""
    return SCRATCH_AUGMENT if init is None else INIT_AUGMENT


def schedule_of(settings: TrainSettings, epoch_steps: float) -> Schedule:
    """The schedule of a training: what its settings say, and for the rest the rule.

    From scratch the rule is `SCRATCH`. With `init` it is a lower rate, twelve epochs, and ten validations.

    Args:
        settings: of the training.
        epoch_steps: optimizer steps in which each clip is used once.
    """
    few, many = _INIT_STEPS
    if settings.init is None:
        rule = SCRATCH
    else:
        steps = min(max(round(_INIT_EPOCHS * epoch_steps), few), many)
        rule = Schedule(steps=steps, learning_rate=_INIT_RATE, warmup=_INIT_WARMUP)
    steps = settings.steps or rule.steps
    valid_every = rule.valid_every if settings.init is None else max(_INIT_VALID_EVERY, steps // _INIT_VALIDATIONS)
    return Schedule(
        steps=steps,
        learning_rate=settings.learning_rate or rule.learning_rate,
        warmup=rule.warmup if settings.warmup is None else settings.warmup,
        hold=settings.hold,
        mel_steps=settings.mel_steps,
        valid_every=settings.valid_every or valid_every,
    )


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


def make_placement(**values: Any) -> Placement:
    """Build a `Placement`.

    Raises:
        UsageError: a value is out of range; the message begins with the name of its option.
    """
    return checked(Placement, values, {})
