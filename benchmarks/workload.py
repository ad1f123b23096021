"""What the benchmarks of the model measure with: its sizes, clips of known lengths, the operations that they need."""

import statistics
import time
from collections.abc import Callable

import numpy as np
import torch

from sewd_model import FeatureExtractor, SEWDConfig

SIZES = {
    name: {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": 4 * hidden,
        "num_conv_pos_embeddings": 31,
        "conv_dim": tuple(int(wider * channels) for channels in SEWDConfig.conv_dim),
    }
    for name, hidden, layers, heads, wider in (
        ("tiny", 384, 12, 6, 1),
        ("small", 512, 12, 8, 1),
        ("mid", 512, 24, 8, 1),
        ("base+", 768, 24, 12, 1.5),
    )
}
RATE = 16_000
MEDIAN_S, SIGMA, SHORTEST_S, LONGEST_S = 6.2, 0.65, 2.0, 30.0  # log-normal; the mean is 7.7 s

Logits = list[torch.Tensor]  # (T, vocab_size) a clip


def waveforms(lengths: str, number: int) -> list[torch.Tensor]:
    """Prepared clips: `number` of LibriSpeech's lengths at quantiles, in random order; or as much audio in clips of
    `lengths` seconds."""
    rng = np.random.default_rng(0)
    if lengths == "librispeech":
        quantiles = rng.permutation((np.arange(number) + 0.5) / number)
        normal = np.array([statistics.NormalDist().inv_cdf(quantile) for quantile in quantiles])
        durations = (MEDIAN_S * np.exp(SIGMA * normal)).clip(SHORTEST_S, LONGEST_S)
    else:
        durations = np.full(max(2, round(number * MEDIAN_S / float(lengths))), float(lengths))
    features = FeatureExtractor()
    return [
        torch.from_numpy(features(rng.standard_normal(round(RATE * duration), np.float32))) for duration in durations
    ]


def flops(config: SEWDConfig, num_samples: int) -> float:
    """Floating point operations of the matrix products that a clip needs, with no waste (2 a multiply-add)."""
    operations, frames, channels = 0, num_samples, 1
    for size, kernel, stride in zip(config.conv_dim, config.conv_kernel, config.conv_stride, strict=True):
        frames = (frames - kernel) // stride + 1
        operations += frames * kernel * channels * size
        channels = size
    hidden, squeezed = config.hidden_size, frames // config.squeeze_factor
    operations += frames * channels * hidden  # projection
    taps = config.num_conv_pos_embeddings * hidden // config.num_conv_pos_embedding_groups
    operations += squeezed * taps * hidden
    # Content products: keys and values with each query; position products: one for each key and each term.
    a_layer = squeezed * hidden * (4 * hidden + 2 * config.intermediate_size) + 4 * squeezed**2 * hidden
    operations += config.num_hidden_layers * a_layer
    operations += squeezed * hidden * hidden * config.squeeze_factor + frames * hidden * config.vocab_size
    return 2.0 * operations


def timed(function: Callable[[], object]) -> float:
    """Wall seconds of one call."""
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def unlike(logits: Logits, alone: Logits) -> float:
    """Share of frames whose best label is not that of the clip alone."""
    differ = [one.argmax(-1) != other.argmax(-1) for one, other in zip(logits, alone, strict=True)]
    return torch.cat(differ).double().mean().item()


def padded(
    model: torch.nn.Module, clips: list[torch.Tensor], size: int, config: SEWDConfig, by_length: bool = True
) -> Logits:
    """Logits by a model of transformers' in padded batches with an attention mask, of clips of like length or, not
    `by_length`, of clips as they come."""
    weight = next(model.parameters())
    order = sorted(range(len(clips)), key=lambda row: len(clips[row]) if by_length else row)
    logits: dict[int, torch.Tensor] = {}
    for start in range(0, len(clips), size):
        rows = order[start : start + size]
        values = torch.nn.utils.rnn.pad_sequence([clips[row] for row in rows], batch_first=True)
        lengths = torch.tensor([len(clips[row]) for row in rows])
        mask = (torch.arange(values.shape[1]) < lengths[:, None]).long()
        output = model(values.to(weight.device, weight.dtype), attention_mask=mask.to(weight.device)).logits
        logits |= zip(rows, output.float().cpu(), strict=True)
    return [logits[row][: config.num_frames(len(clip))] for row, clip in enumerate(clips)]
