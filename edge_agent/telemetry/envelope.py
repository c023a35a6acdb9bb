"""Makes events out of what happened: who, when, and under which number.

An event id is `DEVICE/EPOCH/NUMBER`, both numbers zero-padded so that ids sort as text. The number counts up by one
within an epoch; a new epoch, at least the time in ms since 1970, begins only when the queue cannot prove where the
last one ended (a power cut).
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

import msgspec
from msgspec import UNSET, UnsetType

from edge_agent.records import (
    Accelerator,
    AlarmEvent,
    Event,
    HealthEvent,
    LossEvent,
    ModelEvent,
    Result,
    ResultEvent,
    TimeSource,
)

_encode = msgspec.json.Encoder().encode
EventT = TypeVar("EventT", bound=Event)


class Clock(Protocol):
    """What is needed of `edge_agent.device.clock.Clock`."""

    def wall_ms(self, captured_ns: int) -> int: ...
    def time_source(self) -> TimeSource: ...


class Numbered(Protocol):
    """What is needed of the queue: where the count stands."""

    @property
    def epoch(self) -> int: ...
    @property
    def next_number(self) -> int: ...
    def put(self, first_number: int, events: Sequence[bytes], first_ms: int, last_ms: int) -> None: ...


class ModelFacts(msgspec.Struct, frozen=True):
    """What every result of a model version has in common."""

    name: str
    version: str
    accelerator: Accelerator
    degraded: str | None


class Envelope:
    """Builds events, encodes them, and puts them into the queue."""

    def __init__(self, device_id: str, labels: dict[str, str], clock: Clock, queue: Numbered) -> None:
        self._clock = clock
        self._queue = queue
        self.describe_device(device_id, labels)

    def describe_device(self, device_id: str, labels: dict[str, str]) -> None:
        """Name the device in all further events."""
        self.device_id = device_id
        self._labels: dict[str, str] | UnsetType = labels or UNSET

    def _event_id(self, number: int) -> str:
        return f"{self.device_id}/{self._queue.epoch:013d}/{number:012d}"

    def put_results(self, results: list[Result], facts: ModelFacts) -> list[ResultEvent]:
        """Queue one event per result, in order, with one write; returns them."""
        number = self._queue.next_number
        device_id, labels = self.device_id, self._labels
        prefix = f"{device_id}/{self._queue.epoch:013d}/"
        # One look at both clocks serves the whole batch: within it they do not drift apart by a millisecond.
        last_ns = results[-1].captured_ns
        last_ms, time_source = self._clock.wall_ms(last_ns), self._clock.time_source()
        name, version, accelerator = facts.name, facts.version, facts.accelerator
        degraded = facts.degraded or UNSET
        events = [
            ResultEvent(
                event_id=f"{prefix}{n:012d}",
                device_id=device_id,
                timestamp=last_ms - (last_ns - result.captured_ns) // 1_000_000,
                time_source=time_source,
                device_labels=labels,
                results=result.scores,
                prediction=_prediction(result),
                confidence=result.scores[0].score if result.scores and result.value is None else UNSET,
                value=UNSET if result.value is None else result.value,
                outputs=UNSET if result.outputs is None else result.outputs,
                inference_time_ms=result.inference_ns // 1000 / 1000,
                model_name=name,
                model_version=version,
                accelerator=accelerator,
                degraded=degraded,
                clipped=round(result.clipped, 4),
                raw_data=UNSET if result.raw_data is None else result.raw_data,
                raw_data_url=UNSET if result.chosen is None else result.chosen.url or UNSET,
                raw_data_rule=UNSET if result.chosen is None else result.chosen.rule,
            )
            for n, result in enumerate(results, start=number)
        ]
        self._queue.put(number, [_encode(event) for event in events], events[0].timestamp, last_ms)
        return events

    def put_alarm(self, event: ResultEvent, action: str) -> bytes:
        """Queue the alarm that a rule raises on a result; returns its JSON."""
        fields = {name: getattr(event, name) for name in event.__struct_fields__}
        return self._put(event.timestamp, AlarmEvent, fields | {"action": action})

    def put_model(self, captured_ns: int, **fields: Any) -> bytes:
        """Queue a `model` event. `captured_ns` is CLOCK_MONOTONIC."""
        return self._put_now(captured_ns, ModelEvent, fields)

    def put_health(self, captured_ns: int, **fields: Any) -> bytes:
        """Queue a `health` event."""
        return self._put_now(captured_ns, HealthEvent, fields)

    def encode_loss(self, number: int, captured_ns: int, **fields: Any) -> bytes:
        """Return the JSON of a `loss` event under a number that the caller takes from the queue."""
        return _encode(self._make(number, self._clock.wall_ms(captured_ns), LossEvent, fields))

    def _put_now(self, captured_ns: int, kind: Callable[..., EventT], fields: dict[str, Any]) -> bytes:
        return self._put(self._clock.wall_ms(captured_ns), kind, fields)

    def _put(self, timestamp: int, kind: Callable[..., EventT], fields: dict[str, Any]) -> bytes:
        number = self._queue.next_number
        line = _encode(self._make(number, timestamp, kind, fields))
        self._queue.put(number, [line], timestamp, timestamp)
        return line

    def put_device_alarm(self, captured_ns: int, **fields: Any) -> bytes:
        """Queue an `alarm` event that no result has set off."""
        return self._put_now(captured_ns, AlarmEvent, fields)

    def _make(self, number: int, timestamp: int, kind: Callable[..., EventT], fields: dict[str, Any]) -> EventT:
        given: dict[str, Any] = {name: UNSET if value is None else value for name, value in fields.items()}
        given |= {
            "event_id": self._event_id(number),
            "device_id": self.device_id,
            "timestamp": timestamp,
            "time_source": self._clock.time_source(),
            "device_labels": self._labels,
        }
        return kind(**given)


def _prediction(result: Result) -> str | UnsetType:
    if result.verdict is not None:
        return result.verdict
    # The label of a value names it; only limits say what it means.
    return result.scores[0].label if result.scores and result.value is None else UNSET
