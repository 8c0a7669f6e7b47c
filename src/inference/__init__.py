"""A trained checkpoint in use."""
