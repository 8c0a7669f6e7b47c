"""The measurement of loading with mosaics returns its figures; speed itself is not tested."""

from src.cli.everything import loading, mosaics
from src.cli.everything.figures import Settings


def test_recipe_and_mosaics_alone_are_measured_on_synthetic_images(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(mosaics, "SIDE", 64)
    monkeypatch.setattr(loading, "SIDE", 64)
    monkeypatch.setattr(mosaics, "BATCH_SIZE", 2)
    monkeypatch.setattr(mosaics, "BATCHES", 1)
    figures = list(mosaics.measure(Settings(folder=tmp_path, repeats=1)))
    assert [(figure.row, figure.target) for figure in figures] == [
        (3, 110),
        (3, None),
        (3, None),
    ]
    for figure in figures:
        assert figure.unit == "images per CPU second"
        assert 0 < figure.value < 1e6


def test_synthetic_images_have_boxes_inside(tmp_path):
    folder = mosaics.synthetic_images(tmp_path, count=2)
    loading = mosaics._Loading(folder, mosaic_prob=1.0, mixes=True)
    sample = loading._data.raw_sample(0)
    assert sample.canvas == mosaics.IMAGE_SIZE
    assert len(sample.boxes) == mosaics.OBJECTS
