"""The errors of this project, by their cause.

There are four kinds:

* `AudioError`: the data is bad or missing. It becomes one row in `errors/`, with a code of the closed `ErrorCode`, and
  the run continues.
* `StorageError`: permissions, throttling, time-outs, name resolution. Never a row: the call is retried with back-off,
  and if the error persists, the run fails.
* `RunFailedError`: the work was stopped: too many rows failed, workers or jobs died at every try, another driver took
  the run over. Exit code 1.
* `UsageError`: the command cannot be carried out as given. It is reported on one line, with exit code 2.

Any other exception is a bug and is not caught.
"""

from __future__ import annotations

from enum import StrEnum


class ErrorCode(StrEnum):
    """Why an utterance has no transcript.

    Closed: a reader may switch over it; a new code is a schema change.
    """

    MISSING = "MISSING"  # the object does not exist, or is no longer the one that was planned
    EMPTY_FILE = "EMPTY_FILE"  # zero bytes
    UNDECODABLE = "UNDECODABLE"  # no decoder can decode the bytes
    UNSUPPORTED = "UNSUPPORTED"  # no decoder for the coding, or several recordings joined in one file
    TRUNCATED = "TRUNCATED"  # there is less audio than the header or the frames say
    NO_SAMPLES = "NO_SAMPLES"  # decodes to zero frames
    NON_FINITE = "NON_FINITE"  # NaN, infinite or absurdly large samples, or the model overflows
    TOO_SHORT = "TOO_SHORT"  # shorter than one frame of the model after its downsampling
    TOO_LARGE = "TOO_LARGE"  # over a limit on bytes, channels, sampling rate or duration, or over the memory of a GPU
    NO_SUCH_CHANNEL = "NO_SUCH_CHANNEL"  # the file does not have the requested channel
    OUT_OF_RANGE = "OUT_OF_RANGE"  # offset or duration is outside the recording
    CRASHED = "CRASHED"  # it kills its process: the decoder or the model crashes or runs out of memory
    HUNG = "HUNG"  # the decoder or the model exceeds the deadline, repeatedly
    BAD_ROW = "BAD_ROW"  # a manifest line, Parquet row or sidecar file lacks a required value, or names what it may not
    BAD_ARCHIVE = "BAD_ARCHIVE"  # a tar shard is damaged; the members before the damage are transcribed
    DUPLICATE_ID = "DUPLICATE_ID"  # an earlier utterance has the same utt_id


class AudioError(Exception):
    """Bad data: one utterance becomes a row in `errors/`.

    Attributes:
        code: the reason.
        message: the message of the decoder, or the values that disagree.
    """

    def __init__(self, code: ErrorCode, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message

    def __reduce__(self) -> tuple[type[AudioError], tuple[ErrorCode, str]]:
        """Pickle the two arguments: the error may be sent to another process."""
        return AudioError, (self.code, self.message)


class StorageError(Exception):
    """Storage could not be reached, also after retries. Fails the run."""


class InputChangedError(StorageError):
    """An object changed after it was planned: a run describes the objects that its plan names.

    Of an object that is one recording this is a row, MISSING. Of one that holds many utterances (a shard, a Parquet
    file, a manifest) it is not, and the run fails.
    """


class UsageError(Exception):
    """The command cannot be carried out as given; the message says why and what to do instead."""


class RunBusyError(UsageError):
    """Another driver is working on the run."""


class InputsError(UsageError):
    """The INPUTs of a run that exists cannot be planned again."""


class DamagedRunError(UsageError):
    """An object of a run is lost or damaged; the message names it and says what can be done."""


class RunFailedError(Exception):
    """The work was stopped; what was committed stays.

    Too many rows failed, or one under `strict`; a worker or a job died at every try; or a training's data or gradients
    cannot be used.
    """


class LeaseLostError(RunFailedError):
    """Another driver took over the run; this driver does not change its record."""
