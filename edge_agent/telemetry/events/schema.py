"""The JSON Schema of an event, generated from the classes in `edge_agent.records`.

`python -m edge_agent.telemetry.events.schema > docs/event.schema.json` writes the committed file; a test compares.
"""

import sys
from typing import Any

import msgspec

from edge_agent.records import Event


def event_schema() -> dict[str, Any]:
    """Return the schema (JSON Schema 2020-12)."""
    (schema,), components = msgspec.json.schema_components([Event])
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "edge-agent event",
        **schema,
        "$defs": components,
    }


def schema_text() -> str:
    """Return the schema as it stands in the file."""
    return msgspec.json.format(msgspec.json.encode(event_schema(), order="deterministic"), indent=2).decode() + "\n"


if __name__ == "__main__":
    sys.stdout.write(schema_text())
