"""What becomes of new settings: the first worker that has them decides, and no other."""

import asyncio


class Verdict:
    """Waits for one worker's fate. `reason` None: it is at work; else why it is not."""

    def __init__(self) -> None:
        self._asked: asyncio.Future[str | None] | None = None
        self._on_trial: asyncio.Future[str | None] | None = None

    async def wait(self, seconds: float) -> str | None:
        """Return how the next worker fares."""
        self._asked = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(seconds):
                return await self._asked
        except TimeoutError:
            return f"the worker was not at work after {seconds:.0f} s"
        finally:
            self._asked = None

    def next_worker(self) -> None:
        """The worker that starts now has the settings that are waited for."""
        self._on_trial = self._asked

    def give(self, reason: str | None) -> None:
        """Say how the worker at hand fares."""
        if self._on_trial is not None and not self._on_trial.done():
            self._on_trial.set_result(reason)
