"""A model that utterances of certain lengths kill or hang, in the actor as well as in its child processes."""

from __future__ import annotations

import ctypes
import functools
import os
import signal
import sys
import time

from pipeline.stages.recognize import ChunkRecognizer
from sewd_model import PackedModel

CRASHES, HANGS, KILLS_ACTOR = 1.111, 1.222, 1.333  # seconds of audio


class DeadlyRecognizer(ChunkRecognizer):
    """Recognises utterances of other lengths as usual."""

    def _load(self):
        PackedModel._encode = functools.partialmethod(_encode, encode=PackedModel._encode)
        super()._load()


def _encode(model, waveforms, encode):
    lengths = {len(waveform) for waveform in waveforms}
    if int(CRASHES * 16_000) in lengths:
        os.kill(os.getpid(), signal.SIGSEGV)
    if int(KILLS_ACTOR * 16_000) in lengths:  # as Ray does it when memory runs out
        time.sleep(2)
        os.kill(os.getppid() if sys.argv[0] == "-c" else os.getpid(), signal.SIGKILL)
    if int(HANGS * 16_000) in lengths:
        ctypes.PyDLL(None).sleep(3600)  # holds the interpreter's lock
    return encode(model, waveforms)


class NeverReady(ChunkRecognizer):
    """Dies when it is created."""

    def __init__(self, settings):
        os.kill(os.getpid(), signal.SIGKILL)
