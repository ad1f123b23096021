"""From posteriors to tokens: greedy decoding, and beam search with language models and hot-words."""
