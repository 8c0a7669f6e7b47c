"""Requests for a prediction: JSON with a base64 image, or a form with a file.

A request contains the bytes of its image. Names of files and addresses are not accepted, so that no client
can make the server read a file or open a connection.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

import msgspec
from python_multipart.exceptions import FormParserError
from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from ..core.schemas import Fraction, Positive
from .refusals import Refused

EXPECTED = (
    "expected image (the content of an image file), and optionally threshold (0..1), nms (0..1) and model "
    "(its number); paths and addresses are not accepted"
)

MAX_FIELDS = 16
MAX_FIELD_BYTES = 1000
"""Limits on a form besides its file."""


class PredictionRequest(msgspec.Struct, forbid_unknown_fields=True):
    """A request for the detections in one image. In JSON, `image` is base64."""

    image: bytes
    threshold: Fraction | None = None
    """Minimum score; None uses the model's threshold."""
    nms: Fraction | None = None
    """IoU threshold of non-maximum suppression; None disables it."""
    model: Positive = 1
    """Number of the model, from 1."""


async def parse_request(headers: Headers, body: bytes) -> PredictionRequest:
    """Return the request that a body contains.

    Args:
        headers: headers of the request, whose Content-Type is used.
        body: the whole body.

    Raises:
        Refused: 415 for another Content-Type, 422 for a body that cannot be used.
    """
    content_type = headers.get("content-type", "")
    kind = content_type.partition(";")[0].strip().lower()
    if kind == "application/json":
        return _from_json(body)
    if kind == "multipart/form-data":
        return await _from_form(headers, body)
    raise Refused(
        415,
        f"Content-Type is {content_type[:80]!r}, expected application/json (with a base64 image) or "
        "multipart/form-data (with a file)",
    )


def _from_json(body: bytes) -> PredictionRequest:
    try:
        return msgspec.json.decode(body, type=PredictionRequest)
    except msgspec.ValidationError as error:
        raise _unusable(error) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Refused(422, f"the body is not valid JSON: {error}") from None
    except RecursionError:
        raise Refused(422, "the JSON is nested too deeply") from None


class _FormInMemory(MultiPartParser):
    """A parser that writes no temporary files: the whole body is in memory already."""

    spool_max_size = 2**62


async def _from_form(headers: Headers, body: bytes) -> PredictionRequest:
    parser = _FormInMemory(
        headers,
        _once(body),
        max_files=1,
        max_fields=MAX_FIELDS,
        max_part_size=MAX_FIELD_BYTES,
    )
    try:
        form = await parser.parse()
    except MultiPartException as error:
        text = error.message.rstrip(".")
        raise Refused(422, f"the form cannot be read: {text}") from None
    except FormParserError as error:  # of earlier releases of Starlette
        raise Refused(422, f"the form cannot be read: {error}") from None
    fields: dict[str, Any] = {}
    for name, value in form.multi_items():
        if name in fields:
            raise Refused(422, f"field {name[:80]!r} of the form is repeated")
        fields[name] = value
    image = fields.get("image")
    if not isinstance(image, UploadFile):
        raise Refused(
            422,
            f"the form has no file in the field image; {EXPECTED}",
        )
    fields["image"] = await image.read()
    await image.close()
    try:
        return msgspec.convert(fields, PredictionRequest, strict=False)
    except msgspec.ValidationError as error:
        raise _unusable(error) from None


async def _once(body: bytes) -> AsyncGenerator[bytes, None]:
    yield body


def _unusable(error: msgspec.ValidationError) -> Refused:
    """Return the refusal of a request with wrong fields."""
    text, _, path = str(error).partition(" - at ")
    text = text.replace("Object ", "the request ", 1)
    where = path.strip("`").removeprefix("$.")
    if where:
        text = f"field {where}: {text[:1].lower()}{text[1:]}"
    return Refused(422, f"{text[:300]}; {EXPECTED}")
