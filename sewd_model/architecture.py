"""The architecture that a configuration names: checked before the weights of a checkpoint are downloaded or read."""

import re
from collections.abc import Mapping
from typing import Any, Final

from sewd_model.files import CheckpointError

MODEL_TYPE: Final = "sew-d"


def check_architecture(values: Mapping[str, Any], where: str) -> None:
    """Refuse the checkpoint of another architecture.

    Args:
        values: the content of its `config.json`.
        where: its name, for the message.

    Raises:
        CheckpointError: it says what the checkpoint is and what is needed.
    """
    found = values.get("model_type", MODEL_TYPE)
    if found == MODEL_TYPE:
        return
    classes = values.get("architectures")
    name = f" ({_plain(classes[0])})" if isinstance(classes, list) and classes else ""
    msg = f"{where} is a {_plain(found)} checkpoint{name}; a SEW-D checkpoint is needed (model_type {MODEL_TYPE})"
    raise CheckpointError(msg)


def _plain(value: object) -> str:
    """Return a name of a configuration, which may hold anything, as a few characters of one line."""
    return value if isinstance(value, str) and re.fullmatch(r"[\w.-]{1,60}", value) else repr(value)[:60]
