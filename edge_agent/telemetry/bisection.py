"""Finds the events of a batch that a sink refuses, so that the others arrive."""

from collections.abc import Awaitable, Callable, Sequence

from edge_agent.telemetry.sinks import SinkNeedsPerson, SinkRejected

_REFUSED_ALONE = 4
"""So many events refused one by one, and none taken: it is not up to them."""
_KEPT = "find out why they are refused; they stay in the queue until then"


class RefusesAll(SinkNeedsPerson):
    """None of the events was taken, so that nobody knows whether it is up to them or to the sink."""

    def __init__(self, refusal: SinkRejected, count: int) -> None:
        which = f"none of {count} events" if count > 1 else "one event"
        super().__init__(f"{refusal.reason}; {which} was {'taken' if count > 1 else 'refused'}", _KEPT)


async def send_divided(
    events: Sequence[bytes], request: Callable[[Sequence[bytes]], Awaitable[None]], *, takes_others: bool
) -> list[tuple[int, str]]:
    """Send the events, by halves where they are refused. Return the places of those refused alone, and why.

    `request` sends some of them and raises SinkRejected. Raises RefusesAll when it takes none at all, unless it is
    known to take other events.
    """
    try:
        await request(events)
    except SinkRejected as error:
        return await _bisect(events, request, error, takes_others=takes_others)
    return []


async def _bisect(
    events: Sequence[bytes],
    request: Callable[[Sequence[bytes]], Awaitable[None]],
    refusal: SinkRejected,
    *,
    takes_others: bool,
) -> list[tuple[int, str]]:
    refused: list[tuple[int, str]] = []
    parts = [(0, len(events), refusal)]
    while parts:
        start, end, refusal = parts.pop()
        if end - start == 1:
            refused.append((start, refusal.reason))
            if len(refused) >= _REFUSED_ALONE and not takes_others:
                break
            continue
        middle = (start + end) // 2
        for first, last in ((start, middle), (middle, end)):
            try:
                await request(events[first:last])
                takes_others = True
            except SinkRejected as error:
                parts.append((first, last, error))
    if not takes_others:
        raise RefusesAll(refusal, len(events)) from refusal
    return refused
