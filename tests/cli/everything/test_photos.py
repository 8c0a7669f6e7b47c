"""The speed of loading photos is measured on photos with Exif, at a reduced size."""

from PIL import Image

from src.cli.everything import photos
from src.cli.everything.figures import Settings
from src.data.dataset import image_policy


def test_photo_has_exif_data_and_the_size(tmp_path):
    photos.write_photo(tmp_path / "photo.jpg", (800, 600), 0)
    with Image.open(tmp_path / "photo.jpg") as image:
        assert image.size == (800, 600)
        assert image.getexif()[0x0112] == 1


def test_figures_name_the_work_and_have_a_target(tmp_path, monkeypatch):
    reductions = []
    inspect = image_policy.inspect_reduced

    def noted(*arguments, **settings):
        reductions.append(settings["reduction"])
        return inspect(*arguments, **settings)

    monkeypatch.setattr(image_policy, "inspect_reduced", noted)
    settings = Settings(tmp_path, repeats=1)
    flips, everything = photos.measured_photos(settings, 2, (1600, 1300))
    assert (flips.row, everything.row) == (2, 2)
    assert flips.work.endswith("training with flips only")
    assert everything.work.endswith("training with all transforms")
    assert (flips.target, flips.at_least) == (photos.TARGET, True)
    assert everything.target is None
    assert flips.value > 0 and everything.value > 0
    assert 2 in reductions
