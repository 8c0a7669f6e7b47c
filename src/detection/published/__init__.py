"""Published checkpoints: their layouts, which model they hold, and what a file is that holds no detector."""
