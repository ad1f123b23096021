"""Audio files that are deadly to the process which decodes them: a patch of soundfile, by the file's sampling rate."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time

import soundfile

SEGFAULT, OUT_OF_MEMORY, ABORT, EXIT, HANG, LATE, KILLS_WORKER = range(9_000, 9_700, 100)
LATE_S = 15


def die(rate: int) -> None:
    if rate in (SEGFAULT, LATE):
        os.kill(os.getpid(), signal.SIGSEGV)
    elif rate == OUT_OF_MEMORY:  # the kernel's choice
        os.kill(os.getpid(), signal.SIGKILL)
    elif rate == ABORT:
        os.abort()
    elif rate == EXIT:
        os._exit(3)
    elif rate == HANG:
        ctypes.PyDLL(None).sleep(3600)  # with the interpreter's lock in its hand
    elif rate == KILLS_WORKER:  # out of memory, and Ray's choice: its own process, also where a child took the memory
        time.sleep(3)
        os.kill(os.getppid() if sys.argv[0] == "-c" else os.getpid(), signal.SIGKILL)


def install() -> None:
    """Make them deadly here."""
    decode = soundfile.SoundFile.read

    def read(self, *arguments, **options):
        if self.samplerate != LATE or self.tell() >= LATE_S * LATE:
            die(self.samplerate)
        return decode(self, *arguments, **options)

    soundfile.SoundFile.read = read
