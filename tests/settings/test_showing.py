"""How values are shown in messages: short, in one line, and no secrets."""

import pytest

from edge_agent.settings.showing import HIDDEN, MAX_LENGTH, show


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("fast", '"fast"'),
        (True, "true"),
        (1.5, "1.5"),
        (["a", 1], '["a", 1]'),
        ('say "x"\n', '"say \\"x\\"\\n"'),
        ("Zürich", '"Zürich"'),
        ("a\u202eb\x1b[1m", '"a\\u202eb\\u001b[1m"'),
        (
            "gs://bucket/models/vibration-classifier/latest/m.tflite",
            '"gs://bucket/models/vibration-classifier/latest/m.tflite"',
        ),
    ],
)
def test_values(value: object, shown: str) -> None:
    assert show(value) == shown


def test_long_values_are_cut() -> None:
    assert show("ab " * 100) == f'"{"ab " * 19}…"'
    assert show(["ab"] * 100).endswith('"ab"…')
    assert len(show("ab " * 100)) == MAX_LENGTH


@pytest.mark.parametrize(
    "value",
    [
        "-----BEGIN RSA PRIVATE KEY-----",
        "ya29.a0AfH6SMBx",
        "AIzaSyD-9tSrke72PouQMnMX",
        "eyJhbGciOiJSUzI1NiIsInR5cCI6IkpXVCJ9.e30",
        "ghp_16C7e42F292c6912E7",
        "mqtt://user:password@host",
        "x7Gq29LmZp0TtR4vYwK1aB8cD3eF6hJ5",
        "d41d8cd98f00b204e9800998ecf8427e",
        {"private_key_id": "x", "client": ["GOCSPX-abc"]},
    ],
)
def test_secrets_are_hidden(value: object) -> None:
    assert show(value) == HIDDEN


@pytest.mark.parametrize("key", ["password", "db_passwd", "api_key", "accessToken", "client_secret"])
def test_values_of_telling_keys_are_hidden(key: str) -> None:
    assert show("hello", key=key) == HIDDEN
