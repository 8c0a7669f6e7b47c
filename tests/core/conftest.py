"""Fixtures of the tests of configuration and registry."""

import pytest

from src.core import registry


@pytest.fixture
def own_registry(monkeypatch):
    """Let a test register classes that no other test sees."""
    registry.register_own_classes()
    monkeypatch.setattr(registry, "_COMPONENTS", dict(registry._COMPONENTS))
