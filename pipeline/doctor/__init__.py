"""Whether this machine, its storage and its cluster are ready for a run: one check a line, each with what to do.

Every module has the checks of one subject, as functions that return a `Check`; `examine` runs all of them.
"""
