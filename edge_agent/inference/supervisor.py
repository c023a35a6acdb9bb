"""The agent's side of the worker: starts it, watches it, and starts it again whatever native code does to it."""

import asyncio
import contextlib
import random
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import msgspec
import structlog

from edge_agent.inference.connection import Connection
from edge_agent.inference.model_check import check_model
from edge_agent.inference.progress import Stage, Track
from edge_agent.inference.protocol import Configure, Load, Loaded, Ready, Results, SourceState, Stop, ToAgent
from edge_agent.records import LoadReport, ModelFile, Result

log = structlog.get_logger()

# Above the worker's own deadline (worker.STOP_DEADLINE), below the agent's (agent.STOP_DEADLINE).
STOP_DEADLINE = 1.4
# Importing the runtime from a slow SD card, and opening an Edge TPU that needs its firmware, take long.
START_DEADLINE = 120.0
LOAD_DEADLINE = 90.0
OPEN_DEADLINE = 60.0
FIRST_DELAY, LAST_DELAY = 0.5, 30.0
# A worker that has lived this long is healthy again: the next death starts the delays from the beginning.
STABLE_AFTER = 60.0
# More deaths than this within an hour are reported as a state of their own; the worker is still started again.
DEATHS_PER_HOUR = 20
# One death over a model may be the device's fault. After so many, the model is not tried again.
MAX_LOAD_DEATHS = 3

_SAMPLE_STAGES = (Stage.PREPROCESS, Stage.INVOKE, Stage.DECODE)


@dataclass(frozen=True)
class ResultBatch:
    """Results of one model, with what the agent knows of it. Counts are since the previous batch."""

    results: list[Result]
    model: ModelFile
    report: LoadReport
    dropped: int
    failed: int
    failure: str


@dataclass
class WorkerStatus:
    """What the operator is shown of the worker."""

    state: str = "stopped"
    runtime: str = ""
    source: str = "waiting for a model"
    deaths: int = 0
    last_death: str = ""
    samples: int = 0
    dropped: int = 0
    failed: int = 0
    failure: str = ""
    """Why no sample can be worked on at the moment; empty when some can."""
    report: LoadReport | None = None
    """How the model in use was loaded."""


@dataclass
class _Pending:
    """A load that the worker has not answered yet."""

    model: ModelFile
    answer: asyncio.Future[LoadReport] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Supervisor:
    """Runs one worker at a time and brings it back to the model in use after each death.

    `on_results` gets the results, `on_health(component, state, detail)` what somebody should know.
    """

    def __init__(
        self,
        configure: Configure,
        deadline: float,
        *,
        on_results: Callable[[ResultBatch], None],
        on_health: Callable[[str, str, str], None],
    ) -> None:
        self.status = WorkerStatus()
        self.source_ended = asyncio.Event()
        self._configure = configure
        self._deadline = deadline
        self._on_results = on_results
        self._on_health = on_health
        self._current: ModelFile | None = None
        self._models: dict[int, tuple[ModelFile, LoadReport]] = {}
        self._pending: dict[int, _Pending] = {}
        self._requests = 0
        self._connection: Connection | None = None
        self._ready = asyncio.Event()
        self._changed = asyncio.Event()
        self._stopping = False
        self._position: str | None = configure.resume
        self._trouble = ""
        self._verdict: asyncio.Future[str | None] | None = None
        self._deaths: deque[float] = deque(maxlen=DEATHS_PER_HOUR)
        self._load_deaths: Counter[str] = Counter()

    # -- what the rest of the agent calls

    async def run(self) -> None:
        """Keep a worker alive until `stop` is called."""
        delay = FIRST_DELAY
        while not self._stopping:
            born = time.monotonic()
            cause = await self._live()
            if cause is None:
                delay = FIRST_DELAY
                continue
            self._decide(cause)
            if time.monotonic() - born > STABLE_AFTER:
                delay = FIRST_DELAY
            self._report_death(cause)
            await self._pause(delay * random.uniform(0.8, 1.2))  # noqa: S311  jitter, no secret
            delay = min(delay * 2, LAST_DELAY)
        self.status.state = "stopped"
        self._decide("the agent is stopping")

    async def load(self, model: ModelFile) -> LoadReport:
        """Take a model into use beside the running one. Never raises; a refusal says why."""
        if self._current is not None:
            verdict = await check_model(model.path)
            if verdict.reason:
                return LoadReport(accepted=False, reason=verdict.reason, permanent=verdict.permanent)
        try:
            async with asyncio.timeout(START_DEADLINE):
                await self._ready.wait()
        except TimeoutError:
            return LoadReport(accepted=False, reason=f"no worker is running: {self.status.last_death}")
        report = await self._request_load(model)
        if report.accepted:
            self._current = model
            del self._load_deaths[model.path]
        return report

    async def reconfigure(self, configure: Configure, deadline: float) -> str | None:
        """Go on with other settings: the worker ends in order and a new one starts at once.

        Returns None once the new worker is at work with the model in use. Otherwise the old settings go on, and
        the reason is returned.
        """
        self._deadline = deadline
        if configure == self._configure:
            return None
        before, position = self._configure, self._position
        if (configure.plugin, configure.options) != (before.plugin, before.options):
            self._position = None
        reason = await self._try_settings(configure)
        if reason is not None:
            self._configure, self._position = before, position
            self._changed.set()
        return reason

    async def _try_settings(self, configure: Configure) -> str | None:
        self._configure = configure
        self._verdict = asyncio.get_running_loop().create_future()
        self._changed.set()
        try:
            async with asyncio.timeout(START_DEADLINE):
                return await self._verdict
        except TimeoutError:
            return f"the worker was not at work after {START_DEADLINE:.0f} s"
        finally:
            self._verdict = None

    def _decide(self, reason: str | None) -> None:
        """Tell a waiting `reconfigure` how the first worker with the new settings fared."""
        if self._verdict is not None and not self._verdict.done():
            self._verdict.set_result(reason)

    async def stop(self) -> None:
        """End the worker in order; `run` returns soon after."""
        self._stopping = True
        self._changed.set()

    @property
    def making_progress(self) -> bool:
        """Whether the worker is at work, or is being brought back: what the systemd watchdog may rely on."""
        connection = self._connection
        return connection is None or self._find_hang(connection) is None

    # -- one life of a worker

    async def _live(self) -> str | None:
        """Run one worker until it ends; returns why it died, or None when it was told to end."""
        self._changed.clear()
        if self._stopping:
            return None
        self.status.state = "starting"
        self.status.report = None
        self._models.clear()
        connection = await Connection.open()
        self._connection = connection
        conversation = asyncio.create_task(self._converse(connection), name="worker conversation")
        watch = asyncio.create_task(self._watch(connection), name="worker watch")
        change = asyncio.create_task(self._wait_for_change(), name="worker change")
        cause = None
        try:
            await asyncio.wait([conversation, watch, change], return_when=asyncio.FIRST_COMPLETED)
            if change.done() and not conversation.done():
                await self._end(connection, conversation)
            else:
                cause = await self._find_cause(connection, conversation, watch)
        finally:
            await self._bury(connection, [conversation, watch, change], cause)
        return cause

    async def _wait_for_change(self) -> None:
        await self._changed.wait()

    async def _converse(self, connection: Connection) -> str | None:
        """Exchange messages with the worker until it is gone. Returns why it has to end, if so."""
        connection.send(msgspec.structs.replace(self._configure, resume=self._position))
        restore: asyncio.Task[LoadReport] | None = None
        try:
            while (message := await connection.receive()) is not None:
                if isinstance(message, Ready) and self._current is not None:
                    restore = asyncio.create_task(self._restore(connection, self._current))
                self._handle(message)
            if restore is not None and restore.done() and not restore.result().accepted:
                return f"cannot go on with the model: {restore.result().reason}"
        except ValueError as error:
            return f"it sent rubbish: {error}"
        finally:
            if restore is not None and not restore.done():
                restore.cancel()
        return None

    async def _restore(self, connection: Connection, model: ModelFile) -> LoadReport:
        report = await self._request_load(model)
        if not report.accepted:
            connection.hang_up()
        return report

    def _handle(self, message: ToAgent) -> None:
        if isinstance(message, Results):
            self._take_results(message)
        elif isinstance(message, Loaded):
            self._take_report(message)
        elif isinstance(message, SourceState):
            self._take_source_state(message)
        else:
            self.status.runtime = message.runtime
            self.status.state = "ready"
            self._ready.set()
            if self._current is None:
                self._decide(None)
            log.debug("worker ready", runtime=message.runtime)

    def _take_results(self, message: Results) -> None:
        model, report = self._models[message.request]
        self.status.samples += len(message.results)
        self.status.dropped += message.dropped
        self.status.failed += message.failed
        if message.results:
            self._trouble = self.status.failure = ""
            self._position = message.results[-1].position
        elif message.failed:
            self.status.failure = message.failure
        self._on_results(ResultBatch(message.results, model, report, message.dropped, message.failed, message.failure))

    def _take_report(self, message: Loaded) -> None:
        pending = self._pending.pop(message.request)
        if message.report.accepted:
            # Results of the model before this one have all been received: the worker sends in order.
            self._models = {message.request: (pending.model, message.report)}
            self.status.report = message.report
            self.status.state = "running"
            self._decide(None)
        if not pending.answer.done():
            pending.answer.set_result(message.report)

    def _take_source_state(self, message: SourceState) -> None:
        if message.state == "skipped":
            log.warning("source skipped samples it could not use", detail=message.detail)
            return
        self.status.source = f"{message.state}: {message.detail}" if message.detail else message.state
        if message.state == "trouble":
            log.warning("source has trouble, will be opened again", reason=message.detail)
            # One event for a trouble, not one for each of the tries to open the source again.
            if message.detail != self._trouble:
                self._trouble = message.detail
                self._on_health("source", message.state, message.detail)
        elif message.state == "ended":
            log.info("source has ended", reason=message.detail)
            self.source_ended.set()

    async def _request_load(self, model: ModelFile) -> LoadReport:
        self._requests += 1
        pending = _Pending(model)
        if self._connection is None or not self._connection.send(Load(self._requests, model)):
            return LoadReport(accepted=False, reason="the worker has just ended")
        self._pending[self._requests] = pending
        return await pending.answer

    async def _watch(self, connection: Connection) -> str:
        """Return what hangs, once something does."""
        while (hang := self._find_hang(connection)) is None:  # noqa: ASYNC110  a page of memory cannot notify
            await asyncio.sleep(max(0.25, self._deadline / 4))
        return hang

    def _find_hang(self, connection: Connection) -> str | None:
        page, now = connection.page, time.monotonic_ns()
        limits = (
            (Track.CONTROL, (Stage.START,), START_DEADLINE),
            (Track.CONTROL, (Stage.LOAD,), LOAD_DEADLINE),
            (Track.CAPTURE, (Stage.OPEN,), OPEN_DEADLINE),
            (Track.CAPTURE, (Stage.READ,), self._deadline),
            (Track.INFERENCE, _SAMPLE_STAGES, self._deadline),
        )
        # Opening an Edge TPU holds the GIL for seconds: the other threads stand still through no fault of their own.
        patience = LOAD_DEADLINE if page.stage(Track.CONTROL) is Stage.LOAD else 0.0
        for track, stages, limit in limits:
            stage = page.stage(track)
            seconds = page.seconds_in_stage(track, now)
            if stage in stages and seconds > max(limit, patience):
                return f"hangs: {stage.words} for {seconds:.1f} s"
        return None

    # -- its end

    async def _end(self, connection: Connection, conversation: asyncio.Task[str | None]) -> None:
        """Tell the worker to stop, and take what it still has to say."""
        connection.send(Stop())
        done, _ = await asyncio.wait([conversation], timeout=STOP_DEADLINE)
        if not done:
            doing = connection.page.last_words()
            log.warning("worker did not stop in time and is killed", deadline=STOP_DEADLINE, doing=doing)

    async def _find_cause(
        self, connection: Connection, conversation: asyncio.Task[str | None], watch: asyncio.Task[str]
    ) -> str:
        doing = connection.page.last_words()
        if watch.done():
            return watch.result()
        if (reason := conversation.result()) is not None:
            return reason
        status = await connection.wait_for_exit(STOP_DEADLINE)
        output = connection.last_output()
        return f"{status} while {doing}" + (f"; it said: {output}" if output else "")

    async def _bury(self, connection: Connection, tasks: Sequence[asyncio.Task[object]], cause: str | None) -> None:
        self._connection = None
        self._ready.clear()
        loading = connection.page.stage(Track.CONTROL) is Stage.LOAD
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await connection.close()
        for pending in self._pending.values():
            if not pending.answer.done():
                pending.answer.set_result(self._unanswered(pending.model, cause if loading else None))
            # The worker loads one after the other: it was at the first of them.
            loading = False
        self._pending.clear()

    def _unanswered(self, model: ModelFile, cause: str | None) -> LoadReport:
        """Report on a load that has got no answer; `cause` is what the worker died of over this model."""
        if cause is None:
            return LoadReport(accepted=False, reason="the worker ended before it had loaded the model")
        self._load_deaths[model.path] += 1
        permanent = self._load_deaths[model.path] >= MAX_LOAD_DEATHS and model != self._current
        return LoadReport(accepted=False, reason=f"the worker died while loading it: {cause}", permanent=permanent)

    def _report_death(self, cause: str) -> None:
        now = time.monotonic()
        self._deaths.append(now)
        self.status.deaths += 1
        self.status.last_death = cause
        self.status.state = "restarting"
        often = len(self._deaths) == DEATHS_PER_HOUR and now - self._deaths[0] < 3600  # noqa: PLR2004  an hour
        log.error("worker died, starting it again", cause=cause, deaths=self.status.deaths)
        self._on_health("worker", "failing" if often else "died", cause)

    async def _pause(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._changed.wait()
