"""The settings of a decoder, which workers get instead of the decoder itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from pipeline.errors import UsageError

DEFAULT_BEAM: Final = 16  # with a language model or hot-words
LM_WEIGHT: Final = 0.5
WORD_BONUS: Final = 1.5
HOTWORD_WEIGHT: Final = 10.0


@dataclass(frozen=True, kw_only=True)
class DecoderSettings:
    """How posteriors become tokens.

    The score of a text is the logarithm of the probability of all its paths, plus, for each word, `lm_weight` times the
    natural logarithm of its probability by the language model, `word_bonus`, and `hotword_weight` if it is a hot-word.

    Attributes:
        beam: texts that are kept from frame to frame; 1: greedy decoding, without any of the others.
        nbest: most hypotheses of an utterance.
        lm: path of a language model, an ARPA file (it may end in `.gz`) or a binary file of KenLM.
        hotwords: words that get a bonus; of a phrase, each word does.
        lm_weight: see above.
        word_bonus: see above; it has an effect with a language model only. Above 0 it makes up for the words that the
            model's probabilities cost.
        hotword_weight: see above, in nats.
    """

    beam: int = 1
    nbest: int = 1
    lm: str | None = None
    hotwords: tuple[str, ...] = ()
    lm_weight: float = LM_WEIGHT
    word_bonus: float = WORD_BONUS
    hotword_weight: float = HOTWORD_WEIGHT

    @property
    def is_greedy(self) -> bool:
        """Whether the best token of each frame is all that counts."""
        return self.beam == 1


def hotwords_of(content: bytes, name: str) -> tuple[str, ...]:
    """Return the hot-words of a file: one word or phrase a line, without empty lines, each once.

    Raises:
        UsageError: it is not UTF-8, or it has none.
    """
    try:
        lines = [" ".join(line.split()) for line in content.decode("utf-8-sig").splitlines()]
    except UnicodeDecodeError as error:
        raise UsageError(f"hotwords: {name} is not UTF-8: {error.reason} at byte {error.start}") from error
    words = tuple(dict.fromkeys(filter(None, lines)))
    if not words:
        raise UsageError(f"hotwords: {name} has none: one word or phrase a line")
    return words
