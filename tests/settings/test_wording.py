"""pydantic's errors in plain words, for a dataclass as plugins declare it."""

import datetime
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from annotated_types import Ge, Gt, Le, Lt, MaxLen, MinLen, MultipleOf, doc
from pydantic import TypeAdapter, ValidationError

from edge_agent.settings.units import Duration, Size
from edge_agent.settings.wording import explain, nearest, unknown


@dataclass(frozen=True, kw_only=True)
class Part:
    number: int = 0


@dataclass(frozen=True, kw_only=True)
class Options:
    hold: Annotated[Duration, Ge(1)] | None = None
    space: Annotated[Size, Le(1000)] = 0
    speeds: list[Annotated[float, Gt(0), Lt(10)]] | None = None
    either: int | list[str] = 0
    mode: Literal["a", "b"] | None = None
    switch: bool = False
    file: Path = Path("x")
    since: datetime.date | None = None
    names: Annotated[list[str], MinLen(1), MaxLen(2)] | None = None
    part: Part | None = None
    steps: Annotated[int, MultipleOf(4)] = 4
    delays: list[Annotated[Duration, Ge(1)]] | None = None
    rest: Annotated[Annotated[Duration, Ge(1)] | None, doc("How long it rests.")] = None


@pytest.mark.parametrize(
    ("values", "path", "message"),
    [
        ({"hold": "100ms"}, ("hold",), 'must be at least 1s, not "100ms"'),
        ({"hold": []}, ("hold",), '[] is no duration; write for instance "200ms", "10s" or "1h30m"'),
        ({"space": "1MB"}, ("space",), 'must be at most 1kB, not "1MB"'),
        ({"speeds": [1, 0]}, ("speeds", 1), "must be more than 0, not 0"),
        ({"speeds": [10]}, ("speeds", 0), "must be less than 10, not 10"),
        ({"delays": ["2s", "1ms"]}, ("delays", 1), 'must be at least 1s, not "1ms"'),
        ({"either": "x"}, ("either",), 'expected a whole number or a list, not "x"'),
        ({"mode": "c"}, ("mode",), 'expected "a" or "b", not "c"'),
        ({"switch": "maybe"}, ("switch",), 'expected true or false, not "maybe"'),
        ({"file": 5}, ("file",), "expected a path in quotes, not 5"),
        ({"since": "soon"}, ("since",), 'expected a date, not "soon"'),
        ({"names": []}, ("names",), "must not be empty"),
        ({"part": 5}, ("part",), "expected a table, not 5"),
        ({"part": {"number": "x"}}, ("part", "number"), 'expected a whole number, not "x"'),
        ({"rest": "1ms"}, ("rest",), 'must be at least 1s, not "1ms"'),
        ({"steps": 3}, ("steps",), "input should be a multiple of 4, not 3"),
    ],
)
def test_an_error_in_plain_words(values: dict[str, Any], path: tuple[str | int, ...], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        TypeAdapter(Options).validate_python(values)
    assert explain(caught.value.errors(include_url=False), values, Options) == [(path, message)]


def test_unknown_names() -> None:
    assert unknown("RATE", ["rate", "path"]) == "unknown key (did you mean 'rate'?)"
    assert unknown("xyz", ["rate", "path"]) == "unknown key; known here: path, rate"
    assert unknown("xyz", []) == "unknown key; none is known here"
    assert nearest("xyz", ["rate"]) is None
