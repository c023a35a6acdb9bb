"""What an `Envelope` needs of the queue, in memory."""

import json
from collections.abc import Callable, Sequence
from typing import Any

from edge_agent.telemetry.events.priority import Priority


class EventList:
    """Keeps what it is given. `told` is called after each `put`."""

    def __init__(self, *, epoch: int = 1, next_number: int = 1) -> None:
        self.epoch = epoch
        self.next_number = next_number
        self.lines: list[bytes] = []
        self.ranges: list[tuple[int, int]] = []
        self.priorities: list[Priority] = []
        self.told: Callable[[], object] = int

    def put(
        self,
        first_number: int,
        events: Sequence[bytes],
        first_ms: int,
        last_ms: int,
        priority: Priority = Priority.RESULT,
    ) -> None:
        assert first_number == self.next_number
        self.next_number += len(events)
        self.lines += events
        self.ranges.append((first_ms, last_ms))
        self.priorities += [priority] * len(events)
        self.told()

    @property
    def events(self) -> list[dict[str, Any]]:
        """What was put, in order."""
        return [json.loads(line) for line in self.lines]
