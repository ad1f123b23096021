"""The driver of a run: it starts the stages on Ray and follows the run until it is done, stopped or failed.

`transcribe` is the life of a run from configuration to result. `models` holds what the driver knows of the checkpoints,
`remaining` what is left of the plan, `dataset` the three stages as one Ray Data pipeline, and `execution` runs these
over the remaining parts. `stop`, `progress`, `telemetry` and `watchdog` connect it to its caller and its operator.
The driver holds ids and counters of chunks only, never audio or texts.
"""
