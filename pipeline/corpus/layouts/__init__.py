"""The input layouts, one module each: `plan_*` cuts its objects into parts, `read_*` returns the utterances of a part.

Each module ends with its `Layout`, which `pipeline.corpus.registry` lists.
"""
