"""The command line as a user runs it: in a separate process with its own Ray, or in this process without Ray."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
from collections.abc import Mapping
from unittest import mock


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


def sewd_in_process(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run `sewd ARGUMENTS` in this process: seconds faster, for what starts no Ray. A bug raises here.

    A test that Ray is not started can rely on it: `ray.init` fails.
    """
    from jobs.main import main

    words = ["sewd", *map(str, arguments)]
    with (
        mock.patch.object(sys, "argv", words),
        mock.patch("ray.init", side_effect=AssertionError("Ray was started")),
        contextlib.redirect_stdout(io.StringIO()) as stdout,
        contextlib.redirect_stderr(io.StringIO()) as stderr,
    ):
        try:
            main()
        except SystemExit as error:
            code = int(error.code or 0)
    return subprocess.CompletedProcess(words, code, stdout.getvalue(), stderr.getvalue())
