"""The BigQuery table: every event becomes a row of it, whole, and it only ever grows."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import jsonschema
import pytest

from edge_agent.telemetry.events.schema import event_schema
from tests.cloud.subscription import Columns, DeadLetterError, row_of

ROOT = Path(__file__).parents[2]
SCHEMA = event_schema()
KINDS = {each["$ref"].rpartition("/")[2]: each for each in SCHEMA["anyOf"]}
FILLED_IN = {"subscription_name", "message_id", "publish_time", "attributes"}


def whole(schema: dict[str, Any]) -> Any:
    """Return an event, or a part of one, that has every member that it may have."""
    if "$ref" in schema:
        return whole(SCHEMA["$defs"][schema["$ref"].rpartition("/")[2]])
    if "enum" in schema:
        return schema["enum"][0]
    if schema["type"] == "array":
        return [whole(schema["items"])]
    if "additionalProperties" in schema:
        return {"site": "lyon"}
    if schema["type"] == "object":
        return {name: whole(inner) for name, inner in schema["properties"].items()}
    return {"string": "x", "boolean": True, "integer": schema.get("minimum", 7), "number": 0.5}[schema["type"]]


def table(schema: dict[str, Any], **members: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of events of one kind that has these members."""
    return {"anyOf": [{"$ref": "#/$defs/E"}], "$defs": schema | {"E": {"type": "object", "properties": members}}}


def names(columns: Columns, path: str = "") -> Iterator[str]:
    for column in columns:
        yield f"{path}{column['name']}"
        yield from names(column.get("fields", []), f"{path}{column['name']}.")


# ------------------------------------------------------------------------------------------ events become rows


def test_real_events_of_every_kind_are_rows_and_as_the_schema_says(events: list[bytes], columns: Columns) -> None:
    kinds = set()
    for event in events:
        parsed = json.loads(event)
        kinds.add(parsed["kind"])
        jsonschema.Draft202012Validator(SCHEMA).validate(parsed)
        row = row_of(event, columns)
        parsed.pop("device_labels")
        assert {name: value for name, value in row.items() if name not in FILLED_IN} == parsed
    told = {SCHEMA["$defs"][name]["properties"]["kind"]["enum"][0] for name in KINDS}
    assert kinds == told, "make one of each in tests/cloud/fleet.py"


@pytest.mark.parametrize("kind", KINDS)
def test_every_member_of_an_event_has_its_column(kind: str, columns: Columns, bigquery: ModuleType) -> None:
    event = whole(KINDS[kind])
    jsonschema.Draft202012Validator(SCHEMA).validate(event)
    row = row_of(json.dumps(event).encode(), columns)
    for name in bigquery.LEFT_OUT:
        event.pop(name)
    assert {name: value for name, value in row.items() if name not in FILLED_IN} == event


def test_a_newer_event_loses_only_what_the_table_does_not_know(columns: Columns) -> None:
    event = whole(KINDS["HealthEvent"])
    newer = event | {"voltage": {"now": 5.1}, "counters": event["counters"] | {"naps": 3}}
    assert row_of(json.dumps(newer).encode(), columns) == row_of(json.dumps(event).encode(), columns)


def test_an_older_event_is_a_row_as_well(columns: Columns) -> None:
    assert row_of(b'{"kind":"result","event_id":"d/1/1"}', columns)["event_id"] == "d/1/1"


@pytest.mark.parametrize(
    ("members", "why"),
    [
        ({"confidence": "high"}, "confidence: 'high' does not fit FLOAT"),
        ({"timestamp": 1.5}, "timestamp: 1.5 does not fit INTEGER"),
        ({"results": None}, "results: None is no list"),
        ({"results": [None]}, "results.: None is no object"),
        ({"counters": [1]}, "counters.: [1] is no object"),
    ],
)
def test_what_does_not_fit_is_a_dead_letter(members: dict[str, Any], why: str, columns: Columns) -> None:
    with pytest.raises(DeadLetterError, match=re.escape(why)):
        row_of(json.dumps(members).encode(), columns)


# ------------------------------------------------------------------------------------------ the file


def test_the_committed_table_is_the_one_of_the_code(columns: Columns, bigquery: ModuleType) -> None:
    text = (ROOT / "config/cloud/events.schema.json").read_text(encoding="utf-8")
    assert text == bigquery.text(bigquery.table()), "the events have changed: run `make docs`"
    assert columns == bigquery.table()


def test_bigquery_takes_the_table(columns: Columns) -> None:
    every = list(names(columns))
    assert len({name.lower() for name in every}) == len(every) < 10_000
    for name in every:
        assert re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,299}", name.rpartition(".")[2])
        assert name.count(".") < 15

    def check(part: Columns) -> None:
        for column in part:
            assert set(column) <= {"name", "type", "mode", "description", "fields"}
            assert column["type"] in {"STRING", "INTEGER", "FLOAT", "BOOLEAN", "TIMESTAMP", "JSON", "RECORD"}
            assert column["mode"] in {"NULLABLE", "REPEATED"}  # REQUIRED would refuse an event without it
            assert len(column.get("description", "")) <= 1024
            assert ("fields" in column) == (column["type"] == "RECORD")
            check(column.get("fields", []))

    check(columns)


def test_pubsub_finds_the_columns_that_it_fills_in(columns: Columns) -> None:
    found = {column["name"]: column["type"] for column in columns if column["name"] in FILLED_IN}
    assert found == {
        "subscription_name": "STRING",
        "message_id": "STRING",
        "publish_time": "TIMESTAMP",
        "attributes": "JSON",
    }
    # A number in an event would count as microseconds, and an object does not fit JSON.
    others = {column["type"] for column in columns if column["name"] not in FILLED_IN}
    assert others.isdisjoint({"TIMESTAMP", "JSON"})


# ------------------------------------------------------------------------------------------ growth


def test_what_tables_out_there_have_stays_as_it_is_and_where_it_is(columns: Columns, bigquery: ModuleType) -> None:
    promised = bigquery.promised()
    assert promised

    def check(old: Columns, new: Columns) -> None:
        for before, now in zip(old, new, strict=False):
            assert [now[key] for key in ("name", "type", "mode")] == [before[key] for key in ("name", "type", "mode")]
            check(before.get("fields", []), now.get("fields", []))
        assert len(new) >= len(old)

    check(promised, columns)


def column(name: str, kind: str = "STRING", mode: str = "NULLABLE", **more: Any) -> dict[str, Any]:
    return {"name": name, "type": kind, "mode": mode} | more


def test_new_columns_come_last_and_old_ones_stay(bigquery: ModuleType) -> None:
    old = [column("gone"), column("part", "RECORD", fields=[column("x"), column("y")])]
    new = [column("first"), column("part", "RECORD", fields=[column("z"), column("x", description="new words")])]
    grown = [
        column("gone"),
        column("part", "RECORD", fields=[column("x", description="new words"), column("y"), column("z")]),
        column("first"),
    ]
    assert bigquery.grown(old, new) == grown


@pytest.mark.parametrize("changed", [column("x", "INTEGER"), column("x", mode="REPEATED")])
def test_a_column_that_changes_is_refused(changed: dict[str, Any], bigquery: ModuleType) -> None:
    old, new = ([column("part", "RECORD", fields=[each])] for each in (column("x"), changed))
    with pytest.raises(
        bigquery.MisfitError, match=r"part\.x was STRING NULLABLE and has become .*give the member a new"
    ):
        bigquery.grown(old, new)


# ------------------------------------------------------------------------------------------ what cannot be a column


@pytest.mark.parametrize(
    ("member", "why"),
    [
        ({"type": "object", "additionalProperties": {"type": "integer"}}, "a list of name and value instead of a dict"),
        ({"anyOf": [{"type": "integer"}, {"type": "null"}]}, "no null"),
        ({"type": "array", "items": {"type": "array", "items": {"type": "number"}}}, "no list of lists"),
        ({"enum": ["a", 1]}, "one type each"),
        ({}, "one type each"),
    ],
)
def test_a_member_that_no_column_can_hold_is_named(member: dict[str, Any], why: str, bigquery: ModuleType) -> None:
    inner = {"Part": {"type": "object", "properties": {"odd": member}}}
    with pytest.raises(bigquery.MisfitError, match=rf"^part\.odd: .*{why}"):
        bigquery.columns(table(inner, part={"$ref": "#/$defs/Part"}))


@pytest.mark.parametrize("name", ["cpu-load", "température", "_PARTITION_x", "1st"])
def test_a_name_that_no_column_can_have_is_refused(name: str, bigquery: ModuleType) -> None:
    with pytest.raises(bigquery.MisfitError, match="no name for a column"):
        bigquery.columns(table({}, **{name: {"type": "string"}}))


@pytest.mark.parametrize("name", ["attributes", "publishTime", "messageid", "data"])
def test_a_name_that_pubsub_fills_in_is_refused(name: str, bigquery: ModuleType) -> None:
    with pytest.raises(bigquery.MisfitError, match=f"{name} is a column that Pub/Sub fills in"):
        bigquery.columns(table({}, **{name: {"type": "string"}}))


def test_kinds_that_disagree_are_refused(bigquery: ModuleType) -> None:
    def kind(inner: str) -> dict[str, Any]:
        part = {"type": "object", "properties": {"x": {"type": inner}}}
        return {"type": "object", "properties": {"part": part}}

    schema = {"anyOf": [{"$ref": "#/$defs/A"}, {"$ref": "#/$defs/B"}]}
    schema["$defs"] = {"A": kind("integer"), "B": kind("string")}  # type: ignore[assignment]  # as JSON has it
    with pytest.raises(bigquery.MisfitError, match=r"part\.x is INTEGER NULLABLE in one kind of event and STRING"):
        bigquery.columns(schema)
