"""A font for each class name, and what happens without one."""

import pytest

from src.detection import fonts
from src.detection.fonts import BUILT_IN, drawable, font_of_size, text_width

is_installed = fonts._is_installed


@pytest.fixture(autouse=True)
def _fresh(monkeypatch):
    monkeypatch.setattr(fonts, "_warned_about", [])
    drawable.cache_clear()
    is_installed.cache_clear()
    yield
    drawable.cache_clear()
    is_installed.cache_clear()


@pytest.fixture
def without_system_fonts(monkeypatch):
    monkeypatch.setattr(fonts, "SYSTEM_FONTS", ())


def test_latin_names_need_no_font_of_the_system(without_system_fonts, caplog):
    assert drawable("Red cell_2 0.93") == ("Red cell_2 0.93", BUILT_IN)
    assert not caplog.records


def test_unknown_characters_become_question_marks_with_one_warning(
    without_system_fonts, caplog
):
    assert drawable("红细胞 0.9")[0] == "??? 0.9"
    assert drawable("白细胞")[0] == "???"
    assert len(caplog.records) == 1
    message = caplog.records[0].getMessage()
    assert "'红细胞 0.9'" in message and "fonts-noto-cjk" in message


def test_letters_lose_accents_rather_than_become_question_marks(
    without_system_fonts, monkeypatch, caplog
):
    monkeypatch.setattr(fonts, "_has_glyph", lambda sign, name: sign.isascii())
    assert drawable("Käfer é")[0] == "Kafer e"
    assert not caplog.records


def test_a_font_of_the_system_is_used_if_it_has_the_characters(
    monkeypatch, caplog
):
    installed = {"first.ttc": "ab", "second.ttc": "红细胞"}
    monkeypatch.setattr(fonts, "SYSTEM_FONTS", ("none.ttc", *installed))
    monkeypatch.setattr(fonts, "_is_installed", lambda name: name in installed)
    monkeypatch.setattr(
        fonts,
        "_has_glyph",
        lambda sign, name: sign in installed.get(name, "abc"),
    )
    assert drawable("红细胞") == ("红细胞", "second.ttc")
    assert drawable("abc") == ("abc", BUILT_IN)
    assert not caplog.records


def test_a_font_that_is_not_installed_is_not_used(monkeypatch):
    monkeypatch.setattr(fonts, "SYSTEM_FONTS", ("no such font.ttf",))
    assert drawable("红") == ("?", BUILT_IN)


def test_text_grows_with_the_font_size():
    widths = [text_width("cat", BUILT_IN, size) for size in (12, 24, 48)]
    assert widths[1] == pytest.approx(2 * widths[0], rel=0.2)
    assert widths[2] == pytest.approx(4 * widths[0], rel=0.2)
    assert font_of_size(BUILT_IN, 12).size == 12
