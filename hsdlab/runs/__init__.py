"""Runs: what each command does, one file a command."""
