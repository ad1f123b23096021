"""Objects by URI: file systems, retries, listings, globs, local copies of checkpoints, and deadlines."""
