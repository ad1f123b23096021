"""Fine-tuning: data, model, training loop, and the loop as a Ray task."""
