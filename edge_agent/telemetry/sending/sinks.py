"""Where events go, and the three ways in which sending fails.

A sink takes a batch whole or not at all, as far as it can tell: after an error some events may have arrived
nevertheless, and come again with the same `event_id`.
"""

import asyncio
import contextlib
import functools
import threading
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import Any, Protocol, TypeVar

T = TypeVar("T")


class SinkError(Exception):
    """The events were not taken. `reason` says what happened and where."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class SinkUnavailable(SinkError):  # states of the sink rather than mistakes
    """Not now; a later try may well succeed."""


class SinkRejected(SinkError):
    """The content of at least one event is refused, and will be at every try."""


class SinkNeedsPerson(SinkError):
    """It stays like this until somebody does `what_to_do`."""

    def __init__(self, reason: str, what_to_do: str) -> None:
        super().__init__(reason)
        self.what_to_do = what_to_do

    def __str__(self) -> str:
        return f"{self.reason}; {self.what_to_do}"


class Sink(Protocol):
    """A place that events are sent to."""

    @property
    def description(self) -> str:
        """The place as a URL, for people."""
        ...

    async def send(self, events: Sequence[bytes]) -> None:
        """Deliver the events, each one JSON object without newline. Raises SinkError.

        May be called again before the call before has returned.
        """
        ...

    async def close(self) -> None:
        """End within a second; calls of `send` that are still waiting raise SinkUnavailable."""
        ...


class DaemonThread:
    """One thread for blocking calls, run in the order they came.

    The end of the process never waits for it, so that a call that hangs holds nobody up. It is started by the
    first call.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._calls: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._waiting: set[asyncio.Future[Any]] = set()
        self._ended = asyncio.Event()
        self._thread: threading.Thread | None = None
        self._closed = False

    async def run(self, function: Callable[..., T], *arguments: object) -> T:
        """Run `function` in the thread. Raises what it raises, and SinkUnavailable once closed."""
        if self._closed:
            raise SinkUnavailable("sending has ended")
        loop = asyncio.get_running_loop()
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, args=(loop,), name=self._name, daemon=True)
            self._thread.start()
        answer: asyncio.Future[T] = loop.create_future()
        self._waiting.add(answer)
        self._calls.put(lambda: _call(loop, answer, function, arguments))
        try:
            return await answer
        finally:
            self._waiting.discard(answer)

    async def close(self, within: float) -> None:
        """Let waiting callers go with SinkUnavailable; wait at most `within` seconds for the call under way."""
        self._closed = True
        for answer in self._waiting:
            if not answer.done():
                answer.set_exception(SinkUnavailable("sending has ended"))
        if self._thread is not None:
            self._calls.put(None)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._ended.wait(), within)
                self._thread.join()  # it has nothing left to do but to end

    def _work(self, loop: asyncio.AbstractEventLoop) -> None:
        while (call := self._calls.get()) is not None:
            if not self._closed:
                call()
        post(loop, self._ended.set)


def post(loop: asyncio.AbstractEventLoop, function: Callable[[], object]) -> None:
    """Have the loop call `function`, from another thread. Once the loop is closed nobody waits for it any more."""
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(function)


def _call(
    loop: asyncio.AbstractEventLoop,
    answer: asyncio.Future[T],
    function: Callable[..., T],
    arguments: tuple[object, ...],
) -> None:
    try:
        result = function(*arguments)
    except Exception as error:  # noqa: BLE001  # raised where the result is waited for
        post(loop, functools.partial(_settle, answer.set_exception, answer, error))
    else:
        post(loop, functools.partial(_settle, answer.set_result, answer, result))


def _settle(settle: Callable[[Any], None], answer: asyncio.Future[T], value: object) -> None:
    if not answer.done():
        settle(value)
