"""Characters of the training texts that the vocabulary of the model lacks: counted, and shown before the first step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from pipeline.training.data import Clip
from sewd_model.ctc import CTCTokenizer

_SHOWN = 20


@dataclass(frozen=True)
class UnknownCharacters:
    """The characters of a set's texts that the vocabulary lacks.

    Attributes:
        counts: occurrences of each, most frequent first.
        texts: number of texts with one.
        all_texts: number of texts.
    """

    counts: Mapping[str, int]
    texts: int
    all_texts: int

    def describe(self, name: str) -> str:
        """One line for the set `name`; empty if the vocabulary lacks nothing."""
        if not self.counts:
            return ""
        shown = [f"{character!r} {count}" for character, count in list(self.counts.items())[:_SHOWN]]
        more = len(self.counts) - len(shown)
        return (
            f"{name}: {self.texts} of {self.all_texts} texts have characters that the vocabulary lacks and the model "
            f"cannot write: {', '.join(shown)}" + (f", and {more} others" if more else "")
        )


def encode(text: str, tokenizer: CTCTokenizer) -> list[int]:
    """Token ids of a normalised text, in the letter case of the vocabulary.

    A character that the vocabulary lacks becomes the unknown token, as in transformers; without one it is left out.
    """
    text = _cased(text, tokenizer)
    if tokenizer.unk_token is None:
        text = "".join(character for character in text if _has(character, tokenizer))
    return tokenizer.encode(text)


def unknown_characters(clips: Iterable[Clip], tokenizer: CTCTokenizer) -> UnknownCharacters:
    """Count the characters of the clips' texts that the vocabulary lacks, each clip once."""
    counts: Counter[str] = Counter()
    texts = all_texts = 0
    for clip in clips:
        if clip.text is None:
            continue
        all_texts += 1
        cased = zip(clip.text, (_cased(character, tokenizer) for character in clip.text), strict=True)
        unknown = [character for character, spelled in cased if not all(_has(one, tokenizer) for one in spelled)]
        counts.update(unknown)
        texts += bool(unknown)
    return UnknownCharacters(dict(sorted(counts.items(), key=lambda item: (-item[1], item[0]))), texts, all_texts)


def _cased(text: str, tokenizer: CTCTokenizer) -> str:
    return text.upper() if "E" in tokenizer.vocab else text


def _has(character: str, tokenizer: CTCTokenizer) -> bool:
    if tokenizer.do_lower_case:
        character = character.upper()
    return character in tokenizer.ids or (character == " " and tokenizer.word_delimiter_token is not None)
