"""What an MPEG audio file holds: its frames, compared with what its Xing or VBRI header counts."""

from __future__ import annotations

import struct
from typing import NamedTuple

from pipeline.audio.contents import Contents, joined, truncated
from pipeline.audio.mpeg import MpegFrame, parse_mpeg_frame, walk_mpeg
from pipeline.audio.source import Source
from pipeline.errors import AudioError, ErrorCode


class _FrameCount(NamedTuple):
    """A Xing, Info or VBRI header. Values are 0 where it lacks them.

    Attributes:
        frames: that follow.
        size: of the stream, in bytes, from the frame that holds this header on.
        trimmed: samples of encoder delay and padding, by the LAME extension.
        unsure: samples of delay and padding by an extension of another encoder, which decoders may trim.
    """

    frames: int
    size: int
    trimmed: int
    unsure: int = 0


def walk_mpeg_file(view: Source) -> Contents | None:
    """Count the frames of MPEG audio that begins with the first byte; None where that is none.

    A header that counts other frames than there are is skipped: decoders believe it.

    Raises:
        AudioError: TRUNCATED where the last frame is cut, or frames are missing; UNSUPPORTED where a second recording
            follows, or the sample rate changes.
    """
    head = view.read_at(0, 256)
    first = parse_mpeg_frame(head)
    walk = walk_mpeg(view, 0) if first is not None else None
    if first is None or walk is None:
        return None
    if walk.is_cut:
        truncated(f"the last MPEG frame extends to byte {walk.end}, but the file ends at byte {view.size}")
    if walk.second_start:
        joined("frames", walk.second_start, "another MPEG stream")
    if walk.changes_rate:
        raise AudioError(ErrorCode.UNSUPPORTED, f"the MPEG frames change their format {walk.change}")
    avoids = f"the MPEG frames change their format {walk.change}" if walk.change else ""
    if walk.gaps:
        avoids = avoids or f"{len(walk.gaps)} stretches between MPEG frames are no frames"
    warning, skipped, trimmed, unsure = avoids, 0, 0, 0
    samples = walk.num_samples
    header = _frame_count(head, first)
    if header is not None:
        samples -= first.num_samples
        counted = walk.num_frames - 1  # some encoders count the frame of the header too
        if header.frames > counted + (header.size <= view.size) and not 0 < header.size <= view.size:
            truncated(f"the Xing header counts {header.frames} MPEG frames, but the file has {counted}")
        if header.frames in (counted, counted + 1):
            trimmed, unsure = header.trimmed, header.unsure
        elif counted:
            skipped = first.size
            said = f"the Xing header counts {header.frames} MPEG frames, but the file has {counted}"
            warning = "; ".join(filter(None, (warning, said)))
    has_count = header is not None and not skipped
    # Without a count, libsndfile stops at the length that it estimates from the size of the first frame.
    second = parse_mpeg_frame(view.read_at(skipped, 4)) or first
    if not has_count and samples > (view.size - skipped) / second.size * second.num_samples:
        avoids = avoids or "the MP3 has a variable rate and no Xing header"
    return Contents(
        end=walk.end,
        frames=max(0, samples - trimmed),
        rate=walk.rate,
        slack=2 * first.num_samples + unsure,
        channels=walk.channels,
        avoids_sndfile=avoids,
        skipped=skipped,
        has_frame_count=has_count,
        gaps=walk.gaps,
        warning=warning,
    )


def _frame_count(head: bytes, frame: MpegFrame) -> _FrameCount | None:
    at = frame.xing_offset
    if at and head[at : at + 4] in (b"Xing", b"Info") and len(head) >= at + 8:
        flags, at = struct.unpack_from(">I", head, at + 4)[0], at + 8
        values = []
        for flag in (1, 2):
            values.append(struct.unpack_from(">I", head, at)[0] if flags & flag and len(head) >= at + 4 else 0)
            at += 4 if flags & flag else 0
        at += (100 if flags & 4 else 0) + (4 if flags & 8 else 0)
        lame = head[at : at + 24]
        is_extended = len(lame) == 24 and lame[:4] in (b"LAME", b"Lavf", b"Lavc", b"GOGO", b"L3.9")
        delays = int.from_bytes(lame[21:24], "big") if len(lame) == 24 else 0
        delay = (delays >> 12) + (delays & 0xFFF)
        return _FrameCount(values[0], values[1], delay if is_extended else 0, 0 if is_extended else delay)
    if frame.xing_offset and head[36:40] == b"VBRI" and len(head) >= 54:
        size, frames = struct.unpack_from(">II", head, 46)
        return _FrameCount(frames, size, 0)
    return None
