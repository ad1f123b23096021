"""What an error of a GPU means: it ran out of memory, beside other processes or not; or it does not work any more."""

from typing import Final

import torch


def out_of_memory(error: RuntimeError) -> bool:
    """Whether an error reports a lack of device memory.

    torch's allocator has an error class for it; cuBLAS and pinned memory raise a RuntimeError that says so.
    """
    text = str(error).lower()
    return isinstance(error, torch.cuda.OutOfMemoryError) or "out of memory" in text or "alloc_failed" in text


def used_by_other_processes() -> bool:
    """Whether other processes hold most of the GPU's memory: then a clip that did not fit may fit another time."""
    if not torch.cuda.is_available():
        return False
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info()
    return free + torch.cuda.memory_allocated() < total / 2


# How torch, kernels that torch.compile makes, and cuDNN report an error of a GPU; those with HIP are of AMD's.
_OF_GPUS: Final = (
    *("CUDA error", "CUDA driver error", "Triton Error [CUDA]", "CUDNN_STATUS_EXECUTION_FAILED"),
    *("HIP error", "Triton Error [HIP]"),
)
# They report these where one operation cannot run on a GPU, which others can still use.
_OF_ONE_OPERATION: Final = (
    "no kernel image is available",
    "kernel image is invalid",
    "invalid device function",
    "invalid argument",
    "invalid configuration argument",
    "too many resources requested for launch",
    "operation not supported",
    "PTX",
    "STATUS_NOT_SUPPORTED",
    "STATUS_ARCH_MISMATCH",
    "STATUS_INVALID_VALUE",
)


def device_failed(error: BaseException) -> bool:
    """Whether an error reports that a GPU does not work any more: no call of this process to it can succeed.

    An illegal access, a memory error that cannot be corrected, or a card that fell off its bus. torch before 2.8 and
    compiled kernels have no class of error for it: the text says so.
    """
    if not isinstance(error, RuntimeError) or out_of_memory(error):
        return False
    if any(words in str(error) for words in _OF_ONE_OPERATION):
        return False
    is_of_gpu = any(words in str(error) for words in _OF_GPUS)
    return is_of_gpu or isinstance(error, getattr(torch, "AcceleratorError", ()))
