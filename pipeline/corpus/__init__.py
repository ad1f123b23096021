"""From the INPUTs of a run to parts, and from a part to its utterances. No audio is decoded here.

`plan.plan` lists every INPUT and cuts it into parts (`parts.Part`), the units of work and retry; the plan is a table of
them, stored with the run. `read.read_part` returns the utterances of one part, each with an opener of its audio and
the metadata of its source.

What depends on an input layout is in one module of `layouts` for each: how its objects are cut into parts, and how the
utterances of a part are read. `registry.LAYOUTS` lists them; a further layout is a further module and a line there.

Errors: bad data is an `AudioError` in `Utterance.problem`, or is raised by `Utterance.open`; an INPUT that cannot be
planned is a `UsageError`; storage that fails, or an object that changed since it was planned, is a `StorageError`.
"""
