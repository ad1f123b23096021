"""What an error says of a device's memory, and who has it."""

import torch


def out_of_memory(error: RuntimeError) -> bool:
    """Whether an error says so: the allocator has a class for it, cuBLAS and pinned memory have not."""
    text = str(error).lower()
    return isinstance(error, torch.cuda.OutOfMemoryError) or "out of memory" in text or "alloc_failed" in text


def taken_by_others() -> bool:
    """Whether most of the card's memory is in other hands: then a clip that did not fit may fit another time."""
    if not torch.cuda.is_available():
        return False
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info()
    return free + torch.cuda.memory_allocated() < total / 2
