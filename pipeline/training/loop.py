"""The training loop: a plain function over manifests, the same in a test, in a process of its own and under Ray Train.

Every draw is a function of the settings' seed and of where it is made: the batches of an epoch, the augmentation of an
utterance (`training_data`), and the dropout and SpecAugment of a step, for which torch's generators are seeded before
each micro-batch. A training that was killed and resumed from its last checkpoint therefore goes through the same losses
as one that was not (on the CPU bit by bit, with the same number of threads).

The order that makes a kill harmless: the log's lines of a step are written before its checkpoint, and a checkpoint is
one object, written whole. A resume takes the last one, and drops the log's lines beyond it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import math
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import numpy as np
import torch
from torch import nn

from pipeline.errors import RunFailedError, UsageError
from pipeline.scoring.counts import ErrorCounts, char_counts, word_counts
from pipeline.scoring.normalize import normalize
from pipeline.storage import objects, uris
from pipeline.training.data import (
    Clip,
    ClipStore,
    DataSettings,
    Utterance,
    epoch_batches,
    load_manifest,
    padded_width,
    rng_of,
    waveform,
)
from pipeline.training.model import (
    Batch,
    Losses,
    Start,
    TrainingModel,
    merged_state,
    save_model,
    start_from_checkpoint,
    start_from_scratch,
)
from sewd_model.config import SEWDConfig
from sewd_model.ctc import CTCTokenizer, greedy_path
from sewd_model.features import FeatureExtractor
from sewd_model.files import read_json
from sewd_model.model import IGNORED_LABEL

LOG_FILE: Final = "log.jsonl"
SETTINGS_FILE: Final = "finetune.json"
MODEL_DIRECTORY: Final = "model"  # the best by validation
LAST_DIRECTORY: Final = "last"
CHECKPOINT_DIRECTORY: Final = "checkpoints"
_KEPT_CHECKPOINTS: Final = 2
_REPORTED_EVERY: Final = 20  # steps
_SHOWN_EVERY_S: Final = 20.0
_MEL_WARMUP: Final = 20  # steps
_MIN_LR_SHARE: Final = 0.05  # where the schedule ends; the tri-stage schedule of wav2vec 2.0
# What may differ between a training and its resume: none of it changes a loss before the point of resume.
_FREE: Final = frozenset({"output", "checkpoint_every", "stop_after_s", "threads", "prefetch"})


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """A training run; what each field means to the loop.

    Attributes:
        train: manifests and their weights, (URI, how often an epoch takes each row).
        valid: manifests to measure on by name; none: no measuring, the last weights are the result.
        output: directory or prefix of the run.
        init: checkpoint to start from; None: from scratch, by `config`.
        config: `config.json` of a model to make; None with `init`.
        steps: optimizer steps in all.
        accumulate: micro-batches a step.
        learning_rate: the schedule's peak.
        warmup: share of the steps in which the rate rises to it, linearly.
        hold: share in which it stays there; in the rest it falls exponentially to 5 % of it.
        optimizer: "adamw", or "muon" for the transformer's matrices, see `make_optimizers`.
        weight_decay: on matrices and kernels only.
        clip_norm: gradients' largest norm.
        label_weight: weight of the classifier's loss beside CTC's.
        mel_steps: the first so many steps train the convolutions alone, on a log-mel regression (`MelRegression`);
            the schedule follows after them.
        freeze_features: the convolutions do not learn.
        data: see `DataSettings`.
        precision: "bfloat16" runs matrix products in it; "auto" does on a GPU.
        valid_every: steps between validations.
        checkpoint_every: steps between checkpoints, beside those at validations.
        patience: stop after so many validations without a better one; None: never.
        stop_after_s: stop at the next step after so many seconds, to go on another day; None: never.
        save_dtype: of the weights on disk.
        threads: torch threads; None: torch's own number.
        prefetch: batches made ahead, in a thread.
    """

    train: tuple[tuple[str, float], ...]
    valid: Mapping[str, str] = field(default_factory=dict)
    output: str
    init: str | None = None
    config: str | None = None
    steps: int = 1000
    accumulate: int = 1
    learning_rate: float = 4e-4
    warmup: float = 0.1
    hold: float = 0.4
    optimizer: Literal["adamw", "muon"] = "adamw"
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    label_weight: float = 1.0
    mel_steps: int = 0
    freeze_features: bool = False
    data: DataSettings = field(default_factory=DataSettings)
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    valid_every: int = 200
    checkpoint_every: int = 200
    patience: int | None = None
    stop_after_s: float | None = None
    save_dtype: str = "float32"
    threads: int | None = None
    prefetch: int = 4


@dataclass(frozen=True)
class Scores:
    """Figures of one validation set, from counts over all of it.

    Attributes:
        words: counts; None where no row has a text.
        characters: likewise.
        labels: rows with a label; `right` of them got theirs.
        right: see `labels`.
    """

    words: ErrorCounts | None
    characters: ErrorCounts | None
    labels: int
    right: int

    @property
    def error(self) -> float:
        """What a training minimises: the mean of word error rate and share of wrong labels, of what there is."""
        shares = []
        if self.words is not None:
            shares.append(self.words.error_rate or 0.0)
        if self.labels:
            shares.append(1 - self.right / self.labels)
        return sum(shares) / len(shares)

    def row(self) -> dict[str, float]:
        """For the log: wer, cer, accuracy as far as they are."""
        row: dict[str, float] = {}
        if self.words is not None and self.characters is not None:
            row |= {"wer": self.words.error_rate or 0.0, "cer": self.characters.error_rate or 0.0}
        if self.labels:
            row["accuracy"] = self.right / self.labels
        return {name: round(value, 5) for name, value in row.items()}


@dataclass(frozen=True)
class Worker:
    """This process among those that train together.

    Attributes:
        rank: its number; 0 measures, writes and decides.
        size: how many there are.
        device: to compute on.
        wrap: makes the model data-parallel.
        agree: gives every worker what worker 0 says.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    wrap: Callable[[nn.Module], nn.Module] = lambda model: model
    agree: Callable[[bool], bool] = lambda flag: flag


@dataclass
class _Progress:
    """Where a training stands; all of it is in a checkpoint."""

    step: int = 0
    epoch: int = 0
    batch: int = 0  # micro-batches of this epoch that are done, over all workers
    best: float = math.inf
    best_step: int = 0
    stale: int = 0  # validations since the best


# ----------------------------------------------------------------------------------------------------- schedule
def rate_factor(step: int, settings: TrainSettings) -> float:
    """The tri-stage schedule's share of the peak rate at `step` (0 is the first): up, level, exponentially down.

    Source: wav2vec 2.0 (arXiv 2006.11477), section 4.3, which SEW-D's paper fine-tunes by; there 10 %, 40 %, 50 %.
    """
    if step < settings.mel_steps:
        return min(1.0, (step + 1) / _MEL_WARMUP)
    step, steps = step - settings.mel_steps, settings.steps - settings.mel_steps
    rising, level = settings.warmup * steps, settings.hold * steps
    if step < rising:
        return (step + 1) / math.ceil(rising)
    falling = steps - rising - level
    if step < rising + level or falling <= 0:
        return 1.0
    return float(_MIN_LR_SHARE ** min(1.0, (step - rising - level) / falling))


def make_optimizers(model: TrainingModel, settings: TrainSettings) -> list[torch.optim.Optimizer]:
    """What moves the weights; together they hold each that learns once. Biases, norms, the mask vector do not decay.

    With "muon", the matrices of the transformer are its, at the same rate (its updates are scaled to the size of
    AdamW's), and AdamW's the rest: convolutions, the table of relative positions, heads.

    Source: Muon, Jordan et al. 2024 (https://kellerjordan.github.io/posts/muon/), as torch has it; the scale, Liu et
    al. 2025 (arXiv 2502.16982).

    Raises:
        UsageError: this torch has no Muon.
    """
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    muon = [p for name, p in named if settings.optimizer == "muon" and _is_hidden_matrix(name, p)]
    theirs = {id(p) for p in muon}
    rest = [p for _, p in named if id(p) not in theirs]
    groups = [
        {"params": [p for p in rest if p.dim() > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in rest if p.dim() <= 1], "weight_decay": 0.0},
    ]
    rate = settings.learning_rate
    optimizers: list[torch.optim.Optimizer] = [torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98), eps=1e-6)]
    if muon:
        if not hasattr(torch.optim, "Muon"):
            raise UsageError(f"optimizer muon: torch {torch.__version__} is without it, 2.9 and later have it")
        decay = settings.weight_decay
        optimizers.append(torch.optim.Muon(muon, lr=rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw"))
    return optimizers


def _is_hidden_matrix(name: str, parameter: nn.Parameter) -> bool:
    return parameter.dim() == 2 and ".encoder." in name and "embeddings" not in name


# ------------------------------------------------------------------------------------------------------ batches
@dataclass(frozen=True)
class Coding:
    """How clips become tensors, and logits words."""

    tokenizer: CTCTokenizer
    features: FeatureExtractor
    label_ids: Mapping[str, int]
    min_samples: int

    def encode(self, text: str) -> list[int]:
        """Token ids of a normalised text, in the case that the vocabulary is in."""
        upper = "E" in self.tokenizer.vocab
        return self.tokenizer.encode(text.upper() if upper else text)


def make_batch(waveforms: Sequence[np.ndarray], rows: Sequence[Clip | Utterance], coding: Coding) -> Batch:
    """Pad waveforms, texts and labels to one batch on the CPU."""
    long_enough = [np.pad(w, (0, coding.min_samples - len(w))) if len(w) < coding.min_samples else w for w in waveforms]
    values, mask = coding.features.pad(long_enough)
    more = (0, padded_width(values.shape[1]) - values.shape[1])
    values, mask = nn.functional.pad(values, more), nn.functional.pad(mask, more)
    ids = [coding.encode(row.text) if row.text else [] for row in rows]
    targets = torch.full((len(rows), max(1, *map(len, ids))), IGNORED_LABEL)
    for number, sequence in enumerate(ids):
        targets[number, : len(sequence)] = torch.tensor(sequence, dtype=torch.long)
    labels = [IGNORED_LABEL if row.label is None else coding.label_ids[row.label] for row in rows]
    return Batch(values, mask, targets, torch.tensor([row.text is not None for row in rows]), torch.tensor(labels))


def training_batches(
    store: ClipStore, coding: Coding, settings: DataSettings, worker: Worker, start: tuple[int, int]
) -> Iterator[tuple[int, int, Batch]]:
    """Micro-batches of this worker, for ever: (epoch, micro-batches of it done after this one, batch).

    Workers take turns; a rest too small to go round is left out of the epoch.
    """
    epoch, done = start
    while True:
        batches = epoch_batches(store.clips, settings, epoch, worker.size)
        if len(batches) < worker.size:
            raise UsageError(f"{len(batches)} batches of {settings.batch_s} s are too few for {worker.size} workers")
        while done + worker.size <= len(batches):
            chosen = batches[done + worker.rank]
            done += worker.size
            waveforms = [waveform(store, utterance, settings, epoch) for utterance in chosen]
            yield epoch, done, make_batch(waveforms, chosen, coding)
        epoch, done = epoch + 1, 0


@contextlib.contextmanager
def ahead(items: Iterator[Any], depth: int) -> Iterator[Iterator[Any]]:
    """The same items, made up to `depth` ahead in a thread; what the thread raises is raised where it is taken."""
    if depth < 1:
        yield items
        return
    taken: queue.Queue[tuple[bool, Any]] = queue.Queue(depth)
    stop = threading.Event()

    def offer(entry: tuple[bool, Any]) -> None:
        while not stop.is_set():
            with contextlib.suppress(queue.Full):
                taken.put(entry, timeout=0.2)
                return

    def work() -> None:
        try:
            for item in items:
                offer((True, item))
                if stop.is_set():
                    return
        except BaseException as error:  # noqa: BLE001 - handed over, and raised by the one who takes
            offer((False, error))

    def take() -> Iterator[Any]:
        while True:
            sound, item = taken.get()
            if not sound:
                raise item
            yield item

    with ThreadPoolExecutor(1, thread_name_prefix="batches") as pool:
        pool.submit(work)
        try:
            yield take()
        finally:
            stop.set()


# --------------------------------------------------------------------------------------------------- validation
@torch.inference_mode()
def validate(model: TrainingModel, store: ClipStore, coding: Coding, device: torch.device, batch_s: float) -> Scores:
    """Greedy WER, CER and accuracy over a set, by the project's own decoder, normaliser and counts, in float32."""
    model.eval()
    drop = coding.tokenizer.drop_ids
    words = characters = None
    labels = right = 0
    whole = DataSettings(batch_s=batch_s)
    clips = [dataclasses.replace(clip, weight=1.0) for clip in store.clips]
    for chosen in epoch_batches(clips, whole, 0):
        rows = [store.clips[utterance.clips[0]] for utterance in chosen]
        batch = make_batch([waveform(store, u, whole, 0) for u in chosen], rows, coding).to(device)
        outputs = model.ctc.sew_d.encode(batch.input_values, batch.attention_mask)
        if bool(batch.has_text.any()):
            logits = model.ctc.head(outputs).float().cpu()
            for number, row in enumerate(rows):
                if row.text is None:
                    continue
                path = greedy_path(logits[number, : int(outputs.num_frames[number])], model.ctc.blank, drop)
                heard = normalize(coding.tokenizer.decode(path.token_ids.tolist()), "basic")
                words = (words or ErrorCounts.zero()) + word_counts(row.text, heard)
                characters = (characters or ErrorCounts.zero()) + char_counts(row.text, heard)
        if model.classifier is not None and bool((batch.labels >= 0).any()):
            best = model.classifier.head(outputs).float().argmax(-1)
            counted = batch.labels >= 0
            labels += int(counted.sum())
            right += int((best == batch.labels)[counted].sum())
    model.train()
    return Scores(words, characters, labels, right)


# -------------------------------------------------------------------------------------------------- checkpoints
def _checkpoint_uris(output: str) -> list[str]:
    directory = uris.join(output, CHECKPOINT_DIRECTORY)
    found = [o.uri for o in objects.list_directory(directory) if not objects.is_temporary(o.uri)]
    return sorted(uri for uri in found if uri.endswith(".pt"))


def save_checkpoint(
    output: str, progress: _Progress, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]
) -> None:
    """Write all that a resume needs as one object, whole or not at all, and remove all but the last two."""
    buffer = io.BytesIO()
    moments = [optimizer.state_dict() for optimizer in optimizers]
    state = {"progress": dataclasses.asdict(progress), "model": model.state_dict(), "optimizers": moments}
    torch.save(state, buffer)
    objects.put(uris.join(output, CHECKPOINT_DIRECTORY, f"step-{progress.step:08d}.pt"), buffer.getvalue())
    objects.delete(_checkpoint_uris(output)[:-_KEPT_CHECKPOINTS])


def load_checkpoint(
    output: str, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer], device: torch.device
) -> _Progress | None:
    """Bring model and optimizers to the last checkpoint's state; None: there is none."""
    uris = _checkpoint_uris(output)
    if not uris:
        return None
    state = torch.load(io.BytesIO(objects.fetch(uris[-1])), map_location=device, weights_only=True)
    model.load_state_dict(state["model"])
    for optimizer, moments in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(moments)
    return _Progress(**state["progress"])


class _Log:
    """`log.jsonl`: a line a step, a line a validation. Local runs append; a resume drops the lines past its step."""

    def __init__(self, output: str, step: int, *, active: bool) -> None:
        self.uri = uris.join(output, LOG_FILE)
        self.active = active
        self.lines: list[str] = []
        if active and step and objects.exists(self.uri):
            rows = objects.fetch(self.uri).decode().splitlines(keepends=True)
            self.lines = [row for row in rows if row.endswith("\n") and json.loads(row)["step"] <= step]
        self.waiting, self.flushed = True, 0.0
        self.flush()

    def add(self, row: dict[str, Any]) -> None:
        self.lines.append(json.dumps(row) + "\n")
        self.waiting = True

    def flush(self) -> None:
        if self.active and self.waiting:
            objects.put(self.uri, "".join(self.lines).encode())
            self.waiting, self.flushed = False, time.monotonic()

    def flush_sometimes(self) -> None:
        """For those who look on; what a kill takes of it, the resume makes again."""
        if time.monotonic() - self.flushed > _SHOWN_EVERY_S:
            self.flush()


# ------------------------------------------------------------------------------------------------------ the loop
def train(
    settings: TrainSettings, worker: Worker | None = None, report: Callable[[str], None] = print
) -> dict[str, Any]:
    """Train, or go on with a training that was interrupted; writes below `settings.output`.

    `log.jsonl` has a line a step and a line a validation, `model/` the best checkpoint in the Hugging Face layout,
    `last/` the last, `checkpoints/` what a resume needs, `finetune.json` the settings.

    Args:
        settings: see `TrainSettings`.
        worker: this process among several; None: it is alone, on the CPU.
        report: is given a line now and then.

    Returns:
        `step`, `best` (mean error of the validation sets), `best_step`, `finished` (False: stopped by the clock).

    Raises:
        UsageError: manifests or settings do not fit, or the output holds a training with other settings.
        CheckpointError: `init` does not load.
        RunFailedError: audio cannot be read, or the loss is not finite.
    """
    run = _prepare(settings, worker or Worker(), report)
    progress, writes = run.progress, run.worker.rank == 0
    began = time.monotonic()
    batches = training_batches(run.store, run.coding, settings.data, run.worker, (progress.epoch, progress.batch))
    stopped = progress.stale >= (settings.patience or math.inf)
    with ahead(batches, settings.prefetch) as source:
        while progress.step < settings.steps and not stopped:
            row = _step(run, source)
            run.log.add(row)
            run.log.flush_sometimes()
            if progress.step % _REPORTED_EVERY == 0:
                report(describe(row))
            last = progress.step == settings.steps
            out_of_time = False
            if settings.stop_after_s is not None:
                out_of_time = run.worker.agree(time.monotonic() - began > settings.stop_after_s)
            measured = bool(settings.valid) and (progress.step % settings.valid_every == 0 or last)
            if measured:
                stopped = run.worker.agree(writes and _measure(run))
            if writes and (measured or last or out_of_time or progress.step % settings.checkpoint_every == 0):
                run.log.flush()
                save_checkpoint(settings.output, progress, run.model, run.optimizers)
            if out_of_time and not last:
                return {**dataclasses.asdict(progress), "finished": False}
    if writes:
        _save(run, LAST_DIRECTORY)
        if not settings.valid:
            _save(run, MODEL_DIRECTORY)
    return {**dataclasses.asdict(progress), "finished": True}


@dataclass(frozen=True)
class _Run:
    """What a training works with from its first step to its last."""

    settings: TrainSettings
    worker: Worker
    report: Callable[[str], None]
    store: ClipStore
    valid: Mapping[str, ClipStore]
    model: TrainingModel
    wrapped: nn.Module
    coding: Coding
    optimizers: Sequence[torch.optim.Optimizer]
    progress: _Progress
    log: _Log


def _prepare(settings: TrainSettings, worker: Worker, report: Callable[[str], None]) -> _Run:
    if settings.threads:
        torch.set_num_threads(settings.threads)
    check_settings(settings)
    if worker.rank == 0:
        keep_settings(settings)
    store = ClipStore([clip for uri, weight in settings.train for clip in load_manifest(uri, weight)])
    valid = {name: ClipStore(load_manifest(uri)) for name, uri in settings.valid.items()}
    start = _start(settings, store)
    model = start.model.to(worker.device).train()
    if settings.freeze_features:
        model.ctc.freeze_feature_encoder()
    coding = Coding(start.tokenizer, start.features, model.config.label2id, model.config.min_samples)
    _check_labels(valid, coding, model)
    optimizers = make_optimizers(model, settings)
    progress = load_checkpoint(settings.output, model, optimizers, worker.device) or _Progress()
    log = _Log(settings.output, progress.step, active=worker.rank == 0)
    hours = sum(clip.duration_s * clip.weight for clip in store.clips) / 3600
    size = sum(parameter.numel() for parameter in model.parameters())
    report(f"{len(store)} clips, {hours:.2f} h an epoch, {size / 1e6:.2f} M parameters, from step {progress.step}")
    wrapped = worker.wrap(model)
    return _Run(settings, worker, report, store, valid, model, wrapped, coding, optimizers, progress, log)


def _save(run: _Run, name: str) -> None:
    target, model = uris.join(run.settings.output, name), run.model
    tokenizer, features = run.coding.tokenizer, run.coding.features
    save_model(target, merged_state(model), model.config, tokenizer, features, run.settings.save_dtype)


def _step(run: _Run, source: Iterator[tuple[int, int, Batch]]) -> dict[str, Any]:
    """One optimizer step; moves `progress` on and gives the log's row."""
    began = time.monotonic()
    settings, worker, progress = run.settings, run.worker, run.progress
    rate = settings.learning_rate * rate_factor(progress.step, settings)
    for optimizer in run.optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate
    mel_only = progress.step < settings.mel_steps
    sums = np.zeros(4)
    audio_s = 0.0
    waited = 0.0
    for micro in range(settings.accumulate):
        asked = time.monotonic()
        progress.epoch, progress.batch, batch = next(source)
        waited += time.monotonic() - asked
        batch = batch.to(worker.device)
        torch.manual_seed(int(rng_of(settings.data.seed, "step", progress.step, micro, worker.rank).integers(2**62)))
        with _precision(settings, worker.device):
            losses: Losses = run.wrapped(batch, mel_only=mel_only)
        loss = losses.ctc + settings.label_weight * losses.label + losses.mel
        torch.autograd.backward(loss / settings.accumulate)
        sums += [float(value.detach()) for value in (loss, losses.ctc, losses.label, losses.mel)]
        audio_s += float(batch.attention_mask.sum()) / run.coding.features.sampling_rate
    norm = float(nn.utils.clip_grad_norm_(run.wrapped.parameters(), settings.clip_norm))
    if not math.isfinite(norm):
        raise RunFailedError(f"step {progress.step + 1}: the gradient is not finite: lower the learning rate")
    for optimizer in run.optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    progress.step += 1
    values = dict(zip(("loss", "ctc", "label", "mel"), (sums / settings.accumulate).tolist(), strict=True))
    return {
        "step": progress.step,
        "epoch": progress.epoch,
        **values,
        "grad_norm": norm,
        "lr": rate,
        "audio_s": round(audio_s, 2),
        "wait_s": round(waited, 3),
        "wall_s": round(time.monotonic() - began, 3),
    }


def _measure(run: _Run) -> bool:
    """Validate, keep the weights if they are the best yet; True: patience is at its end."""
    began = time.monotonic()
    progress, batch_s = run.progress, run.settings.data.batch_s
    scores = {
        name: validate(run.model, store, run.coding, run.worker.device, batch_s) for name, store in run.valid.items()
    }
    error = sum(score.error for score in scores.values()) / len(scores)
    if error < progress.best:
        progress.best, progress.best_step, progress.stale = error, progress.step, 0
        _save(run, MODEL_DIRECTORY)
    else:
        progress.stale += 1
    rows = {name: score.row() for name, score in scores.items()}
    wall_s = round(time.monotonic() - began, 1)
    row = {"step": progress.step, "valid": rows, "error": error, "best": progress.stale == 0, "wall_s": wall_s}
    run.log.add(row)
    run.report(describe(row))
    return progress.stale >= (run.settings.patience or math.inf)


def describe(row: Mapping[str, Any]) -> str:
    """A row of the log as a line to read."""
    if "valid" in row:
        sets = (f"{name} " + " ".join(f"{k} {v:.2%}" for k, v in one.items()) for name, one in row["valid"].items())
        return f"step {row['step']}: {'; '.join(sets)}" + (" *" if row["best"] else "")
    speed = row["audio_s"] / max(row["wall_s"], 1e-9)
    parts = " ".join(f"{name} {row[name]:.3f}" for name in ("ctc", "label", "mel", "grad_norm"))
    return f"step {row['step']} epoch {row['epoch']} {parts} lr {row['lr']:.2e} {speed:.0f}x"


def _precision(settings: TrainSettings, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    wanted = settings.precision == "bfloat16" or (settings.precision == "auto" and device.type == "cuda")
    return torch.autocast(device.type, torch.bfloat16) if wanted else contextlib.nullcontext()


def _start(settings: TrainSettings, store: ClipStore) -> Start:
    labels = sorted({clip.label for clip in store.clips if clip.label is not None})
    torch.manual_seed(settings.data.seed)
    with_mel = settings.mel_steps > 0
    if settings.init is not None:
        return start_from_checkpoint(settings.init, labels, with_mel=with_mel)
    assert settings.config is not None
    base, _, name = settings.config.rpartition("/")
    values = read_json(base or ".", name)
    if values is None:
        raise UsageError(f"there is no configuration {settings.config}")
    try:
        config = SEWDConfig.from_dict(values)
    except ValueError as error:
        raise UsageError(f"{settings.config}: {error}") from error
    return start_from_scratch(config, labels, with_mel=with_mel)


def check_settings(settings: TrainSettings) -> None:
    """Refuse settings that cannot be trained by.

    Raises:
        UsageError: says which.
    """
    if (settings.init is None) == (settings.config is None):
        raise UsageError("give either a checkpoint to start from or a configuration to start from scratch")
    ranges = {
        "steps": settings.steps >= 1,
        "accumulate": settings.accumulate >= 1,
        "learning-rate": settings.learning_rate > 0,
        "warmup and hold": settings.warmup >= 0 and settings.hold >= 0 and settings.warmup + settings.hold <= 1,
        "clip-norm": settings.clip_norm > 0,
        "batch-seconds": settings.data.batch_s > 0,
        "join": settings.data.join_max >= 1,
        "valid-every": settings.valid_every >= 1,
        "checkpoint-every": settings.checkpoint_every >= 1,
        "mel-steps": 0 <= settings.mel_steps < settings.steps,
    }
    for name, right in ranges.items():
        if not right:
            raise UsageError(f"{name} is out of range")


def _check_labels(valid: Mapping[str, ClipStore], coding: Coding, model: TrainingModel) -> None:
    if model.classifier is None:
        return
    for name, store in valid.items():
        unknown = {clip.label for clip in store.clips if clip.label is not None} - coding.label_ids.keys()
        if unknown:
            raise UsageError(f"valid {name}: labels that are not trained: {', '.join(sorted(unknown))}")


def keep_settings(settings: TrainSettings) -> None:
    """Write the settings, or hold them against those that the output was begun with.

    Raises:
        UsageError: they differ in what changes the training.
    """
    values = json.loads(json.dumps(dataclasses.asdict(settings)))
    uri = uris.join(settings.output, SETTINGS_FILE)
    if objects.exists(uri):
        old = json.loads(objects.fetch(uri))
        differ = sorted(key for key in values.keys() | old.keys() if values.get(key) != old.get(key))
        differ = [key for key in differ if key not in _FREE]
        if differ:
            raise UsageError(
                f"{settings.output} holds a training with other {', '.join(differ)}: choose another output"
            )
    objects.put(uri, (json.dumps(values, indent=2, sort_keys=True) + "\n").encode())
