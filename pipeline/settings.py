"""Settings that users write are frozen dataclasses that pydantic checks; here a bad value becomes one line."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import ValidationError

from pipeline.errors import UsageError
from pipeline.secrets import without_secrets

T = TypeVar("T")


def checked(kind: type[T], values: Mapping[str, Any], options: Mapping[str, str]) -> T:
    """Build settings from values.

    Args:
        kind: a pydantic dataclass.
        values: its fields by name.
        options: the command line's name of a field, where that is not the field's name with dashes.

    Raises:
        UsageError: a value is missing, unknown or out of range; the message begins with the name of its option.
    """
    try:
        return kind(**values)
    except ValidationError as error:
        first, *others = error.errors(include_url=False)
        field = str(first["loc"][0]) if first["loc"] else ""
        # A value that may have one of several types has an error for each.
        messages = [first["msg"], *(other["msg"] for other in others if other["loc"][:1] == first["loc"][:1])]
        text = ", or ".join(dict.fromkeys(message.removeprefix("Value error, ") for message in messages))
        if not field:  # a check of several fields; its message names them
            raise UsageError(text) from error
        option = options.get(field, field.replace("_", "-"))
        raise UsageError(without_secrets(f"{option}: {text} (got {first['input']!r})")) from error


def default_of(kind: type, field: str) -> Any:
    """The default of a field of a settings dataclass, for the option of the command line that sets it.

    Raises:
        KeyError: `kind` has no such field, or the field has no default.
    """
    defaults = {f.name: f.default for f in dataclasses.fields(kind) if f.default is not dataclasses.MISSING}
    return defaults[field]
