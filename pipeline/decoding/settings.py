"""The settings of a decoder, which workers get instead of the decoder itself."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, Final

from pipeline.errors import UsageError
from pipeline.storage import objects, retry
from pipeline.storage.files import file_digest

GREEDY: Final = 1
DEFAULT_BEAM: Final = 32  # with a language model or hot-words
LM_WEIGHT: Final = 0.5
WORD_BONUS: Final = 1.5
HOTWORD_WEIGHT: Final = 6.0


@dataclass(frozen=True, kw_only=True)
class DecoderSettings:
    """How posteriors become tokens.

    The score of a text is the logarithm of the probability of all its paths, plus, for each word, `lm_weight` times the
    natural logarithm of its probability by the language model, `word_bonus`, and `hotword_weight` if it is a hot-word.

    Attributes:
        beam: texts that are kept from frame to frame; 1: greedy decoding, without any of the others.
        nbest: most hypotheses of an utterance.
        lm: path or URI of a language model, an ARPA file (it may be compressed by gzip) or a binary file of KenLM.
        lm_digest: its `pipeline.storage.files.file_digest`; None: `lm` is a path on this machine.
        hotwords: words that get a bonus; of a phrase, each word does.
        lm_weight: see above.
        word_bonus: see above; it has an effect with a language model only. Above 0 it makes up for the words that the
            model's probabilities cost.
        hotword_weight: see above, in nats.
    """

    beam: int = GREEDY
    nbest: int = 1
    lm: str | None = None
    lm_digest: str | None = None
    hotwords: tuple[str, ...] = ()
    lm_weight: float = LM_WEIGHT
    word_bonus: float = WORD_BONUS
    hotword_weight: float = HOTWORD_WEIGHT

    @property
    def is_greedy(self) -> bool:
        """Whether the best token of each frame is all that counts."""
        return self.beam == GREEDY

    def fingerprint(self) -> dict[str, Any]:
        """What the results depend on, by name; nothing for greedy decoding."""
        if self.is_greedy:
            return {}
        found: dict[str, Any] = {"beam": self.beam, "nbest": self.nbest}
        if self.lm is not None:
            found |= {"lm": self.lm_digest, "lm_weight": self.lm_weight, "word_bonus": self.word_bonus}
        if self.hotwords:
            digest = hashlib.sha256("\n".join(self.hotwords).encode()).hexdigest()
            found |= {"hotwords": digest, "hotword_weight": self.hotword_weight}
        return found


def requested(
    *,
    lm: str | None = None,
    hotwords: str | None = None,
    beam: int | None = None,
    nbest: int = 1,
    lm_weight: float = LM_WEIGHT,
    word_bonus: float = WORD_BONUS,
    hotword_weight: float = HOTWORD_WEIGHT,
) -> DecoderSettings:
    """The settings that a user asks for.

    Args:
        lm: as in `DecoderSettings`, and so are those that are not listed here.
        hotwords: path or URI of a file of hot-words, see `hotwords_of`.
        beam: None: greedy decoding, unless another option needs a beam.
        nbest: at most `beam`.
        lm_weight: see `lm`.
        word_bonus: see `lm`.
        hotword_weight: see `lm`.

    Raises:
        UsageError: two options exclude each other, or a file does not exist.
        StorageError: a file could not be read.
    """
    if beam is None:
        beam = max(DEFAULT_BEAM, nbest) if is_beam(lm, hotwords, None, nbest) else GREEDY
    if beam == GREEDY and is_beam(lm, hotwords, None, nbest):
        raise UsageError("beam: 1 is greedy decoding, which has no language model, hot-words or n-best list: add more")
    if nbest > beam:
        raise UsageError(f"nbest: {nbest} are more than the {beam} texts of the beam: add --beam {nbest}")
    try:
        digest = None if lm is None else retry.with_retries(lm, lambda: file_digest(lm))
    except (FileNotFoundError, IsADirectoryError) as error:
        raise UsageError(f"lm: there is no file {lm}") from error
    try:
        words = () if hotwords is None else hotwords_of(objects.fetch(hotwords), hotwords)
    except (FileNotFoundError, IsADirectoryError) as error:
        raise UsageError(f"hotwords: there is no file {hotwords}") from error
    return DecoderSettings(
        beam=beam,
        nbest=nbest,
        lm=lm,
        lm_digest=digest,
        hotwords=words,
        lm_weight=lm_weight,
        word_bonus=word_bonus,
        hotword_weight=hotword_weight,
    )


def is_beam(lm: str | None, hotwords: str | None, beam: int | None, nbest: int) -> bool:
    """Whether these arguments of `requested` ask for a beam search."""
    return (beam or GREEDY) > GREEDY or lm is not None or hotwords is not None or nbest > 1


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
