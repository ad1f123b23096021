"""Environment variables of a job on a cluster: a secret's name may be sent, its value never.

Anyone with access to the cluster's dashboard can read what a job was submitted with. So a job is submitted with the
names of the variables that it requires, and fails with a clear message if its driver's node lacks one. Values that look
like secrets are refused; no check can recognise every secret.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import Final

from pipeline.errors import UsageError
from pipeline.secrets import has_secret

REQUIRED_VARIABLE: Final = "SEWD_REQUIRED_ENVIRONMENT"
# Parts of the names that clouds and tools give to secrets.
_SECRET_NAME: Final = re.compile(
    r"SECRET|TOKEN|PASS|PWD|CREDENTIAL|PRIVATE|CONNECTION_STRING|DATABASE_URL|_KEY(_ID)?$|^FSSPEC_|SAS|SIGNATURE",
    re.IGNORECASE,
)
_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_WHO_CAN_READ_IT: Final = "anyone with access to the cluster's dashboard can read what a job is submitted with"


def job_variables(settings: Sequence[str], required: Sequence[str]) -> dict[str, str]:
    """The environment variables to submit a job with.

    Args:
        settings: variables to set, each `NAME=VALUE`.
        required: names of variables that must be set on the cluster.

    Raises:
        UsageError: a name is not valid, or a variable looks like a secret.
    """
    variables: dict[str, str] = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals or not _NAME.fullmatch(name):
            raise UsageError(f"env: {name!r} is not NAME=VALUE")
        if _SECRET_NAME.search(name) or has_secret(value):
            raise UsageError(
                f"env: {name} looks like a secret, and {_WHO_CAN_READ_IT}: set it where Ray is started on the cluster, "
                f"and require it by --require-env {name}"
            )
        variables[name] = value
    for name in required:
        if not _NAME.fullmatch(name):
            raise UsageError(f"require-env: {name.partition('=')[0]!r} must be only a name; values are never sent")
    if required:
        variables[REQUIRED_VARIABLE] = ",".join(required)
    return variables


def check_arguments(arguments: Sequence[str]) -> None:
    """Refuse to submit arguments that contain a secret, such as a password in a URI or a signed URL.

    Raises:
        UsageError: an argument looks like a secret; the message has its position and not its text.
    """
    _refuse_secrets(arguments, _WHO_CAN_READ_IT)


def check_local_arguments(arguments: Sequence[str]) -> None:
    """Refuse to start with arguments that contain a secret: other users of the machine see them.

    Raises:
        UsageError: an argument looks like a secret; the message has its position and not its text.
    """
    _refuse_secrets(arguments, "process lists and the record of a run would show it: set it in the environment")


def _refuse_secrets(arguments: Sequence[str], why: str) -> None:
    for position, argument in enumerate(arguments, 1):
        if has_secret(argument):
            raise UsageError(f"argument {position} looks like it contains a secret, and {why}")


def check_environment() -> None:
    """Check, in a job and before its verb runs, that the variables that it was submitted with as required are set.

    Raises:
        UsageError: some are not; the message has their names.
    """
    required = filter(None, os.environ.get(REQUIRED_VARIABLE, "").split(","))
    missing = [name for name in required if not os.environ.get(name)]
    if missing:
        raise UsageError(
            f"the cluster's environment lacks {', '.join(missing)}: set them where Ray is started, on every node "
            "(only the driver's node was checked)"
        )
