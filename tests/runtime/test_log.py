"""The one logger."""

import logging
import re

import pytest

from src.runtime.log import (
    LONGEST_LINE,
    least_severe,
    logger,
    printable,
    set_up_logging,
)


@pytest.fixture(autouse=True)
def logger_as_it_was():
    before = logger.handlers[:], logger.propagate, logger.level
    yield
    logger.handlers[:], logger.propagate = before[:2]
    logger.setLevel(before[2])


def said(capsys) -> list[str]:
    """Return what was printed, without the times."""
    return [
        re.sub(r"^\d\d:\d\d:\d\d ", "", line)
        for line in capsys.readouterr().out.splitlines()
    ]


def test_message_goes_to_the_terminal_with_the_time(capsys):
    set_up_logging(speaks=True)
    logger.info("loaded %d tensors", 3)
    assert re.fullmatch(
        r"\d\d:\d\d:\d\d loaded 3 tensors\n", capsys.readouterr().out
    )


def test_warning_is_marked(capsys):
    set_up_logging(speaks=True)
    logger.warning("disk nearly full")
    assert said(capsys) == ["warning: disk nearly full"]


def test_silent_rank_logs_only_errors(capsys):
    set_up_logging(speaks=False)
    logger.info("progress")
    logger.warning("odd")
    logger.error("broken")
    assert said(capsys) == ["broken"]


@pytest.mark.parametrize(("debug", "lines"), [(False, []), (True, ["detail"])])
def test_details_are_shown_on_request(capsys, debug, lines):
    set_up_logging(speaks=True, debug=debug)
    logger.debug("detail")
    assert said(capsys) == lines


def test_setting_up_twice_does_not_double_messages(capsys):
    set_up_logging(speaks=True)
    set_up_logging(speaks=True)
    logger.info("once")
    assert said(capsys) == ["once"]


def test_root_logger_is_unchanged(capsys):
    before = logging.getLogger().handlers[:]
    set_up_logging(speaks=True)
    assert logging.getLogger().handlers == before


def test_only_severe_messages_of_some_loggers_are_recorded_for_a_while(caplog):
    noisy = logging.getLogger("dfine_test.noisy")
    with least_severe(logging.ERROR, noisy.name):
        noisy.warning("left out")
        noisy.error("an error")
        logging.getLogger("dfine_test.other").warning("another logger")
    noisy.warning("after it")
    assert caplog.messages == ["an error", "another logger", "after it"]
    assert noisy.level == logging.NOTSET


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("\x1b[2Jcat", "\\x1b[2Jcat"),
        ("cat\nepoch 1/1 AP 1.000", "cat\\nepoch 1/1 AP 1.000"),
        ("a\rb", "a\\rb"),
        ("\udcff", "\\udcff"),
        ("\u202egod", "\\u202egod"),
        ("Zoë 猫", "Zoë 猫"),
    ],
)
def test_control_characters_of_a_name_are_made_visible(capsys, name, shown):
    set_up_logging(speaks=True)
    logger.info("class %s", name)
    assert said(capsys) == [f"class {shown}"]


def test_printable_text_is_left_as_it_is():
    assert printable("plain text, ünï: 猫 100 %") == "plain text, ünï: 猫 100 %"


def test_line_of_absurd_length_is_cut():
    shown = printable("x" * (LONGEST_LINE + 7))
    assert shown == "x" * LONGEST_LINE + " ... (7 more characters)"
