"""The training loop under Ray Train: one worker or several, on CPUs or GPUs, on this machine or a cluster.

Ray places the workers, joins them to a process group and restarts them when one dies. The loop itself resumes
(`pipeline.training.loop`): a restarted worker continues from the last checkpoint, as a repeated command does.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch

from pipeline.cluster.ray_start import connect
from pipeline.cluster.resources import cluster_nodes
from pipeline.config import model_uri
from pipeline.errors import RunFailedError, StorageError, UsageError
from pipeline.storage import objects, uris
from pipeline.training.loop import LOG_FILE, Worker, describe, record_settings, train
from pipeline.training.loss_curve import draw_loss_curve
from pipeline.training.settings import TrainSettings, settings_from_json
from sewd_model.files import CheckpointError

CURVE_FILE = "loss.png"
_RESTARTS = 2  # of the group of workers, after one of them died
_POLL_S = 5.0
_REPORTED_EVERY = 20  # steps
_MISSING = "sewd finetune needs an extra: pip install 'sewd-pipeline[train]'"


@dataclass(frozen=True)
class Placement:
    """Where to train.

    Attributes:
        workers: processes that train together, each on its own batches.
        gpus: one GPU per worker.
        cpus_per_worker: Ray CPUs per worker.
        address: Ray cluster; "local" starts one.
    """

    workers: int = 1
    gpus: bool = False
    cpus_per_worker: float = 1.0
    address: str = "local"


def finetune(settings: TrainSettings, placement: Placement, report: Callable[[str], None] = print) -> dict[str, Any]:
    """Train under Ray Train and draw the loss curve; returns what `train` returns.

    `report` receives a line of the log now and then.

    Raises:
        UsageError: manifests or resources do not fit, or the extra `train` is not installed.
        RunFailedError: the training failed.
    """
    settings = _absolute(settings)
    try:
        from ray.train import FailureConfig, RunConfig, ScalingConfig  # noqa: PLC0415 - an extra, and seconds to load
        from ray.train.torch import TorchTrainer  # noqa: PLC0415
        from ray.train.v2.api.exceptions import TrainingFailedError  # noqa: PLC0415
    except ImportError as error:
        raise UsageError(f"{_MISSING} ({error})") from error
    record_settings(settings)  # the worker does so too; here a bad resume is refused before Ray starts
    with connect(placement.address), tempfile.TemporaryDirectory(prefix="sewd-train-") as scratch:
        _check_resources(placement)
        logging.getLogger("ray.train").setLevel(logging.CRITICAL)  # errors are raised and reported by this project
        trainer = TorchTrainer(
            cast(Callable[[dict[Any, Any]], None], _worker),  # its return value is passed on, as Ray documents
            train_loop_config=dataclasses.asdict(settings),
            scaling_config=ScalingConfig(
                num_workers=placement.workers,
                use_gpu=placement.gpus,
                resources_per_worker={"CPU": placement.cpus_per_worker} | ({"GPU": 1} if placement.gpus else {}),
            ),
            run_config=RunConfig(
                name="finetune", storage_path=scratch, failure_config=FailureConfig(max_failures=_RESTARTS)
            ),
        )
        try:
            with _following(uris.join(settings.output, LOG_FILE), report):
                outcome = cast(Any, trainer.fit()).return_value
        except TrainingFailedError as error:
            raise _cause(error) from error
    if isinstance(outcome, str):
        raise UsageError(outcome)
    log = [line for line in objects.fetch(uris.join(settings.output, LOG_FILE)).decode().splitlines() if line]
    objects.put(uris.join(settings.output, CURVE_FILE), draw_loss_curve(log))
    result: dict[str, Any] = outcome
    return result


def _worker(values: Mapping[str, Any]) -> dict[str, Any] | str:
    """What each worker runs. A usage error is returned as text: if it were raised, Ray would restart the worker."""
    from ray.train import get_context  # noqa: PLC0415
    from ray.train.torch import get_device, prepare_model  # noqa: PLC0415

    context = get_context()

    def wrap(model: torch.nn.Module) -> torch.nn.Module:
        if context.get_world_size() == 1:
            return model
        # A batch without labels does not use the classifier, one without texts does not use the CTC head.
        wrapped: torch.nn.Module = prepare_model(model, parallel_strategy_kwargs={"find_unused_parameters": True})
        return wrapped

    def agree(flag: bool) -> bool:
        if context.get_world_size() == 1:
            return flag
        shared = torch.tensor([flag], dtype=torch.int32, device=get_device())
        torch.distributed.broadcast(shared, src=0)
        return bool(shared.item())

    worker = Worker(context.get_world_rank(), context.get_world_size(), get_device(), wrap, agree)
    try:
        return train(settings_from_json(values), worker)
    except (UsageError, CheckpointError) as error:
        return str(error)


@contextlib.contextmanager
def _following(uri: str, report: Callable[[str], None]) -> Iterator[None]:
    """Report new rows of the log: validations, and some steps."""
    stop = threading.Event()

    def rows() -> list[str]:
        return objects.fetch(uri).decode().splitlines() if objects.exists(uri) else []

    def follow() -> None:
        seen = len(rows())
        while not stop.wait(_POLL_S):
            lines = rows()
            new, seen = lines[seen:], len(lines)
            for line in new:
                row = json.loads(line)
                if "valid" in row or row["step"] % _REPORTED_EVERY == 0:
                    report(describe(row))

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _absolute(settings: TrainSettings) -> TrainSettings:
    """The settings with absolute paths: workers have another working directory."""
    return dataclasses.replace(
        settings,
        train=tuple((uris.absolute(uri), weight) for uri, weight in settings.train),
        valid={name: uris.absolute(uri) for name, uri in settings.valid.items()},
        output=uris.absolute(settings.output),
        init=None if settings.init is None else model_uri(settings.init),
        config=None if settings.config is None else uris.absolute(settings.config),
    )


def _check_resources(placement: Placement) -> None:
    """Refuse a placement that the cluster can never fulfil; Ray would wait for it forever."""
    cluster = cluster_nodes(placement.address)
    nodes = [*cluster.current, *cluster.potential]
    wanted = {"CPUs": placement.cpus_per_worker, "GPUs": float(placement.gpus)}
    room = sum(
        min(int(node.cpus / wanted["CPUs"]), int(node.gpus) if placement.gpus else placement.workers) for node in nodes
    )
    if room < placement.workers:
        have = f"{sum(node.cpus for node in nodes):g} CPUs and {sum(node.gpus for node in nodes):g} GPUs"
        each = " and ".join(f"{count:g} {name}" for name, count in wanted.items() if count)
        raise UsageError(f"{placement.workers} workers of {each} do not fit: Ray has {have}")


def _cause(error: Exception) -> Exception:
    """The error of a failed training: that of the first worker, if it is an error of this project."""
    failures = getattr(error, "worker_failures", None) or {}
    for failure in failures.values():
        for inner in (failure, getattr(failure, "cause", None), failure.__cause__):
            if isinstance(inner, (RunFailedError, StorageError)):
                return inner
    return RunFailedError(f"the training failed: {' '.join(str(error).split())[:500]}")
