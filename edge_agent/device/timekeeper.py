"""Finds out whether the clock is set, and keeps what follows from it.

A clock that the network has set counts as set from then on: without a network it drifts by seconds a week, not by
years. Only when somebody moves it (`Clock.is_set` becomes false then) the system is asked again, and so it is every
ten seconds until it says yes.

Once the clock is set, the distance between CLOCK_MONOTONIC and the time is written to `boots.json`. It dates what
was measured before, in this boot and, as far as it waits on the disk, in earlier ones.
"""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from typing import Literal

import structlog

from edge_agent.device.boots import Boots
from edge_agent.device.clock import Clock
from edge_agent.device.timeservice import TimeService
from edge_agent.settings.units import format_duration

EARLIEST_MS = 1_767_225_600_000
"""2026-01-01: this program is younger."""
_DAY_MS = 86_400_000
_LOOK = 10.0
_SETTLE = 60.0
"""What sets the clock says so only a moment later; what was measured before can be dated then."""
_LONGEST_ASK = 300.0
_SAVE = 86_400.0
_DRIFT = 5_000
"""One part in so many is more than any quartz drifts (200 ppm)."""
_AGREES_MS = 2_000
SKEWED = 30.0

ClockState = Literal["set", "jumped", "skewed", "ok"]
log = structlog.get_logger()


class Timekeeper:
    """Looks after `clock`. Make it before the first event, and `run` it.

    `on_change` gets the state and a sentence for people; it is called in the event loop. `boot_id` is that of this
    boot. `sleep` and `monotonic` (seconds) stand for time.
    """

    def __init__(
        self,
        clock: Clock,
        boots: Boots,
        *,
        boot_id: str,
        on_change: Callable[[ClockState, str], None],
        service: TimeService | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.skew = ""
        self._clock = clock
        self._boots = boots
        self._boot_id = boot_id
        self._on_change = on_change
        self._service = service or TimeService()
        self._sleep = sleep
        self._monotonic = monotonic
        self._wake = asyncio.Event()
        self._was_set = False
        self._moved_ms = 0  # while the clock was not known to be set
        self._answer: bool | None = None
        self._ask_after = _LOOK
        self._next_ask = monotonic()
        self._next_save = monotonic()
        self._settled_at = monotonic()
        self._server = ("", 0.0)
        self._loop: asyncio.AbstractEventLoop | None = None
        clock.on_jump = self._jumped
        if self._agrees_with_before() or self._service.timesyncd() or self._service.kernel():
            self._trust()

    def offset_ms(self, boot_id: str) -> int | None:
        """What must be added to the monotonic milliseconds of a boot to get the time; None if nobody knows."""
        return self._boots.offset_ms(boot_id)

    @property
    def doubt(self) -> str:
        """Why the clock cannot be right, in words; empty if it may be, or if what it should say is known."""
        if self._clock.is_set or self._boots.offset_ms(self._boot_id) is not None:
            return ""
        now_ms = self._clock.now_ms()
        if now_ms >= max(EARLIEST_MS, self._boots.newest_ms - _DAY_MS):
            return _NOT_CONFIRMED if self._monotonic() < self._settled_at else ""
        date = time.strftime("%Y-%m-%d", time.gmtime(now_ms / 1000))
        return f"the clock is not set yet: it says {date}, which is over"

    async def run(self) -> None:
        """Look after the clock until cancelled."""
        self._loop = asyncio.get_running_loop()
        while True:
            self._wake.clear()
            self._follow_jump()
            if not self._clock.is_set and await self._is_set():
                self._trust()
                self._tell("set", "the clock is set" + _moved("; it was moved", self._moved_ms))
                self._moved_ms = 0
            await self._save()
            await self._pause()

    def compare(self, server: str, skew: float) -> None:
        """Take note of a server's clock; `skew` is by how many seconds ours is behind, or ahead if negative."""
        self._server = (server, skew)
        skewed = abs(skew) > SKEWED
        before, self.skew = self.skew, _skewed(server, skew) if skewed else ""
        if skewed and not before:
            self._tell("skewed", f"{self.skew}; {_ADVICE}")
        elif before and not skewed:
            self._tell("ok", f"the clock agrees with {server} again")

    def compare_soon(self, server: str, skew: float) -> None:
        """The same from another thread, once this runs."""
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody wants to know any more
                self._loop.call_soon_threadsafe(self.compare, server, skew)

    # -- is it set?

    def _jumped(self) -> None:
        self._settled_at = self._monotonic() + _SETTLE
        self._wake.set()

    def _agrees_with_before(self) -> bool:
        """Whether the clock was set earlier in this boot, and nobody has moved it since."""
        known = self._boots.offset_ms(self._boot_id)
        if known is None:
            return False
        offset = self._clock.offset_ms()
        uptime = self._clock.now_ms() - offset
        return abs(offset - known) < _AGREES_MS + uptime // _DRIFT

    async def _is_set(self) -> bool:
        # What timesyncd has said holds until somebody else moves the clock, which it does not notice at once.
        if not self._moved_ms and self._service.timesyncd():
            return True
        answer = self._service.kernel()
        if answer is None:
            answer = await self._ask()
        return self._service.timesyncd() if answer is None else answer

    async def _ask(self) -> bool | None:
        now = self._monotonic()
        if now >= self._next_ask:
            self._next_ask = now + self._ask_after
            self._ask_after = min(_LONGEST_ASK, self._ask_after * 2)
            self._answer = await self._service.timedated()
        return self._answer

    def _trust(self) -> None:
        now_ms = self._clock.now_ms()  # notices the step that has just set it, if nobody else has
        self._moved_ms += self._clock.take_jump()
        self._clock.is_set = self._was_set = True
        self._boots.learn(self._boot_id, self._clock.offset_ms(), now_ms)
        self._next_save = self._monotonic()

    def _follow_jump(self) -> None:
        moved = self._clock.take_jump()
        if not moved:
            return
        self._moved_ms += moved
        self._next_ask, self._ask_after = self._monotonic(), _LOOK
        if self._was_set:
            self._was_set = False
            self._tell("jumped", _moved("somebody has moved the clock", moved))
        server, skew = self._server
        if server:
            self.compare(server, skew - moved / 1000)

    # -- what follows

    async def _save(self) -> None:
        now_ms = self._clock.now_ms()
        if not self._clock.is_set or self._monotonic() < self._next_save:
            return
        self._next_save = self._monotonic() + _SAVE
        self._boots.learn(self._boot_id, self._clock.offset_ms(), now_ms)
        try:
            await asyncio.to_thread(self._boots.save)
        except OSError as error:
            log.warning("the time cannot be kept for the next boot, trying again tomorrow", reason=str(error))

    async def _pause(self) -> None:
        delay = max(0.0, self._next_save - self._monotonic()) if self._clock.is_set else _LOOK
        timer = asyncio.ensure_future(self._sleep(delay))
        wake = asyncio.ensure_future(self._wake.wait())
        try:
            await asyncio.wait({timer, wake}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            timer.cancel()
            wake.cancel()

    def _tell(self, state: ClockState, detail: str) -> None:
        (log.info if state in _GOOD else log.warning)(detail)
        self._on_change(state, detail)


_GOOD = ("set", "ok")
_NOT_CONFIRMED = "the clock was moved a moment ago, and nothing has confirmed it yet"
_ADVICE = "let systemd-timesyncd or chrony set it (timedatectl set-ntp true), and let UDP port 123 through"


def _moved(what: str, by_ms: int) -> str:
    seconds = round(by_ms / 1000)
    if not seconds:
        return ""
    return f"{what} {format_duration(abs(seconds))} {'forwards' if seconds > 0 else 'backwards'}"


def _skewed(server: str, skew: float) -> str:
    return f"the clock is {format_duration(abs(round(skew)))} {'behind' if skew > 0 else 'ahead of'} {server}"
