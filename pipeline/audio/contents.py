"""What a walk over the frames, pages or chunks of a container finds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NoReturn

from pipeline.errors import AudioError, ErrorCode


@dataclass(frozen=True)
class Contents:
    """What a container holds, by its own headers.

    Attributes:
        end: the byte after its last one, in bytes from its start; None where the headers do not determine it.
        frames: samples of each channel, at `rate`; None where the headers do not determine it.
        rate: of `frames`, Hz; 0 where `frames` is None.
        slack: frames by which a decoder's output may differ from `frames`: what the coding adds before the first and
            after the last sample.
        channels: the most channels that a frame has; 0 where only the decoder knows.
        avoids_sndfile: why libsndfile would misread it; empty where it would not.
        has_frame_count: MPEG audio: a right header counts the frames; else decoders estimate them.
        skipped: bytes to skip at the start: a header that is wrong.
        gaps: positions between frames at which something else begins.
        patches: positions and bytes of headers to replace.
        warning: what is wrong with the headers, although all samples are decoded; empty where nothing is.
    """

    end: int | None = None
    frames: int | None = None
    rate: int = 0
    slack: int = 0
    channels: int = 0
    avoids_sndfile: str = ""
    has_frame_count: bool = False
    skipped: int = 0
    gaps: tuple[int, ...] = ()
    patches: tuple[tuple[int, bytes], ...] = ()
    warning: str = ""


def truncated(message: str) -> NoReturn:
    """Raise TRUNCATED: the container says that there is more."""
    raise AudioError(ErrorCode.TRUNCATED, message)


def joined(what: str, end: int, behind: str) -> NoReturn:
    """Raise UNSUPPORTED: another recording follows behind byte `end`."""
    message = (
        f"joined recordings: the first ends at byte {end} by its {what}, and {behind} follows; store each in a file"
    )
    raise AudioError(ErrorCode.UNSUPPORTED, message)
