"""A known text and its audio: where each word is, how well it fits, and what of either is not in the other."""
