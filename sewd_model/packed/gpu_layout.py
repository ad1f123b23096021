"""How clips are laid out in a packed batch on a device, and where the frames of each layer are.

Clips are laid end to end in slots, a slot being the samples of one frame (the hop). Each clip starts at a slot, so in
every layer of the feature extractor it starts at a whole frame, and a convolution is a few matrix products over all
clips; the frames that straddle two clips are computed too, and dropped after the last convolution.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sewd_model.config import InputTooShortError, SEWDConfig
from sewd_model.packed.gpu_attention import Clips, copy_to, padded_length
from sewd_model.packed.inputs import check_waveforms
from sewd_model.recognition import FULL_SCALE, Samples, check_samples


@dataclass(frozen=True)
class Batch:
    """Clips end to end on a device, and index tables for the moves between layers.

    Attributes:
        samples: `(slots, hop)`, zeros after the samples of each clip: float32 as the model reads them; int16 or
            float32 as they were decoded, see `sewd_model.packed.gpu_recognition`.
        clip: `(slots,)` int64, the clip of each slot.
        first: `(clips,)` int64, the first slot of each clip.
        num_samples: `(clips,)` int64.
        spaced: `(W,)` int64, the frame at each place of a layout with zeros between clips, -1 for a zero.
        squeezed: `(S,)` int64, the place of each squeezed frame after the positional convolution; S is padded.
        spread: `(sum(num_frames),)` int64, the place of each frame after upsampling; the last place for a frame of
            zeros.
        num_frames: `(clips,)` int64.
        lengths: `(clips,)` int64, squeezed frames of each clip.
        clips: the tables that attention reads.
        num_frames_list: `num_frames`, on the CPU.
    """

    samples: Tensor
    clip: Tensor
    first: Tensor
    num_samples: Tensor
    spaced: Tensor
    squeezed: Tensor
    spread: Tensor
    num_frames: Tensor
    lengths: Tensor
    clips: Clips
    num_frames_list: list[int]

    def tensors(self) -> list[Tensor]:
        """Return all tensors that are on the device."""
        own = [value for value in vars(self).values() if isinstance(value, Tensor)]
        return own + self.clips.tensors()


def lay_out(waveforms: Sequence[Tensor], config: SEWDConfig, device: torch.device) -> Batch:
    """Lay prepared clips end to end, as `lay_out_samples` does.

    Args:
        waveforms: `(N,)` float32 each, on the CPU.
        config: of the model.
        device: where the batch is put.

    Raises:
        InputTooShortError: a clip has fewer than `config.min_samples` samples.
        ValueError: a clip is not one-dimensional float32 on the CPU, or there is no clip.
    """
    check_waveforms(waveforms, config)
    return lay_out_samples([waveform.numpy() for waveform in waveforms], config, device)


def lay_out_samples(clips: Sequence[Samples], config: SEWDConfig, device: torch.device) -> Batch:
    """Lay clips end to end and copy them to the device; to CUDA from pinned memory, without waiting.

    Args:
        clips: int16, or float32 with full scale at 1, `(N,)` each. The batch is int16 if all clips are.
        config: of the model.
        device: where the batch is put.

    Raises:
        InputTooShortError: a clip has fewer than `config.min_samples` samples.
        ValueError: a clip is of another type or shape, or there is no clip.
    """
    if not clips:
        msg = "there is no clip in the batch"
        raise ValueError(msg)
    for clip in clips:
        check_samples(clip)
    hop, squeeze, halo = config.hop_length, config.squeeze_factor, config.num_conv_pos_embeddings // 2
    sizes = [len(clip) for clip in clips]
    if min(sizes) < config.min_samples:
        raise InputTooShortError(min(sizes), config.min_samples)
    num_samples = torch.tensor(sizes)
    num_frames = num_samples  # `config.num_frames` of all clips at once
    for kernel, stride in zip(config.conv_kernel, config.conv_stride, strict=True):
        num_frames = torch.div(num_frames - kernel, stride, rounding_mode="floor") + 1
    lengths = num_frames // squeeze
    slots = -(-num_samples // hop)
    first = slots.cumsum(0) - slots
    samples = _end_to_end(clips, (slots * hop).tolist(), device)

    # A halo of zeros separates neighbours; the first frame of a clip is `halo` after a multiple of the squeeze factor.
    rooms = -(-(num_frames + halo) // squeeze) * squeeze
    starts = rooms.cumsum(0) - rooms
    spaced = torch.full((int(rooms.sum()) + halo,), -1)
    spaced[_ranges(starts + halo, num_frames)] = _ranges(first, num_frames)
    squeezed = torch.zeros(padded_length(lengths.tolist()), dtype=torch.long)
    squeezed[: int(lengths.sum())] = _ranges(starts // squeeze, lengths)

    upsampled = lengths * squeeze  # frames of each clip after upsampling
    place = _ranges(torch.zeros_like(num_frames), num_frames)
    spread = place + (upsampled.cumsum(0) - upsampled).repeat_interleave(num_frames)
    spread[place >= upsampled.repeat_interleave(num_frames)] = len(squeezed) * squeeze

    return Batch(
        samples=copy_to(samples, device).view(-1, hop),
        clip=copy_to(torch.arange(len(clips)).repeat_interleave(slots), device),
        first=copy_to(first, device),
        num_samples=copy_to(num_samples, device),
        spaced=copy_to(spaced, device),
        squeezed=copy_to(squeezed, device),
        spread=copy_to(spread, device),
        num_frames=copy_to(num_frames, device),
        lengths=copy_to(lengths, device),
        clips=Clips.lay_out(lengths.tolist(), config, device),
        num_frames_list=num_frames.tolist(),
    )


def _end_to_end(clips: Sequence[Samples], rooms: Sequence[int], device: torch.device) -> Tensor:
    """Copy each clip to a room of so many samples, with zeros after it; for CUDA in pinned memory."""
    kind = torch.int16 if all(clip.dtype == np.int16 for clip in clips) else torch.float32
    samples = torch.empty(sum(rooms), dtype=kind, pin_memory=device.type == "cuda")
    view, start = samples.numpy(), 0
    for clip, room in zip(clips, rooms, strict=True):
        end = start + len(clip)
        if clip.dtype == view.dtype:
            view[start:end] = clip
        else:
            np.multiply(clip, np.float32(1 / FULL_SCALE), out=view[start:end])
        start += room
        view[end:start] = 0
    return samples


def _ranges(starts: Tensor, sizes: Tensor) -> Tensor:
    """Return `start, start + 1, ...` for each start, as many numbers as its size, end to end."""
    before = sizes.cumsum(0) - sizes
    return torch.arange(int(sizes.sum())) + (starts - before).repeat_interleave(sizes)


def membership(segment: Tensor, segments: int, dtype: torch.dtype) -> Tensor:
    """Return ones where a row is of a segment, `(segments, rows)`; its product with rows is their sum per segment.

    Sums by torch's segment_reduce take one thread per segment and column. A value that is not finite spreads to all
    sums.

    Args:
        segment: `(rows,)`, the segment of each row, on the device.
        segments: how many there are.
        dtype: of the result.
    """
    return (torch.arange(segments, device=segment.device)[:, None] == segment).to(dtype)


def segment_sums(values: Tensor, members: Tensor) -> Tensor:
    """Sum `(rows, ...)` over segments, to `(segments, ...)`; `members` from `membership`, in the dtype of `values`."""
    return (members @ values.flatten(1)).view(len(members), *values.shape[1:])
