"""A model that utterances of certain lengths are deadly to, in the actor as well as in a child of it."""

from __future__ import annotations

import ctypes
import functools
import os
import signal
import sys
import time

from pipeline.stages.recognize import Recognizer
from sewd_model import PackedModel

CRASHES, HANGS, TAKES_ITS_ACTOR_ALONG = 1.111, 1.222, 1.333  # seconds of audio


class Deadly(Recognizer):
    """Of other utterances it gives what the model gives."""

    def _load(self):
        PackedModel._encode = functools.partialmethod(_encode, encode=PackedModel._encode)
        super()._load()


def _encode(model, waveforms, encode):
    lengths = {len(waveform) for waveform in waveforms}
    if int(CRASHES * 16_000) in lengths:
        os.kill(os.getpid(), signal.SIGSEGV)
    if int(TAKES_ITS_ACTOR_ALONG * 16_000) in lengths:  # Ray's choice, when memory runs out
        time.sleep(2)
        os.kill(os.getppid() if sys.argv[0] == "-c" else os.getpid(), signal.SIGKILL)
    if int(HANGS * 16_000) in lengths:
        ctypes.PyDLL(None).sleep(3600)  # with the interpreter's lock in its hand
    return encode(model, waveforms)


class NeverReady(Recognizer):
    """Dies as it is made."""

    def __init__(self, settings):
        os.kill(os.getpid(), signal.SIGKILL)
