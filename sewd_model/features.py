"""From a waveform to the input of the model: zero mean and unit variance over the clip's own samples."""

import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from sewd_model import hub
from sewd_model.encoding import Encoding, Padding, TensorType, in_type, padded, target_length
from sewd_model.files import (
    FEATURE_FILES,
    FEATURES_FILE,
    PROCESSOR_FILE,
    CheckpointError,
    Location,
    read_json,
    shown,
    write_json,
)

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class FeatureExtractor:
    """How waveforms are prepared; the defaults are those of transformers' Wav2Vec2FeatureExtractor.

    Attributes:
        sampling_rate: samples per second of the audio that the model was trained on.
        do_normalize: scale each clip to zero mean and unit variance.
        padding_value: value of the samples that `pad` appends; with an attention mask they have no effect.
        return_attention_mask: whether a call returns a mask also where nothing is padded. `pad` always does: exact
            batches need it.
        extra: other keys of the file, written back unchanged.

    Raises:
        ValueError: a setting is not supported; the message names it.
    """

    sampling_rate: int = 16_000
    do_normalize: bool = True
    padding_value: float = 0.0
    return_attention_mask: bool = False
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        problems = {
            "sampling_rate": type(self.sampling_rate) is not int or self.sampling_rate < 1,
            "do_normalize": not isinstance(self.do_normalize, bool),
            "padding_value": type(self.padding_value) not in (int, float),
            "return_attention_mask": not isinstance(self.return_attention_mask, bool),
            "feature_size": self.extra.get("feature_size", 1) != 1,
            "padding_side": self.extra.get("padding_side", "right") != "right",
        }
        for name, wrong in problems.items():
            if wrong:
                msg = f"{name} = {getattr(self, name, self.extra.get(name))!r} is not supported"
                raise ValueError(msg)

    def __call__(
        self,
        raw_speech: Any,
        *,
        sampling_rate: int | None = None,
        padding: Padding = False,
        max_length: int | None = None,
        truncation: bool = False,
        pad_to_multiple_of: int | None = None,
        return_attention_mask: bool | None = None,
        return_tensors: TensorType = None,
    ) -> Encoding:
        """Prepare one clip or several, with the arguments and results of transformers' Wav2Vec2FeatureExtractor.

        Each clip is normalised over its own samples, with or without a mask. (transformers normalises over the padding
        too if the file says `return_attention_mask: false`.)

        Args:
            raw_speech: `(N,)` array or list of numbers; several as a list of these, or `(B, N)`.
            sampling_rate: that of `raw_speech`; without it a wrong rate goes unnoticed.
            padding: how rows are padded on the right, see `sewd_model.encoding.target_length`.
            max_length: see `padding` and `truncation`.
            truncation: cut clips at `max_length`.
            pad_to_multiple_of: see `padding`.
            return_attention_mask: None: if the clips are padded, or if the file says so. (In transformers: only the
                latter, which gives other results for padded clips.)
            return_tensors: "pt" for torch, "np" for NumPy, None for a list of arrays.

        Returns:
            `input_values` (B, N) float32 and, if wanted, `attention_mask` (B, N) integers, 1 on samples.

        Raises:
            ValueError: the rate is not the model's, a clip is empty or not mono, or rows of a tensor differ in length.
        """
        if sampling_rate is not None and sampling_rate != self.sampling_rate:
            msg = f"the audio has a sampling rate of {sampling_rate} Hz, but the model needs {self.sampling_rate} Hz"
            raise ValueError(msg)
        if sampling_rate is None:
            warnings.warn("pass sampling_rate=..., so that audio of a wrong rate is an error", stacklevel=2)
        several = getattr(raw_speech, "ndim", 1) > 1 or (
            isinstance(raw_speech, list | tuple) and len(raw_speech) > 0 and np.ndim(raw_speech[0]) > 0
        )
        cut = slice(max_length if truncation else None)
        clips = [np.asarray(clip)[cut] for clip in (raw_speech if several else [raw_speech])]
        rows = [self.prepare(clip.astype(np.float32) if clip.dtype.kind in "iu" else clip) for clip in clips]
        length = target_length([len(row) for row in rows], padding, max_length, pad_to_multiple_of)
        encoding = Encoding(input_values=in_type(padded(rows, length, self.padding_value), return_tensors))
        wants_mask = return_attention_mask
        if wants_mask is None:
            wants_mask = self.return_attention_mask or any(len(row) != length for row in rows if length is not None)
        if wants_mask:
            masks = padded([np.ones(len(row), np.int64) for row in rows], length, 0)
            encoding["attention_mask"] = in_type(masks, return_tensors)
        return encoding

    def prepare(self, waveform: NDArray[np.float32]) -> NDArray[np.float32]:
        """Prepare one mono clip.

        Args:
            waveform: `(N,)` float32 (or wider floating point, which is rounded first), N >= 1, at `sampling_rate`.

        Returns:
            A new array, `(N,)` float32, bit-equal to that of transformers.

        Raises:
            ValueError: the array is empty, not one-dimensional, or not floating point.
        """
        if waveform.ndim != 1 or waveform.size == 0 or waveform.dtype.kind != "f":
            msg = f"a waveform must be 1-D floating point with samples, not {waveform.dtype} {waveform.shape}"
            raise ValueError(msg)
        samples = waveform.astype(np.float32, copy=not self.do_normalize)
        if self.do_normalize:
            # Bit-equal to transformers' (x - x.mean()) / sqrt(x.var() + 1e-7), with fewer passes.
            samples = samples - samples.mean()
            samples /= np.sqrt(np.square(samples).mean() + 1e-7)
        return samples

    def pad(self, waveforms: Sequence[NDArray[np.float32]]) -> "tuple[torch.Tensor, torch.Tensor]":
        """Prepare each clip, and pad all on the right to the longest.

        Args:
            waveforms: `(N_b,)` each, as for `prepare`.

        Returns:
            `input_values` (B, N) float32 and `attention_mask` (B, N) int64, 1 on samples, in the order given.

        Raises:
            ValueError: there is no waveform, or `prepare` rejects one.
        """
        import torch  # noqa: PLC0415 - takes a second, which who reads the settings does not need

        if not waveforms:
            msg = "there is no waveform to pad"
            raise ValueError(msg)
        width = max(len(waveform) for waveform in waveforms)
        values = torch.full((len(waveforms), width), float(self.padding_value))
        mask = torch.zeros(len(waveforms), width, dtype=torch.long)
        for row, waveform in enumerate(waveforms):
            values[row, : len(waveform)] = torch.from_numpy(self.prepare(waveform))
            mask[row, : len(waveform)] = 1
        return values, mask

    @classmethod
    def from_pretrained(
        cls,
        location: Location,
        *,
        revision: str | None = None,
        token: hub.Token = None,
        cache_dir: Location | None = None,
        local_files_only: bool = False,
    ) -> Self:
        """Read `preprocessor_config.json`, or the part of `processor_config.json` that newer transformers writes.

        Without either file, the defaults apply: 16 kHz, normalised.

        Args:
            location: a directory, any fsspec URI of one, or a name on the hub (`ORG/NAME`, `ORG/NAME@REVISION`).
            revision: of a checkpoint on the hub, see `sewd_model.hub.directory`, and so for the next three.
            token: see `revision`.
            cache_dir: see `revision`.
            local_files_only: see `revision`.

        Raises:
            CheckpointError: there is no such checkpoint, a file is malformed, or a setting is not supported.
            OSError: the store or the hub cannot be read.
        """
        location = hub.directory(
            location,
            FEATURE_FILES,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
        )
        name = FEATURES_FILE
        values = read_json(location, name)
        if values is None:
            name = PROCESSOR_FILE
            values = (read_json(location, name) or {}).get("feature_extractor", {})
        names = {item.name for item in dataclasses.fields(cls)} - {"extra"}
        try:
            known = {key: value for key, value in values.items() if key in names}
            return cls(**known, extra={key: value for key, value in values.items() if key not in names})
        except (ValueError, TypeError, AttributeError) as error:
            msg = f"{name} in {shown(location)}: {error}"
            raise CheckpointError(msg) from error

    def save_pretrained(self, location: Location) -> None:
        """Write `preprocessor_config.json`, which transformers reads.

        Raises:
            CheckpointError: `location` is the name of the bundled model.
            OSError: the store cannot be written.
        """
        values = {item.name: getattr(self, item.name) for item in dataclasses.fields(self) if item.name != "extra"}
        defaults = {
            "feature_extractor_type": "Wav2Vec2FeatureExtractor",
            "feature_size": 1,
            "padding_side": "right",
        }
        write_json(location, FEATURES_FILE, {**defaults, **self.extra, **values})
