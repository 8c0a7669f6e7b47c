import socket

import pytest
import timm
from torch import nn

from src.core import CheckpointError
from src.nn.backbone.timm_weights import timm_state_dict

NAME, REPOSITORY = (
    "vit_small_patch16_dinov3",
    "timm/vit_small_patch16_dinov3.lvd1689m",
)
PROXIES = ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """An empty cache, no proxies, and a socket whose connections fail; counts them."""
    import huggingface_hub.constants

    tried = []

    def refuse(address, timeout):
        tried.append(address)
        raise OSError(101, "Network is unreachable")

    for name in (*PROXIES, "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(
        huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path)
    )
    monkeypatch.setattr(socket, "create_connection", refuse)
    return tried


@pytest.fixture
def published(monkeypatch):
    """timm's download in place of the real one: a small module, and a record of what was asked for."""
    asked, module = [], nn.Linear(2, 3)

    def create_model(name, **settings):
        asked.append((name, settings))
        return module

    monkeypatch.setattr(timm, "create_model", create_model)
    return asked, module


@pytest.mark.parametrize("value", ["1", "true", "YES", "on"])
def test_offline_mode_is_reported_without_a_connection(value, hub, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", value)
    with pytest.raises(CheckpointError) as caught:
        timm_state_dict(NAME)
    assert (
        str(caught.value)
        == f"{REPOSITORY} is not in the local cache and https://huggingface.co cannot be "
        "reached (HF_HUB_OFFLINE is set)"
    )
    assert hub == []


def test_a_failed_connection_is_reported_after_one_attempt(hub):
    with pytest.raises(CheckpointError) as caught:
        timm_state_dict(NAME)
    assert (
        str(caught.value)
        == f"{REPOSITORY} is not in the local cache and https://huggingface.co cannot be "
        "reached (Network is unreachable)"
    )
    assert hub == [("huggingface.co", 443)]


@pytest.mark.parametrize("proxy", PROXIES)
def test_behind_a_proxy_no_direct_connection_is_tried(
    proxy, hub, published, monkeypatch
):
    monkeypatch.setenv(proxy, "http://proxy:3128")
    timm_state_dict(NAME)
    assert hub == []


def test_cached_weights_need_no_network(hub, published, monkeypatch, tmp_path):
    monkeypatch.setattr(
        "huggingface_hub.try_to_load_from_cache",
        lambda repository, file: str(tmp_path / file),
    )
    assert set(timm_state_dict(NAME)) == {"weight", "bias"} and hub == []


def test_weights_are_those_of_timms_model_without_a_head(
    hub, published, monkeypatch
):
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy:3128")
    asked, module = published
    assert timm_state_dict(NAME)["weight"] is not None
    assert asked == [(NAME, {"pretrained": True, "num_classes": 0})]


def test_a_failed_download_is_reported_in_one_line(hub, monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy:3128")

    def fail(*arguments, **settings):
        raise RuntimeError("401: the repository is gated\nask for access")

    monkeypatch.setattr(timm, "create_model", fail)
    with pytest.raises(CheckpointError) as caught:
        timm_state_dict(NAME)
    assert (
        str(caught.value)
        == f"{REPOSITORY} could not be fetched: 401: the repository is gated"
    )


def test_a_failed_download_without_a_message_is_reported_by_its_error_class(
    hub, monkeypatch
):
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy:3128")

    def fail(*arguments, **settings):
        raise TimeoutError

    monkeypatch.setattr(timm, "create_model", fail)
    with pytest.raises(
        CheckpointError,
        match=f"{REPOSITORY} could not be fetched: TimeoutError",
    ):
        timm_state_dict(NAME)


def test_a_model_without_published_weights_is_reported(hub, monkeypatch):
    monkeypatch.setattr(
        timm,
        "get_pretrained_cfg",
        lambda name: timm.models.PretrainedCfg(hf_hub_id=None),
    )
    with pytest.raises(
        CheckpointError, match=f"timm publishes no weights for {NAME}"
    ):
        timm_state_dict(NAME)
