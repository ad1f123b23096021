"""The installed packages against what this project requires, and whether torch loads."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from typing import Final

from packaging.requirements import Requirement

from pipeline.cluster.local_machine import local_cpus
from pipeline.doctor.check import Check, failure, ok, warning

DISTRIBUTION: Final = "sewd-pipeline"
NAMED: Final = ("ray", "torch", "pyarrow", "numpy")


def versions() -> Check:
    """Every required package is installed, in a version that this project works with."""
    problems, named = [], []
    for requirement in map(Requirement, importlib.metadata.requires(DISTRIBUTION) or ()):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            problems.append(f"{requirement.name} is not installed")
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            problems.append(f"{requirement.name} is {version}, and must be {requirement.specifier}")
        if requirement.name in NAMED:
            named.append(f"{requirement.name} {version}")
    own = f"{DISTRIBUTION} {importlib.metadata.version(DISTRIBUTION)}"
    if problems:
        advice = "install this project again, in an environment of its own: pip install --upgrade sewd-pipeline"
        return failure("versions", "; ".join(problems), advice)
    return ok("versions", ", ".join([own, f"Python {platform.python_version()}", *named]))


def torch_loads() -> Check:
    """Whether torch can be imported, and the number of threads that it computes with."""
    try:
        import torch  # noqa: PLC0415 - what is checked
    except (ImportError, OSError, AttributeError) as error:
        return failure(
            "torch",
            f"cannot be imported: {error}",
            "install the build of torch for this machine (https://pytorch.org/get-started); the GPU, the model and Ray "
            "are checked when it can be imported",
        )
    cpus, threads = local_cpus(), torch.get_num_threads()
    message = f"{torch.__version__}, {threads} threads on {cpus} CPUs"
    limit = os.environ.get("OMP_NUM_THREADS", "")
    if threads > cpus:
        return warning(
            "torch", message, f"set OMP_NUM_THREADS to at most {cpus}: more threads than CPUs wait for each other"
        )
    return ok("torch", f"{message} (OMP_NUM_THREADS={limit})" if limit else message)
