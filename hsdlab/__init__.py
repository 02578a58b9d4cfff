"""hsdlab."""
