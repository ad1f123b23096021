"""N-gram language models of words."""
