import json
from pathlib import Path

import pytest

from edge_agent.service.redaction import MASK, redact, redact_text

KEY = "-----BEGIN PRIVATE KEY-----\nMIIEvQIBADANBgkq\nhkiG9w0BAQEF\n-----END PRIVATE KEY-----\n"


@pytest.mark.parametrize(
    "name",
    ["token", "access_token", "Authorization", "client_secret", "db.password", "private_key", "apiKey", "cookies"],
)
def test_a_value_with_a_telling_name_is_masked(name: str) -> None:
    assert redact(None, "", {"event": "x", name: "hunter2"}) == {"event": "x", name: MASK}
    assert redact(None, "", {"event": "x", "headers": [{name: "hunter2"}]}) == {"event": "x", "headers": [{name: MASK}]}


@pytest.mark.parametrize("name", ["tokens_left", "secretary", "key", "keyboard", "model", "token_path"])
def test_other_names_are_left_alone(name: str) -> None:
    assert redact(None, "", {name: "value"}) == {name: "value"}


def test_values_keep_their_kind() -> None:
    line = {"event": "x", "n": 3, "f": 0.5, "yes": True, "none": None, "tokens": 7}
    assert redact(None, "", line) == line
    assert redact(None, "", {"path": Path("/a"), "raw": b"a\xff"}) == {"path": "/a", "raw": "a\\xff"}


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        (f"cannot read {KEY}, sorry", f"cannot read {MASK}\n, sorry"),
        (f"cut {KEY[:60]}", f"cut {MASK}"),
        (json.dumps({"private_key": KEY, "n": 1}), f'{{"private_key": "{MASK}", "n": 1}}'),
        ("token=abc, retried", f"token={MASK}, retried"),
        ("header Authorization: Bearer ya29.A0AfH6-x_y", f"header Authorization: Bearer {MASK}"),
        ("got ya29.A0AfH6-x_y.z back", f"got {MASK} back"),
        ("http://me:pass@proxy:3128/x", f"http://me:{MASK}@proxy:3128/x"),
        ("GET /o?X-Goog-Signature=deadbeef&alt=media", f"GET /o?X-Goog-Signature={MASK}&alt=media"),
        ('{"refresh_token": "1//0abc", "a": 1}', f'{{"refresh_token": "{MASK}", "a": 1}}'),
        ("invalid token: it has expired", "invalid token: it has expired"),
        ("gs://bucket/models/latest/model.tflite", "gs://bucket/models/latest/model.tflite"),
    ],
)
def test_text_that_looks_like_a_secret_is_masked(text: str, masked: str) -> None:
    assert redact_text(text) == masked
