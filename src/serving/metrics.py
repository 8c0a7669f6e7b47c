"""Figures about the server in Prometheus' text format."""

from __future__ import annotations

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
"""Upper bounds of the classes of durations."""


class Metrics:
    """Counters of one server; they do not use the registry that the whole process shares."""

    def __init__(self) -> None:
        """Create the counters."""
        self._registry = CollectorRegistry()
        self.requests = Counter(
            "dfine_requests",
            "Answered requests to /predict by status code",
            ["status"],
            registry=self._registry,
        )
        self.detections = Counter(
            "dfine_detections",
            "Detected objects by model",
            ["model"],
            registry=self._registry,
        )
        self.request_seconds = Histogram(
            "dfine_request_seconds",
            "Seconds from the first header of a request to /predict to its answer",
            buckets=SECONDS,
            registry=self._registry,
        )
        self.prediction_seconds = Histogram(
            "dfine_prediction_seconds",
            "Seconds to decode and predict an image by model",
            ["model"],
            buckets=SECONDS,
            registry=self._registry,
        )
        self.in_progress = Gauge(
            "dfine_requests_in_progress",
            "Requests to /predict that are received, wait or are computed",
            registry=self._registry,
        )
        ProcessCollector(registry=self._registry)

    def text(self) -> bytes:
        """Return all figures, including the memory and CPU time of the process."""
        return generate_latest(self._registry)
