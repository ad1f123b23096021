"""The parts that both packed engines share: linear maps, norms, what follows attention in a layer, and the heads.

They work on rows, `(rows, channels)`, of any number of clips. The engines differ in how they compute a linear map: they
pass a factory that makes one from a module of the reference model.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from sewd_model.activations import ACTIVATIONS, Activation
from sewd_model.model import Layer, ResidualOutput, SEWDForCTC, SEWDForSequenceClassification

Head = SEWDForCTC | SEWDForSequenceClassification

# The reference computes "gelu_python" step by step; "gelu" is the same function in one operation.
SAME_ACTIVATION = {"gelu_python": "gelu"}


def fast_activation(name: str) -> Activation:
    """Return the fastest function for an activation's name, equal to the reference's up to rounding."""
    return ACTIVATIONS[SAME_ACTIVATION.get(name, name)]


# --------------------------------------------------------------------------------------------- linear maps and norms
@dataclass(frozen=True)
class Linear:
    """A linear map of rows and an activation, by torch's own operators.

    Attributes:
        weight: `(out, in)`; subclasses may store it in a form of their own.
        bias: `(out,)`, or None.
        activation: name of the activation function.
        rows_independent: whether the result of a row is the same, bit for bit, whichever rows are computed with it.
        dtype: name of the data type of the products.
    """

    rows_independent: ClassVar[bool] = True
    dtype: ClassVar[str] = "float32"
    weight: Tensor
    bias: Tensor | None
    activation: str = "linear"

    @classmethod
    def pack(cls, weight: Tensor, bias: Tensor | None, activation: str = "linear") -> Self:
        """Make a map from its weight `(out, in)` and bias `(out,)`, prepared for many calls."""
        return cls(weight.contiguous(), bias, activation)

    @classmethod
    def from_modules(
        cls,
        *modules: nn.Linear,
        scales: Sequence[float] | None = None,
        activation: str = "linear",
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> Self:
        """Make one map from modules, their outputs side by side.

        Args:
            modules: of the reference model, with equal input sizes.
            scales: a factor for the output of each module (default: 1).
            activation: name of the activation function.
            device: where the weights are put; None: where they are.
            dtype: what they are converted to; None: as they are.
        """
        scaled = list(zip(modules, scales or (1.0,) * len(modules), strict=True))
        weight = torch.cat([module.weight.detach() * scale for module, scale in scaled])
        bias = torch.cat([module.bias.detach() * scale for module, scale in scaled])
        return cls.pack(weight.to(device, dtype), bias.to(device, dtype), activation)

    def __call__(self, rows: Tensor) -> Tensor:
        """Map `(rows, in)`, of any strides, to `(rows, out)`."""
        return fast_activation(self.activation)(functional.linear(rows, self.weight, self.bias))


class MakeLinear(Protocol):
    """How an engine makes its linear maps: `Linear.from_modules` or a variant."""

    def __call__(self, *modules: nn.Linear, activation: str = "linear") -> Linear:
        """Make one map from modules, their outputs side by side."""


@dataclass(frozen=True)
class Norm:
    """The numbers of a LayerNorm or GroupNorm: weight `(C,)`, bias `(C,)` and epsilon."""

    weight: Tensor
    bias: Tensor
    eps: float

    @classmethod
    def from_module(
        cls, norm: nn.LayerNorm | nn.GroupNorm, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> Self:
        """Take the numbers from a module, to a device and dtype (None: as they are)."""
        return cls(norm.weight.detach().to(device, dtype), norm.bias.detach().to(device, dtype), norm.eps)

    def __call__(self, rows: Tensor) -> Tensor:
        """Normalise each row of `(rows, C)`: LayerNorm."""
        return functional.layer_norm(rows, rows.shape[-1:], self.weight, self.bias, self.eps)


MakeNorm = Callable[[nn.LayerNorm], Norm]


# -------------------------------------------------------------------------------------------------- transformer layer
@dataclass(frozen=True)
class Residual:
    """The end of each half of a layer: a linear map, the residual and LayerNorm."""

    dense: Linear
    norm: Norm

    @classmethod
    def from_module(cls, module: ResidualOutput, linear: MakeLinear, norm: MakeNorm) -> Self:
        """Prepare the weights."""
        return cls(linear(module.dense), norm(module.LayerNorm))

    def __call__(self, rows: Tensor, residual: Tensor) -> Tensor:
        """Map `(rows, in)` and the residual `(rows, hidden)` to `(rows, hidden)`."""
        return self.norm(self.dense(rows).add_(residual))


@dataclass(frozen=True)
class AfterAttention:
    """What a transformer layer computes row by row, after attention."""

    attention_output: Residual
    intermediate: Linear
    output: Residual

    @classmethod
    def from_layer(cls, layer: Layer, activation: str, linear: MakeLinear, norm: MakeNorm) -> Self:
        """Prepare the weights of a layer of the reference model."""
        return cls(
            attention_output=Residual.from_module(layer.attention.output, linear, norm),
            intermediate=linear(layer.intermediate.dense, activation=activation),
            output=Residual.from_module(layer.output, linear, norm),
        )

    def __call__(self, context: Tensor, hidden: Tensor) -> Tensor:
        """Map attention's context and the layer's input, `(rows, hidden)` each, to the layer's output."""
        attended = self.attention_output(context, hidden)
        return self.output(self.intermediate(attended), attended)


# -------------------------------------------------------------------------------------------------------------- heads
@dataclass(frozen=True)
class CTCHead:
    """The CTC head: scores of each vocabulary entry for each frame."""

    lm_head: Linear

    def __call__(self, frames: Tensor) -> Tensor:
        """Map `(frames, hidden)` to logits `(frames, vocab_size)`."""
        return self.lm_head(frames)

    @property
    def num_outputs(self) -> int:
        """Size of the vocabulary."""
        return len(self.lm_head.weight)


@dataclass(frozen=True)
class ClassifierHead:
    """The sequence classifier; the mean over time comes before the projection, with which it commutes.

    Attributes:
        layer_weights: `(layers + 1,)`, after softmax; None: it reads the last hidden state alone.
        projector: `(hidden)` to `(classifier_proj_size)`.
        classifier: `(classifier_proj_size)` to `(num_labels)`.
    """

    layer_weights: Tensor | None
    projector: Linear
    classifier: Linear

    @classmethod
    def from_model(
        cls, model: SEWDForSequenceClassification, linear: MakeLinear, device: torch.device | None = None
    ) -> Self:
        """Prepare the weights."""
        weights = model.layer_weights.detach().softmax(-1).to(device) if model.config.use_weighted_layer_sum else None
        return cls(weights, linear(model.projector), linear(model.classifier))

    def mix_layers(self, states: Sequence[Tensor]) -> Tensor:
        """Return the weighted sum over the layers, `(rows, hidden)`, of states of that shape, one per layer.

        Raises:
            ValueError: the head reads the last hidden state alone.
        """
        if self.layer_weights is None:
            msg = "this classifier has no layer weights: it reads the last hidden state"
            raise ValueError(msg)
        mixed: Tensor = torch.tensordot(self.layer_weights, torch.stack(list(states)), 1)
        return mixed

    def __call__(self, means: Tensor) -> Tensor:
        """Map means over time, `(clips, hidden)`, to logits `(clips, num_labels)`."""
        return self.classifier(self.projector(means))

    @property
    def num_outputs(self) -> int:
        """Number of classes."""
        return len(self.classifier.weight)
