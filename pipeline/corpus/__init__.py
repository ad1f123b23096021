"""From INPUTs to parts, and from a part to its utterances."""
