"""When the next look for a new model is: once per poll, sooner after a failure, and when the window opens."""

import asyncio
from collections.abc import Awaitable, Callable

FIRST_BACKOFF = 5.0
LONGEST_LOAD_BACKOFF = 300.0
WINDOW_SPREAD = 120.0
_INSTANT = 1e-3


class Schedule:
    """The pauses between the looks.

    `poll_interval` is in seconds. `sleep`, `clock` (seconds) and `jitter` (0 to 1) stand for time and chance.
    """

    def __init__(
        self,
        poll_interval: float,
        *,
        sleep: Callable[[float], Awaitable[None]],
        clock: Callable[[], float],
        jitter: Callable[[], float],
    ) -> None:
        self.poll_interval = poll_interval
        self._sleep = sleep
        self._clock = clock
        self._jitter = jitter
        self._next_look: float | None = None
        self._wake = asyncio.Event()

    @property
    def rest(self) -> float | None:
        """The seconds until the next look; None before there was one."""
        return None if self._next_look is None else max(0.0, self._next_look - self._clock())

    def look_now(self) -> None:
        """End the pause, or leave out the next one."""
        self._wake.set()

    def begin(self) -> None:
        """A look begins: whoever wants one from now on means another."""
        self._wake.clear()

    def delay(self, *, failures: int, load_failures: int, opens_in: float | None) -> float:
        """Return how long to pause, in seconds.

        So many looks in a row have failed, and so many models that were given to the worker; the window `opens_in` so
        many seconds, if that is waited for.
        """
        delays = [self.poll_interval]
        if failures:
            delays.append(_backoff(failures))
        if load_failures:
            delays.append(min(_backoff(load_failures), LONGEST_LOAD_BACKOFF))
        delay = min(delays) * (0.9 + 0.2 * self._jitter())
        # Devices that wait for the same minute of the day do not begin in the same second.
        return delay if opens_in is None else min(delay, opens_in + WINDOW_SPREAD * self._jitter())

    async def pause(self, delay: float, *, ends_in: Callable[[], float | None], on_end: Callable[[], None]) -> None:
        """Wait for the next look; meanwhile, whenever a trial `ends_in` so many seconds, call `on_end` then."""
        self._next_look = self._clock() + delay
        while not self._wake.is_set() and (rest := self._next_look - self._clock()) > _INSTANT:
            timer = asyncio.ensure_future(self._sleep(min(rest, ends_in() or rest)))
            wake = asyncio.ensure_future(self._wake.wait())
            try:
                await asyncio.wait({timer, wake}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                timer.cancel()
                wake.cancel()
            on_end()


def _backoff(failures: int) -> float:
    return float(FIRST_BACKOFF * 2 ** min(failures - 1, 20))
