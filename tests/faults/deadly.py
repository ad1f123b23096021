"""Audio files that kill or hang the process that decodes them: a patch of soundfile, controlled by the sample rate."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time

import soundfile

# Sample rates, in Hz. With LATE, decoding crashes only after `LATE_S` seconds of audio.
SEGFAULT, OUT_OF_MEMORY, ABORT, EXIT, HANG, LATE, KILLS_WORKER = range(9_000, 9_700, 100)
LATE_S = 15


def die(rate: int) -> None:
    """Die as the sample rate says; return for other rates."""
    if rate in (SEGFAULT, LATE):
        os.kill(os.getpid(), signal.SIGSEGV)
    elif rate == OUT_OF_MEMORY:  # as the kernel does it
        os.kill(os.getpid(), signal.SIGKILL)
    elif rate == ABORT:
        os.abort()
    elif rate == EXIT:
        os._exit(3)
    elif rate == HANG:
        ctypes.PyDLL(None).sleep(3600)  # holds the interpreter's lock
    elif rate == KILLS_WORKER:  # as Ray does it when memory runs out: its own process, even if a child used the memory
        time.sleep(3)
        os.kill(os.getppid() if sys.argv[0] == "-c" else os.getpid(), signal.SIGKILL)


def install() -> None:
    """Patch soundfile in this process."""
    decode = soundfile.SoundFile.read

    def read(self, *arguments, **options):
        if self.samplerate != LATE or self.tell() >= LATE_S * LATE:
            die(self.samplerate)
        return decode(self, *arguments, **options)

    soundfile.SoundFile.read = read
