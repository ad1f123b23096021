"""The command line as a user runs it: a process of its own, with a Ray of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping


def sewd(
    *arguments: object, environment: Mapping[str, str] | None = None, timeout: float = 300
) -> subprocess.CompletedProcess[str]:
    """Run `sewd ARGUMENTS` to its end."""
    return subprocess.run(
        command(*arguments),
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout,
        env=os.environ | dict(environment or {}),
    )


def command(*arguments: object) -> list[str]:
    """Its argument vector."""
    return [sys.executable, "-m", "jobs.main", *map(str, arguments)]
