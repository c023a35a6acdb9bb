"""One life of a worker: until it ends by itself, has to be ended, or is told to."""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import structlog

from edge_agent.inference.protocol import Stop
from edge_agent.inference.supervision.connection import Connection
from edge_agent.inference.supervision.deaths import Death, LastMoment

_SECOND_LOOK = 0.25

log = structlog.get_logger()


class Life:
    """`conversation` ends with the worker, or returns why that has to end. `find_hang` says what hangs, if anything."""

    def __init__(
        self,
        connection: Connection,
        conversation: Coroutine[Any, Any, str | None],
        find_hang: Callable[[], str | None],
        *,
        interval: float,
    ) -> None:
        self._connection = connection
        self._find_hang = find_hang
        self._interval = interval
        self._conversation = asyncio.create_task(conversation, name="worker conversation")
        self._watch = asyncio.create_task(self._look_out(), name="worker watch")

    async def until_end(self, orders: Sequence[asyncio.Event], patience: float) -> Death | None:
        """Return how the worker died, or None when it was told to end, which each of the orders does.

        `patience` is how many seconds it has to end once it is about to.
        """
        waiting = [asyncio.create_task(event.wait(), name="worker orders") for event in orders]
        try:
            await asyncio.wait([self._conversation, self._watch, *waiting], return_when=asyncio.FIRST_COMPLETED)
            if any(order.done() for order in waiting) and not self._conversation.done():
                await self._end(patience)
                return None
            return await self._find_cause(patience)
        finally:
            await _cancel(waiting)

    async def close(self) -> None:
        """End the process if it still lives."""
        await _cancel([self._conversation, self._watch])
        await self._connection.close()

    async def _look_out(self) -> str:
        while True:
            if self._find_hang() is not None:
                # The whole machine may have stood still, or a model that was loaded all other threads: they may go on.
                await asyncio.sleep(_SECOND_LOOK)
                if (hang := self._find_hang()) is not None:
                    return hang
            await asyncio.sleep(self._interval)

    async def _end(self, patience: float) -> None:
        """Tell the worker to stop, and take what it still has to say."""
        self._connection.send(Stop())
        done, _ = await asyncio.wait([self._conversation], timeout=patience)
        if not done:
            doing = self._connection.page.last_words()
            log.warning("worker did not stop in time and is killed", deadline=patience, doing=doing)

    async def _find_cause(self, patience: float) -> Death:
        last = LastMoment.of(self._connection.page)
        if self._watch.done():
            return Death(self._watch.result(), "hung, and was killed", last, hung=True)
        if (reason := self._conversation.result()) is not None:
            return Death(reason, "killed for what it sent", last)
        status = await self._connection.wait_for_exit(patience)
        output = await self._connection.last_output()
        cause = f"{status} while {last.doing}" + (f"; it said: {output}" if output else "")
        return Death(cause, status, last, outside=status == "killed by SIGKILL")


async def _cancel(tasks: Sequence[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
