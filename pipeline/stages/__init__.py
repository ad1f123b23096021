"""The stages of a run, on Ray workers: read, recognise, write.

Between stages one row is one chunk (`pipeline.schemas`), and no stage splits, joins or reorders chunks:

    rows of the plan -> read_parts    -> READ_CHUNK        decoded waveforms, and error rows for bad data
    READ_CHUNK       -> RecognizerActor    -> RECOGNIZED_CHUNK  token ids, frames, probabilities, label scores
    RECOGNIZED_CHUNK -> write_chunks  -> CHUNK_STATS       the commit, and the first failed rows, for the driver

Every utterance of a part is a row of exactly one chunk, with a result or with an error code. Bad data never raises.
What raises ends the run: `StorageError` (storage could not be reached, or an input changed), `RunFailedError`
(processes die again and again), `LeaseLostError` (another driver took over), and bugs.

A retry sees the same part or chunk, and gives the same chunks; from the second attempt on in child processes
(`pipeline.stages.quarantine`). A chunk that was committed before is read past, and not yielded again.

`heads`, `rows` and `texts` are what the stages compute, without Ray. `recognizer` is made of the same, for use without
a run; `table_recognizer` makes a stage of it for other pipelines. `actor` and `settings` are what the driver needs of
the model stage: they load no torch.
"""
