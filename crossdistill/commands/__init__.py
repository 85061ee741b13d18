"""The command lines: one file for each command."""
