"""Two texts compared: normalisation, alignment, error counts, and where references come from."""
