"""Records: what a run writes and reads back."""
