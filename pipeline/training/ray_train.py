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
from typing import Any, cast

import torch

from pipeline.cluster.ray_start import connect
from pipeline.cluster.resources import cluster_nodes
from pipeline.config import model_uri
from pipeline.errors import RunFailedError, StorageError, UsageError
from pipeline.storage import objects, uris
from pipeline.storage.checkpoints import pinned
from pipeline.training.loop import (
    DATA_FILE,
    LOG_FILE,
    Worker,
    check_settings,
    describe,
    load_config,
    recorded_commit,
    train,
)
from pipeline.training.loss_curve import draw_loss_curve
from pipeline.training.settings import Placement, TrainSettings, settings_from_json
from pipeline.training.sources import check_inputs
from sewd_model.config import SEWDConfig
from sewd_model.files import CheckpointError
from sewd_model.hub import HubName, hub_name

CURVE_FILE = "loss.png"
TRACEBACK_FILE = "traceback.txt"
_RESTARTS = 2  # of the group of workers, after one of them died
_POLL_S = 5.0
_REPORTED_EVERY = 20  # steps
_MISSING = "sewd finetune needs an extra: pip install 'sewd-pipeline[train]'"


def finetune(settings: TrainSettings, placement: Placement, report: Callable[[str], None] = print) -> dict[str, Any]:
    """Train under Ray Train and draw the loss curve; returns what `train` returns.

    `report` receives a line of the log now and then.

    Raises:
        UsageError: inputs, settings or resources do not fit, the hub has no `init`, or the extra `train` is not
            installed.
        StorageError: the hub cannot be reached.
        CheckpointError: `init` is not a checkpoint.
        RunFailedError: the training failed.
    """
    settings = _pinned(_absolute(settings))
    try:
        from ray.train import FailureConfig, RunConfig, ScalingConfig  # noqa: PLC0415 - an extra, and seconds to load
        from ray.train.torch import TorchTrainer  # noqa: PLC0415
        from ray.train.v2.api.exceptions import TrainingFailedError  # noqa: PLC0415
    except ImportError as error:
        raise UsageError(f"{_MISSING} ({error})") from error
    _check(settings)
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
            with _following(settings.output, report):
                outcome = cast(Any, trainer.fit()).return_value
        except TrainingFailedError as error:
            raise _cause(error, settings.output) from error
    if (refused := outcome.get("refused")) is not None:
        raise UsageError(refused)
    if (failed := outcome.get("failed")) is not None:
        raise RunFailedError(failed)
    log = [line for line in objects.fetch(uris.join(settings.output, LOG_FILE)).decode().splitlines() if line]
    objects.put(uris.join(settings.output, CURVE_FILE), draw_loss_curve(log))
    result: dict[str, Any] = outcome
    return result


def _check(settings: TrainSettings) -> None:
    """Refuse what is known to fail, before Ray starts. The worker checks everything, before it writes anything."""
    check_settings(settings)
    check_inputs([*(uri for uri, _ in settings.train), *settings.valid.values()])
    if settings.start is not None:
        SEWDConfig.from_pretrained(settings.start)
    else:
        load_config(settings.config or "")


def _worker(values: Mapping[str, Any]) -> dict[str, Any]:
    """What each worker runs.

    An error that would come again is returned, as `refused` or `failed`: Ray would restart a worker that raises it.
    """
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
        return {"refused": str(error)}
    except RunFailedError as error:
        return {"failed": str(error)}


@contextlib.contextmanager
def _following(output: str, report: Callable[[str], None]) -> Iterator[None]:
    """Report what this start writes: what its data holds, validations, and some steps."""
    stop = threading.Event()

    def data() -> dict[str, Any]:
        uri = uris.join(output, DATA_FILE)
        values: dict[str, Any] = json.loads(objects.fetch(uri)) if objects.exists(uri) else {"start": None}
        return values

    def new_rows(last: tuple[int, bool]) -> Iterator[tuple[tuple[int, bool], dict[str, Any]]]:
        uri = uris.join(output, LOG_FILE)
        for line in objects.fetch(uri).decode().splitlines() if objects.exists(uri) else ():
            row = json.loads(line)
            if (place := (row["step"], "valid" in row)) > last:
                yield place, row

    def follow(earlier_start: float | None) -> None:
        begun, last = False, (-1, False)
        ended = False
        while not ended:
            ended = stop.wait(_POLL_S)  # what is written just before the end is reported too
            with contextlib.suppress(StorageError):  # the next poll reports it
                if not begun and (values := data())["start"] != earlier_start:
                    begun, last = True, (values["step"], True) if values["step"] else last
                    for line in values["lines"]:
                        report(line)
                for place, row in new_rows(last) if begun else ():
                    last = place
                    if "valid" in row or row["step"] % _REPORTED_EVERY == 0:
                        report(describe(row))

    thread = threading.Thread(target=follow, args=(data()["start"],), daemon=True)
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


def _pinned(settings: TrainSettings) -> TrainSettings:
    """The settings with the commit of a checkpoint on the hub: that of the training that is resumed, or that of now."""
    name = hub_name(settings.init) if settings.init else None
    if settings.init is None or name is None:
        return settings
    named = dataclasses.replace(settings, init=name.uri)
    commit = recorded_commit(named)
    found = pinned(settings.init if commit is None else HubName(name.repo, commit).uri)
    return dataclasses.replace(named, init_commit=found.rpartition("@")[2])


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


def _cause(error: Exception, output: str) -> Exception:
    """The error of a failed training: that of the first worker, if it is an error of this project.

    For a bug it names the last line of the traceback, which is written to the output in full.
    """
    failures = getattr(error, "worker_failures", None) or {}
    for failure in failures.values():
        for inner in (failure, getattr(failure, "cause", None), failure.__cause__):
            if isinstance(inner, (RunFailedError, StorageError)):
                return inner
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    uri = uris.join(output, TRACEBACK_FILE)
    objects.put(uri, (str(error) + "\n").encode())
    return RunFailedError(f"the training failed: {lines[-1] if lines else type(error).__name__} (all of it: {uri})")
