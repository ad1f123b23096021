"""Tables of utterances that other programs write: each module reads one kind into rows with the keys of a manifest."""
