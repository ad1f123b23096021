"""What several tests share: corpora, checkpoints, servers, runs."""
