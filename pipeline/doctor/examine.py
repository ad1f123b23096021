"""All checks, in the order in which one depends on another."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.config import RunConfig
from pipeline.doctor.check import Check, Outcome
from pipeline.doctor.hub import hub
from pipeline.doctor.machine import machine_checks
from pipeline.doctor.output import output_checks
from pipeline.doctor.versions import torch_loads, versions
from sewd_model.files import BUNDLED
from sewd_model.hub import hub_name


def examine(config: RunConfig, output: str | None = None) -> Iterator[Check]:
    """Check what a run depends on. Each check comes as soon as it is done; all together take some ten seconds.

    Args:
        config: of the run: its `model` and `address` are used, and what it asks of a cluster.
        output: where a run is to be written; None: storage is not checked.
    """
    yield from machine_checks()
    yield versions()
    yield hub(is_needed=hub_name(config.model) is not None)
    if output is not None:
        yield from output_checks(output)
    loads = torch_loads()
    yield loads
    if loads.outcome is Outcome.FAILURE:
        return
    # These load torch.
    from pipeline.doctor import cluster, gpus, model  # noqa: PLC0415

    yield from gpus.gpu_checks()
    yield model.stored_numbers()
    if config.model != BUNDLED:
        yield model.checkpoint(config.model)
    yield from cluster.cluster_checks(config)
