"""Ray: start or join it, divide its resources, and submit jobs to it."""
