"""Secrets are not sent."""

import pytest

from src.solver.loggers.secrets import text_without_secrets, without_secrets


@pytest.mark.parametrize(
    "name",
    [
        "password",
        "db_password",
        "api_key",
        "apikey",
        "API_KEY",
        "token",
        "auth_token",
        "client_secret",
        "aws_access_key_id",
        "credentials",
        "passphrase",
        "pwd",
        "X-Api-Key",
        "accessToken",
        "Authorization",
    ],
)
def test_the_text_of_a_setting_with_such_a_name_is_hidden(name):
    given = {"dataset": {name: "hunter2", "n": 3}, "list": [{name: "hunter2"}]}
    assert without_secrets(given) == {
        "dataset": {name: "***", "n": 3},
        "list": [{name: "***"}],
    }


def test_a_password_may_be_a_number_and_a_secret_may_have_parts():
    given = {
        "password": 123456,
        "credentials": {"user": "me", "key": "abc", "n": [1, "b"]},
        "auth": {"user": "me", "is_on": True},
    }
    assert without_secrets(given) == {
        "password": "***",
        "credentials": {"user": "***", "key": "***", "n": ["***", "***"]},
        "auth": {"user": "***", "is_on": True},
    }


def test_settings_that_only_sound_like_secrets_stay():
    given = {
        "num_tokens": 4,
        "tokens": "all",
        "author": "me",
        "nested": {"token": 4, "password": None},
        "passes": "two",
    }
    assert without_secrets(given) == given


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (
            "GET https://me:pw@host:80/x failed",
            "GET https://***@host:80/x failed",
        ),
        ("mysql+pymysql://u:p@db/x", "mysql+pymysql://***@db/x"),
        ("https://key@host", "https://***@host"),
        ("https://me:p@ss@host/a@b", "https://***@host/a@b"),
        ("/x?api_key=abc&y=1", "/x?api_key=***&y=1"),
        ("Authorization: Bearer abc.def", "Authorization: Bearer ***"),
        ("no secret: a@b.c", "no secret: ***"),
        ("file:///a/b@c", "file:///a/b@c"),
        ("epoch 1/3 of 5", "epoch 1/3 of 5"),
    ],
)
def test_secrets_in_texts_are_hidden(text, shown):
    assert text_without_secrets(text) == shown
