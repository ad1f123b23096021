"""One SEW-D backbone with the heads that a training needs, and how they are saved.

The CTC head and the classifier share the backbone. They are saved in one safetensors file with one `config.json`; the
classes `SEWDForCTC` and `SEWDForSequenceClassification` of transformers and of this project each load their part of it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn

from sewd_model import checkpoint, hub
from sewd_model.checkpoint import read_state_dict
from sewd_model.config import SEWDConfig
from sewd_model.ctc import CTCTokenizer
from sewd_model.features import FeatureExtractor
from sewd_model.files import FEATURE_FILES, TOKENIZER_FILES, Location
from sewd_model.model import SEWDForCTC, SEWDForSequenceClassification, conv_lengths
from sewd_model.time_major import TimeMajorFeatureEncoder, is_supported

# The 32 tokens of wav2vec 2.0's English CTC models, in their order.
ENGLISH_TOKENS: Final = ("<pad>", "<s>", "</s>", "<unk>", "|", *"ETAONIHSRDLUMWCFGYPBVK'XJQZ")


@dataclass(frozen=True)
class Losses:
    """Losses of a batch: the mean over its rows that have a text, or a label; zero if no row has one.

    Attributes:
        ctc: the CTC loss, reduced by `ctc_loss_reduction`, `()`.
        label: the cross-entropy, `()`.
        mel: the square error of the log-mel regression, `()`; zero outside of its steps.
    """

    ctc: Tensor
    label: Tensor
    mel: Tensor


@dataclass(frozen=True)
class Batch:
    """Tensors of one batch, on one device.

    Attributes:
        input_values: `(B, N)` float32, as `FeatureExtractor.pad` makes it.
        attention_mask: `(B, N)` int64, 1 on samples.
        targets: `(B, L)` token ids, -100 after a row's text.
        has_text: `(B,)` bool.
        labels: `(B,)` class numbers, -100 where a row has none.
    """

    input_values: Tensor
    attention_mask: Tensor
    targets: Tensor
    has_text: Tensor
    labels: Tensor

    def to(self, device: torch.device) -> Batch:
        """The same batch on `device`."""
        return Batch(*(getattr(self, item.name).to(device) for item in dataclasses.fields(self)))


class TrainingModel(nn.Module):
    """The backbone and its heads. `forward` returns losses, so that a data-parallel wrapper sees one call per batch.

    Attributes:
        ctc: always present: a model without training texts keeps an untrained CTC head, so that it loads as one.
        classifier: None without labels. It shares the backbone of `ctc`.
        mel: regression from the feature extractor's frames to log-mel energies, or None. Not saved.
    """

    def __init__(self, config: SEWDConfig, *, with_classifier: bool, with_mel: bool = False) -> None:
        super().__init__()
        self.ctc = SEWDForCTC(config)
        if is_supported(config):
            self.ctc.sew_d.feature_extractor = TimeMajorFeatureEncoder(self.ctc.sew_d.feature_extractor)
        self.classifier = SEWDForSequenceClassification(config) if with_classifier else None
        if self.classifier is not None:
            self.classifier.sew_d = self.ctc.sew_d
        self.mel = MelRegression(config) if with_mel else None

    @property
    def config(self) -> SEWDConfig:
        """The one configuration of all heads."""
        return self.ctc.config

    def forward(self, batch: Batch, *, mel_only: bool = False) -> Losses:
        """The losses of a batch; with `mel_only`, of the log-mel regression, which runs the feature extractor only."""
        ctc = self.ctc
        zero = batch.input_values.new_zeros(())
        if mel_only:
            if self.mel is None:
                raise ValueError("the model was built without the log-mel regression")
            return Losses(zero, zero, self._mel_loss(self.mel, batch))
        outputs = ctc.sew_d.encode(batch.input_values, batch.attention_mask)
        ctc_loss = label_loss = zero
        if bool(batch.has_text.any()):
            rows = batch.has_text
            logits = ctc.lm_head(ctc.dropout(outputs.last_hidden_state[rows]))
            ctc_loss = ctc.loss(logits, batch.targets[rows], outputs.num_frames[rows])
        if self.classifier is not None and bool((batch.labels >= 0).any()):
            label_loss = self.classifier.loss(self.classifier.head(outputs), batch.labels, outputs.num_frames)
        return Losses(ctc_loss, label_loss, zero)

    def _mel_loss(self, mel: MelRegression, batch: Batch) -> Tensor:
        backbone = self.ctc.sew_d
        num_samples = batch.attention_mask.sum(-1)
        features = backbone.feature_extractor(batch.input_values, num_samples)
        frames = backbone.layer_norm(features.transpose(1, 2))  # (B, T, conv_dim[-1])
        loss: Tensor = mel(frames, batch.input_values, conv_lengths(num_samples, self.config))
        return loss


class MelRegression(nn.Module):
    """Teaches the feature extractor a spectrum: a linear layer predicts log-mel energies from its frames.

    A warm start for training from scratch: the convolutions learn the short-time spectrum in a hundred steps from this
    dense signal, whereas the CTC gradient first has to pass through untrained layers. The energies are taken over the
    receptive field of a frame (400 samples at the default strides).
    """

    filters: Tensor
    hann: Tensor

    def __init__(self, config: SEWDConfig, num_mels: int = 64) -> None:
        super().__init__()
        self.hop = config.hop_length
        self.window = config.receptive_field
        self.read = nn.Linear(config.conv_dim[-1], num_mels)
        self.register_buffer("filters", mel_filters(num_mels, self.window, 16_000), persistent=False)
        self.register_buffer("hann", torch.hann_window(self.window), persistent=False)

    def forward(self, frames: Tensor, input_values: Tensor, num_frames: Tensor) -> Tensor:
        """Mean square error over the frames of each row, `()`; `frames` (B, T, C), `input_values` (B, N)."""
        with torch.no_grad(), torch.autocast(frames.device.type, enabled=False):
            pieces = input_values.float().unfold(1, self.window, self.hop) * self.hann  # (B, T, window)
            power = torch.fft.rfft(pieces).abs().square()
            target = torch.log(power @ self.filters + 1e-2)  # the waveform has unit variance
            target = (target - 1.0) / 3.0  # of about unit variance
        width = min(frames.shape[1], target.shape[1])
        own = (torch.arange(width, device=frames.device) < num_frames[:, None])[:, :, None]
        error = (self.read(frames[:, :width]).float() - target[:, :width]).square() * own
        loss: Tensor = error.sum() / (own.sum() * target.shape[-1])
        return loss


def mel_filters(num_mels: int, window: int, rate: int) -> Tensor:
    """Triangular filters evenly spaced in mel (O'Shaughnessy's 2595 log10(1 + f / 700)), `(window // 2 + 1, mels)`."""
    top = 2595 * torch.log10(torch.tensor(1 + rate / 2 / 700))
    edges = 700 * (10 ** (torch.linspace(0, float(top), num_mels + 2) / 2595) - 1)
    frequencies = torch.fft.rfftfreq(window, 1 / rate)[:, None]
    rising = (frequencies - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - frequencies) / (edges[2:] - edges[1:-1])
    filters = torch.minimum(rising, falling).clamp_min(0)
    return filters / filters.sum(0).clamp_min(1e-3)


# ------------------------------------------------------------------------------------------- starting points
@dataclass(frozen=True)
class Start:
    """What a training starts with: model, tokenizer and feature extractor."""

    model: TrainingModel
    tokenizer: CTCTokenizer
    features: FeatureExtractor


def default_tokenizer() -> CTCTokenizer:
    """The English characters of wav2vec 2.0: capitals, the apostrophe, and `|` between words."""
    return CTCTokenizer(vocab={token: index for index, token in enumerate(ENGLISH_TOKENS)})


def start_from_scratch(config: SEWDConfig, labels: Sequence[str], *, with_mel: bool = False) -> Start:
    """A model with random weights and English characters; replaces the vocabulary and the labels of `config`."""
    tokenizer = default_tokenizer()
    config = _with_heads(config, labels, vocab_size=len(tokenizer.vocab))
    model = TrainingModel(config, with_classifier=bool(labels), with_mel=with_mel)
    # An odd last frame reaches the head as zeros, so that the bias alone decides its token: make it the blank.
    with torch.no_grad():
        model.ctc.lm_head.bias[model.ctc.blank] = 1.0
    return Start(model, tokenizer, FeatureExtractor())


def start_from_checkpoint(location: Location, labels: Sequence[str], *, with_mel: bool = False) -> Start:
    """A checkpoint's backbone and heads; a head that it lacks, or whose labels differ, is new.

    Args:
        location: directory or URI in the Hugging Face layout, or name on the hub.
        labels: classes to train; if empty, a classifier of the checkpoint is kept unchanged.

    Raises:
        CheckpointError: files are missing or do not match.
    """
    location = hub.directory(location, (*FEATURE_FILES, *TOKENIZER_FILES), weights=True)
    config = SEWDConfig.from_pretrained(location)
    keys = {key.split(".")[0] for key in read_state_dict(location)}
    features = FeatureExtractor.from_pretrained(location)
    has_ctc, has_classifier = "lm_head" in keys, "classifier" in keys
    tokenizer = CTCTokenizer.from_pretrained(location) if has_ctc else default_tokenizer()
    same_labels = has_classifier and set(labels) <= set(config.label2id)
    config = _with_heads(
        config, () if same_labels else labels, vocab_size=config.vocab_size if has_ctc else len(tokenizer.vocab)
    )
    with_classifier = has_classifier or bool(labels)
    model = TrainingModel(config, with_classifier=with_classifier, with_mel=with_mel)
    loaded = SEWDForCTC.from_pretrained(location, config=config, new_head=not has_ctc)
    model.ctc.load_state_dict(loaded.state_dict())
    if model.classifier is not None and same_labels:
        heads = SEWDForSequenceClassification.from_pretrained(location, config=config)
        model.classifier.load_state_dict(heads.state_dict())
    return Start(model, tokenizer, features)


def _with_heads(config: SEWDConfig, labels: Sequence[str], vocab_size: int) -> SEWDConfig:
    changes: dict[str, object] = {"vocab_size": vocab_size, "ctc_zero_infinity": True}
    if labels:
        changes["id2label"] = dict(enumerate(labels))
    return dataclasses.replace(config, **changes)  # type: ignore[arg-type]


# ----------------------------------------------------------------------------------------------------- saving
def merged_state(model: TrainingModel) -> dict[str, Tensor]:
    """The tensors of all heads under the keys of the Hugging Face layout; those of the backbone once."""
    tensors = dict(model.ctc.state_dict())
    if model.classifier is not None:
        tensors |= model.classifier.state_dict()
    return tensors


def save_model(
    location: Location,
    tensors: Mapping[str, Tensor],
    config: SEWDConfig,
    tokenizer: CTCTokenizer,
    features: FeatureExtractor,
    dtype: str = "float32",
) -> None:
    """Write a checkpoint with all its heads; `config.json` last, so that a directory cut short does not load.

    Args:
        location: directory or URI.
        tensors: as `merged_state` gives them.
        config: of the model.
        tokenizer: of its CTC head.
        features: of its waveforms.
        dtype: on disk, see `TrainSettings.save_dtype`.

    Raises:
        CheckpointError: a weight is not finite in that dtype.
    """
    kind = getattr(torch, dtype)
    checkpoint.save(tensors, config, "SEWDForCTC", location, dtype=kind, companions=(tokenizer, features))
