"""The command line: `schedd` and its sub-commands."""
