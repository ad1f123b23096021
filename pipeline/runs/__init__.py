"""A run on storage, from its creation to its end. Knows no Ray.

A run is one directory or prefix. `run.json` is its record (`record`, `status`), `plan.parquet` lists its parts, and
each chunk of a part is stored by data files and one commit object that is written last (`commit`). Commits are the
truth: readers trust them alone (`run`, `ledger`, `totals`), a resume does what they lack, and `verify` checks the data
against them. `lifecycle` creates, finds, finishes and removes a run; finishing merges its small files (`compact`). One
driver at a time writes to a run (`lease`), and it resumes only a run that was made in the same way (`fingerprint`).
"""
