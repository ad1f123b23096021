"""Figures over finished rows: tallies, intervals, comparisons, gates."""
