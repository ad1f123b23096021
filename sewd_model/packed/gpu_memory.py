"""Whether an error means that a GPU ran out of memory, and whether other processes hold that memory."""

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
