"""When the Edge TPU is tried again."""

import asyncio
from collections.abc import Callable

import pytest

from edge_agent.inference.accelerators import watch
from edge_agent.inference.accelerators.uevents import Uevent, UeventListener, UeventsUnavailable
from edge_agent.inference.accelerators.watch import CHECK_INTERVAL, FIRST_PAUSE, LAST_PAUSE, DeviceWatch


class Device:
    """Stands for the recovery, the kernel and the supervisor."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.is_usable = False
        self.stuck = ""
        self.is_wanted: str | None = "usb:1-1"
        self.tries: list[float] = []
        self.appearances = 0
        self.tried = asyncio.Event()

    def usable(self, wanted: str) -> list[str]:
        assert wanted == "usb:1-1"
        return [wanted] if self.is_usable else []

    def avoid(self) -> str:
        return self.stuck

    def appeared(self) -> None:
        self.appearances += 1

    async def again(self) -> None:
        self.tries.append(self.now)
        self.tried.set()

    def watch(self) -> DeviceWatch:
        return DeviceWatch(
            self,  # type: ignore[arg-type]  # as much of a Recovery as it needs
            wanted=lambda: self.is_wanted,
            again=self.again,
            clock=lambda: self.now,
        )


def test_a_device_that_comes_is_tried_at_once_and_one_that_is_there_ever_more_rarely() -> None:
    async def scenario() -> None:
        device = Device()
        watching = device.watch()
        await watching.look()
        assert device.tries == []
        device.is_usable = True
        for _ in range(200):
            await watching.look()
            device.now += CHECK_INTERVAL
        pauses = [after - before for before, after in zip(device.tries, device.tries[1:], strict=False)]
        assert device.tries[0] == 1000.0
        assert pauses[:4] == [FIRST_PAUSE, 60.0, 120.0, 240.0]
        assert pauses[-1] == LAST_PAUSE
        # It goes, and comes back.
        device.is_usable = False
        await watching.look()
        device.is_usable = True
        await watching.look()
        assert device.tries[-1] == device.now

    asyncio.run(scenario())


def test_a_device_that_is_in_use_or_left_alone_is_not_tried() -> None:
    async def scenario() -> None:
        device = Device()
        device.is_usable = True
        device.is_wanted = None
        watching = device.watch()
        await watching.look()
        device.is_wanted, device.stuck = "usb:1-1", "it fails again and again"
        await watching.look()
        assert device.tries == []
        device.stuck = ""
        await watching.look()
        assert len(device.tries) == 1

    asyncio.run(scenario())


def test_an_event_of_the_kernel_makes_it_look(monkeypatch: pytest.MonkeyPatch) -> None:
    callbacks: list[Callable[[Uevent], None]] = []
    monkeypatch.setattr(UeventListener, "start", lambda listener: callbacks.append(listener._on_event))

    async def scenario() -> None:
        device = Device()
        device.is_usable = True
        running = asyncio.create_task(device.watch().run())
        async with asyncio.timeout(20):  # less than the interval
            while not callbacks:  # noqa: ASYNC110  it has no event to wait for
                await asyncio.sleep(0)
            callbacks[0](Uevent("add", "usb:1-1"))
            await device.tried.wait()
        assert device.appearances == 1
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    asyncio.run(scenario())


def test_without_events_it_looks_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: object) -> None:
        raise UeventsUnavailable("no socket")

    monkeypatch.setattr(UeventListener, "start", refuse)
    monkeypatch.setattr(watch, "CHECK_INTERVAL", 0.001)

    async def scenario() -> None:
        device = Device()
        device.is_usable = True
        running = asyncio.create_task(device.watch().run())
        async with asyncio.timeout(20):
            await device.tried.wait()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    asyncio.run(scenario())
