"""A run in the formats of other programs: subtitles, files for scoring and annotation, manifests for training."""
