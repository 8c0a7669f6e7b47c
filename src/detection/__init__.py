"""What every user of a detector shares: the contents of its checkpoints, and boxes drawn on pictures."""
