"""What a decoder is, and the greedy one."""

from __future__ import annotations

import importlib.util
import threading
from dataclasses import dataclass
from typing import Protocol

from pipeline.decoding.acoustics import Acoustics
from pipeline.decoding.settings import DecoderSettings
from pipeline.errors import UsageError
from sewd_model.ctc import GreedyPath, greedy_paths
from sewd_model.posteriors import Posteriors


@dataclass(frozen=True)
class Hypothesis:
    """One reading of an utterance.

    Attributes:
        path: its tokens, with frames and probabilities: those of the best path of these tokens.
        acoustic: logarithm of the probability of all its paths (greedy: of the best one), in nats.
        language: what the language model and hot-words add to it, in nats, weighted.
    """

    path: GreedyPath
    acoustic: float
    language: float = 0.0

    @property
    def score(self) -> float:
        """What hypotheses are ordered by."""
        return self.acoustic + self.language


class Decoder(Protocol):
    """Turns posteriors into tokens. The same posteriors give the same tokens, in any company and process."""

    def decode(self, posteriors: Posteriors) -> list[Hypothesis]:
        """Return the hypotheses of an utterance, the best first: at least one, which may be empty."""


@dataclass(frozen=True)
class GreedyDecoder:
    """The best token of each frame.

    Attributes:
        acoustics: tokens of the model.
    """

    acoustics: Acoustics

    def decode(self, posteriors: Posteriors) -> list[Hypothesis]:
        """See `Decoder`: one hypothesis, exactly that of the head."""
        blank, dropped = self.acoustics.blank, self.acoustics.tokenizer.drop_ids
        best, log_probabilities = posteriors.best(blank)
        (path,) = greedy_paths(best, log_probabilities, [len(best)], blank, dropped)
        return [Hypothesis(path, float(log_probabilities.sum()))]


def load_decoder(settings: DecoderSettings, acoustics: Acoustics) -> Decoder:
    """Load a decoder, with its language model.

    Args:
        settings: of the decoder.
        acoustics: tokens of the model.

    Raises:
        UsageError: the extra `lm` is not installed; the language model cannot be read, or its words cannot be spelled
            with the model's tokens; or a hot-word cannot.
    """
    if settings.is_greedy:
        return GreedyDecoder(acoustics)
    if problem := missing():
        raise UsageError(f"beam: {problem}")
    from pipeline.decoding.beam import BeamDecoder  # noqa: PLC0415 - its library is an extra

    return BeamDecoder(settings, acoustics)


class _Loaded(threading.local):
    """The last decoder that a thread loaded, and what of."""

    made_of: tuple[DecoderSettings, Acoustics] | None = None
    decoder: Decoder


_loaded = _Loaded()


def loaded_decoder(settings: DecoderSettings, acoustics: Acoustics) -> Decoder:
    """As `load_decoder`; the last one that this thread loaded is used again, if it is the same."""
    if _loaded.made_of != (settings, acoustics):
        _loaded.made_of = None
        _loaded.decoder = load_decoder(settings, acoustics)
        _loaded.made_of = (settings, acoustics)
    return _loaded.decoder


def missing() -> str | None:
    """Return why beam search cannot be computed here, one line; None if it can."""
    if importlib.util.find_spec("ctc_beam_decoder") is None:
        return "ctc_beam_decoder not found: pip install 'sewd-pipeline[lm]'"
    return None
