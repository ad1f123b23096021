"""The settings of the model stage. Loads no torch: the driver makes them, and it does not compute."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class HeadSettings:
    """What is loaded, and how it computes.

    Attributes:
        model: checkpoint of the CTC head, directory or URI; None: only the classifiers are computed.
        classifiers: checkpoints of classification heads.
        digests: digests of these checkpoints, the model's first; empty: they are read from where they are.
        device: `cpu` or `cuda`.
        dtype: data type that the model computes in, see `RunConfig`.
        threads: on CPUs, packs of utterances that are computed at the same time, each by one thread.
        deadline_s: a process that takes longer than this for an utterance hangs, and is ended; None: no deadline.
        hop_length: samples per frame of the CTC head.
        posteriors: give the posteriors of the CTC head instead of its greedy path.
    """

    model: str | None
    classifiers: tuple[str, ...]
    digests: tuple[str, ...]
    device: str
    dtype: str
    threads: int
    deadline_s: float | None = None
    hop_length: int = 320
    posteriors: bool = False


@dataclass(frozen=True, kw_only=True)
class RecognizeSettings(HeadSettings):
    """What an actor loads.

    Attributes:
        stop_uri: while this object exists, waiting chunks are dropped (the next start reads them again).
        run: URI of the run, for its quarantine.
        deadline_s: a process that takes longer than this for an utterance hangs.
    """

    stop_uri: str
    run: str
    deadline_s: float
