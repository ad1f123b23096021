"""Names of the classes that Parquet files of the `datasets` library store as numbers, in the metadata of the schema."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

ClassNames = Mapping[str, tuple[str, ...]]


def class_names(schema: pa.Schema) -> ClassNames:
    """The names of the classes of each column of type `ClassLabel`, by column; empty if there is none."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        named = {column: _names_of(feature) for column, feature in features.items()}
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
        return {}
    return {column: names for column, names in named.items() if names}


def _names_of(feature: Any) -> tuple[str, ...]:
    if not isinstance(feature, dict) or feature.get("_type") != "ClassLabel":
        return ()
    names = feature.get("names")
    if isinstance(names, dict):  # as the cards of data sets write them: {"0": "yes", "1": "no"}
        names = [names[key] for key in sorted(names, key=int)]
    return tuple(map(str, names)) if isinstance(names, list) else ()


def with_class_names(row: dict[str, Any], classes: ClassNames) -> dict[str, Any]:
    """The row with the names of its classes; null for -1, which means none. Other numbers stay."""
    for column, names in classes.items():
        index = row.get(column)
        if isinstance(index, int):
            row[column] = names[index] if 0 <= index < len(names) else None if index == -1 else index
    return row
