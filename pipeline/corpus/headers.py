"""What the headers of objects state, without decoding them."""

from __future__ import annotations

import contextlib

from pipeline.audio.decode import AudioSettings, Header, read_header
from pipeline.corpus.utterances import open_object
from pipeline.errors import AudioError


def header(uri: str) -> Header | str:
    """What the header of the object states, or why it cannot be read."""
    try:
        audio = open_object(uri)
        with contextlib.nullcontext() if isinstance(audio, bytes) else contextlib.closing(audio):
            return read_header(audio, AudioSettings())
    except AudioError as error:
        return error.code.value


def is_mono(uri: str) -> bool:
    """Whether the object certainly has one channel: one that cannot be read may have more."""
    found = header(uri)
    return not isinstance(found, str) and found.channels == 1
