import pytest

from src.nn.backbone import HGNetv2
from src.nn.backbone.hgnetv2_variants import VARIANTS

PARAMETERS = {
    "B0": 1_850_396,
    "B1": 2_197_004,
    "B2": 6_026_626,
    "B3": 10_048_910,
    "B4": 13_553_376,
    "B5": 33_325_760,
    "B6": 69_013_472,
    "Pico": 749_202,
    "Femto": 389_832,
    "Atto": 230_344,
}
"""With trainable norms; B0 to B3 and DEIMv2's variants have learnable affine blocks, as published."""

WITH_AFFINE_BLOCKS = ("B0", "B1", "B2", "B3", "Pico", "Femto", "Atto")


def built(name, **settings):
    stages = range(len(VARIANTS[name].stages))
    return HGNetv2(name, return_idx=list(stages), pretrained=False, **settings)


@pytest.mark.parametrize("name", PARAMETERS)
def test_variant_has_the_published_number_of_parameters(name):
    model = built(
        name,
        use_lab=name in WITH_AFFINE_BLOCKS,
        freeze_at=-1,
        freeze_norm=False,
    )
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]


def test_every_variant_is_counted():
    assert set(VARIANTS) == set(PARAMETERS)


@pytest.mark.parametrize("name", PARAMETERS)
def test_channels_of_a_variant_are_those_of_its_table(name):
    channels = [stage.out for stage in VARIANTS[name].stages]
    assert built(name).out_channels == channels
