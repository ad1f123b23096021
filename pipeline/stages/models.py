"""What the stages must know of the checkpoints before they load them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import sewd_model
from pipeline.audio import voice
from pipeline.audio.decode import AudioSettings
from pipeline.config import RunConfig
from pipeline.decoding.acoustics import Acoustics
from pipeline.errors import UsageError
from pipeline.storage import retry
from sewd_model import (
    CheckpointError,
    CTCTokenizer,
    FeatureExtractor,
    SEWDConfig,
    hub,
)
from sewd_model.posteriors import LARGEST_VOCABULARY
from sewd_model.weights import Shapes, classifier_shapes, ctc_shapes, holds


@dataclass(frozen=True)
class ModelInfo:
    """What the stages need to know of the checkpoints beside their weights.

    Attributes:
        audio: how audio is decoded for them.
        min_samples: the shortest waveform that all of them accept, in samples.
        acoustics: tokens and frames of the CTC head.
        classifiers: task and label names, by index, of each classification head, in the order of the run.
    """

    audio: AudioSettings
    min_samples: int
    acoustics: Acoustics
    classifiers: tuple[tuple[str, tuple[str, ...]], ...]


def load_model_info(config: RunConfig) -> ModelInfo:
    """Read every checkpoint once on the driver: a broken one is then one error message, not a cluster of dead actors.

    A model is built only where the header of its weights does not show that they will load.

    Raises:
        UsageError: a checkpoint is missing or broken, the sampling rates differ, voice activity cannot be computed, or
            the vocabulary is too large for posteriors.
        StorageError: a checkpoint could not be read.
    """
    if config.cut == "vad" and (problem := voice.missing()):
        raise UsageError(f"cut: {problem}")
    checkpoints = (config.model, *config.tasks.values())
    try:
        ctc = retry.with_retries(config.model, functools.partial(_ctc_config, config.model))
        heads = {
            task: retry.with_retries(uri, functools.partial(_classifier_config, uri))
            for task, uri in config.tasks.items()
        }
        rates = {uri: retry.with_retries(uri, functools.partial(_sampling_rate, uri)) for uri in checkpoints}
        tokenizer = retry.with_retries(config.model, lambda: CTCTokenizer.from_pretrained(config.model))
        rate = rates[config.model]
        audio = AudioSettings(rate, config.channels, config.max_segment_s, config.cut, config.skip_silence)
    except (CheckpointError, ValueError, FileNotFoundError) as error:
        raise UsageError(f"cannot load the model: {error}") from error
    if (config.keep_posteriors or config.has_beam) and ctc.vocab_size > LARGEST_VOCABULARY:
        raise UsageError(
            f"the model has {ctc.vocab_size:,} tokens, and kept posteriors and a beam search at most "
            f"{LARGEST_VOCABULARY:,}"
        )
    if len(set(rates.values())) > 1:
        raise UsageError(f"the models need different sampling rates: {rates}")
    return ModelInfo(
        audio=audio,
        min_samples=max(head.min_samples for head in (ctc, *heads.values())),
        # A head without a blank does not load.
        acoustics=Acoustics(tokenizer, cast(int, ctc.pad_token_id), ctc.vocab_size, ctc.hop_length, rate),
        classifiers=tuple(
            (task, tuple(head.id2label[index] for index in range(head.num_labels))) for task, head in heads.items()
        ),
    )


def _ctc_config(uri: str) -> SEWDConfig:
    found = _config_of_whole(uri, ctc_shapes)
    if found is not None and found.pad_token_id is not None:
        return found
    return sewd_model.SEWDForCTC.from_pretrained(uri).config


def _classifier_config(uri: str) -> SEWDConfig:
    if (found := _config_of_whole(uri, classifier_shapes)) is not None:
        return found
    return sewd_model.SEWDForSequenceClassification.from_pretrained(uri).config


def _config_of_whole(uri: str, shapes: Callable[[SEWDConfig], Shapes]) -> SEWDConfig | None:
    """The configuration of a checkpoint on this machine that is sure to load; None: that is not sure."""
    location = hub.directory(uri, (), weights=True)
    config = SEWDConfig.from_pretrained(location)
    try:
        config.check_sizes()
    except ValueError:
        return None
    return config if holds(location, shapes(config)) else None


def _sampling_rate(uri: str) -> int:
    return FeatureExtractor.from_pretrained(uri).sampling_rate
