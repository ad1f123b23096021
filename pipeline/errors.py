"""What can go wrong, told apart by whose fault it is.

Three kinds, and nothing in between:

* `AudioError`: the data's own bytes, or their absence. One row in `errors/`, with a code of the closed `ErrorCode`; the
  run goes on.
* `StorageError`: rights, throttling, time-outs, name resolution. Never a row: retried with back-off, and in the end the
  run fails.
* `UsageError`: the command cannot be carried out as given. One clear line, exit code 2.

Everything else that raises is a bug, and is left to raise.
"""

from __future__ import annotations

from enum import StrEnum


class ErrorCode(StrEnum):
    """Why an utterance has no transcript. Closed: a reader may switch over it; a new code is a schema change."""

    MISSING = "MISSING"  # the object is not there
    EMPTY_FILE = "EMPTY_FILE"  # zero bytes
    UNDECODABLE = "UNDECODABLE"  # no decoder makes sense of the bytes
    UNSUPPORTED = "UNSUPPORTED"  # a format that this installation cannot read
    TRUNCATED = "TRUNCATED"  # the header promises more than the bytes hold
    NO_SAMPLES = "NO_SAMPLES"  # decodes to zero frames
    NON_FINITE = "NON_FINITE"  # NaN or infinite samples
    TOO_SHORT = "TOO_SHORT"  # shorter than one squeezed frame of the model
    TOO_LARGE = "TOO_LARGE"  # over a cap on bytes, channels, rate or duration; or over the memory of a GPU
    NO_SUCH_CHANNEL = "NO_SUCH_CHANNEL"  # the channel asked for is not in the file
    OUT_OF_RANGE = "OUT_OF_RANGE"  # offset or duration lies outside the recording
    CRASHED = "CRASHED"  # processes die of it: its decoder or the model crashes, or takes more memory than there is
    HUNG = "HUNG"  # its decoder, or the model, gives nothing within the deadline, again and again
    BAD_ROW = "BAD_ROW"  # a manifest line, Parquet row or sidecar that does not hold what it must
    BAD_ARCHIVE = "BAD_ARCHIVE"  # a tar shard that breaks off; what was read before stands
    DUPLICATE_ID = "DUPLICATE_ID"  # utt_id is taken by an earlier utterance


class AudioError(Exception):
    """Bad data: becomes one row in `errors/`.

    Attributes:
        code: why.
        message: the decoder's own words, or the two numbers that disagree.
    """

    def __init__(self, code: ErrorCode, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message

    def __reduce__(self) -> tuple[type[AudioError], tuple[ErrorCode, str]]:
        """Pickle by its two arguments: it may cross a process border."""
        return AudioError, (self.code, self.message)


class StorageError(Exception):
    """Bad weather: storage could not be reached. Fails the run once retries are used up."""


class InputChangedError(StorageError):
    """An object is not the one that was planned. Never a row: a run is a statement about the objects that it names."""


class UsageError(Exception):
    """The command cannot be carried out as given; the message says why and what to do instead."""


class RunFailedError(Exception):
    """The run was stopped because of what it met: too many failed rows, or one under `strict`. Its commits stay."""


class LeaseLostError(RunFailedError):
    """Another driver took the run over; this one leaves its record alone."""
