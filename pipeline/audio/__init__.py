"""From the bytes of one recording to segments at the model's sample rate."""
