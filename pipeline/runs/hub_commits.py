"""The commits of a run's checkpoints on the Hugging Face Hub: looked up once, and kept by every later start.

A run is made by one model. Its command names a branch, which may move: the record keeps, for each name, the commit that
it stood for when the run was created, and a resume, a retry, an update or a watch uses that one. Only a new name
(`ORG/NAME@OTHER`) is looked up; if other files come of it, the fingerprints differ, and the resume is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from pipeline.config import RunConfig
from pipeline.errors import DamagedRunError
from pipeline.runs.run import RECORD, Run
from pipeline.storage import objects, uris
from pipeline.storage.checkpoints import pinned
from sewd_model.hub import HubName, hub_name


def pin_commits(config: RunConfig) -> tuple[RunConfig, dict[str, str]]:
    """Name the commit of each checkpoint of a run that is on the hub, and download it to this machine.

    Returns:
        The configuration with `hf://ORG/NAME@COMMIT`, and the commits by `hf://ORG/NAME[@REVISION]` as requested.

    Raises:
        UsageError, StorageError: see `pipeline.storage.checkpoints.pinned`.
    """
    recorded = _recorded(config)
    commits: dict[str, str] = {}

    def pin(uri: str) -> str:
        name = hub_name(uri)
        if name is None:
            return uri
        commit = recorded.get(name.uri)
        found = pinned(uri if commit is None else HubName(name.repo, commit).uri)
        commits[name.uri] = found.rpartition("@")[2]
        return found

    def pin_all(tasks: Mapping[str, str]) -> tuple[str, ...]:
        return tuple(f"{task}={pin(uri)}" for task, uri in tasks.items())

    changed = replace(
        config,
        model=pin(config.model),
        classifiers=pin_all(config.tasks),
        add_classifiers=pin_all(config.added_tasks),
    )
    return changed, commits


def _recorded(config: RunConfig) -> Mapping[str, str]:
    """Return the commits that the run at the output was made with; none if a new run replaces it."""
    if config.existing == "overwrite" or not objects.exists(uris.join(config.output, RECORD)):
        return {}
    try:
        return Run.open(config.output).record.commits
    except DamagedRunError:  # reported where the run is opened to be resumed
        return {}
