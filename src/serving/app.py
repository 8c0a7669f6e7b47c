"""The web application: the page, its data, `/predict`, `/health` and `/metrics`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import Future
from importlib.resources import files
from typing import Any, cast

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from .. import __version__
from ..core.errors import NumericsError, RunError
from ..inference import Prediction
from ..runtime.device_faults import explain_device_fault
from ..runtime.log import logger
from ..runtime.process import explain
from .bodies import discard_body, read_body
from .images import decode_image
from .limits import Limits
from .metrics import Metrics
from .models import ServedModel
from .parsing import PredictionRequest, parse_request
from .refusals import Refused, refusal
from .worker import Places, Worker, result_within

PAGE = {
    "/": ("index.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
    "/texts.js": ("texts.js", "text/javascript"),
    "/boxes.js": ("boxes.js", "text/javascript"),
}
"""Files of the page by address, with their types."""

PAGE_HEADERS = {
    # everything comes from this server; pictures are also drawn in memory
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}

STUCK_AFTER = 2
"""A prediction that takes this many times the time limit of a request makes the server unhealthy."""


class Service:
    """The detectors, the limits and the counters that all requests share."""

    def __init__(self, models: list[ServedModel], limits: Limits) -> None:
        """Store the models and start the thread that predicts."""
        self.models = models
        self.limits = limits
        self.metrics = Metrics()
        self.places = Places(limits.queue)
        self.worker = Worker()
        self.fault: str | None = None
        """Why the device cannot compute any more; None if it can."""
        self.metrics.in_progress.set_function(lambda: self.places.taken)

    def app(self) -> Starlette:
        """Return the web application."""
        routes = [
            Route("/predict", self._counted_predict, methods=["POST"]),
            Route("/models", self._models),
            Route("/health", self._health),
            Route("/metrics", self._metrics),
        ]
        for address, (name, kind) in PAGE.items():
            routes.append(Route(address, _page_file(name, kind)))
        return Starlette(
            routes=routes, exception_handlers={HTTPException: _http_error}
        )

    async def _models(self, request: Request) -> Response:
        about = {
            "version": __version__,
            "max_bytes": self.limits.max_bytes,
            "max_pixels": self.limits.max_pixels,
            "models": [model.describe() for model in self.models],
        }
        return JSONResponse(about)

    async def _health(self, request: Request) -> Response:
        allowed = STUCK_AFTER * self.limits.seconds
        if self.fault is not None:
            return refusal(503, self.fault)
        if self.worker.busy_seconds > allowed:
            return refusal(
                503,
                f"a prediction has been running for more than {allowed:g} s",
            )
        return JSONResponse({"status": "ok"})

    async def _metrics(self, request: Request) -> Response:
        kind = "text/plain; version=0.0.4; charset=utf-8"
        return Response(self.metrics.text(), media_type=kind)

    async def _counted_predict(self, request: Request) -> Response:
        """Answer a request and count it."""
        began = time.monotonic()
        try:
            response = await self._predict(request)
        except Refused as error:
            # what remains of a body that was not read would be treated as the next request
            is_unread = error.status in (400, 403, 408, 413, 503)
            response = refusal(error.status, str(error), close=is_unread)
        except asyncio.CancelledError:  # by a second Ctrl-C
            response = refusal(503, "the server is ending", close=True)
        except Exception as error:
            response = self._failed(error)
        self.metrics.requests.labels(str(response.status_code)).inc()
        self.metrics.request_seconds.observe(time.monotonic() - began)
        return response

    async def _predict(self, request: Request) -> Response:
        """Answer a request.

        Raises:
            Refused: if there is no prediction.
        """
        if request.headers.get("sec-fetch-site") == "cross-site":
            await discard_body(request, self.limits)
            raise Refused(
                403, "requests from the pages of other sites are refused"
            )
        if not self.places.enter():
            await discard_body(request, self.limits)
            raise Refused(
                503,
                f"the maximum number of requests in progress, {self.places.count}, is reached; "
                "try again later",
            )
        job: Future[dict[str, Any]] | None = None
        try:
            body = await read_body(request, self.limits)
            if request.scope["query_string"]:
                raise Refused(
                    422,
                    "settings in the address are not used; write them into the JSON or the form",
                )
            wanted = await parse_request(request.headers, body)
            del body
            job = self.worker.start(self._job(wanted))
            del wanted
            found = await result_within(job, self.limits.seconds)
        finally:
            self._leave_after(job)
        return JSONResponse(found)

    def _leave_after(self, job: Future[Any] | None) -> None:
        """Free the place of a request as soon as its job has ended, which may be after its answer."""
        if job is None:
            self.places.leave()
        else:
            job.add_done_callback(lambda _: self.places.leave())

    def _job(self, wanted: PredictionRequest) -> Callable[[], dict[str, Any]]:
        """Return the function that predicts an image, for the worker.

        Raises:
            Refused: if there is no such model.
        """
        if wanted.model > len(self.models):
            known = " or ".join(str(model.number) for model in self.models)
            raise Refused(422, f"model is {wanted.model}, expected {known}")
        model = self.models[wanted.model - 1]

        def predict() -> dict[str, Any]:
            began = time.monotonic()
            detector = model.detector
            image = decode_image(
                wanted.image, self.limits.max_pixels, detector.bit_depth
            )
            found = cast(
                "Prediction",  # for a single image
                detector.predict(
                    image, threshold=wanted.threshold, nms=wanted.nms
                ),
            )
            seconds = time.monotonic() - began
            number = str(model.number)
            self.metrics.prediction_seconds.labels(number).observe(seconds)
            self.metrics.detections.labels(number).inc(len(found))
            answer = found.to_dict()
            del answer["source"]
            threshold = wanted.threshold
            if threshold is None:
                threshold = detector.threshold
            return {
                "model": model.number,
                "threshold": threshold,
                "milliseconds": round(1000 * seconds, 1),
                **answer,
            }

        return predict

    def _failed(self, error: Exception) -> Response:
        """Return the response about an error that the client did not cause."""
        if isinstance(error, NumericsError):
            return refusal(500, str(error))
        if isinstance(error, MemoryError):
            return refusal(
                503, "the server has too little memory for this image"
            )
        fault = explain_device_fault(error)
        if fault is not None:
            self.fault = fault
            logger.error("%s", fault)
            return refusal(503, fault)
        if isinstance(error, RunError):
            logger.error("%s", error)
            return refusal(500, str(error))
        logger.exception("unexpected error: %s", explain(error)[1])
        return refusal(
            500, "the prediction failed; the log of the server has the reason"
        )


def _page_file(name: str, kind: str) -> Callable[[Request], Any]:
    """Return the endpoint of a file of the page, which is read once."""
    package = __name__.rpartition(".")[0]
    content = files(package).joinpath("page", name).read_bytes()

    async def endpoint(request: Request) -> Response:
        return Response(content, media_type=kind, headers=PAGE_HEADERS)

    return endpoint


async def _http_error(request: Request, error: Exception) -> Response:
    """Return unknown addresses and wrong methods as JSON."""
    status = getattr(error, "status_code", 500)
    expected = "expected /, /predict (POST), /models, /health or /metrics"
    path = request.scope["path"][:80]  # `request.url` needs a correct Host
    text = f"{request.method} {path}: {expected}"
    response = refusal(status, text, close=request.method == "POST")
    response.headers.update(getattr(error, "headers", None) or {})
    return response
