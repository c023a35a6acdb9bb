"""Makes events out of what happened: who, when, and under which number.

An event id is `DEVICE/EPOCH/NUMBER`, both numbers zero-padded so that ids sort as text. The number counts up by one
within an epoch; a new epoch, at least the time in ms since 1970, begins only when the queue cannot prove where the
last one ended (a power cut).
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

import msgspec
from msgspec import UNSET, UnsetType
from msgspec.structs import replace

from edge_agent.records import (
    Accelerator,
    AlarmEvent,
    Event,
    HealthEvent,
    LossEvent,
    ModelEvent,
    Result,
    ResultEvent,
    SummaryEvent,
    TimeSource,
)
from edge_agent.telemetry.events.priority import Priority

_encode = msgspec.json.Encoder().encode
EventT = TypeVar("EventT", bound=Event)
_DATED = ("timestamp", "time_source", "boot_id", "monotonic_ms")

_PRIORITIES: dict[Callable[..., Event], Priority] = {
    AlarmEvent: Priority.ALARM,
    ModelEvent: Priority.NOTICE,
    HealthEvent: Priority.HEALTH,
    SummaryEvent: Priority.RESULT,
}
_OF_RESULTS = Priority.RESULT  # to look it up for each batch takes time
_IN_ALARMS = [name for name in ResultEvent.__struct_fields__ if name in AlarmEvent.__struct_fields__]

# How many results before one were not published, and how often the prediction has changed in them.
KeptBack = tuple[int | UnsetType, int | UnsetType]


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
    def put(
        self, first_number: int, events: Sequence[bytes], first_ms: int, last_ms: int, priority: Priority = ...
    ) -> None: ...


class ModelFacts(msgspec.Struct, frozen=True):
    """What every result of a model version has in common."""

    name: str
    version: str
    accelerator: Accelerator
    degraded: str | None


class Envelope:
    """Builds events, encodes them, and puts them into the queue.

    `boot_id` is that of this boot; events made before the clock was set carry it, to be dated later.
    """

    def __init__(
        self, device_id: str, labels: dict[str, str], clock: Clock, queue: Numbered, *, boot_id: str = ""
    ) -> None:
        self._clock = clock
        self._queue = queue
        self._boot_id = boot_id
        self.describe_device(device_id, labels)

    def describe_device(self, device_id: str, labels: dict[str, str]) -> None:
        """Name the device in all further events."""
        self.device_id = device_id
        self._labels: dict[str, str] | UnsetType = labels or UNSET

    def _event_id(self, number: int) -> str:
        return f"{self.device_id}/{self._queue.epoch:013d}/{number:012d}"

    def put_results(
        self, results: Sequence[Result], facts: ModelFacts, kept_back: Sequence[KeptBack] = ()
    ) -> list[ResultEvent]:
        """Queue one event per result, in order, with one write; returns them. `kept_back` has one entry for each."""
        number = self._queue.next_number
        events = self._describe(results, facts, number)
        if kept_back:
            events = [
                replace(event, unpublished=unpublished, changes=changes)
                for event, (unpublished, changes) in zip(events, kept_back, strict=True)
            ]
        lines = [_encode(event) for event in events]
        self._queue.put(number, lines, events[0].timestamp, events[-1].timestamp, priority=_OF_RESULTS)
        return events

    def describe(self, result: Result, facts: ModelFacts) -> ResultEvent:
        """Return the event of a result that is not published. Its number is 0, which no event has."""
        [event] = self._describe([result], facts, 0)
        return event

    def _describe(self, results: Sequence[Result], facts: ModelFacts, number: int) -> list[ResultEvent]:
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
                prediction=result.prediction,
                confidence=result.scores[0].score if result.scores and result.value is None else UNSET,
                value=UNSET if result.value is None else result.value,
                outputs=UNSET if result.outputs is None else result.outputs,
                inference_time_ms=result.inference_ns // 1000 / 1000,
                model_name=name,
                model_version=version,
                accelerator=accelerator,
                degraded=degraded,
                clipped=round(result.clipped, 4) if result.clipped else 0.0,
                raw_data=UNSET if result.raw_data is None else result.raw_data,
                raw_data_url=UNSET if result.chosen is None else result.chosen.url or UNSET,
                raw_data_rule=UNSET if result.chosen is None else result.chosen.rule,
            )
            for n, result in enumerate(results, start=number)
        ]
        if time_source == "unverified":
            return [self._undated(event, result) for event, result in zip(events, results, strict=True)]
        return events

    def put_summary(self, end_ns: int, facts: ModelFacts, **fields: Any) -> bytes:
        """Queue a `summary` event of a window that ends at `end_ns` of CLOCK_MONOTONIC."""
        model = {
            "model_name": facts.name,
            "model_version": facts.version,
            "accelerator": facts.accelerator,
            "degraded": facts.degraded,
        }
        return self._put_now(end_ns, SummaryEvent, model | fields)

    def put_alarm(self, event: ResultEvent, action: str) -> tuple[str, bytes]:
        """Queue the alarm that a rule raises on a result; returns its id and its JSON."""
        event_id = self._event_id(self._queue.next_number)
        fields = {name: getattr(event, name) for name in _IN_ALARMS}
        # Dated like the result, although the clock may have been set between the two.
        dated = {name: fields[name] for name in _DATED}
        return event_id, self._put(dated, AlarmEvent, fields | {"action": action})

    def put_model(self, captured_ns: int, **fields: Any) -> bytes:
        """Queue a `model` event. `captured_ns` is CLOCK_MONOTONIC."""
        return self._put_now(captured_ns, ModelEvent, fields)

    def put_health(self, captured_ns: int, **fields: Any) -> bytes:
        """Queue a `health` event."""
        return self._put_now(captured_ns, HealthEvent, fields)

    def encode_loss(self, number: int, captured_ns: int, **fields: Any) -> bytes:
        """Return the JSON of a `loss` event under a number that the caller takes from the queue."""
        return _encode(self._make(number, self._date(captured_ns), LossEvent, fields))

    def _put_now(self, captured_ns: int, kind: Callable[..., EventT], fields: dict[str, Any]) -> bytes:
        return self._put(self._date(captured_ns), kind, fields)

    def _put(self, dated: dict[str, Any], kind: Callable[..., EventT], fields: dict[str, Any]) -> bytes:
        number, timestamp = self._queue.next_number, dated["timestamp"]
        line = _encode(self._make(number, dated, kind, fields))
        self._queue.put(number, [line], timestamp, timestamp, priority=_PRIORITIES[kind])
        return line

    def put_device_alarm(self, captured_ns: int, **fields: Any) -> bytes:
        """Queue an `alarm` event that no result has set off."""
        return self._put_now(captured_ns, AlarmEvent, fields)

    def _date(self, captured_ns: int) -> dict[str, Any]:
        """Return the members that say when, by the clock as it is now."""
        dated: dict[str, Any] = {"timestamp": self._clock.wall_ms(captured_ns)}
        dated["time_source"] = self._clock.time_source()
        if dated["time_source"] == "unverified" and self._boot_id:
            dated |= {"boot_id": self._boot_id, "monotonic_ms": captured_ns // 1_000_000}
        return dated

    def _undated(self, event: ResultEvent, result: Result) -> ResultEvent:
        """Return the event with what it takes to date it once the clock is set."""
        if not self._boot_id:
            return event
        return replace(event, boot_id=self._boot_id, monotonic_ms=result.captured_ns // 1_000_000)

    def _make(self, number: int, dated: dict[str, Any], kind: Callable[..., EventT], fields: dict[str, Any]) -> EventT:
        given: dict[str, Any] = {name: UNSET if value is None else value for name, value in fields.items()}
        given |= {
            "event_id": self._event_id(number),
            "device_id": self.device_id,
            "device_labels": self._labels,
        }
        return kind(**given | dated)
