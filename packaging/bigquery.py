"""Writes the schema of the BigQuery table: `packaging/bigquery.py config/cloud/events.schema.json`.

The table has one column for each member that any kind of event has, and the four that Pub/Sub fills in
(https://cloud.google.com/pubsub/docs/create-bigquery-subscription, "Use table schema" and "Write metadata"). What a
BigQuery subscription asks of table and message decides how:

- Names are letters, digits and underscores.
- A column that some messages do not have must not be REQUIRED. All are NULLABLE or REPEATED: a REQUIRED one can only
  turn an event into a dead letter.
- A number that fills a TIMESTAMP counts microseconds. Events have milliseconds, so their times are INTEGER.
- A column of type JSON takes JSON in a string, but no object. A member with free names has therefore no column, and is
  dropped; `device_labels` comes as attributes of the message instead.

BigQuery adds columns only at the end, of the table and of a RECORD, and never changes or takes away one
(https://cloud.google.com/bigquery/docs/managing-table-schemas). So the columns in `PROMISED`, which tables out there
have, come first and as they are. At each release it is replaced by the schema that is released.
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

from edge_agent.telemetry.events.schema import event_schema

PROMISED = Path(__file__).parent / "bigquery_promised.json"
LEFT_OUT = frozenset({"device_labels"})
METADATA: list[dict[str, Any]] = [
    {
        "name": "subscription_name",
        "type": "STRING",
        "mode": "NULLABLE",
        "description": "by Pub/Sub: subscription that wrote the row",
    },
    {
        "name": "message_id",
        "type": "STRING",
        "mode": "NULLABLE",
        "description": "by Pub/Sub: number of the message; several of one event_id are an event that was sent again",
    },
    {
        "name": "publish_time",
        "type": "TIMESTAMP",
        "mode": "NULLABLE",
        "description": "by Pub/Sub: when the event arrived; the table is partitioned by it",
    },
    {
        "name": "attributes",
        "type": "JSON",
        "mode": "NULLABLE",
        "description": "by Pub/Sub: attributes of the message; label_NAME has a label of the device",
    },
]
_TYPES = {"string": "STRING", "integer": "INTEGER", "number": "FLOAT", "boolean": "BOOLEAN"}
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
# Of a column's name (https://cloud.google.com/bigquery/docs/schemas#column_names).
_RESERVED = ("_TABLE_", "_FILE_", "_PARTITION", "_ROW_TIMESTAMP", "__ROOT__", "_COLIDENTIFIER", "_CHANGE_")
_LONGEST_DESCRIPTION = 1024
_PUBSUB = {"data", *(column["name"].replace("_", "") for column in METADATA)}

Columns = list[dict[str, Any]]


class MisfitError(Exception):
    """An event that no row of the table can hold."""


def main() -> None:
    """Write the file on the command line."""
    try:
        Path(sys.argv[1]).write_text(text(table()), encoding="utf-8")
    except MisfitError as error:
        sys.exit(f"{Path(__file__).name}: {error}")


def table() -> Columns:
    """Return the columns, in order."""
    return grown(promised(), METADATA + columns(event_schema()))


def promised() -> Columns:
    """Return the columns that tables out there have."""
    found: Columns = json.loads(PROMISED.read_text(encoding="utf-8"))
    return found


def columns(schema: dict[str, Any]) -> Columns:
    """Return a column for each member of all kinds of events. Raises MisfitError."""
    definitions = schema["$defs"]
    found: Columns = []
    for kind in schema["anyOf"]:
        for each in _record(_resolved(kind, definitions), definitions, ""):
            _merge(found, each, "")
    for column in found:
        # Pub/Sub takes camelCase for its own names as well.
        if column["name"].replace("_", "").lower() in _PUBSUB:
            raise MisfitError(f"{column['name']} is a column that Pub/Sub fills in: give the member another name")
    return found


def grown(old: Columns, new: Columns, path: str = "") -> Columns:
    """Return `new` with the columns of `old` first, in their order. One that `new` has no more stays.

    Raises MisfitError when a column has changed its type or mode.
    """
    left = {column["name"]: column for column in new}
    found: Columns = []
    for column in old:
        name = f"{path}{column['name']}"
        successor = left.pop(column["name"], column)
        if (successor["type"], successor["mode"]) != (column["type"], column["mode"]):
            raise MisfitError(
                f"{name} was {column['type']} {column['mode']} and has become {successor['type']} {successor['mode']}, "
                "which no existing table can do: give the member a new name"
            )
        if "fields" in column:
            successor = successor | {"fields": grown(column["fields"], successor["fields"], f"{name}.")}
        found.append(successor)
    return found + list(left.values())


def text(schema: Columns) -> str:
    """Return the schema as it stands in the file, a line for each column."""
    return "[\n" + ",\n".join(_lines(column, "  ") for column in schema) + "\n]\n"


def _lines(column: dict[str, Any], indent: str) -> str:
    plain = json.dumps({key: value for key, value in column.items() if key != "fields"}, ensure_ascii=False)
    if "fields" not in column:
        return indent + plain
    inner = ",\n".join(_lines(each, indent + "  ") for each in column["fields"])
    return f'{indent}{plain[:-1]}, "fields": [\n{inner}\n{indent}]}}'


def _record(schema: dict[str, Any], definitions: dict[str, Any], path: str) -> Columns:
    return [
        _column(name, inner, definitions, f"{path}{name}")
        for name, inner in schema["properties"].items()
        if path or name not in LEFT_OUT
    ]


def _column(name: str, schema: dict[str, Any], definitions: dict[str, Any], path: str) -> dict[str, Any]:
    if not _NAME.fullmatch(name) or name.upper().startswith(_RESERVED):
        raise MisfitError(f"{path}: no name for a column")
    inner, mode = _resolved(schema, definitions), "NULLABLE"
    description = schema.get("description", inner.get("description", ""))
    if inner.get("type") == "array":
        inner, mode = _resolved(inner["items"], definitions), "REPEATED"
    column: dict[str, Any] = {"name": name, "type": _type(inner, path), "mode": mode}
    if description:
        column["description"] = description[:_LONGEST_DESCRIPTION]
    if column["type"] == "RECORD":
        column["fields"] = _record(inner, definitions, f"{path}.")
    return column


def _type(schema: dict[str, Any], path: str) -> str:
    kind = schema.get("type", "string" if all(isinstance(each, str) for each in schema.get("enum", [0])) else None)
    if kind == "object" and "additionalProperties" not in schema:
        return "RECORD"
    if kind not in _TYPES:
        raise MisfitError(
            f"{path}: no column can hold this; members have one type each, no null, no list of lists, and names that "
            "are known (a list of name and value instead of a dict)"
        )
    return _TYPES[kind]


def _resolved(schema: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    if "$ref" not in schema:
        return schema
    found: dict[str, Any] = definitions[schema["$ref"].rpartition("/")[2]]
    return found


def _merge(into: Columns, column: dict[str, Any], path: str) -> None:
    """Add a column, or check that the one of this name, which another kind of event has, can hold it as well."""
    name = f"{path}{column['name']}"
    known = next((each for each in into if each["name"].lower() == column["name"].lower()), None)
    if known is None:
        into.append(column)
        return
    if (known["name"], known["type"], known["mode"]) != (column["name"], column["type"], column["mode"]):
        raise MisfitError(
            f"{name} is {known['type']} {known['mode']} in one kind of event and {column['type']} {column['mode']} in "
            "another: a table has one column for both"
        )
    if known.get("description") != column.get("description"):
        known.pop("description", None)
    for each in column.get("fields", []):
        _merge(known["fields"], each, f"{name}.")


if __name__ == "__main__":
    main()
