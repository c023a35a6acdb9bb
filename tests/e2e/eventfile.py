"""The events of an agent whose sink is a file, as a consumer reads them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema

_SCHEMA = Path(__file__).parents[2] / "docs/event.schema.json"


class EventFile:
    """`events.jsonl` in the folder of an agent. Reads on from where it has stopped."""

    def __init__(self, folder: Path) -> None:
        self.events: list[dict[str, Any]] = []
        self.twice = 0
        self._ids: set[str] = set()
        self._path = folder / "events.jsonl"
        self._offset = 0

    def read(self) -> list[dict[str, Any]]:
        """Return all events so far, each once."""
        if self._path.exists():
            with self._path.open("rb") as file:
                file.seek(self._offset)
                whole, newline, _ = file.read().rpartition(b"\n")
            self._offset += len(whole) + len(newline)
            for line in whole.splitlines():
                self._take(json.loads(line))
        return self.events

    def _take(self, event: dict[str, Any]) -> None:
        if event["event_id"] in self._ids:
            self.twice += 1
            return
        self._ids.add(event["event_id"])
        self.events.append(event)

    def having(self, **fields: Any) -> list[dict[str, Any]]:
        """Return the events so far that have these fields; None is for a field that must be absent."""
        return [event for event in self.read() if all(event.get(name) == value for name, value in fields.items())]

    def has(self, count: int = 1, **fields: Any) -> Callable[[], bool]:
        """Return a condition for `AgentProcess.wait_until`: so many further events have these fields."""
        wanted = len(self.having(**fields)) + count
        return lambda: len(self.having(**fields)) >= wanted

    def check(self, *, killed: bool = False) -> None:
        """All of them are as the schema says, under numbers without a hole; the more important ones come first.

        What was being written when the agent was `killed` may be there twice.
        """
        validator = jsonschema.Draft202012Validator(json.loads(_SCHEMA.read_text()))
        for event in self.read():
            validator.validate(event)
        numbers = sorted(int(event["event_id"].rpartition("/")[2]) for event in self.events)
        assert numbers == list(range(1, len(numbers) + 1))
        assert killed or not self.twice
