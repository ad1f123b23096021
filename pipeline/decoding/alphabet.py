"""How the tokens of a model are spelled for a search over texts: one label each, from which they are found again."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final, Self

from pipeline.decoding.acoustics import Acoustics
from pipeline.errors import UsageError
from sewd_model.forced_alignment import least_frames

LEAST_SPELLED: Final = 0.1  # share of the words of a language model that the tokens of the model must spell
_SAMPLE: Final = 20_000  # words of a language model that are looked at
_PRIVATE: Final = 0xF0000  # of Unicode, for private use: labels of tokens that are no part of a word
_TAKEN: Final = frozenset("_|▁⁇")  # characters that mean something else to the library
_CASES: Final[tuple[Callable[[str], str], ...]] = (str, str.lower, str.upper)


@dataclass(frozen=True)
class Alphabet:
    """The labels of a model's tokens.

    Attributes:
        labels: of each id: empty for the blank, a space for the delimiter of words.
        blank: id of the blank.
        delimiter: id of the delimiter of words; None: the model has none, and each token counts as a word.
    """

    labels: tuple[str, ...]
    blank: int
    delimiter: int | None

    @classmethod
    def of(cls, acoustics: Acoustics, *, is_spelled: bool) -> Self:
        """Return the alphabet of a model.

        Args:
            acoustics: tokens of the model.
            is_spelled: tokens of several characters are labelled by these, so that words are found; else by a character
                of their own, so that a text has one sequence of tokens only.
        """
        tokenizer, blank = acoustics.tokenizer, acoustics.blank
        known = {**tokenizer.added, **tokenizer.vocab}
        delimiter = known.get(tokenizer.word_delimiter_token or " ", known.get(" "))
        special = {blank, tokenizer.pad_id, tokenizer.unk_id, *tokenizer.drop_ids}

        def label(index: int) -> str:
            token = tokenizer.tokens.get(index, "")
            is_word = index not in special and token and not _TAKEN & set(token) and not re.search(r"\s", token)
            return token if is_word and (is_spelled or len(token) == 1) else chr(_PRIVATE + index)

        labels = {index: label(index) for index in range(acoustics.num_tokens)} | {blank: ""}
        return cls(tuple((labels if delimiter is None else labels | {delimiter: " "}).values()), blank, delimiter)

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {label: index for index, label in enumerate(self.labels) if label}

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        """Matches a label: the longest that there is, as `CTCTokenizer.encode` does."""
        return re.compile("|".join(sorted(map(re.escape, self._ids), key=len, reverse=True)))

    def token_ids(self, text: str, num_frames: int | None = None) -> list[int]:
        """Return the tokens of a text of the library, which has single spaces between words.

        Args:
            text: of the library.
            num_frames: frames that said the text: if the longest labels do not fit into them, those are taken that take
                the fewest frames. None: any number.
        """
        longest = [self._ids[label] for label in self._pattern.findall(text)]
        if num_frames is None or least_frames(longest) <= num_frames:
            return longest
        return self._shortest(text)

    def _shortest(self, text: str) -> list[int]:
        """The tokens of a text that take the fewest frames, see `least_frames`."""
        width = max(map(len, self._ids))
        found: list[dict[int, tuple[int, list[int]]]] = [{-1: (0, [])}]  # for each end, by last token: frames, tokens
        for end in range(1, len(text) + 1):
            best: dict[int, tuple[int, list[int]]] = {}
            for start in range(max(0, end - width), end):
                if (index := self._ids.get(text[start:end])) is not None and found[start]:
                    frames, before = min((n + (last == index), ids) for last, (n, ids) in found[start].items())
                    best[index] = (frames + 1, [*before, index])
            found.append(best)
        return min(found[-1].values())[1]

    def spells(self, word: str) -> bool:
        """Whether a word is one or more labels; in a model without a delimiter, whether it is one."""
        if self.delimiter is None:
            return word in self._ids
        return "".join(self._pattern.findall(word)) == word

    def in_case_of(self, words: Sequence[str], name: str) -> Alphabet:
        """Return the alphabet in the case of a language model: as it is, in lower case or in upper case.

        Args:
            words: of the language model, at least one.
            name: its path.

        Raises:
            UsageError: less than `LEAST_SPELLED` of the words can be spelled.
        """
        sample = words[:: len(words) // _SAMPLE + 1]
        choices = [type(self)(tuple(map(case, self.labels)), self.blank, self.delimiter) for case in _CASES]
        counts = {
            choice: sum(map(choice.spells, sample)) for choice in choices if len(choice._ids) == len(choice.labels) - 1
        }
        best = max(counts, key=counts.__getitem__)
        if counts[best] < LEAST_SPELLED * len(sample):
            raise UsageError(
                f"lm: {counts[best] / len(sample):.0%} of the words of {name} can be spelled with the tokens of the "
                f"model, such as {', '.join(repr(label) for label in self.labels if label.strip())[:60]}"
            )
        return best

    def spelled(self, phrase: str) -> str:
        """Return a hot-word in the case of the alphabet.

        Raises:
            UsageError: it cannot be spelled, or the model has no delimiter of words.
        """
        if self.delimiter is None:
            raise UsageError("hotwords: the model writes no spaces between words, so that there are none to find")
        for case in _CASES:
            if all(self.spells(word) for word in case(phrase).split()):
                return case(phrase)
        raise UsageError(f"hotwords: {phrase!r} cannot be spelled with the tokens of the model")
