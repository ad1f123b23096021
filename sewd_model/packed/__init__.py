"""Engines that compute packed batches: clips of any length laid end to end on the time axis, without padding.

`cpu` computes them on processors, `gpu` on any one device of torch. Their contract: each clip gets the result that the
reference model (`sewd_model.model`) gives for that clip alone, whichever clips share its batch.
"""
