"""How a hypothesis is compared with a reference: normalisation, alignment, error counts, and files of references.

Works on texts and Arrow columns, row for row; knows no runs. Counts are kept, never rates: rates are properties of sums
of counts (`counts.ErrorCounts`). `rules.score` is the entry for rows of `transcripts`.
"""
