"""What may stand in a manifest: everything else is refused, in words, and uses little memory."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.models.release.manifest import MAX_LABELS, ManifestError, parse, unsigned
from tests.models.rollout.release_kit import manifest

GOOD = manifest("v1.3", b"model", b"twin", accuracy=0.94, expires=2_000_000_000)


def document(**changes: Any) -> dict[str, Any]:
    made: dict[str, Any] = json.loads(unsigned(GOOD).encode())
    made["release"].update(changes)
    return made


def refusal(content: object) -> str:
    with pytest.raises(ManifestError) as error:
        parse(json.dumps(content).encode())
    return str(error.value)


def test_what_was_written_is_read() -> None:
    file = unsigned(GOOD)
    assert parse(file.encode()) == file
    assert file.manifest == GOOD
    assert [each.size for each in GOOD.files] == [5, 4]


def test_members_of_later_agents_are_passed_over() -> None:
    assert parse(json.dumps(document(colour="blue")).encode()).manifest == GOOD


def test_another_format_needs_another_agent() -> None:
    assert refusal(document(format=2)) == "has format 2, this agent knows 1: install a newer agent"


@pytest.mark.parametrize(
    "name",
    [
        "../../etc/passwd",
        "/etc/passwd",
        "a/b",
        "..",
        ".hidden",
        "",
        "x" * 201,
        "a\0b",
        "a b",
        "a\\b",
        "%2e%2e",
        "ä",
        "a\n",
    ],
)
def test_names_are_no_paths(name: str) -> None:
    for member in ("model", "twin"):
        assert f"$.{member}.name" in refusal(document(**{member: {"name": name, "size": 1, "sha256": "0" * 64}}))


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"version": "v1\n2026-01-01 forged line of a log"}, "$.version"),
        ({"version": "\x1b[2J"}, "$.version"),
        ({"version": ""}, "$.version"),
        ({"version": "v1\n"}, "$.version"),
        ({"name": "n" * 129}, "$.name"),
        ({"labels": ["good", "bad\x00"]}, "$.labels[1]"),
        ({"labels": []}, "$.labels"),
        ({"labels": ["x"] * (MAX_LABELS + 1)}, "$.labels"),
        ({"sequence": 0}, "$.sequence"),
        ({"sequence": 1 << 60}, "$.sequence"),
        ({"expires": -1}, "$.expires"),
        ({"accuracy": 1.5}, "$.accuracy"),
        ({"model": {"name": "m", "size": 0, "sha256": "0" * 64}}, "$.model.size"),
        ({"model": {"name": "m", "size": 1 << 40, "sha256": "0" * 64}}, "$.model.size"),
        ({"model": {"name": "m", "size": 1, "sha256": "0" * 63}}, "$.model.sha256"),
        ({"model": {"name": "m", "size": 1, "sha256": "0" * 64 + "\n"}}, "$.model.sha256"),
        ({"model": None}, "$.model"),
    ],
)
def test_values_out_of_bounds(changes: dict[str, Any], where: str) -> None:
    assert where in refusal(document(**changes))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff",
        b"[]",
        b"{}",
        b'{"release": 1}',
        b'{"release": {}}',
        b"<html>",
        b"[" * 100_000,
        b'{"release": ' * 900,
    ],
)
def test_other_files(content: bytes) -> None:
    with pytest.raises(ManifestError):
        parse(content)


@given(st.binary(max_size=300))
def test_no_content_is_worse_than_a_refusal(content: bytes) -> None:
    with pytest.raises(ManifestError):
        parse(content)


@given(position=st.integers(0), byte=st.integers(0, 255))
def test_a_damaged_file_is_refused_or_says_something_allowed(position: int, byte: int) -> None:
    content = bytearray(unsigned(GOOD).encode())
    content[position % len(content)] = byte
    try:
        file = parse(bytes(content))
    except ManifestError:
        return
    msgspec.json.encode(file.manifest).decode()
    assert all("/" not in each.name and not each.name.startswith(".") for each in file.manifest.files)
