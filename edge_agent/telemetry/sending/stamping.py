"""Dates events that were made before the clock was set, on their way out of the queue.

Such an event carries the boot it was made in and the monotonic time since then. As soon as it is known when that boot
was, `timestamp` can be corrected and `time_source` becomes "restored"; the two others are of no more use, and go.
Until then a clock that cannot be right holds everything back: nobody corrects a row in a table. One that may be right
does not, as a device without any time service would never send anything, unless it was moved a moment ago: what has
set it may still say so.
"""

from collections.abc import Sequence
from typing import Literal, Protocol

import msgspec

from edge_agent.telemetry.sending.sinks import Sink, SinkUnavailable

_MARK = b"monotonic_ms"


class _Undated(msgspec.Struct):
    """The members of an event that may have to be corrected; the last two are those of a loss."""

    boot_id: str
    monotonic_ms: int
    timestamp: int
    time_source: Literal["unverified"]
    first_timestamp: int | None = None
    last_timestamp: int | None = None


_decode_undated = msgspec.json.Decoder(_Undated).decode
_decode = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode  # raw: what is not changed stays as it is, to the byte
_encode = msgspec.json.Encoder().encode


class Timeline(Protocol):
    """What is needed of `edge_agent.device.timekeeper.Timekeeper`."""

    @property
    def doubt(self) -> str: ...
    def offset_ms(self, boot_id: str) -> int | None: ...


class StampingSink:
    """Hands events on to `sink`, dated as well as can be."""

    def __init__(self, sink: Sink, timeline: Timeline) -> None:
        self._sink = sink
        self._timeline = timeline

    @property
    def description(self) -> str:
        """That of the sink."""
        return self._sink.description

    async def send(self, events: Sequence[bytes]) -> None:
        """Deliver the events. Raises SinkUnavailable while the clock cannot be right, and what the sink raises."""
        if doubt := self._timeline.doubt:
            raise SinkUnavailable(f"{doubt}; events are kept until the network or somebody sets it")
        await self._sink.send([self._stamped(event) if _MARK in event else event for event in events])

    async def close(self) -> None:
        """Close the sink."""
        await self._sink.close()

    def _stamped(self, event: bytes) -> bytes:
        try:
            made = _decode_undated(event)
        except ValueError:  # a clock that was known, or nothing of ours: it goes out as it is
            return event
        offset = self._timeline.offset_ms(made.boot_id)
        if offset is None:
            return event
        shift = made.monotonic_ms + offset - made.timestamp
        members = _decode(event)
        del members["boot_id"], members["monotonic_ms"]
        members["timestamp"] = _raw(made.timestamp + shift)
        members["time_source"] = msgspec.Raw(b'"restored"')
        for name in ("first_timestamp", "last_timestamp"):
            taken: int | None = getattr(made, name)
            # A time before the boot, by the same clock, was taken in another boot.
            if taken is not None and taken >= made.timestamp - made.monotonic_ms:
                members[name] = _raw(taken + shift)
        return _encode(members)


def _raw(number: int) -> msgspec.Raw:
    return msgspec.Raw(b"%d" % number)
