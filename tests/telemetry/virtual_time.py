"""An event loop whose clock stands still while anything works and jumps ahead when everybody sleeps.

Hours of timers pass as fast as the work between them. Work in threads takes no time by this clock.
"""

import asyncio
import selectors
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

T = TypeVar("T")


_PATIENCE = 30.0


class Stuck(Exception):
    """No timer is set, and nothing came from the threads: it would wait for ever."""


class _Selector(selectors.BaseSelector):
    """Waits for files only while threads are at work; otherwise it moves the clock instead of waiting."""

    def __init__(self) -> None:
        self.now = 0.0
        self.working = 0  # calls in threads
        self._real = selectors.DefaultSelector()

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        return self._real.register(fileobj, events, data)

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        return self._real.unregister(fileobj)

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        return self._real.get_map()

    def close(self) -> None:
        self._real.close()

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None or (self.working and timeout > 0):
            events = self._real.select(_PATIENCE)
            if not events:
                raise Stuck
            return events
        self.now += max(0.0, timeout)
        return self._real.select(0)


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """`asyncio.sleep`, `asyncio.timeout` and the like go by its clock, which begins at 0."""

    def __init__(self) -> None:
        self._virtual = _Selector()
        super().__init__(self._virtual)

    def time(self) -> float:
        return self._virtual.now

    @property
    def working(self) -> bool:
        """Whether a thread is at work."""
        return self._virtual.working > 0

    def run_in_executor(self, executor: Any, func: Callable[..., T], *args: Any) -> asyncio.Future[T]:  # type: ignore[override]  # annotated with TypeVarTuples in typeshed
        future: asyncio.Future[T] = super().run_in_executor(executor, func, *args)
        self._virtual.working += 1
        future.add_done_callback(self._ended)
        return future

    async def shutdown_default_executor(self, *timeout: float) -> None:
        """Wait for the threads by the real clock: since Python 3.12 this has a limit, which would be over at once."""
        self._virtual.working += 1
        try:
            await super().shutdown_default_executor(*timeout)
        finally:
            self._virtual.working -= 1

    def _ended(self, _: "asyncio.Future[Any]") -> None:
        self._virtual.working -= 1
