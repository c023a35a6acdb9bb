"""What a BigQuery subscription makes of a message, with "use table schema", "drop unknown fields" and "write metadata".

As https://cloud.google.com/pubsub/docs/create-bigquery-subscription says: what has no column is dropped, a column takes
only what fits its type, and a message with one value that does not fit becomes no row at all.
"""

import datetime
import json
from typing import Any

Columns = list[dict[str, Any]]


class DeadLetterError(Exception):
    """The message that no row can be made of, and why."""


def row_of(
    data: bytes,
    columns: Columns,
    *,
    attributes: dict[str, str] | None = None,
    message_id: str = "1",
    published: datetime.datetime = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC),
) -> dict[str, Any]:
    """Return the row, as JSON. Raises DeadLetterError."""
    return _record(json.loads(data), columns, "") | {
        "subscription_name": "events-to-bigquery",
        "message_id": message_id,
        "publish_time": published.astimezone(datetime.UTC).strftime("%Y-%m-%d %H:%M:%S.%f"),
        "attributes": attributes or {},
    }


def _record(value: object, columns: Columns, path: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise DeadLetterError(f"{path}: {value!r} is no object")
    found = {}
    for column in columns:
        name = f"{path}{column['name']}"
        if column["name"] in value:
            found[column["name"]] = _value(value[column["name"]], column, name)
        elif column["mode"] == "REQUIRED":
            raise DeadLetterError(f"{name} is missing")
    return found


def _value(value: object, column: dict[str, Any], path: str) -> object:
    if column["mode"] == "REPEATED":
        if not isinstance(value, list):
            raise DeadLetterError(f"{path}: {value!r} is no list")
        return [_single(each, column, path) for each in value]
    return None if value is None else _single(value, column, path)


def _single(value: object, column: dict[str, Any], path: str) -> object:
    if column["type"] == "RECORD":
        return _record(value, column["fields"], f"{path}.")
    fits = {
        "STRING": isinstance(value, str),
        "BOOLEAN": isinstance(value, bool),
        "INTEGER": isinstance(value, int) and not isinstance(value, bool) and -(2**63) <= value < 2**63,
        "FLOAT": isinstance(value, int | float) and not isinstance(value, bool),
        # JSON in a string; an object is refused.
        "JSON": isinstance(value, str) and _is_json(value),
    }
    if not fits[column["type"]]:
        raise DeadLetterError(f"{path}: {value!r} does not fit {column['type']}")
    return value


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True
