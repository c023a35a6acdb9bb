"""The agent's side of the worker: starts it, watches it, and starts it again whatever native code does to it."""

import asyncio
import random
import time
from collections import deque
from collections.abc import Callable, Sequence

import msgspec
import structlog

from edge_agent.inference.checks.model_check import check_model
from edge_agent.inference.latencies import LatencySums
from edge_agent.inference.protocol import Configure, Figures, Loaded, Ready, Results, SourceState, Stop, ToAgent
from edge_agent.inference.supervision.connection import Connection
from edge_agent.inference.supervision.deaths import Death, LastMoment, Suspects
from edge_agent.inference.supervision.guard import Guard, OnHealth, Plan
from edge_agent.inference.supervision.hangs import START_DEADLINE, find_hang
from edge_agent.inference.supervision.interruption import unless
from edge_agent.inference.supervision.loads import Loads
from edge_agent.inference.supervision.status import ResultBatch, WorkerStatus
from edge_agent.records import LoadReport, ModelFile

log = structlog.get_logger()

# Above the worker's own deadline (worker.STOP_DEADLINE), below the agent's (agent.STOP_DEADLINE).
STOP_DEADLINE = 1.4
FIRST_DELAY, LAST_DELAY = 0.5, 30.0
# A worker that has lived this long is healthy again: the next death starts the delays from the beginning.
STABLE_AFTER = 60.0
# While the model in use cannot run, for want of a device most likely, a fresh worker tries it this often.
FIRST_WAIT, LAST_WAIT = 2.0, 300.0
# More deaths than this within an hour are reported as a state of their own; the worker is still started again.
DEATHS_PER_HOUR = 20


class Supervisor:
    """Runs one worker at a time and brings it back to the model in use after each death.

    `on_results` gets the results, `on_health` what somebody should know.
    """

    def __init__(
        self,
        configure: Configure,
        deadline: float,
        *,
        guard: Guard,
        on_results: Callable[[ResultBatch], None],
        on_health: OnHealth,
    ) -> None:
        self.status = WorkerStatus()
        self.latencies = LatencySums()
        self.source_ended = asyncio.Event()
        self._configure = configure
        self._deadline = deadline
        self._guard = guard
        self._on_results = on_results
        self._on_health = on_health
        self._loads = Loads()
        self._loading = asyncio.Lock()
        self._suspects = Suspects()
        self._connection: Connection | None = None
        self._runtime = configure.runtime
        self._avoid_edgetpu = ""
        self._ready = asyncio.Event()
        self._changed = asyncio.Event()
        self._retry = asyncio.Event()
        self._wait = FIRST_WAIT
        self._first_wait = ""
        self._stopping = False
        self._position: str | None = configure.resume
        self._trouble = ""
        self._verdict: asyncio.Future[str | None] | None = None
        self._deaths: deque[float] = deque(maxlen=DEATHS_PER_HOUR)

    # -- what the rest of the agent calls

    async def run(self) -> None:
        """Keep a worker alive until `stop` is called."""
        delay = FIRST_DELAY
        while not self._stopping:
            born = time.monotonic()
            death = await self._live()
            if death is None:
                delay = FIRST_DELAY
                continue
            self._decide(death.cause)
            if time.monotonic() - born > STABLE_AFTER:
                delay = FIRST_DELAY
            self._report_death(death)
            await unless(self._changed, asyncio.sleep(delay * random.uniform(0.8, 1.2)))  # noqa: S311  jitter
            delay = min(delay * 2, LAST_DELAY)
        self.status.state = "stopped"
        self._decide("the agent is stopping")

    async def load(self, model: ModelFile) -> LoadReport:
        """Take a model into use beside the running one. Never raises; a refusal says why."""
        async with self._loading:
            return await self._load(model)

    async def load_again(self) -> None:
        """Try the model in use once more: perhaps the Edge TPU can be had now."""
        async with self._loading:
            if self._loads.current is None:
                return
            if not self.status.waiting:
                await self._load(self._loads.current)
                return
            self._wait = FIRST_WAIT
            self._retry.set()

    async def _load(self, model: ModelFile) -> LoadReport:
        # The first model has nothing beside it that it could take down, and the one in use has been looked at.
        if self._loads.current is not None and self._loads.current != model:
            for path, whose in ((model.path, ""), (model.cpu_path, "its twin for the CPU: ")):
                if path is not None and (verdict := await check_model(path)).reason:
                    return LoadReport(accepted=False, reason=whose + verdict.reason, permanent=verdict.permanent)
        try:
            async with asyncio.timeout(START_DEADLINE):
                plan = await self._agree_on_runtime(model)
        except TimeoutError:
            return LoadReport(accepted=False, reason=f"no worker is running: {self.status.last_death}")
        report = await self._loads.request(self._connection, model, plan.avoid_edgetpu)
        self._guard.loaded(model, report)
        if report.accepted:
            self._loads.current = model
        elif self._loads.current is None and report.about_device and report.reason != self._first_wait:
            self._first_wait = report.reason
            self._on_health("worker", "waiting", report.reason)
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
            self._suspects = Suspects()
        self._runtime = configure.runtime
        reason = await self._try_settings(configure)
        if reason is not None:
            self._configure, self._position, self._runtime = before, position, before.runtime
            self._changed.set()
        return reason

    async def stop(self) -> None:
        """End the worker in order; `run` returns soon after."""
        self._stopping = True
        self._changed.set()

    @property
    def making_progress(self) -> bool:
        """Whether the worker is at work, or is being brought back: what the systemd watchdog may rely on."""
        connection = self._connection
        return connection is None or find_hang(connection.page, self._deadline) is None

    @property
    def worker_pid(self) -> int | None:
        """The process of the worker, while there is one."""
        return self._connection.pid if self._connection is not None else None

    # -- settings and runtimes that need another worker

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

    async def _agree_on_runtime(self, model: ModelFile) -> Plan:
        """Have a worker that runs on the runtime which suits the model and the device."""
        await self._ready.wait()
        in_use = self._loads.in_use
        device_open = in_use is not None and in_use.accelerator == "edgetpu"
        plan = await self._guard.plan(model, self._configure, device_open=device_open)
        if plan.runtime not in {None, self._runtime}:
            self._runtime = str(plan.runtime)
            self._ready.clear()
            self._changed.set()
            await self._ready.wait()
        return plan

    # -- one life of a worker

    async def _live(self) -> Death | None:
        """Run one worker until it ends; returns how it died, or None when it was told to end."""
        self._changed.clear()
        self._retry.clear()
        if self._stopping:
            return None
        self.status.failure = ""
        if self.status.state != "restarting":
            self.status.state = "starting"
        self.status.report = None
        if self._loads.current is not None:
            planning = self._guard.plan(self._loads.current, self._configure, device_open=False)
            plan = await unless(self._changed, planning)
            if plan is None:
                return None
            self._runtime, self._avoid_edgetpu = plan.runtime or self._runtime, plan.avoid_edgetpu
        connection = await Connection.open()
        self._connection = connection
        conversation = asyncio.create_task(self._converse(connection), name="worker conversation")
        watch = asyncio.create_task(self._watch(connection), name="worker watch")
        orders = [asyncio.create_task(event.wait(), name="worker orders") for event in (self._changed, self._retry)]
        death = None
        try:
            await asyncio.wait([conversation, watch, *orders], return_when=asyncio.FIRST_COMPLETED)
            if any(order.done() for order in orders) and not conversation.done():
                await self._end(connection, conversation)
            else:
                death = await self._find_cause(connection, conversation, watch)
        finally:
            await self._bury(connection, [conversation, watch, *orders], death)
        return death

    async def _converse(self, connection: Connection) -> str | None:
        """Exchange messages with the worker until it is gone. Returns why it has to end, if so."""
        connection.send(
            msgspec.structs.replace(
                self._configure,
                runtime=self._runtime,
                resume=self._position,
                avoid=list(self._suspects.avoid),
                pass_over=list(self._suspects.pass_over),
            )
        )
        restore: asyncio.Task[None] | None = None
        try:
            while (message := await connection.receive()) is not None:
                if isinstance(message, Ready) and self._loads.current is not None:
                    restore = asyncio.create_task(self._restore(connection, self._loads.current))
                self._handle(message)
        except ValueError as error:
            return f"it sent rubbish: {error}"
        finally:
            if restore is not None and not restore.done():
                restore.cancel()
        return None

    async def _restore(self, connection: Connection, model: ModelFile) -> None:
        report = await self._loads.request(connection, model, self._avoid_edgetpu)
        if self._connection is not connection:
            return
        self._guard.loaded(model, report)
        if report.accepted:
            return
        # New settings are no worse than the old ones if the model could not run with those, either.
        self._decide(None if self.status.waiting and not report.permanent else report.reason)
        # No death, and no reason to start workers in a row: most likely the device is gone.
        if report.reason != self.status.waiting:
            log.warning("the model cannot run now", version=model.version, reason=report.reason)
            self._on_health("worker", "waiting", report.reason)
        self.status.state, self.status.waiting = "waiting", report.reason
        await asyncio.sleep(self._wait)
        self._wait = min(self._wait * 2, LAST_WAIT)
        if self.status.waiting:
            self._retry.set()

    def _handle(self, message: ToAgent) -> None:
        match message:
            case Results():
                self._take_results(message)
            case Figures():
                self.latencies.merge(message.latencies)
                self.status.clipped += message.clipped
            case Loaded():
                self._take_report(message)
            case SourceState():
                self._take_source_state(message)
            case Ready():
                self.status.runtime = message.runtime
                # After a death it is told until the model runs again, which may take as long as the device likes.
                if self.status.state != "restarting" or self._loads.current is None:
                    self.status.state = "ready"
                self._ready.set()
                if self._loads.current is None:
                    self._decide(None)
                log.debug("worker ready", runtime=message.runtime)

    def _take_results(self, message: Results) -> None:
        model, report = self._loads.models[message.request]
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
        if message.report.accepted:
            self.status.state, self.status.waiting, self.status.report = "running", "", message.report
            self._wait = FIRST_WAIT
            self._decide(None)
        self._loads.answered(message)

    def _take_source_state(self, message: SourceState) -> None:
        if message.state == "skipped":
            self.status.skipped += message.count
            log.warning("source skipped samples it could not use", count=message.count, newest=message.detail)
            return
        if message.state == "set_aside":
            self.status.set_aside += message.count
            log.warning(
                "samples left out, as they have ended the worker before", count=message.count, newest=message.detail
            )
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

    async def _watch(self, connection: Connection) -> str:
        """Return what hangs, once something does."""
        while (hang := find_hang(connection.page, self._deadline)) is None:  # noqa: ASYNC110  a page cannot notify
            await asyncio.sleep(max(0.25, self._deadline / 4))
        return hang

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
    ) -> Death:
        last = LastMoment.of(connection.page)
        if watch.done():
            return Death(watch.result(), "hung, and was killed", last)
        if (reason := conversation.result()) is not None:
            return Death(reason, "killed for what it sent", last)
        status = await connection.wait_for_exit(STOP_DEADLINE)
        output = connection.last_output()
        cause = f"{status} while {last.doing}" + (f"; it said: {output}" if output else "")
        return Death(cause, status, last, outside=status == "killed by SIGKILL")

    async def _bury(self, connection: Connection, tasks: Sequence[asyncio.Task[object]], death: Death | None) -> None:
        self._connection = None
        self._ready.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await connection.close()
        loading = death is not None and death.last.loading
        if death is not None:
            self._guard.died(death, self._loads.in_use, self._loads.pending if loading else None)
        self._loads.buried(death.cause if death is not None and loading else None)

    def _report_death(self, death: Death) -> None:
        now = time.monotonic()
        self._deaths.append(now)
        self.status.deaths += 1
        self.status.last_death = death.cause
        self.status.state = "restarting"
        often = len(self._deaths) == DEATHS_PER_HOUR and now - self._deaths[0] < 3600  # noqa: PLR2004  an hour
        log.error("worker died, starting it again", cause=death.cause, deaths=self.status.deaths)
        state = "failing" if often else "died"
        self._on_health("worker", state, death.cause, exit_status=death.exit_status, stage=death.last.doing)
        if what := self._suspects.blame(death.last):
            log.error("a sample has ended the worker twice and is left out", sample=what)
            self._on_health("source", "sample_set_aside", f"{what} has ended the worker twice: {death.cause}")
