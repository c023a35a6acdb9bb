"""Whom a release is for: the same on every machine for ever, and in a text that people can write."""

import hashlib
import re
import string
from pathlib import Path

import duckdb
import pytest
import sqlglot
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.models.release.audience import (
    AudienceError,
    Device,
    parse_audience,
    parse_cohort,
    share_of,
    takes_part,
    why_not,
    write_audience,
)
from edge_agent.models.release.manifest import Audience

ROOT = Path(__file__).parents[3]
SHA256 = hashlib.sha256(b"model").hexdigest()
NAMES = st.text(st.characters(exclude_categories=("Cc", "Cs")), min_size=1, max_size=20)
COHORTS = st.lists(st.dictionaries(NAMES, NAMES, min_size=1, max_size=4), max_size=4)
AUDIENCES = st.builds(
    Audience,
    percent=st.floats(0, 100),
    cohorts=COHORTS,
    halted=st.booleans(),
    shadow=st.floats(0, 1),
)


def is_in(audience: Audience, device: str, **labels: str) -> bool:
    return takes_part(audience, Device(device, labels), version="v1.4", sha256=SHA256)


def reason(text: str, device: str = "edge-002", **labels: str) -> str:
    return why_not(parse_audience(text), Device(device, labels), version="v1.4", sha256=SHA256)


def test_the_place_can_be_computed_by_others() -> None:
    # printf 'edge-001\nv1.4\n9372c470…b825e4' | sha256sum begins with ccd8fab3, and that is 3436772019.
    assert SHA256 == "9372c470eeadd5ecd9c3c74c2b3cb633f8e2f2fad799250a0f70d652b6b825e4"
    assert share_of("edge-001", "v1.4", SHA256) == 3436772019 * 100 / 2**32
    assert round(share_of("edge-001", "v1.4", SHA256), 6) == 80.018584


def test_the_query_in_the_documentation_says_the_same() -> None:
    [query] = re.findall(r"```sql\n(.*?)```", (ROOT / "docs/decisions/releases.md").read_text(), re.DOTALL)
    database = duckdb.connect()
    database.execute("CREATE SCHEMA edge_agent")
    database.execute(
        "CREATE TABLE edge_agent.events AS SELECT 'edge-' || range AS device_id, now() AS publish_time FROM range(50)"
    )
    places = database.execute(sqlglot.transpile(query, read="bigquery", write="duckdb")[0]).fetchall()
    assert len(places) == 50
    assert all(place == share_of(device, "v1.4", SHA256) for device, place in places)


def test_the_audiences_in_the_documentation_are_some() -> None:
    page = (ROOT / "docs/releases.md").read_text().partition("## Whom a release is for")[2]
    examples = re.findall(r"^\| `(.*?)` \|", page.partition("\n\nA device")[0], re.MULTILINE)
    assert len(examples) == 5
    assert all(write_audience(parse_audience(each)) in {each, f"0% {each}"} for each in examples)


def test_places_are_spread_evenly_and_others_for_each_release() -> None:
    places = [share_of(f"edge-{number:04}", "v1.4", SHA256) for number in range(10_000)]
    tenths = [sum(int(place // 10) == tenth for place in places) for tenth in range(10)]
    assert all(880 < count < 1120 for count in tenths), tenths  # four standard deviations
    again = [share_of(f"edge-{number:04}", "v1.5", SHA256) for number in range(10_000)]
    both = sum(one < 10 and other < 10 for one, other in zip(places, again, strict=True))
    assert 60 < both < 140  # 1 %: nobody is always the first


@given(device=NAMES, less=st.floats(0, 100), more=st.floats(0, 100))
def test_who_is_in_stays_in_as_the_percentage_grows(device: str, less: float, more: float) -> None:
    less, more = sorted((less, more))
    assert is_in(Audience(percent=more), device) >= is_in(Audience(percent=less), device)


@given(device=NAMES)
def test_none_and_all(device: str) -> None:
    assert not is_in(Audience(percent=0), device)
    assert is_in(Audience(percent=100), device)


def test_a_cohort_is_all_devices_with_all_of_its_labels() -> None:
    audience = parse_audience("site=lyon,line=3; site=paris")
    assert is_in(audience, "d", site="lyon", line="3", other="x")
    assert is_in(audience, "d", site="paris")
    assert not is_in(audience, "d", site="lyon")
    assert not is_in(audience, "d", site="Paris")
    assert not is_in(audience, "d")


@pytest.mark.parametrize(
    ("text", "audience"),
    [
        ("", Audience()),
        ("100%", Audience()),
        ("10%", Audience(percent=10)),
        (" 0.5 % ", Audience(percent=0.5)),
        ("5%; site=lyon", Audience(percent=5, cohorts=[{"site": "lyon"}])),
        (
            "10% site=lyon,line=3; site=paris",
            Audience(percent=10, cohorts=[{"site": "lyon", "line": "3"}, {"site": "paris"}]),
        ),
        ("site = lyon", Audience(percent=0, cohorts=[{"site": "lyon"}])),
        ("site=Lyon Nord%2C 2%3b", Audience(percent=0, cohorts=[{"site": "Lyon Nord, 2;"}])),
        ("halted", Audience(halted=True)),
        ("halted 10%", Audience(percent=10, halted=True)),
        ("halted=yes", Audience(percent=0, cohorts=[{"halted": "yes"}])),
        ("0% shadow 5%", Audience(percent=0, shadow=0.05)),
        ("shadow 5%", Audience(percent=0, shadow=0.05)),
    ],
)
def test_what_people_write(text: str, audience: Audience) -> None:
    assert parse_audience(text) == audience


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("10", '"10" is no label, NAME=VALUE'),
        ("101%", "Expected `float` <= 100.0 - at `$.percent`"),
        ("-5%", '"-5%" is no label'),
        ("10% 20%", '"20%" is no label'),
        ("stopped", '"stopped" is no label'),
        ("site=lyon;", '"" is no label'),
        ("site=lyon,site=paris", 'has the label "site" twice'),
        ("a=b=c", '"a=b=c" is no label'),
        ("=lyon", "length >= 1"),
        ("site=", "length >= 1"),
        ("site=%ff", '"%ff" is not UTF-8'),
        ("site=%1b[2J", "$.cohorts[0]"),
        ("shadow 200%", "Expected `float` <= 1.0 - at `$.shadow`"),
        ("; ".join(["a=b"] * 65), "length <= 64"),
        (",".join(f"a{n}=b" for n in range(17)), "length <= 16"),
    ],
)
def test_what_is_no_audience_is_told_with_what_would_be(text: str, why: str) -> None:
    with pytest.raises(AudienceError) as error:
        parse_audience(text)
    assert why in str(error.value)
    assert "10% site=lyon,line=3; site=paris" in str(error.value) or "another cohort" in str(error.value)


@given(AUDIENCES)
def test_what_is_written_is_read_and_is_one_line_of_ascii(audience: Audience) -> None:
    text = write_audience(audience)
    assert parse_audience(text) == audience
    assert set(text) <= set(string.printable) - set("\n\r\t\v\f")


@given(st.text(max_size=60))
def test_no_text_is_worse_than_a_refusal(text: str) -> None:
    refusal = ""
    try:
        text = write_audience(parse_audience(text))
    except AudienceError as error:
        refusal = str(error)
    assert refusal.isprintable()
    assert refusal or write_audience(parse_audience(text)) == text


def test_a_cohort_alone() -> None:
    assert parse_cohort("site=lyon, line=3") == {"site": "lyon", "line": "3"}


def test_the_reason_in_words() -> None:
    assert reason("100%") == ""
    assert reason("halted") == "v1.4 was halted"
    assert reason("0%") == "v1.4 is not out for any device yet"
    assert reason("0.01%").startswith("v1.4 is out for 0.01 % of the devices, and this one is not among them: its turn")
    assert "out for 1 % of the devices and for site=lyon,line=3, and" in reason("1% site=lyon,line=3")
    many = reason("a=1; b=1; c=1; d=1")
    assert "is out for a=1 and for b=1 and for c=1 and others, and this one" in many
    assert reason("a=1", a="1") == ""


def test_the_turn_that_is_told_is_enough() -> None:
    for number in range(200):
        turn = float(reason("0.000001%", f"edge-{number}").rpartition("comes at ")[2].removesuffix(" %"))
        assert is_in(Audience(percent=min(turn + 1e-9, 100)), f"edge-{number}")
        assert not is_in(Audience(percent=max(turn - 0.2, 0)), f"edge-{number}")
