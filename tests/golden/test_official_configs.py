"""The 29 official model configurations resolve to the official values here: no key is left out, none differs.

So the file layout below `configs/` is free, but what a configuration means is not.
"""

import json

import pytest

from src.core import YAMLConfig
from tests.fixtures.golden import ROOT, read_json

OFFICIAL = read_json("official_configs.json")


def leaves(values, path=""):
    """Return the values of all dotted keys as JSON, except mappings: 4 differs from 4.0, 1 from true."""
    if not isinstance(values, dict):
        return {path: json.dumps(values)}
    return {
        key: value
        for name, inner in values.items()
        for key, value in leaves(inner, f"{path}.{name}".lstrip(".")).items()
    }


@pytest.mark.parametrize("file", OFFICIAL)
def test_configuration_resolves_to_the_official_values(file):
    assert leaves(YAMLConfig(ROOT / file).yaml_cfg) == leaves(OFFICIAL[file])


def test_there_are_29_official_configurations():
    assert len(OFFICIAL) == 29
