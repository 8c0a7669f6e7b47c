"""Logging services: Weights & Biases, MLflow and ClearML.

`ServiceWriter` is a writer of the trainer (`writers.py`). It starts a process for each service and puts messages
into a queue. A service that is slow, that cannot be reached or that crashes does not affect the
training. `service_process` runs in that process and imports no torch.
"""
