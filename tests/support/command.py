"""The command line as a user runs it: in a separate process, which starts its own Ray."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping


def sewd(
    *arguments: object, environment: Mapping[str, str] | None = None, timeout: float = 300
) -> subprocess.CompletedProcess[str]:
    """Run `sewd ARGUMENTS` and wait until it ends."""
    return subprocess.run(
        command(*arguments),
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout,
        env=os.environ | dict(environment or {}),
    )


def command(*arguments: object) -> list[str]:
    """The argument vector of `sewd ARGUMENTS`."""
    return [sys.executable, "-m", "jobs.main", *map(str, arguments)]
