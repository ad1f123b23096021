"""The variables of a job on a cluster: names that its environment must have, values only of what is no secret.

What a job is submitted with can be read by whoever may open the cluster's dashboard, so that the value of a secret must
not travel. A job gets the names, and ends with a clear line where the machine of its driver lacks one. What is refused
is what looks like a secret; it cannot be known of every value.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import Final

from pipeline.errors import UsageError

REQUIRED_VARIABLE: Final = "SEWD_REQUIRED_ENVIRONMENT"
# Parts of the names by which clouds and tools call what nobody else may know, and what such values look like.
_SECRET_NAME: Final = re.compile(
    r"SECRET|TOKEN|PASS|PWD|CREDENTIAL|PRIVATE|CONNECTION_STRING|DATABASE_URL|_KEY(_ID)?$|^FSSPEC_|SAS|SIGNATURE",
    re.IGNORECASE,
)
_SECRET_VALUE: Final = re.compile(
    r"://[^/\s@]*:[^/\s@]*@|AccountKey=|Signature=|[?&]sig=|\bAKIA[0-9A-Z]{16}\b|-----BEGIN", re.IGNORECASE
)
_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


_READ: Final = "whoever may see the cluster's dashboard can read what a job is submitted with"


def job_variables(settings: Sequence[str], required: Sequence[str]) -> dict[str, str]:
    """Variables to submit a job with: `settings` are `NAME=VALUE`, `required` names that its cluster must have.

    Raises:
        UsageError: a name is none, or a value is given to what is named like a secret.
    """
    variables: dict[str, str] = {}
    for item in settings:
        name, equals, value = item.partition("=")
        if not equals or not _NAME.fullmatch(name):
            raise UsageError(f"env: {name!r} is not NAME=VALUE")
        if _SECRET_NAME.search(name) or _SECRET_VALUE.search(value):
            raise UsageError(
                f"env: {name} looks like a secret, and {_READ}: set it where Ray is started there, and ask for it by "
                f"--require-env {name}"
            )
        variables[name] = value
    for item in required:
        if not _NAME.fullmatch(item):
            raise UsageError(f"require-env: {item.partition('=')[0]!r} is to be a name alone; values are never sent")
    if required:
        variables[REQUIRED_VARIABLE] = ",".join(required)
    return variables


def check_arguments(arguments: Sequence[str]) -> None:
    """Refuse to submit arguments with a secret in them: a password in a URI, a signed address.

    Raises:
        UsageError: says which one, and not what is in it.
    """
    for place, argument in enumerate(arguments, 1):
        if _SECRET_VALUE.search(argument):
            raise UsageError(f"argument {place} has what looks like a secret in it, and {_READ}")


def check_environment() -> None:
    """In a job, before its verb: are the variables there whose names it was submitted with?

    Raises:
        UsageError: names those that are missing.
    """
    required = filter(None, os.environ.get(REQUIRED_VARIABLE, "").split(","))
    missing = [name for name in required if not os.environ.get(name)]
    if missing:
        raise UsageError(
            f"the cluster's environment lacks {', '.join(missing)}: set them where Ray is started, on every machine "
            "(this is the driver's; others are not looked at)"
        )
