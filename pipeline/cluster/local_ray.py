"""The processes of a local Ray: what they are shielded from, and how they are ended.

Schedulers, shells and terminals send a signal to the whole process group or session of the driver, and some to every
process below it. Ray's daemons would end at once, and the driver could finish nothing. So each daemon leads a session
of its own, and it and the workers that it starts hold back SIGTERM and SIGHUP (SIGINT Ray holds back itself). They end
with the driver: when it shuts Ray down, or by the kernel when the driver is killed.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final
from unittest import mock

import ray
from ray._private import ray_constants, services
from ray._private.node import Node

_HELD_BACK: Final = {signal.SIGTERM, signal.SIGHUP}
_SESSION_FIELD: Final = 3  # of /proc/PID/stat, counted from the state

_daemons: list[_Daemon] = []


class _Daemon(subprocess.Popen[bytes]):
    """A daemon of a local Ray. Ending it ends its session: the workers, and what these have started."""

    def __init__(self, command: list[str], *, preexec_fn: Callable[[], None] | None, **options: Any) -> None:
        def prepare() -> None:
            if preexec_fn is not None:
                preexec_fn()
            signal.pthread_sigmask(signal.SIG_BLOCK, _HELD_BACK)

        super().__init__(command, preexec_fn=prepare, start_new_session=True, **options)
        _daemons.append(self)

    def terminate(self) -> None:
        """End the session at once: a daemon has nothing to save, and waits a second for SIGTERM."""
        self.kill()

    def kill(self) -> None:
        """End the session at once."""
        for pid in _session(self.pid):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        super().kill()


def _session(leader: int) -> Iterator[int]:
    """The processes of a session, other than its leader."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError):
            fields = stat.read_text().rpartition(")")[2].split()
            if int(fields[_SESSION_FIELD]) == leader and int(stat.parent.name) != leader:
                yield int(stat.parent.name)


@contextlib.contextmanager
def shielded_daemons() -> Iterator[None]:
    """Start Ray's daemons so inside this context, and leave the handlers of signals as they are."""
    handler = signal.getsignal(signal.SIGTERM)
    with contextlib.ExitStack() as stack:
        if sys.platform != "win32":
            stack.enter_context(mock.patch.object(services, "ConsolePopen", _Daemon))
        if handler not in (signal.SIG_DFL, None):
            # Ray's core would take over SIGTERM in this process, print a stack, and abort.
            stack.enter_context(mock.patch.object(ray_constants, "RAY_DISABLE_FAILURE_SIGNAL_HANDLER", True))
            stack.enter_context(mock.patch.object(ray._private.utils, "set_sigterm_handler"))
        yield


@contextlib.contextmanager
def few_daemons() -> Iterator[None]:
    """Start Ray inside this context without what a single machine does not need.

    That is its autoscaler, its dashboard, and what copies the logs of workers to the driver, which does not show them.
    Ray has no options for these: `include_dashboard=False` starts the same process with less in it. They take two CPU
    seconds, at the moment when the workers start too.
    """
    with contextlib.ExitStack() as stack:
        for start in ("start_monitor", "start_api_server", "start_log_monitor"):
            stack.enter_context(mock.patch.object(Node, start))
        yield


def end_local_ray() -> None:
    """End the processes of a local Ray that this process has started, at once; any thread may call it."""
    for daemon in _daemons:
        if daemon.poll() is None:
            daemon.kill()
