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
from edge_agent.inference.supervision.connection import Connection, Rubbish
from edge_agent.inference.supervision.deaths import MAX_SAMPLE_DEATHS, Death, LastMoment, Suspects
from edge_agent.inference.supervision.guard import Guard, OnHealth, Plan
from edge_agent.inference.supervision.hangs import LOAD_DEADLINE, START_DEADLINE, find_hang
from edge_agent.inference.supervision.interruption import unless
from edge_agent.inference.supervision.loads import Loads, Unasked
from edge_agent.inference.supervision.source_news import SourceNews
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
# How long somebody with another model waits for a worker that starts and brings the model in use back.
READY_DEADLINE = START_DEADLINE + LOAD_DEADLINE
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
        self._plan = Plan()
        self._on_probation = False
        self._ready = asyncio.Event()
        self._changed = asyncio.Event()
        self._retry = asyncio.Event()
        self._wait = FIRST_WAIT
        self._first_wait = ""
        self._stopping = False
        self._position: str | None = configure.resume
        self._source_news = SourceNews(self.status, on_health=on_health, on_end=self.source_ended.set)
        self._verdict: asyncio.Future[str | None] | None = None
        self._on_trial: asyncio.Future[str | None] | None = None
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
        self._on_trial = self._verdict
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
            plan = await self._agree_on_runtime(model)
        except TimeoutError:
            why = self.status.last_death or f"after {READY_DEADLINE:.0f} s it is still {self.status.state}"
            return LoadReport(accepted=False, reason=f"no worker is ready: {why}")
        report = await self._loads.request(self._connection, model, plan)
        first = self._loads.current is None and not report.accepted
        if first and report.about_device and report.reason != self._first_wait:
            self._first_wait = report.reason
            self._on_health("worker", "waiting", report.reason)
        return report

    async def reconfigure(self, configure: Configure, deadline: float) -> str | None:
        """Go on with other settings: the worker ends in order and a new one starts at once.

        Returns None once the new worker is at work with the model in use. Otherwise the old settings go on, and
        the reason is returned.
        """
        before, position, suspects = self._configure, self._position, self._suspects
        if configure == before:
            self._deadline = deadline
            return None
        if (configure.plugin, configure.options) != (before.plugin, before.options):
            self._position = None
            self._suspects = Suspects()
        self._runtime = configure.runtime
        reason = await self._try_settings(configure)
        if reason is None:
            self._deadline = deadline
        else:
            self._configure, self._position, self._suspects = before, position, suspects
            self._runtime = before.runtime
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
        return connection is None or self._find_hang(connection) is None

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
        """Tell a waiting `reconfigure` how the first worker with the new settings fared: no other worker decides."""
        if self._on_trial is not None and not self._on_trial.done():
            self._on_trial.set_result(reason)

    async def _agree_on_runtime(self, model: ModelFile) -> Plan:
        """Have a worker that runs on the runtime which suits the model and the device."""
        await self._until_ready()
        in_use = self._loads.in_use
        device_open = in_use is not None and in_use.accelerator == "edgetpu"
        plan = await self._guard.plan(model, self._configure, device_open=device_open)
        if plan.runtime not in {None, self._runtime}:
            self._runtime = str(plan.runtime)
            self._ready.clear()
            self._changed.set()
            await self._until_ready()
        return plan

    async def _until_ready(self) -> None:
        async with asyncio.timeout(READY_DEADLINE):
            await self._ready.wait()

    # -- one life of a worker

    async def _live(self) -> Death | None:
        """Run one worker until it ends; returns how it died, or None when it was told to end."""
        self._changed.clear()
        self._retry.clear()
        self._on_trial = self._verdict
        if self._stopping:
            return None
        self.status.failure = ""
        if self.status.state != "restarting":
            self.status.state = "starting"
        self.status.report = None
        self.status.source = WorkerStatus.source
        if self._loads.current is not None:
            planning = self._guard.plan(self._loads.current, self._configure, device_open=False)
            plan = await unless(self._changed, planning)
            if plan is None:
                return None
            self._runtime, self._plan = plan.runtime or self._runtime, plan
        try:
            connection = await Connection.open()
        except OSError as error:  # no memory, or too many processes or open files: another time it may work
            return Death.unborn(f"cannot be started: {error}")
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
        except (Rubbish, Unasked) as error:
            return str(error)
        finally:
            if restore is not None and not restore.done():
                restore.cancel()
        return None

    async def _restore(self, connection: Connection, model: ModelFile) -> None:
        report = await self._loads.request(connection, model, self._plan)
        if self._connection is not connection:
            return
        self._ready.set()
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
        # Not while the worker is at another model, which may do better.
        async with self._loading:
            if self.status.waiting:
                self._retry.set()

    def _handle(self, message: ToAgent) -> None:
        match message:
            case Results():
                self._take_results(message)
            case Figures():
                self.latencies.merge(message.latencies)
                self.status.add(message)
            case Loaded():
                self._take_report(message)
            case SourceState():
                self._source_news.take(message)
            case Ready():
                self.status.runtime = message.runtime
                # After a death it is told until the model runs again, which may take as long as the device likes.
                if self.status.state != "restarting" or self._loads.current is None:
                    self.status.state = "ready"
                if self._loads.current is None:
                    self._ready.set()
                    self._decide(None)
                log.debug("worker ready", runtime=message.runtime)

    def _take_results(self, message: Results) -> None:
        model, report = self._loads.made_by(message.request)
        self.status.samples += len(message.results)
        self.status.dropped += message.dropped
        self.status.failed += message.failed
        if message.results:
            self.status.failure = ""
            self._source_news.well()
            self._position = message.results[-1].position
            if self._on_probation:
                self._end_probation(report)
        elif message.failed:
            self.status.failure = message.failure
        self._on_results(ResultBatch(message.results, model, report, message.dropped, message.failed, message.failure))

    def _take_report(self, message: Loaded) -> None:
        if message.report.accepted:
            self.status.state, self.status.waiting, self.status.report = "running", "", message.report
            self._wait = FIRST_WAIT
            self._decide(None)
        self._guard.loaded(self._loads.answered(message), message.report)

    def _end_probation(self, report: LoadReport) -> None:
        """A sample was left out, and the model works: if it does so on the device, that was not to blame."""
        self._on_probation = False
        if report.accelerator == "edgetpu":
            self._guard.acquit(MAX_SAMPLE_DEATHS)

    async def _watch(self, connection: Connection) -> str:
        """Return what hangs, once something does."""
        while (hang := self._find_hang(connection)) is None:  # noqa: ASYNC110  a page cannot notify
            await asyncio.sleep(max(0.25, self._deadline / 4))
        return hang

    def _find_hang(self, connection: Connection) -> str | None:
        return find_hang(connection.page, self._deadline, self._loads.asked_ns)

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
            return Death(watch.result(), "hung, and was killed", last, hung=True)
        if (reason := conversation.result()) is not None:
            return Death(reason, "killed for what it sent", last)
        status = await connection.wait_for_exit(STOP_DEADLINE)
        output = await connection.last_output()
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
        self._on_probation = False
        if what := self._suspects.blame(death.last):
            self._on_probation = death.last.on_sample
            log.error("a sample has ended the worker twice and is left out", sample=what)
            self._on_health("source", "sample_set_aside", f"{what} has ended the worker twice: {death.cause}")
