"""What a run will take, before it starts: hours from headers, and time, memory and cost from timed batches.

`recordings` reads headers, and decodes a few recordings to time that; `trial` starts Ray and times the model on clips
of each length; `predict` makes the prediction of both.
"""
