"""The requested part of a recording, converted from seconds to frames and checked against the recording's length."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pipeline.errors import AudioError, ErrorCode

END_TOLERANCE_S = 0.1  # manifests round: a request may miss the recording's end by this much, seconds
_NO_LIMIT = 1 << 62  # more frames than any recording has


@dataclass(frozen=True)
class Span:
    """A part of a recording, in frames of the source.

    Attributes:
        start: first frame.
        stop: the frame after the last, clipped to the recording where its length is known; None is the end.
        decode_until: how far to decode. Where the length is not known, a little beyond `stop`, which shows whether the
            part is the whole recording.
        request: the requested seconds, for error messages.
    """

    start: int
    stop: int | None
    decode_until: int
    request: str

    @classmethod
    def of(cls, offset_s: float | None, duration_s: float | None, rate: int, num_frames: int | None) -> Span:
        """Convert a request to frames.

        Args:
            offset_s: start of the part, seconds; None is the beginning.
            duration_s: length of the part, seconds; None is everything after `offset_s`.
            rate: sample rate of the recording, Hz.
            num_frames: length of the recording; None where it is not known before decoding.

        Raises:
            AudioError: OUT_OF_RANGE where the part is not in the recording.
        """
        offset = 0.0 if offset_s is None else offset_s
        request = f"offset {offset} s" + ("" if duration_s is None else f", duration {duration_s} s")
        if not 0 <= offset < math.inf:
            raise AudioError(ErrorCode.OUT_OF_RANGE, f"{request}: the offset must be 0 or more")
        if duration_s is not None and not 0 < duration_s < math.inf:
            raise AudioError(ErrorCode.OUT_OF_RANGE, f"{request}: the duration must be more than 0")
        start = round(offset * rate)
        stop = None if duration_s is None else start + max(1, round(duration_s * rate))
        if num_frames is None:
            decode_until = _NO_LIMIT if stop is None else stop + round(END_TOLERANCE_S * rate) + 1
            return cls(start, stop, decode_until, request)
        if num_frames:
            cls(start, stop, num_frames, request).check(num_frames, rate)
        stop = num_frames if stop is None else min(stop, num_frames)
        return cls(start, stop, stop, request)

    def check(self, num_frames: int, rate: int) -> None:
        """Compare the part with the recording's length in frames.

        Raises:
            AudioError: OUT_OF_RANGE where the part ends more than 0.1 s after the recording, or begins after it.
        """
        message = f"{self.request}: the recording lasts {num_frames / rate:.3f} s"
        if self.start > 0 and self.start >= num_frames:
            raise AudioError(ErrorCode.OUT_OF_RANGE, message)
        if self.stop is not None and self.stop > num_frames + round(END_TOLERANCE_S * rate):
            raise AudioError(ErrorCode.OUT_OF_RANGE, message)

    def is_whole(self, num_frames: int, rate: int) -> bool:
        """Return whether at most 0.1 s of the recording is outside of the part."""
        after = 0 if self.stop is None else max(0, num_frames - self.stop)
        return self.start + after <= round(END_TOLERANCE_S * rate)
