"""The variables of a job on a cluster: names that its environment must have, values only of what is no secret.

What a job is submitted with can be read by whoever may open the cluster's dashboard, so that the value of a secret
never travels. A job gets the names, and ends with a clear line where its cluster lacks one.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import Final

from pipeline.errors import UsageError

REQUIRED_VARIABLE: Final = "SEWD_REQUIRED_ENVIRONMENT"
# Parts of the names by which clouds and tools call what nobody else may know.
_SECRET: Final = re.compile(
    r"SECRET|TOKEN|PASSW|CREDENTIAL|PRIVATE|ACCESS_KEY|ACCOUNT_KEY|API_?KEY|SAS|SIGNATURE", re.IGNORECASE
)
_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


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
        if _SECRET.search(name):
            raise UsageError(
                f"env: {name} looks like a secret, and whoever may see the cluster's dashboard can read what a job is "
                f"submitted with: set it where Ray is started there, and ask for it by --require-env {name}"
            )
        variables[name] = value
    for item in required:
        if not _NAME.fullmatch(item):
            raise UsageError(f"require-env: {item.partition('=')[0]!r} is to be a name alone; values are never sent")
    if required:
        variables[REQUIRED_VARIABLE] = ",".join(required)
    return variables


def check_environment() -> None:
    """In a job, before its verb: are the variables there whose names it was submitted with?

    Raises:
        UsageError: names those that are missing.
    """
    required = filter(None, os.environ.get(REQUIRED_VARIABLE, "").split(","))
    missing = [name for name in required if not os.environ.get(name)]
    if missing:
        raise UsageError(
            f"the cluster's environment lacks {', '.join(missing)}: set them where Ray is started, on every machine"
        )
