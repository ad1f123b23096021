"""The workload of the model benchmarks: model sizes, clips of given lengths, operation counts, padded batches."""

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
        "conv_dim": tuple(int(width * channels) for channels in SEWDConfig.conv_dim),
    }
    for name, hidden, layers, heads, width in (
        ("tiny", 384, 12, 6, 1),
        ("small", 512, 12, 8, 1),
        ("mid", 512, 24, 8, 1),
        ("base+", 768, 24, 12, 1.5),
    )
}
RATE = 16_000
MEDIAN_S, SIGMA, SHORTEST_S, LONGEST_S = 6.2, 0.65, 2.0, 30.0  # log-normal; the mean is 7.7 s

Logits = list[torch.Tensor]  # (frames, vocab_size) for each clip


def waveforms(lengths: str, number: int) -> list[torch.Tensor]:
    """Clips of random samples, prepared for the model.

    Args:
        lengths: `librispeech`: `number` clips whose lengths are quantiles of LibriSpeech's, in random order; or a
            length in seconds: clips of that length, with as much audio in total.
        number: number of clips with LibriSpeech's lengths.

    Returns:
        float32 `(num_samples,)` for each clip, at `RATE`.
    """
    rng = np.random.default_rng(0)
    if lengths == "librispeech":
        quantiles = rng.permutation((np.arange(number) + 0.5) / number)
        normal = np.array([statistics.NormalDist().inv_cdf(quantile) for quantile in quantiles])
        durations = (MEDIAN_S * np.exp(SIGMA * normal)).clip(SHORTEST_S, LONGEST_S)
    else:
        durations = np.full(max(2, round(number * MEDIAN_S / float(lengths))), float(lengths))
    features = FeatureExtractor()
    return [
        torch.from_numpy(features.prepare(rng.standard_normal(round(RATE * duration), np.float32)))
        for duration in durations
    ]


def flop_count(config: SEWDConfig, num_samples: int) -> float:
    """Floating point operations of the matrix products that a clip needs, without waste (2 for a multiply-add)."""
    operations, frames, channels = 0, num_samples, 1
    for size, kernel, stride in zip(config.conv_dim, config.conv_kernel, config.conv_stride, strict=True):
        frames = (frames - kernel) // stride + 1
        operations += frames * kernel * channels * size
        channels = size
    hidden, squeezed = config.hidden_size, frames // config.squeeze_factor
    operations += frames * channels * hidden  # projection
    taps = config.num_conv_pos_embeddings * hidden // config.num_conv_pos_embedding_groups
    operations += squeezed * taps * hidden
    # Content products: keys and values with each query. Position products: one for each key and each position term.
    per_layer = squeezed * hidden * (4 * hidden + 2 * config.intermediate_size) + 4 * squeezed**2 * hidden
    operations += config.num_hidden_layers * per_layer
    operations += squeezed * hidden * hidden * config.squeeze_factor + frames * hidden * config.vocab_size
    return 2.0 * operations


def timed(function: Callable[[], object]) -> float:
    """Wall time of one call, in seconds."""
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def share_of_different_frames(logits: Logits, reference: Logits) -> float:
    """Share of frames whose best label is not the one in `reference`."""
    differ = [row.argmax(-1) != expected.argmax(-1) for row, expected in zip(logits, reference, strict=True)]
    return torch.cat(differ).double().mean().item()


def run_padded(
    model: torch.nn.Module, clips: list[torch.Tensor], size: int, config: SEWDConfig, by_length: bool = True
) -> Logits:
    """Run a transformers model over clips in padded batches, with an attention mask.

    Args:
        model: a `transformers.SEWDForCTC`.
        clips: float32 `(num_samples,)` each.
        size: clips in a batch.
        config: the model's configuration.
        by_length: sort the clips by length first; otherwise batch them in the given order.

    Returns:
        Logits of each clip, in the given order, without padding.
    """
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
