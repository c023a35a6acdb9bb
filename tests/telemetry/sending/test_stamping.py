import asyncio
import json
from collections.abc import Sequence
from typing import Any

import pytest

from edge_agent.records import Result, Score, TimeSource
from edge_agent.telemetry.events.envelope import Envelope, ModelFacts
from edge_agent.telemetry.sending.sinks import SinkRejected, SinkUnavailable
from edge_agent.telemetry.sending.stamping import StampingSink
from tests.telemetry.event_list import EventList

OFFSET = 1_800_000_000_000  # 2027-01-15, at the boot
FACTS = ModelFacts("m", "v1", "cpu", None)
NS = 1_000_000_000


class ListSink:
    """Keeps what it gets; raises `error` first if there is one."""

    description = "list://"

    def __init__(self) -> None:
        self.events: list[bytes] = []
        self.error: Exception | None = None
        self.closed = False

    async def send(self, events: Sequence[bytes]) -> None:
        if self.error is not None:
            raise self.error
        self.events += events

    async def close(self) -> None:
        self.closed = True


class Timeline:
    """What is known of the boots."""

    doubt = ""

    def __init__(self) -> None:
        self.offsets: dict[str, int] = {}
        self.asked = 0

    def offset_ms(self, boot_id: str) -> int | None:
        self.asked += 1
        return self.offsets.get(boot_id)


class Clock:
    """Says 1970 until it is set."""

    source: TimeSource = "unverified"

    def wall_ms(self, captured_ns: int) -> int:
        return captured_ns // 1_000_000 + (OFFSET if self.source == "synchronized" else 20_000)

    def time_source(self) -> TimeSource:
        return self.source


class Device:
    """An envelope before a stamping sink."""

    def __init__(self, boot_id: str = "boot-1") -> None:
        self.clock, self.queue, self.timeline, self.list = Clock(), EventList(), Timeline(), ListSink()
        self.envelope = Envelope(
            "edge-001", {"boot_id": "left", "monotonic_ms": "right"}, self.clock, self.queue, boot_id=boot_id
        )
        self.sink = StampingSink(self.list, self.timeline)

    def put_results(self, *seconds: int) -> None:
        results = [Result(s * NS, 10, [Score('say "monotonic_ms"', 0.1 + 0.2, 0)], 0.0, [1e-7]) for s in seconds]
        self.envelope.put_results(results, FACTS)

    def send(self) -> list[dict[str, Any]]:
        asyncio.run(self.sink.send(self.queue.lines))
        return [json.loads(event) for event in self.list.events]


@pytest.fixture
def device() -> Device:
    return Device()


def test_what_was_made_before_is_dated_once_the_clock_is_set(device: Device) -> None:
    device.put_results(30, 31)
    device.envelope.put_health(32 * NS, component="worker", state="died")
    device.clock.source = "synchronized"
    device.timeline.offsets["boot-1"] = OFFSET
    device.put_results(33)
    sent = device.send()
    assert [event["timestamp"] - OFFSET for event in sent] == [30_000, 31_000, 32_000, 33_000]
    assert [event["time_source"] for event in sent] == [*["restored"] * 3, "synchronized"]
    made = [json.loads(line) for line in device.queue.lines]
    for event, before in zip(sent, made, strict=True):
        assert not {"boot_id", "monotonic_ms"} & event.keys()
        changed = {"timestamp", "time_source", "boot_id", "monotonic_ms"}
        kept = {name: value for name, value in before.items() if name not in changed}
        assert {name: value for name, value in event.items() if name not in changed} == kept
        assert next(iter(event)) == "kind"


def test_what_is_not_changed_stays_as_it_is_to_the_byte(device: Device) -> None:
    device.put_results(30)
    [line] = device.queue.lines
    device.timeline.offsets["boot-1"] = OFFSET
    device.send()
    assert b'"timestamp":50000,"time_source":"unverified","boot_id":"boot-1","monotonic_ms":30000' in line
    expected = line.replace(b',"boot_id":"boot-1","monotonic_ms":30000', b"")
    expected = expected.replace(b"unverified", b"restored").replace(b":50000,", b":1800000030000,")
    assert device.list.events == [expected]


def test_a_boot_of_which_nobody_knows_goes_out_as_it_is(device: Device) -> None:
    device.put_results(30)
    device.timeline.offsets["boot-2"] = OFFSET
    device.send()
    assert device.list.events == device.queue.lines
    assert device.timeline.asked == 1


def test_an_earlier_boot_is_dated_by_its_own_clock() -> None:
    earlier, later = Device("boot-1"), Device("boot-2")
    earlier.put_results(30)
    later.put_results(10)
    later.timeline.offsets |= {"boot-1": OFFSET - 86_400_000, "boot-2": OFFSET}
    later.queue.lines[:0] = earlier.queue.lines
    assert [event["timestamp"] for event in later.send()] == [OFFSET - 86_400_000 + 30_000, OFFSET + 10_000]


def test_a_clock_that_was_known_is_left_alone_although_the_event_names_its_boot(device: Device) -> None:
    device.clock.source = "synchronized"
    device.put_results(30)
    device.envelope.put_health(30 * NS, component="clock", state="set", boot_id="boot-1", monotonic_ms=30_000)
    device.timeline.offsets["boot-1"] = 7
    device.send()
    assert device.list.events == device.queue.lines
    assert device.timeline.asked == 0


@pytest.mark.parametrize(
    "event",
    [
        b"monotonic_ms",
        b'{"monotonic_ms":1}',
        b'{"timestamp":1,"time_source":"unverified","boot_id":"boot-1","monotonic_ms":"1"}',
        b'{"boot_id":"boot-1","monotonic_ms":1}',
    ],
)
def test_what_is_no_event_of_ours_goes_out_as_it_is(device: Device, event: bytes) -> None:
    device.timeline.offsets["boot-1"] = OFFSET
    asyncio.run(device.sink.send([event]))
    assert device.list.events == [event]


def test_the_times_of_a_loss_move_with_it_but_those_of_an_earlier_boot_do_not(device: Device) -> None:
    def lose(number: int, first: int, last: int) -> None:
        fields = {"cause": "queue_full", "count": 2, "first_timestamp": first, "last_timestamp": last}
        device.queue.lines.append(device.envelope.encode_loss(number, 60 * NS, **fields))

    lose(1, 50_000, 70_000)
    lose(2, 1_000, 70_000)
    device.timeline.offsets["boot-1"] = OFFSET
    times = [(event["first_timestamp"], event["last_timestamp"]) for event in device.send()]
    assert times == [(OFFSET + 30_000, OFFSET + 50_000), (1_000, OFFSET + 50_000)]


def test_a_clock_that_cannot_be_right_holds_everything_back(device: Device) -> None:
    device.put_results(30)
    device.timeline.doubt = "the clock is not set yet: it says 1970-01-01, which is over"
    with pytest.raises(SinkUnavailable, match="it says 1970-01-01, which is over; events are kept"):
        device.send()
    assert device.list.events == []
    device.timeline.doubt = ""
    assert len(device.send()) == 1


def test_it_is_otherwise_the_sink_that_it_wraps(device: Device) -> None:
    assert device.sink.description == "list://"
    device.list.error = SinkRejected("too long")
    with pytest.raises(SinkRejected, match="too long"):
        device.send()
    asyncio.run(device.sink.close())
    assert device.list.closed
