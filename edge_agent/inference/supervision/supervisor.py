"""The agent's side of the worker: starts it, watches it, and starts it again whatever native code does to it."""

import asyncio
import random
import time
from collections.abc import Callable

import msgspec
import structlog

from edge_agent.inference.latencies import LatencySums
from edge_agent.inference.protocol import (
    Configure,
    Figures,
    Loaded,
    Ready,
    Results,
    Reverted,
    Role,
    ShadowEnded,
    ShadowTally,
    SourceState,
    ToAgent,
)
from edge_agent.inference.supervision.beside import Beside, check_files
from edge_agent.inference.supervision.connection import Connection, Rubbish
from edge_agent.inference.supervision.death_log import DeathLog
from edge_agent.inference.supervision.deaths import Death, Suspects
from edge_agent.inference.supervision.guard import Guard, OnHealth, Plan
from edge_agent.inference.supervision.hangs import LOAD_DEADLINE, START_DEADLINE, find_hang
from edge_agent.inference.supervision.interruption import unless
from edge_agent.inference.supervision.life import Life
from edge_agent.inference.supervision.loads import Loads, Unasked
from edge_agent.inference.supervision.shadows import ShadowFigures
from edge_agent.inference.supervision.source_news import SourceNews
from edge_agent.inference.supervision.status import ResultBatch, WorkerStatus
from edge_agent.inference.supervision.verdicts import Verdict
from edge_agent.inference.supervision.waiting import Waiting
from edge_agent.records import LoadReport, ModelFile, Terms

log = structlog.get_logger()

# Above the worker's own deadline (worker.STOP_DEADLINE), below the agent's (agent.STOP_DEADLINE).
STOP_DEADLINE = 1.4
FIRST_DELAY, LAST_DELAY = 0.5, 30.0
# A worker that has lived this long is healthy again: the next death starts the delays from the beginning.
STABLE_AFTER = 60.0
# How long somebody with another model waits for a worker that starts and brings the model in use back.
READY_DEADLINE = START_DEADLINE + LOAD_DEADLINE


class Supervisor:
    """Runs one worker at a time and brings it back to the model in use after each death.

    `on_results` gets the results, `on_health` what somebody should know. `on_revert` is called when a model on trial
    has failed and the one before it is in use again, or comes with the next worker; `on_shadow_end` when the shadow has
    ended by itself. Both are given the reason in a line, and may be set at any time.
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
        self.on_revert: Callable[[str], None] = lambda _: None
        self.on_shadow_end: Callable[[str], None] = lambda _: None
        self._loads = Loads()
        self._beside = Beside(self._loads, on_shadow_end=self._shadow_ended)
        self._shadows = self._beside.shadows
        self._loading = asyncio.Lock()
        self._death_log = DeathLog(self.status, guard, on_health)
        self._connection: Connection | None = None
        self._runtime = configure.runtime
        self._plan = Plan()
        self._ready = asyncio.Event()
        self._changed = asyncio.Event()
        self._waiting = Waiting(self.status, on_health)
        self._stopping = False
        self._position: str | None = configure.resume
        self._source_news = SourceNews(self.status, on_health=on_health, on_end=self.source_ended.set)
        self._verdict = Verdict()

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
            if time.monotonic() - born > STABLE_AFTER:
                delay = FIRST_DELAY
            self._mourn(death)
            await unless(self._changed, asyncio.sleep(delay * random.uniform(0.8, 1.2)))  # noqa: S311  jitter
            delay = min(delay * 2, LAST_DELAY)
        self.status.state = "stopped"
        self._verdict.next_worker()
        self._verdict.give("the agent is stopping")

    async def load(self, model: ModelFile, terms: Terms = Terms()) -> LoadReport:  # noqa: B008  it is frozen
        """Take a model into use beside the running one. Never raises; a refusal says why.

        With `terms.trial` the model before is kept until `keep` or `revert` is called, or `on_revert` calls.
        """
        async with self._loading:
            return await self._load(model, terms)

    async def load_again(self) -> None:
        """Try the model in use once more: perhaps the Edge TPU can be had now."""
        async with self._loading:
            if self._loads.current is None:
                return
            if not self.status.waiting:
                await self._load_current(role="again")
                return
            self._waiting.try_now()

    async def revert(self, reason: str) -> None:
        """Give up the model on trial: the one before takes over again, within a sample where the worker has it."""
        async with self._loading:
            if self._loads.before is None:
                return  # there is none, or the worker has just gone back by itself
            log.warning("going back to the model before", reason=reason)
            self._loads.give_up()
            if self._connection is None:
                self._changed.set()
            elif not (await self._loads.go_back(self._connection) or await self._load_current()):
                self._waiting.retry.set()

    def keep(self) -> None:
        """The model on trial stays: the one before it is closed."""
        self._loads.keep(self._connection)

    async def shadow(self, model: ModelFile | None, share: float, terms: Terms) -> LoadReport:
        """Run a model beside the one in use on a share (0 to 1) of the samples, for figures; None ends that.

        Never raises; a refusal says why. `terms` are looked at first, as for `load`, and their tolerance is that of the
        figures. It uses the Edge TPU only if the model in use does, too: opening it would hold up the results.
        """
        async with self._loading:
            if model is not None:
                return await self._beside.start_shadow(self._connection, model, share, terms)
            self._beside.end_shadow(self._connection)
            return LoadReport(accepted=True)

    def take_shadow(self) -> ShadowFigures | None:
        """Return what the shadow came to since the last call, or None for nothing."""
        return self._shadows.take()

    async def reconfigure(self, configure: Configure, deadline: float) -> str | None:
        """Go on with other settings: the worker ends in order and a new one starts at once.

        Returns None once the new worker is at work with the model in use. Otherwise the old settings go on, and
        the reason is returned.
        """
        before, position, suspects = self._configure, self._position, self._death_log.suspects
        if configure == before:
            self._deadline = deadline
            return None
        if (configure.plugin, configure.options) != (before.plugin, before.options):
            self._position = None
            self._death_log.suspects = Suspects()
        self._runtime = configure.runtime
        self._configure = configure
        self._changed.set()
        reason = await self._verdict.wait(START_DEADLINE)
        if reason is None:
            self._deadline = deadline
        else:
            self._configure, self._position, self._death_log.suspects = before, position, suspects
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

    # -- models, and settings and runtimes that need another worker

    async def _load(self, model: ModelFile, terms: Terms = Terms(), role: Role = "use") -> LoadReport:  # noqa: B008
        # The first model has nothing beside it that it could take down, and the one in use has been looked at.
        looked_at = self._loads.current is None or self._loads.current == model
        if not looked_at and (refusal := await check_files(model)) is not None:
            return refusal
        try:
            plan = await self._agree_on_runtime(model)
        except TimeoutError:
            why = self.status.last_death or f"after {READY_DEADLINE:.0f} s it is still {self.status.state}"
            return LoadReport(accepted=False, reason=f"no worker is ready: {why}")
        report = await self._loads.request(self._connection, model, plan, terms, role=role)
        if self._loads.current is None and not report.accepted and report.about_device:
            self._waiting.tell_of_first(report.reason)
        return report

    async def _load_current(self, role: Role = "use") -> bool:
        current = self._loads.current
        return current is not None and (await self._load(current, role=role)).accepted

    async def _agree_on_runtime(self, model: ModelFile) -> Plan:
        """Have a worker that runs on the runtime which suits the model and the device."""
        await self._until_ready()
        plan = await self._guard.plan(model, self._configure, device_open=self._loads.on_device)
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
        self._waiting.retry.clear()
        self._verdict.next_worker()
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
        life = Life(
            connection,
            self._converse(connection),
            lambda: self._find_hang(connection),
            interval=max(0.25, self._deadline / 4),
        )
        death = None
        try:
            death = await life.until_end([self._changed, self._waiting.retry], STOP_DEADLINE)
            if death is not None:
                death = self._loads.judge(death)
        finally:
            self._connection = None
            self._ready.clear()
            await life.close()
            self._bury(death)
        return death

    async def _converse(self, connection: Connection) -> str | None:
        """Exchange messages with the worker until it is gone. Returns why it has to end, if so."""
        connection.send(
            msgspec.structs.replace(
                self._configure,
                runtime=self._runtime,
                resume=self._position,
                avoid=list(self._death_log.suspects.avoid),
                pass_over=list(self._death_log.suspects.pass_over),
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
        report = await self._loads.request(connection, model, self._plan, role="again")
        if self._connection is not connection:
            return
        self._ready.set()
        if report.accepted:
            await self._beside.restore(connection)
            return
        # New settings are no worse than the old ones if the model could not run with those, either.
        self._verdict.give(None if self.status.waiting and not report.permanent else report.reason)
        # No death, and no reason to start workers in a row: most likely the device is gone.
        self._waiting.begin(model, report.reason)
        await self._waiting.pause()
        # Not while the worker is at another model, which may do better.
        async with self._loading:
            if self.status.waiting:
                self._waiting.retry.set()

    def _handle(self, message: ToAgent) -> None:
        match message:
            case Results():
                self._take_results(message)
            case Figures():
                self.latencies.merge(message.latencies)
                self.status.add(message)
            case Loaded():
                self._take_report(message)
            case Reverted():
                self._take_reverted(message)
            case ShadowTally() | ShadowEnded():
                self._shadows.take_message(message)
            case SourceState():
                self._source_news.take(message)
            case Ready():
                self.status.runtime = message.runtime
                # After a death it is told until the model runs again, which may take as long as the device likes.
                if self.status.state != "restarting" or self._loads.current is None:
                    self.status.state = "ready"
                if self._loads.current is None:
                    self._ready.set()
                    self._verdict.give(None)
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
            self._death_log.works(report)
        elif message.failed:
            self.status.failure = message.failure
        self._on_results(ResultBatch(message.results, model, report, message.dropped, message.failed, message.failure))

    def _take_report(self, message: Loaded) -> None:
        asked = self._loads.answered(message)
        if asked.load.role in {"use", "again"}:
            if message.report.accepted:
                self._note_in_use(message.report)
                self._verdict.give(None)
            self._guard.loaded(asked.plan, message.report)
        elif asked.load.role == "shadow" and message.report.accepted:
            self._shadows.begun(asked.load)

    def _note_in_use(self, report: LoadReport) -> None:
        self._waiting.over()
        self.status.state, self.status.report = "running", report

    def _take_reverted(self, message: Reverted) -> None:
        # Whoever wants it back need not be told that the worker has had the same thought at the same moment.
        is_news = bool(message.reason) and not self._loads.is_going_back
        back = self._loads.reverted(message)
        self._note_in_use(back.report)
        self.status.failure = ""
        # It has not been opened for this.
        self._guard.loaded(msgspec.structs.replace(back.plan, beside=True), back.report)
        self._loads.keep(self._connection)
        if is_news:
            log.error("the model on trial has failed, the one before it goes on", reason=message.reason)
            self.on_revert(message.reason)

    def _find_hang(self, connection: Connection) -> str | None:
        return find_hang(connection.page, self._deadline, self._loads.asked_ns)

    def _shadow_ended(self, reason: str) -> None:
        self.on_shadow_end(reason)

    def _bury(self, death: Death | None) -> None:
        loading = death is not None and death.last.loading
        if death is not None and not death.of_trial:
            self._guard.died(death, self._loads.in_use, self._loads.pending if loading else None)
        self._loads.buried(death.cause if death is not None and loading else None)

    def _mourn(self, death: Death) -> None:
        """Tell of a death, and go on without what has caused it."""
        self._verdict.give(death.cause)
        self._death_log.add(death)
        if death.of_trial:
            self._loads.give_up()
            self.on_revert(f"the worker died: {death.cause}")
        if death.over_shadow:
            self._shadows.end(f"the worker died: {death.cause}")
