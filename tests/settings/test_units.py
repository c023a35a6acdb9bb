"""Durations and sizes: what is read, what is refused, and that the worker's side stays free of pydantic."""

import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
import pytest
from annotated_types import Ge
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from edge_agent.settings.units import (
    MAX_SECONDS,
    Duration,
    Size,
    format_duration,
    format_size,
    parse_duration,
    parse_size,
)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("200ms", 0.2),
        ("1h", 3600),
        ("1h30m", 5400),
        ("1h 30min", 5400),
        (" 2 d ", 172800),
        ("1.5s", 1.5),
        ("250us", 0.00025),
        ("250µs", 0.00025),
        ("1m500ms", 60.5),
        ("0s", 0),
        ("0", 0),
        ("12", 12),
        (10, 10),
        (0.25, 0.25),
    ],
)
def test_durations_that_are_read(text: object, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text",
    [
        *("10 parsecs", "", "s", "1h1h", "30m1h", "-1s", "1,5s", "1e3s", "ten", "1h x", "9" * 300 + "d"),
        *(-1, True, None, [1], 10**400, float("nan"), float("inf")),
    ],
)
def test_durations_that_are_refused(text: object) -> None:
    with pytest.raises(ValueError, match="is no duration"):
        parse_duration(text)


def test_the_message_of_a_wrong_unit() -> None:
    with pytest.raises(ValueError, match="duration") as caught:
        parse_duration("10 parsecs")
    assert str(caught.value) == '"10 parsecs" is no duration; write for instance "200ms", "10s" or "1h30m"'
    with pytest.raises(ValueError, match="size") as caught:
        parse_size("3 buckets")
    assert str(caught.value) == '"3 buckets" is no size; write for instance "500kB", "256MB" or "1GiB"'


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("256MB", 256_000_000),
        ("1GiB", 2**30),
        ("1.5 GB", 1_500_000_000),
        ("500kb", 500_000),
        ("3KiB", 3072),
        ("7B", 7),
        ("2TiB", 2**41),
        ("4096", 4096),
        (4096, 4096),
        (0, 0),
        ("1.0001KiB", 1024),
    ],
)
def test_sizes_that_are_read(text: object, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["3 buckets", "", "MB", "-1MB", "1M", "1MB1kB", -1, 1.5, True, None, [1]])
def test_sizes_that_are_refused(text: object) -> None:
    with pytest.raises(ValueError, match="is no size"):
        parse_size(text)


@given(st.floats(min_value=0, max_value=MAX_SECONDS, allow_nan=False))
@example(5e-324)
@example(0.1)
@example(59.999999999999)
def test_a_duration_survives_its_written_form(seconds: float) -> None:
    assert parse_duration(format_duration(seconds)) == seconds


def round_sizes() -> st.SearchStrategy[int]:
    return st.builds(lambda count, power: count * 1000**power, st.integers(0, 999), st.integers(0, 6))


@given(st.integers(min_value=0, max_value=2**64) | round_sizes())
def test_a_size_survives_its_written_form(size: int) -> None:
    assert parse_size(format_size(size)) == size


@given(st.text(max_size=20) | st.from_regex(r"[0-9]{1,3}(\.[0-9])? ?[a-zA-Z]{1,3}", fullmatch=True))
def test_any_text_is_read_or_refused_with_the_message(text: str) -> None:
    for parse in (parse_duration, parse_size):
        with suppress(ValueError):
            assert parse(text) >= 0


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (0.2, "200ms"), (1.5, "1.5s"), (5400, "1h30m"), (86400, "1d"), (60.5, "1m0.5s"), (0.0005, "0.5ms")],
)
def test_durations_are_written_as_people_write_them(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0B"), (1, "1B"), (256_000_000, "256MB"), (2**30, "1GiB"), (1536, "1536B"), (2**20, "1MiB"), (10**12, "1TB")],
)
def test_sizes_are_written_as_people_write_them(size: int, text: str) -> None:
    assert format_size(size) == text


@dataclass(frozen=True, kw_only=True)
class Options:
    pause: Duration = 2.0
    space: Size = 10
    limited: Annotated[Duration, Ge(1)] = 1.0
    maybe: Duration | None = None


def test_pydantic_reads_the_written_form_into_a_dataclass() -> None:
    adapter: TypeAdapter[Any] = TypeAdapter(Options)
    given = {"pause": "200ms", "space": "1kB", "limited": "2s", "maybe": "1m"}
    assert adapter.validate_python(given) == Options(pause=0.2, space=1000, limited=2.0, maybe=60.0)
    with pytest.raises(ValidationError, match="greater than or equal to 1"):
        adapter.validate_python({"limited": "200ms"})
    with pytest.raises(ValidationError, match="is no size"):
        adapter.validate_python({"space": "3 buckets"})


def test_msgspec_reads_the_plain_number_into_the_same_dataclass() -> None:
    normalised = TypeAdapter(Options).dump_python(Options(pause=0.2, limited=3.0), mode="json")
    assert msgspec.convert(normalised, Options) == Options(pause=0.2, limited=3.0)


def test_the_worker_can_import_it_without_pydantic() -> None:
    code = "import sys, edge_agent.settings.units; print([name for name in sys.modules if 'pydantic' in name])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
