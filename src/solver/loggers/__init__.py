"""Logging services: Weights & Biases, MLflow and ClearML.

`ServiceWriter` is a writer of the trainer (`writers.py`). It starts a process for each service, and puts
the history of the run into a queue. A service that is slow or fails does not affect the training.
`service_process` runs in that process and imports no torch.
"""
