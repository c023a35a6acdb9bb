"""Finds the events of a batch that a sink refuses, so that the others arrive."""

from collections.abc import Awaitable, Callable, Sequence

from edge_agent.telemetry.sending.sinks import SinkNeedsPerson, SinkRejected

_REFUSED_ALONE = 4
"""So many events refused one by one, and none taken: it is not up to them."""
_KEPT = "find out why they are refused; they stay in the queue until then"


class RefusesAll(SinkNeedsPerson):
    """None of the events was taken, so that nobody knows whether it is up to them or to the sink.

    `since` is how many requests the sink had taken when it refused the first.
    """

    def __init__(self, refusal: SinkRejected, count: int, since: int) -> None:
        which = f"none of {count} events was taken" if count > 1 else "the event was refused alone"
        super().__init__(f"{refusal.reason}; {which}", _KEPT)
        self.since = since


async def send_divided(
    events: Sequence[bytes],
    request: Callable[[Sequence[bytes]], Awaitable[None]],
    taken: Callable[[], int],
    since: int | None = None,
) -> list[tuple[int, str]]:
    """Send the events, by halves where they are refused. Return the places of those refused alone, and why.

    `request` sends some of them and raises SinkRejected. `taken` is how many requests the sink has taken, of whatever
    events. Raises RefusesAll when it takes none of these, nor others since the first refusal (`since`, where these
    were tried before).
    """
    try:
        await request(events)
    except SinkRejected as error:
        return await _bisect(events, request, error, taken, taken() if since is None else since)
    return []


async def _bisect(
    events: Sequence[bytes],
    request: Callable[[Sequence[bytes]], Awaitable[None]],
    refusal: SinkRejected,
    taken: Callable[[], int],
    since: int,
) -> list[tuple[int, str]]:
    refused: list[tuple[int, str]] = []
    parts = [(0, len(events), refusal)]
    while parts:
        start, end, refusal = parts.pop()
        if end - start == 1:
            refused.append((start, refusal.reason))
            if len(refused) >= _REFUSED_ALONE and taken() == since:
                break
            continue
        middle = (start + end) // 2
        for first, last in ((start, middle), (middle, end)):
            try:
                await request(events[first:last])
            except SinkRejected as error:
                parts.append((first, last, error))
    if taken() == since:
        raise RefusesAll(refusal, len(events), since) from refusal
    return refused
