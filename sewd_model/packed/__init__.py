"""Packed batches: utterances laid end to end on the time axis, on CPUs (`cpu`) and GPUs (`gpu`)."""
