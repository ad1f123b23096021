"""The training loop: a plain function over settings, the same in a test, in its own process and under Ray Train.

Every random draw is a function of the seed and of its position: the batches of an epoch, the augmentation of an
utterance (`pipeline.training.data`), and the dropout and SpecAugment of a step, for which torch's generators are seeded
before each micro-batch. A training that was killed and resumed from its last checkpoint therefore has the same
losses as an undisturbed one (bit for bit on the CPU, with the same number of threads).

A kill is harmless because of the order of writes: the log lines of a step are written before its checkpoint, and a
checkpoint is one object, written whole. A resume starts from the last checkpoint and drops the log lines after it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
import math
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import torch
from torch import nn

from pipeline.errors import RunFailedError, UsageError
from pipeline.scoring.counts import ErrorCounts, char_counts, word_counts
from pipeline.scoring.normalize import normalize
from pipeline.storage import objects, uris
from pipeline.training.characters import UnknownCharacters, encode, unknown_characters
from pipeline.training.data import Clip, ClipStore, Utterance, epoch_batches, generator_for, padded_width, waveform
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
from pipeline.training.settings import DataSettings, Schedule, TrainSettings, schedule_of
from pipeline.training.sources import ClipSet, check_error_rate, describe_errors, error_table, read_set
from sewd_model.config import SEWDConfig
from sewd_model.ctc import CTCTokenizer, greedy_path
from sewd_model.features import FeatureExtractor
from sewd_model.files import read_json
from sewd_model.model import IGNORED_LABEL

LOG_FILE: Final = "log.jsonl"
SETTINGS_FILE: Final = "finetune.json"
DATA_FILE: Final = "data.json"  # what the training and validation data hold
ERRORS_FILE: Final = "errors/rows.parquet"
MODEL_DIRECTORY: Final = "model"  # the best weights by validation
LAST_DIRECTORY: Final = "last"
CHECKPOINT_DIRECTORY: Final = "checkpoints"
_KEPT_CHECKPOINTS: Final = 2
_REPORTED_EVERY: Final = 20  # steps
_SHOWN_EVERY_S: Final = 20.0
_MEL_WARMUP: Final = 20  # steps
_MIN_LR_SHARE: Final = 0.05  # the end of the tri-stage schedule of wav2vec 2.0
# Settings that a resume may change: none of them changes a loss before the point of resume.
_CHANGEABLE: Final = frozenset({"output", "checkpoint_every", "stop_after_s", "threads", "prefetch", "max_error_rate"})


@dataclass(frozen=True)
class Scores:
    """Scores on one validation set, from counts over the whole set.

    Attributes:
        words: word counts; None if no row has a text.
        characters: character counts; None if no row has a text.
        labels: number of rows with a label.
        right: number of those rows whose label was predicted.
    """

    words: ErrorCounts | None
    characters: ErrorCounts | None
    labels: int
    right: int

    @property
    def error(self) -> float:
        """The validation error, 0..: the mean of word error rate and share of wrong labels, of those that exist."""
        shares = []
        if self.words is not None:
            shares.append(self.words.error_rate or 0.0)
        if self.labels:
            shares.append(1 - self.right / self.labels)
        return sum(shares) / len(shares)

    def row(self) -> dict[str, float]:
        """The log's entries: wer, cer and accuracy, of those that exist."""
        row: dict[str, float] = {}
        if self.words is not None and self.characters is not None:
            row |= {"wer": self.words.error_rate or 0.0, "cer": self.characters.error_rate or 0.0}
        if self.labels:
            row["accuracy"] = self.right / self.labels
        return {name: round(value, 5) for name, value in row.items()}


@dataclass(frozen=True)
class Worker:
    """This process among the workers of one training.

    Attributes:
        rank: number of this worker; worker 0 validates, writes and decides.
        size: number of workers.
        device: where it computes.
        wrap: makes a model data-parallel.
        agree: returns worker 0's flag on every worker.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    wrap: Callable[[nn.Module], nn.Module] = lambda model: model
    agree: Callable[[bool], bool] = lambda flag: flag


@dataclass
class _Progress:
    """The position of a training; a checkpoint holds all of it."""

    step: int = 0
    epoch: int = 0
    batch: int = 0  # finished micro-batches of this epoch, over all workers
    best: float = math.inf
    best_step: int = 0
    stale: int = 0  # validations since the best one
    # The scores of each validation set, as the log has them.
    initial_scores: dict[str, dict[str, float]] = field(default_factory=dict)  # before the first step
    best_scores: dict[str, dict[str, float]] = field(default_factory=dict)


# ----------------------------------------------------------------------------------------------------- schedule
def rate_factor(step: int, schedule: Schedule) -> float:
    """The share of the peak rate at `step` (from 0) in the tri-stage schedule: rise, hold, exponential fall.

    Source: wav2vec 2.0 (arXiv 2006.11477), section 4.3, used in the SEW-D paper; there 10 %, 40 %, 50 %.
    """
    if step < schedule.mel_steps:
        return min(1.0, (step + 1) / _MEL_WARMUP)
    step, steps = step - schedule.mel_steps, schedule.steps - schedule.mel_steps
    rising, level = schedule.warmup * steps, schedule.hold * steps
    if step < rising:
        return (step + 1) / math.ceil(rising)
    falling = steps - rising - level
    if step < rising + level or falling <= 0:
        return 1.0
    return float(_MIN_LR_SHARE ** min(1.0, (step - rising - level) / falling))


def make_optimizers(model: TrainingModel, settings: TrainSettings, rate: float) -> list[torch.optim.Optimizer]:
    """The optimizers; each trainable parameter is in exactly one. Biases, norms and the mask vector have no decay.

    `rate` is the peak of the learning rate; each step sets its own.

    With "muon", Muon trains the matrices of the transformer, at the same rate (its updates are scaled to the size of
    AdamW's), and AdamW the rest: convolutions, the table of relative positions, heads.

    Source: Muon, Jordan et al. 2024 (https://kellerjordan.github.io/posts/muon/), as implemented in torch; the scale:
    Liu et al. 2025 (arXiv 2502.16982).

    Raises:
        UsageError: this version of torch has no Muon.
    """
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    muon = [p for name, p in named if settings.optimizer == "muon" and _is_hidden_matrix(name, p)]
    in_muon = {id(p) for p in muon}
    rest = [p for _, p in named if id(p) not in in_muon]
    groups = [
        {"params": [p for p in rest if p.dim() > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in rest if p.dim() <= 1], "weight_decay": 0.0},
    ]
    optimizers: list[torch.optim.Optimizer] = [torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98), eps=1e-6)]
    if muon:
        if not hasattr(torch.optim, "Muon"):
            raise UsageError(f"optimizer muon: needs torch 2.9 or later, not {torch.__version__}")
        decay = settings.weight_decay
        optimizers.append(torch.optim.Muon(muon, lr=rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw"))
    return optimizers


def _is_hidden_matrix(name: str, parameter: nn.Parameter) -> bool:
    return parameter.dim() == 2 and ".encoder." in name and "embeddings" not in name


# ------------------------------------------------------------------------------------------------------ batches
@dataclass(frozen=True)
class Coding:
    """How clips become tensors, and logits become words."""

    tokenizer: CTCTokenizer
    features: FeatureExtractor
    label_ids: Mapping[str, int]
    min_samples: int

    def encode(self, text: str) -> list[int]:
        """Token ids of a normalised text, in the letter case of the vocabulary."""
        return encode(text, self.tokenizer)


def make_batch(waveforms: Sequence[np.ndarray], rows: Sequence[Clip | Utterance], coding: Coding) -> Batch:
    """Pad waveforms, float32 (num_samples,) each, texts and labels to one batch on the CPU."""
    long_enough = [np.pad(w, (0, coding.min_samples - len(w))) if len(w) < coding.min_samples else w for w in waveforms]
    values, mask = coding.features.pad(long_enough)
    padding = (0, padded_width(values.shape[1]) - values.shape[1])
    values, mask = nn.functional.pad(values, padding), nn.functional.pad(mask, padding)
    ids = [coding.encode(row.text) if row.text else [] for row in rows]
    targets = torch.full((len(rows), max(1, *map(len, ids))), IGNORED_LABEL)
    for number, sequence in enumerate(ids):
        targets[number, : len(sequence)] = torch.tensor(sequence, dtype=torch.long)
    labels = [IGNORED_LABEL if row.label is None else coding.label_ids[row.label] for row in rows]
    return Batch(values, mask, targets, torch.tensor([row.text is not None for row in rows]), torch.tensor(labels))


def training_batches(
    store: ClipStore, coding: Coding, settings: DataSettings, worker: Worker, start: tuple[int, int]
) -> Iterator[tuple[int, int, Batch]]:
    """Yield this worker's micro-batches endlessly: (epoch, finished micro-batches of it after this one, batch).

    Workers take turns; a remainder smaller than the number of workers is left out of the epoch.
    """
    epoch, done = start
    while True:
        batches = epoch_batches(store.clips, settings, epoch, worker.size)
        if len(batches) < worker.size:
            raise UsageError(f"{len(batches)} batches of {settings.batch_s:g} s are too few for {worker.size} workers")
        while done + worker.size <= len(batches):
            chosen = batches[done + worker.rank]
            done += worker.size
            waveforms = [waveform(store, utterance, settings, epoch) for utterance in chosen]
            yield epoch, done, make_batch(waveforms, chosen, coding)
        epoch, done = epoch + 1, 0


@contextlib.contextmanager
def prefetched(items: Iterator[Any], depth: int) -> Iterator[Iterator[Any]]:
    """The same items, up to `depth` of them made in advance by a thread; its exceptions are raised at the consumer."""
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
        except BaseException as error:  # noqa: BLE001 - passed on, and raised at the consumer
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
    """Greedy WER, CER and accuracy of a set, with the decoder, normaliser and counts of `sewd evaluate`, in float32."""
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
                hypothesis = normalize(coding.tokenizer.text(path.token_ids.tolist()), "basic")
                words = (words or ErrorCounts.zero()) + word_counts(row.text, hypothesis)
                characters = (characters or ErrorCounts.zero()) + char_counts(row.text, hypothesis)
        if model.classifier is not None and bool((batch.labels >= 0).any()):
            best = model.classifier.head(outputs).float().argmax(-1)
            labelled = batch.labels >= 0
            labels += int(labelled.sum())
            right += int((best == batch.labels)[labelled].sum())
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
    """Write all that a resume needs as one object, atomically, and remove all checkpoints but the last two."""
    buffer = io.BytesIO()
    moments = [optimizer.state_dict() for optimizer in optimizers]
    state = {"progress": dataclasses.asdict(progress), "model": model.state_dict(), "optimizers": moments}
    torch.save(state, buffer)
    objects.put(uris.join(output, CHECKPOINT_DIRECTORY, f"step-{progress.step:08d}.pt"), buffer.getvalue())
    objects.delete(_checkpoint_uris(output)[:-_KEPT_CHECKPOINTS])


def load_checkpoint(
    output: str, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer], device: torch.device
) -> _Progress | None:
    """Load the last checkpoint into model and optimizers; None if there is no checkpoint."""
    checkpoints = _checkpoint_uris(output)
    if not checkpoints:
        return None
    state = torch.load(io.BytesIO(objects.fetch(checkpoints[-1])), map_location=device, weights_only=True)
    model.load_state_dict(state["model"])
    for optimizer, moments in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(moments)
    return _Progress(**state["progress"])


class _Log:
    """`log.jsonl`: a line per step and per validation. A resume drops the lines after its step."""

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

    def flush_periodically(self) -> None:
        """Flush now and then, for readers; a resume writes again what a kill loses."""
        if time.monotonic() - self.flushed > _SHOWN_EVERY_S:
            self.flush()


# ------------------------------------------------------------------------------------------------------ the loop
def train(
    settings: TrainSettings, worker: Worker | None = None, report: Callable[[str], None] = print
) -> dict[str, Any]:
    """Train, or resume an interrupted training; writes below `settings.output`.

    `log.jsonl` has a line per step and per validation, the first of them before the first step; `model/` the best
    weights in the Hugging Face layout, which are the initial ones until others are better; `last/` the last ones;
    `checkpoints/` what a resume needs; `finetune.json` the settings; `data.json` what the data holds; `errors/` the
    rows of it that cannot be used.

    Args:
        settings: what to train.
        worker: this process among several; None: the only one, on the CPU.
        report: receives a line of text now and then.

    Returns:
        `step`, `best` (mean error of the validation sets), `best_step` (0: the initial model), `best_scores` and
        `initial_scores` by set, `finished` (False: stopped by the clock), `errors` (rows of the data that failed).

    Raises:
        UsageError: the data does not fit, or the output holds a training with other settings.
        CheckpointError: `init` does not load.
        RunFailedError: too many rows of the data failed, or the gradient is not finite.
    """
    run = _prepare(settings, worker or Worker(), report)
    progress, schedule, writes = run.progress, run.schedule, run.worker.rank == 0
    started = time.monotonic()
    batches = training_batches(run.store, run.coding, settings.data, run.worker, (progress.epoch, progress.batch))
    if settings.valid and progress.step == 0:
        run.worker.agree(writes and _validate_and_save(run))  # the initial model, kept until another is better
    stopped = progress.stale >= (settings.patience or math.inf)
    with prefetched(batches, settings.prefetch) as source:
        while progress.step < schedule.steps and not stopped:
            row = _step(run, source)
            run.log.add(row)
            run.log.flush_periodically()
            if progress.step % _REPORTED_EVERY == 0:
                report(describe(row))
            last = progress.step == schedule.steps
            out_of_time = False
            if settings.stop_after_s is not None:
                out_of_time = run.worker.agree(time.monotonic() - started > settings.stop_after_s)
            validated = bool(settings.valid) and (progress.step % schedule.valid_every == 0 or last)
            if validated:
                stopped = run.worker.agree(writes and _validate_and_save(run))
            if writes and (validated or last or out_of_time or progress.step % settings.checkpoint_every == 0):
                run.log.flush()
                save_checkpoint(settings.output, progress, run.model, run.optimizers)
            if out_of_time and not last:
                return _outcome(run, finished=False)
    if writes:
        _save(run, LAST_DIRECTORY)
        if not settings.valid:
            _save(run, MODEL_DIRECTORY)
    return _outcome(run, finished=True)


def _outcome(run: _Run, *, finished: bool) -> dict[str, Any]:
    return {**dataclasses.asdict(run.progress), "finished": finished, "errors": run.errors}


@dataclass(frozen=True)
class _Run:
    """The state of a training from its first step to its last."""

    settings: TrainSettings
    schedule: Schedule
    worker: Worker
    report: Callable[[str], None]
    store: ClipStore
    valid: Mapping[str, ClipStore]
    errors: int
    model: TrainingModel
    wrapped: nn.Module
    coding: Coding
    optimizers: Sequence[torch.optim.Optimizer]
    progress: _Progress
    log: _Log


def _prepare(settings: TrainSettings, worker: Worker, report: Callable[[str], None]) -> _Run:
    """Read the data and the model. Nothing is written before all checks are done, except for rows that failed."""
    if settings.threads:
        torch.set_num_threads(settings.threads)
    check_settings(settings)
    train_set = read_set("train", settings.train, settings.allow_any_path)
    valid_sets = {
        name: read_set(f"valid {name}", [(uri, 1.0)], settings.allow_any_path) for name, uri in settings.valid.items()
    }
    sets = [train_set, *valid_sets.values()]
    if worker.rank == 0:
        errors_uri = uris.join(settings.output, ERRORS_FILE)
        if any(found.errors for found in sets):
            objects.put(errors_uri, error_table(sets))
        elif objects.exists(errors_uri):  # of an earlier start, when the data had errors
            objects.delete([errors_uri])
    for found in sets:
        check_error_rate(found, settings.max_error_rate)
    store, valid = train_set.store, {name: found.store for name, found in valid_sets.items()}
    batches = len(epoch_batches(store.clips, settings.data, 0, worker.size))
    if batches < worker.size:
        raise UsageError(f"{batches} batches of {settings.data.batch_s:g} s are too few for {worker.size} workers")
    schedule = schedule_of(settings, batches / worker.size / settings.accumulate)
    start = _start(settings, store)
    model = start.model.to(worker.device).train()
    if settings.freeze_features:
        model.ctc.freeze_feature_encoder()
    coding = Coding(start.tokenizer, start.features, model.config.label2id, model.config.min_samples)
    _check_valid(valid, coding, model)
    optimizers = make_optimizers(model, settings, schedule.learning_rate)
    progress = load_checkpoint(settings.output, model, optimizers, worker.device) or _Progress()
    unknown = {found.name: unknown_characters(found.store.clips, coding.tokenizer) for found in sets}
    hours = sum(clip.duration_s * clip.weight for clip in store.clips) / 3600
    size = sum(parameter.numel() for parameter in model.parameters())
    lines = [
        f"{len(store)} clips, {hours:.2f} h per epoch, {size / 1e6:.2f} M parameters, from step {progress.step} of "
        f"{schedule.steps}, rate {schedule.learning_rate:g}",
        *filter(None, map(describe_errors, sets)),
        *(_changes(settings.output, sets) if progress.step else ()),
        *(line for name, found in unknown.items() if (line := found.describe(name))),
    ]
    if worker.rank == 0:
        record_settings(settings)
        _record_data(settings.output, sets, unknown, schedule, progress.step, lines)
    for line in lines:
        report(line)
    return _Run(
        settings=settings,
        schedule=schedule,
        worker=worker,
        report=report,
        store=store,
        valid=valid,
        errors=sum(len(found.errors) for found in sets),
        model=model,
        wrapped=worker.wrap(model),
        coding=coding,
        optimizers=optimizers,
        progress=progress,
        log=_Log(settings.output, progress.step, active=worker.rank == 0),
    )


def _digest(store: ClipStore) -> str:
    clips = "\n".join(map(repr, store.clips))
    return hashlib.sha256(clips.encode()).hexdigest()[:16]


def _changes(output: str, sets: Sequence[ClipSet]) -> Iterator[str]:
    """A line for each set that is not the one that the training began with: its losses are then other ones."""
    uri = uris.join(output, DATA_FILE)
    earlier = json.loads(objects.fetch(uri))["sets"] if objects.exists(uri) else {}
    for found in sets:
        then = earlier.get(found.name)
        if then is not None and then["digest"] != _digest(found.store):
            numbers = f"{then['clips']} clips then, {len(found.store)} now"
            yield f"the data has changed since the training was last started: {found.name}: {numbers}"


def _record_data(
    output: str,
    sets: Sequence[ClipSet],
    unknown: Mapping[str, UnknownCharacters],
    schedule: Schedule,
    step: int,
    lines: Sequence[str],
) -> None:
    """Write what the data holds, and the lines to show before this start's first step, which follows `step`."""
    described = {
        found.name: {
            "rows": found.rows,
            "clips": len(found.store),
            "digest": _digest(found.store),
            "hours": round(sum(clip.duration_s for clip in found.store.clips) / 3600, 4),
            "errors": found.error_codes,
            "unknown_characters": dict(unknown[found.name].counts),
            "texts_with_unknown_characters": unknown[found.name].texts,
        }
        for found in sets
    }
    values = {
        "sets": described,
        "schedule": dataclasses.asdict(schedule),
        "start": time.time(),
        "step": step,
        "lines": lines,
    }
    objects.put(uris.join(output, DATA_FILE), (json.dumps(values, indent=2, ensure_ascii=False) + "\n").encode())


def _save(run: _Run, name: str) -> None:
    target, model = uris.join(run.settings.output, name), run.model
    tokenizer, features = run.coding.tokenizer, run.coding.features
    save_model(target, merged_state(model), model.config, tokenizer, features, run.settings.save_dtype)


def _step(run: _Run, source: Iterator[tuple[int, int, Batch]]) -> dict[str, Any]:
    """Take one optimizer step, advance `progress`, and return the log row."""
    started = time.monotonic()
    settings, worker, progress = run.settings, run.worker, run.progress
    rate = run.schedule.learning_rate * rate_factor(progress.step, run.schedule)
    for optimizer in run.optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate
    mel_only = progress.step < settings.mel_steps
    sums = np.zeros(4)
    audio_s = 0.0
    wait_s = 0.0
    for micro in range(settings.accumulate):
        requested = time.monotonic()
        progress.epoch, progress.batch, batch = next(source)
        wait_s += time.monotonic() - requested
        batch = batch.to(worker.device)
        torch.manual_seed(
            int(generator_for(settings.data.seed, "step", progress.step, micro, worker.rank).integers(2**62))
        )
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
        "wait_s": round(wait_s, 3),
        "wall_s": round(time.monotonic() - started, 3),
    }


def _validate_and_save(run: _Run) -> bool:
    """Validate, and save the weights if they are the best so far; True if patience has run out."""
    started = time.monotonic()
    progress, batch_s = run.progress, run.settings.data.batch_s
    scores = {
        name: validate(run.model, store, run.coding, run.worker.device, batch_s) for name, store in run.valid.items()
    }
    rows = {name: score.row() for name, score in scores.items()}
    error = sum(score.error for score in scores.values()) / len(scores)
    if progress.step == 0:
        progress.initial_scores = rows
    if error < progress.best:
        progress.best, progress.best_step, progress.best_scores, progress.stale = error, progress.step, rows, 0
        _save(run, MODEL_DIRECTORY)
    else:
        progress.stale += 1
    wall_s = round(time.monotonic() - started, 1)
    row = {"step": progress.step, "valid": rows, "error": error, "best": progress.stale == 0, "wall_s": wall_s}
    run.log.add(row)
    run.report(describe(row))
    return progress.stale >= (run.settings.patience or math.inf)


def describe(row: Mapping[str, Any]) -> str:
    """A log row as a line of text."""
    if "valid" in row:
        sets = (f"{name} {describe_scores(scores)}" for name, scores in row["valid"].items())
        return f"step {row['step']}: {'; '.join(sets)}" + (" *" if row["best"] else "")
    speed = row["audio_s"] / max(row["wall_s"], 1e-9)
    parts = " ".join(f"{name} {row[name]:.3f}" for name in ("ctc", "label", "mel", "grad_norm"))
    return f"step {row['step']} epoch {row['epoch']} {parts} lr {row['lr']:.2e} {speed:.0f}x"


def describe_scores(scores: Mapping[str, float]) -> str:
    """The scores of a validation set as text: "wer 1.65% cer 0.40%"."""
    return " ".join(f"{name} {value:.2%}" for name, value in scores.items())


def _precision(settings: TrainSettings, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    use_bfloat16 = settings.precision == "bfloat16" or (settings.precision == "auto" and device.type == "cuda")
    return torch.autocast(device.type, torch.bfloat16) if use_bfloat16 else contextlib.nullcontext()


def _start(settings: TrainSettings, store: ClipStore) -> Start:
    labels = sorted({clip.label for clip in store.clips if clip.label is not None})
    torch.manual_seed(settings.data.seed)
    with_mel = settings.mel_steps > 0
    if settings.start is not None:
        return start_from_checkpoint(settings.start, labels, with_mel=with_mel)
    return start_from_scratch(load_config(settings.config or ""), labels, with_mel=with_mel)


def load_config(uri: str) -> SEWDConfig:
    """The configuration of a new model.

    Raises:
        UsageError: there is none at `uri`, or its values are not valid.
        CheckpointError: it is not JSON.
    """
    base, _, name = uri.rpartition("/")
    values = read_json(base or ".", name)
    if values is None:
        raise UsageError(f"no configuration at {uri}")
    try:
        return SEWDConfig.from_dict(values)
    except ValueError as error:
        raise UsageError(f"{uri}: {error}") from error


def _check_valid(valid: Mapping[str, ClipStore], coding: Coding, model: TrainingModel) -> None:
    """Refuse validation sets that this model cannot be scored on."""
    for name, store in valid.items():
        if not any(clip.text is not None or (model.classifier and clip.label is not None) for clip in store.clips):
            wanted = "text" if model.classifier is None else "text or label"
            raise UsageError(f"valid {name}: no row has a {wanted} to score the model on")
        if model.classifier is None:
            continue
        unknown = {clip.label for clip in store.clips if clip.label is not None} - coding.label_ids.keys()
        if unknown:
            raise UsageError(f"valid {name}: labels that are not in the training data: {', '.join(sorted(unknown))}")


def check_settings(settings: TrainSettings) -> None:
    """Compare the settings with those of the training that the output holds, if it holds one.

    It does from the first checkpoint on. What a start without one left behind is replaced.

    Raises:
        UsageError: they differ in what changes the training.
    """
    uri = uris.join(settings.output, SETTINGS_FILE)
    if not objects.exists(uri) or not _checkpoint_uris(settings.output):
        return
    values = _as_json(settings)
    # Version 0.1.0 wrote no such entries; which commit it began with is not known.
    old = {"allow_any_path": False, "init_commit": values["init_commit"], **json.loads(objects.fetch(uri))}
    differ = sorted(key for key in values.keys() | old.keys() if values.get(key) != old.get(key))
    differ = [key for key in differ if key not in _CHANGEABLE]
    if differ:
        raise UsageError(f"{settings.output} holds a training with other {', '.join(differ)}: choose another output")


def recorded_commit(settings: TrainSettings) -> str | None:
    """The commit of `settings.init` in the training that the output holds; None if it holds none, or another one."""
    uri = uris.join(settings.output, SETTINGS_FILE)
    if not objects.exists(uri) or not _checkpoint_uris(settings.output):
        return None
    old = json.loads(objects.fetch(uri))
    commit: str | None = old.get("init_commit") if old.get("init") == settings.init else None
    return commit


def record_settings(settings: TrainSettings) -> None:
    """Write the settings.

    Raises:
        UsageError: as `check_settings`.
    """
    check_settings(settings)
    content = json.dumps(_as_json(settings), indent=2, sort_keys=True) + "\n"
    objects.put(uris.join(settings.output, SETTINGS_FILE), content.encode())


def _as_json(settings: TrainSettings) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(settings)))
    return values
