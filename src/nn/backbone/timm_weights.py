"""Download of timm's ungated pretrained weights, or loading from the local cache of huggingface_hub."""

from __future__ import annotations

import os
import socket
from urllib.parse import urlparse

from torch import Tensor

from ...core.errors import CheckpointError, first_line
from ...runtime.quick_imports import import_timm


def timm_state_dict(model_name: str) -> dict[str, Tensor]:
    """Return the weights that timm publishes for `model_name`.

    Raises:
        CheckpointError: if they are neither cached nor reachable; the message says why.
    """
    import_timm()
    import timm
    from huggingface_hub import constants, try_to_load_from_cache

    published = timm.get_pretrained_cfg(model_name)
    repository = published.hf_hub_id if published is not None else None
    if not repository:
        raise CheckpointError(f"timm publishes no weights for {model_name}")
    if repository.endswith("/"):
        repository += model_name
    cached = try_to_load_from_cache(repository, "model.safetensors")
    reason = (
        None
        if isinstance(cached, str)
        else _why_unreachable(constants.ENDPOINT)
    )
    if reason:
        raise CheckpointError(
            f"{repository} is not in the local cache and {constants.ENDPOINT} cannot be reached ({reason})"
        )
    try:
        model = timm.create_model(model_name, pretrained=True, num_classes=0)
        return model.state_dict()
    except Exception as error:  # the hub client raises many types of errors
        raise CheckpointError(
            f"{repository} could not be fetched: {first_line(error)}"
        ) from error


def is_state_dict(content: dict) -> bool:
    """Return whether a dict maps names to tensors."""
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            return False
    return True


def _why_unreachable(endpoint: str) -> str | None:
    """Return why a server cannot be reached, or None if it can.

    This tries to connect once, for at most 5 seconds. The hub client would retry for most of a minute.
    """
    if os.environ.get("HF_HUB_OFFLINE", "0").upper() in (
        "1",
        "TRUE",
        "YES",
        "ON",
    ):
        return "HF_HUB_OFFLINE is set"
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        if os.environ.get(name):
            return None  # only the proxy could tell
    url = urlparse(endpoint)
    try:
        socket.create_connection(
            (url.hostname, url.port or 443), timeout=5
        ).close()
    except OSError as error:
        return error.strerror or str(error)
    return None
