"""Shared by all users of a detector: the contents of its checkpoints, and boxes drawn on pictures."""
