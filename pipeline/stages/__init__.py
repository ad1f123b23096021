"""What runs on workers: read, recognise, write."""
