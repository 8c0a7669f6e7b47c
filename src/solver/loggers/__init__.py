"""Logging services: Weights & Biases, MLflow and ClearML.

`ServiceWriter` is a writer of the trainer (`solver/writers.py`). It starts a process for each service and only
puts messages into a queue, so a service that is slow, that cannot be reached or that crashes does not affect
the training. `service_process` runs in that process and imports no torch.
"""
