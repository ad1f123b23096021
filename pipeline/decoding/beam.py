"""Prefix beam search with a language model and hot-words, by the library ctc-beam-decoder.

The library searches over texts: each token has a spelling, a space separates words. Two of its habits, which are those
of pyctcdecode, are made up for here. It scores an empty word at the end of a text that ends with a space, so that equal
texts get different scores: all texts are made to end with a space, and then the exact scores of those that are left are
computed, each from a clip that says nothing else. And it gives an empty text the cost of an unknown word, so that
silence becomes words: here it costs nothing.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import threading
from collections.abc import Iterator
from typing import Final

import numpy as np
from ctc_beam_decoder import BeamSearchDecoder
from numpy.typing import NDArray

from pipeline.decoding.acoustics import Acoustics
from pipeline.decoding.alphabet import Alphabet
from pipeline.decoding.decoder import Hypothesis
from pipeline.decoding.settings import DecoderSettings
from pipeline.errors import UsageError
from pipeline.language_models.words import words_of
from pipeline.storage.files import local_file
from sewd_model.forced_alignment import align
from sewd_model.posteriors import Posteriors

# Of the library: tokens less probable in their frame, and texts less probable than the best, are left out; in nats.
LEAST_TOKEN: Final = -7.0
LEAST_TEXT: Final = -12.0
UNKNOWN_WORD: Final = -10.0  # decimal logarithm that a word costs that the language model does not know
_NEVER: Final = -1e3


class BeamDecoder:
    """A loaded beam search. One thread uses it at a time."""

    def __init__(self, settings: DecoderSettings, acoustics: Acoustics) -> None:
        """Load the language model; see `pipeline.decoding.decoder.load_decoder`."""
        self.settings = settings
        self.blank, self.num_tokens = acoustics.blank, acoustics.num_tokens
        # A token that is dropped only separates others, as a blank does.
        dropped = (index for index in acoustics.tokenizer.drop_ids if index < self.num_tokens)
        self.blanks = list(dict.fromkeys((self.blank, *dropped)))
        self.alphabet = Alphabet.of(acoustics, is_spelled=bool(settings.lm or settings.hotwords))
        lm, words = None, []
        if settings.lm is not None:
            lm = local_file(settings.lm, settings.lm_digest) if settings.lm_digest else settings.lm
            words = words_of(lm)
            self.alphabet = self.alphabet.in_case_of(words, settings.lm)
        self.hotwords = [self.alphabet.spelled(word) for word in settings.hotwords]
        self._search = _loaded(settings, lm, self.alphabet, words)

    def decode(self, posteriors: Posteriors) -> list[Hypothesis]:
        """See `pipeline.decoding.decoder.Decoder`."""
        scores = self._scores(posteriors)
        if not len(scores):
            return [Hypothesis(align(scores, (), self.blank), 0.0)]
        # Of neighbouring frames that are surely blank, one says as much as all of them.
        sure = posteriors.counts == 0
        frames = scores[~(sure & np.append(False, sure[:-1]))]
        if self.settings.lm and self.alphabet.delimiter is not None:
            end = np.full((1, self.num_tokens), _NEVER, np.float32)
            end[0, self.alphabet.delimiter] = 0.0
            frames = np.concatenate([frames, end])
        found = [
            (
                acoustic,
                self._language(text) if self.settings.lm else score - acoustic,
                self.alphabet.token_ids(text, len(scores)),
            )
            for text, _, _, acoustic, score in self._beams(frames, self.settings.beam)
        ]
        found.sort(key=lambda item: -(item[0] + item[1]))
        return [
            Hypothesis(align(scores, token_ids, self.blank), acoustic, language)
            for acoustic, language, token_ids in found[: self.settings.nbest]
        ]

    def _scores(self, posteriors: Posteriors) -> NDArray[np.float32]:
        """Log-probabilities `(T, V)`, in which the tokens that are dropped are blanks."""
        scores = posteriors.log_probabilities(self.num_tokens, self.blank)
        if len(self.blanks) > 1:
            scores[:, self.blank] = np.logaddexp.reduce(scores[:, self.blanks], axis=1)
            scores[:, self.blanks[1:]] = _NEVER
        return scores

    def _beams(self, frames: NDArray[np.float32], width: int) -> list[tuple[str, None, object, float, float]]:
        found: list[tuple[str, None, object, float, float]] = self._search.decode_beams(
            frames,
            beam_width=width,
            beam_prune_logp=LEAST_TEXT,
            token_min_logp=LEAST_TOKEN,
            # Of texts that the language model cannot tell apart from here on, only the best is kept: there is more room
            # for others, and the n-best list would be worse.
            prune_history=self.settings.lm is not None and self.settings.nbest == 1,
            hotwords=self.hotwords,
            hotword_weight=self.settings.hotword_weight,
        )
        return found

    def _language(self, text: str) -> float:
        """What the language model and hot-words add to a text: of a clip whose frames leave no doubt."""
        if not text:
            return 0.0
        path: list[int] = []
        for index in self.alphabet.token_ids(text):
            path += [self.blank] * (path[-1:] == [index])
            path.append(index)
        frames = np.full((len(path), self.num_tokens), _NEVER, np.float32)
        frames[np.arange(len(path)), path] = 0.0
        ((_, _, _, acoustic, score),) = self._beams(frames, 1)
        return score - acoustic


def _loaded(settings: DecoderSettings, lm: str | None, alphabet: Alphabet, words: list[str]) -> BeamSearchDecoder:
    # The mark of the library for a token that begins a word.
    mark = "▁" if lm and alphabet.delimiter is None else ""
    labels = [label and mark + label for label in alphabet.labels]
    if lm is None:
        return BeamSearchDecoder(labels)
    try:
        with _silent():
            return BeamSearchDecoder(
                labels,
                kenlm_model_path=lm,
                unigrams=words,
                alpha=settings.lm_weight,
                beta=settings.word_bonus,
                unk_score_offset=UNKNOWN_WORD,
            )
    except (ValueError, OSError) as error:
        raise UsageError(f"lm: {_without_source(str(error)).replace(lm, settings.lm or lm)}") from error


def _without_source(message: str) -> str:
    """A message in one line, without the place in KenLM's source that it names before what is wrong.

    The library cuts long messages off, anywhere.
    """
    message = re.sub(r"/\S+:\d+ in .* threw (\w+)( because `.*')?(\.\n?| bec.*$|$)", r"\1: ", message, flags=re.DOTALL)
    message = re.sub(r"/\S+/kenlm/.*$", "", message, flags=re.DOTALL)
    return " ".join(message.split()).rstrip(": ")


_STDERR_LOCK: Final = threading.Lock()  # threads that load at the same time would restore what another has closed


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Show nothing of what a library writes to the standard error, such as KenLM's bar of progress."""
    with _STDERR_LOCK:
        sys.stderr.flush()
        kept = os.dup(2)
        nowhere = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(nowhere, 2)
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            os.close(nowhere)
