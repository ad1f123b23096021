"""Error rates and label metrics over the committed rows of runs: their intervals, comparisons and gates.

Contract: rates come from sums of counts and are never averages of rates; any split of the rows into batches, files or
tasks gives the same sums. Modules read `pipeline.runs` and `pipeline.scoring`; only `evaluate` uses Ray, and only when
it is given the address of a cluster.
"""
