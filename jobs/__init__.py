"""The command line: one module per verb. Parses, wires, prints; all that it does is in `pipeline`."""
