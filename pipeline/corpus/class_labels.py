"""What the `datasets` library writes in the schema of Parquet files: names of classes, and which columns are audio."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

ClassNames = Mapping[str, tuple[str, ...]]


def class_names(schema: pa.Schema) -> ClassNames:
    """The names of the classes of each column of type `ClassLabel`, by column; empty if there is none."""
    named = {column: _names_of(feature) for column, feature in _features(schema).items()}
    return {column: names for column, names in named.items() if names}


def audio_features(schema: pa.Schema) -> list[str]:
    """The columns of type `Audio`."""
    return [name for name, feature in _features(schema).items() if feature.get("_type") == "Audio"]


def _features(schema: pa.Schema) -> dict[str, dict[str, Any]]:
    """What the library writes of each column; empty if it did not write the file."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return {}
    found = features.items() if isinstance(features, dict) else ()
    return {name: feature for name, feature in found if isinstance(feature, dict)}


def _names_of(feature: Mapping[str, Any]) -> tuple[str, ...]:
    if feature.get("_type") != "ClassLabel":
        return ()
    names = feature.get("names")
    if isinstance(names, dict):  # as the cards of data sets write them: {"0": "yes", "1": "no"}
        with contextlib.suppress(ValueError):
            names = [names[key] for key in sorted(names, key=int)]
    return tuple(map(str, names)) if isinstance(names, list) else ()


def with_class_names(row: dict[str, Any], classes: ClassNames) -> dict[str, Any]:
    """The row with the names of its classes; null for -1, which means none. Other numbers stay."""
    for column, names in classes.items():
        index = row.get(column)
        if isinstance(index, int):
            row[column] = names[index] if 0 <= index < len(names) else None if index == -1 else index
    return row
