"""The command line: one module a verb. Parses, wires, prints; all that it does is in `pipeline`."""
