"""The feature extractor and the tokenizer of a checkpoint in one, with the calls of transformers' Wav2Vec2Processor."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from sewd_model import hub
from sewd_model.ctc import CTCTokenizer, Decoded
from sewd_model.encoding import Encoding, Padding, TensorType, in_type, padded, target_length
from sewd_model.features import FeatureExtractor
from sewd_model.files import FEATURE_FILES, TOKENIZER_FILES, Location


@dataclass(frozen=True)
class Processor:
    """What makes inputs of audio and text, and text of outputs.

    Attributes:
        feature_extractor: waveforms to `input_values`.
        tokenizer: text to ids and back.
    """

    feature_extractor: FeatureExtractor
    tokenizer: CTCTokenizer

    def __call__(
        self,
        audio: Any = None,
        text: str | Sequence[str] | None = None,
        *,
        padding: Padding = False,
        return_tensors: TensorType = None,
        **options: Any,
    ) -> Encoding:
        """Prepare audio, text or both.

        Args:
            audio: one clip or several, see `FeatureExtractor`, which also says what `options` there are.
            text: one or several, see `CTCTokenizer`.
            padding: of both.
            return_tensors: of both.

        Returns:
            Of audio `input_values` and perhaps `attention_mask`; of text `input_ids` and `attention_mask`; of both
            those of audio and `labels`.

        Raises:
            ValueError: there is neither, or one of them is refused.
        """
        if audio is None and text is None:
            msg = "pass audio, text or both"
            raise ValueError(msg)
        if audio is None and text is not None:
            return self.tokenizer(text, padding=padding, return_tensors=return_tensors)
        encoding = self.feature_extractor(audio, padding=padding, return_tensors=return_tensors, **options)
        if text is not None:
            encoding["labels"] = self.tokenizer(text, padding=padding, return_tensors=return_tensors).input_ids
        return encoding

    def pad(
        self,
        input_features: Sequence[Mapping[str, Any]] | None = None,
        labels: Sequence[Mapping[str, Any]] | None = None,
        *,
        padding: Padding = True,
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
        return_tensors: TensorType = "pt",
    ) -> Encoding:
        """Join rows that were prepared one by one, as collators of training batches do.

        Args:
            input_features: one mapping with `input_values` (N,) for each clip.
            labels: one mapping with `input_ids` for each text.
            padding: see `sewd_model.encoding.target_length`, and so for the next two.
            max_length: see `padding`.
            pad_to_multiple_of: see `padding`.
            return_tensors: "pt", "np" or None.

        Returns:
            `input_values` and `attention_mask`, or `input_ids` and `attention_mask`; of both, those of the audio and
            `labels`.
        """
        shape = (padding, max_length, pad_to_multiple_of, return_tensors)
        filler = self.feature_extractor.padding_value
        clips = _rows(input_features, "input_values", np.float32, filler, *shape)
        texts = _rows(labels, "input_ids", np.int64, self.tokenizer.pad_id or 0, *shape)
        if not clips:
            return texts
        return Encoding({**clips, **({"labels": texts["input_ids"]} if texts else {})})

    def decode(self, token_ids: Any, skip_special_tokens: bool = False, **options: bool) -> str | Decoded:
        """See `CTCTokenizer.decode`."""
        return self.tokenizer.decode(token_ids, skip_special_tokens, **options)

    def batch_decode(self, sequences: Any, skip_special_tokens: bool = False, **options: bool) -> Any:
        """See `CTCTokenizer.batch_decode`."""
        return self.tokenizer.batch_decode(sequences, skip_special_tokens, **options)

    @classmethod
    def from_pretrained(
        cls,
        location: Location,
        *,
        target_lang: str | None = None,
        revision: str | None = None,
        token: hub.Token = None,
        cache_dir: Location | None = None,
        local_files_only: bool = False,
        **changes: Any,
    ) -> Self:
        """Read both parts.

        Args:
            location: a directory, any fsspec URI of one, or a name on the hub (`ORG/NAME`, `ORG/NAME@REVISION`).
            target_lang: see `CTCTokenizer.from_pretrained`.
            revision: of a checkpoint on the hub, see `sewd_model.hub.directory`, and so for the next three.
            token: see `revision`.
            cache_dir: see `revision`.
            local_files_only: see `revision`.
            changes: settings of either part that replace those of the files, e.g. `do_lower_case=True`.

        Raises:
            CheckpointError: a file is missing or malformed.
            TypeError: neither part has such a setting.
            OSError: the store or the hub cannot be read.
        """
        location = hub.directory(
            location,
            (*FEATURE_FILES, *TOKENIZER_FILES),
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
        )
        features = FeatureExtractor.from_pretrained(location)
        tokenizer = CTCTokenizer.from_pretrained(location, target_lang=target_lang)
        own = {item.name for item in dataclasses.fields(FeatureExtractor)}
        of_features = {name: value for name, value in changes.items() if name in own}
        of_tokenizer = {name: value for name, value in changes.items() if name not in own}
        return cls(dataclasses.replace(features, **of_features), dataclasses.replace(tokenizer, **of_tokenizer))

    def save_pretrained(self, location: Location) -> None:
        """Write the files of both parts, which transformers reads.

        Raises:
            CheckpointError: `location` is the name of the bundled model.
            OSError: the store cannot be written.
        """
        self.feature_extractor.save_pretrained(location)
        self.tokenizer.save_pretrained(location)


def _rows(
    mappings: Sequence[Mapping[str, Any]] | None,
    key: str,
    kind: type[np.generic],
    filler: float,
    padding: Padding,
    max_length: int | None,
    pad_to_multiple_of: int | None,
    tensors: TensorType,
) -> Encoding:
    if mappings is None:
        return Encoding()
    rows = [np.asarray(mapping[key], kind) for mapping in mappings]
    length = target_length([len(row) for row in rows], padding, max_length, pad_to_multiple_of)
    masks = padded([np.ones(len(row), np.int64) for row in rows], length, 0)
    return Encoding({key: in_type(padded(rows, length, filler), tensors), "attention_mask": in_type(masks, tensors)})
