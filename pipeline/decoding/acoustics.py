"""What must be known of a model to read the posteriors that it gave, without the model."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sewd_model import CTCTokenizer


@dataclass(frozen=True)
class Acoustics:
    """The tokens and the frames of a CTC head; a run keeps them in its record, beside the posteriors.

    Attributes:
        tokenizer: the meaning of the tokens.
        blank: id of the CTC blank.
        num_tokens: number of outputs of the head.
        hop_length: samples per frame.
        sampling_rate: of the model, in Hz.
    """

    tokenizer: CTCTokenizer
    blank: int
    num_tokens: int
    hop_length: int
    sampling_rate: int

    @property
    def frame_s(self) -> float:
        """Seconds per frame."""
        return self.hop_length / self.sampling_rate

    def to_json(self) -> dict[str, Any]:
        """As the record of a run holds it."""
        return dataclasses.asdict(self)

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> Acoustics:
        """The acoustics that a record holds.

        Raises:
            ValueError: it does not hold them.
        """
        try:
            return Acoustics(**{**values, "tokenizer": CTCTokenizer(**values["tokenizer"])})
        except (KeyError, TypeError) as error:
            raise ValueError(f"not acoustics: {error}") from error
