"""The fingerprint of a run: all that its rows depend on. A resume must match it."""

from __future__ import annotations

from typing import Any

from pipeline.config import RunConfig
from pipeline.schemas import SCHEMA_VERSION
from pipeline.storage.checkpoints import checkpoint_digest


def fingerprint(config: RunConfig) -> dict[str, Any]:
    """All that a run's rows depend on, by name, so that a resume can say what differs. Heads have a digest each."""
    return {
        "schema": SCHEMA_VERSION,
        "inputs": list(config.inputs),
        "limit": config.limit,
        "channels": config.channels,
        "max_segment_s": config.max_segment_s,
        "normalizer": config.normalizer,
        "chunk_s": config.chunk_s,
        "chunk_rows": config.chunk_rows,
        "model": checkpoint_digest(config.model),
        "classifiers": {task: checkpoint_digest(uri) for task, uri in config.tasks.items()},
        "dtype": config.dtype,
    }


def differences(stored: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """`name: stored -> wanted` for every entry in which two fingerprints differ."""
    if "dtype" in wanted:  # runs of before there was a choice
        stored = {"dtype": "float32"} | stored
    return [
        f"{name}: {stored.get(name)} -> {wanted.get(name)}"
        for name in dict.fromkeys((*stored, *wanted))
        if stored.get(name) != wanted.get(name)
    ]
