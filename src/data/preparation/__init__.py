"""Preparation of data before training: check, fix and convert. Training does not import this package."""
