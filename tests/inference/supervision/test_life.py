"""When one life of a worker is looked after, without the worker."""

import asyncio
from typing import Any

import pytest

from edge_agent.inference.supervision.life import Life

INTERVAL = 2.5
HANG = "hangs: reading the source for 11.0 s"


class Connection:
    async def close(self) -> None:
        pass


async def for_ever() -> str | None:
    await asyncio.Event().wait()
    return None


@pytest.mark.parametrize("goes_on", [True, False], ids=["goes on", "hangs indeed"])
def test_a_worker_that_was_stopped_together_with_the_agent_gets_a_moment_to_go_on(
    monkeypatch: pytest.MonkeyPatch, *, goes_on: bool
) -> None:
    looks: list[str | None] = []

    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        now, hang = loop.time(), None
        monkeypatch.setattr(loop, "time", lambda: now)

        def find_hang() -> str | None:
            looks.append(hang)
            return hang

        async def looked() -> list[str | None]:
            for _ in range(10):
                await asyncio.sleep(0)
            return looks

        connection: Any = Connection()
        life = Life(connection, for_ever(), find_hang, interval=INTERVAL)
        assert await looked() == [None]
        hang = HANG
        now += 1000.0  # the whole machine stands still
        assert await looked() == [None, HANG]
        assert not life._watch.done()
        hang = None if goes_on else HANG
        now += INTERVAL / 2
        assert await looked() == [None, HANG, hang]
        assert life._watch.done() is not goes_on
        await life.close()

    asyncio.run(scenario())
