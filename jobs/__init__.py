"""The command line: one module per verb. Parses, wires, prints; all that it does is in `pipeline`."""

from jobs.import_path import leave_working_directory

leave_working_directory()
