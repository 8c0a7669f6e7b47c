"""What is done to data before training: checking, mending, converting. Nothing here is imported while a model learns."""
