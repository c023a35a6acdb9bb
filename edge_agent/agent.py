"""The agent: builds the parts from the settings, runs them, and stops them in order.

Order of stopping: first the worker, so that what it has finished still becomes events; then the actions; then the
sender, which flushes what it can; the queue last, which keeps the rest on disk.
"""

import asyncio
import os
import signal
import time
from collections import Counter
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any

import msgspec
import structlog

from edge_agent import __version__
from edge_agent.actions.rules import Rule, RuleSet
from edge_agent.actions.runner import ActionRunner
from edge_agent.configuration import Configuration, load_configuration
from edge_agent.device.clock import Clock
from edge_agent.device.identity import boot_id, device_id
from edge_agent.inference.supervisor import Supervisor
from edge_agent.models.open import open_store
from edge_agent.models.rollout import Rollout, RolloutChange
from edge_agent.models.slots import Slots
from edge_agent.pipeline import Pipeline
from edge_agent.service.logs import configure as configure_logs
from edge_agent.service.notify import ServiceManager
from edge_agent.settings.faults import SettingsError
from edge_agent.status import Snapshot, status_line
from edge_agent.telemetry.envelope import Envelope
from edge_agent.telemetry.open import open_sink
from edge_agent.telemetry.queue import Loss, Queue
from edge_agent.telemetry.sender import Sender

log = structlog.get_logger()

# Ctrl-C has to be done within two seconds. The worker has its own deadline (supervisor.STOP_DEADLINE, 1.4 s), the
# rest shares what is left; systemd's TimeoutStopSec lies far above.
ACTIONS_DEADLINE = 0.1
SENDER_DEADLINE = 0.2
QUEUE_DEADLINE = 1.0
TICK = 5.0


class Directories(msgspec.Struct, frozen=True):
    """Where the agent keeps its state, and where what need not outlive the boot."""

    state: Path
    runtime: Path | None = None


class Agent:
    """One running agent. Make it inside the event loop, then `run` it."""

    def __init__(self, config_file: Path, configuration: Configuration, directories: Directories) -> None:
        settings = configuration.settings
        self._config_file = config_file
        self._configuration = configuration
        self._directories = directories
        self._service = ServiceManager()
        self._stop = asyncio.Event()
        self._reload = asyncio.Event()
        self._reload_problem: str | None = None
        self._failed = False
        self._measured = (0, time.monotonic())
        self._rate = 0.0
        self._lost_samples: Counter[str] = Counter()
        self._tasks: list[asyncio.Task[None]] = []
        self._clock = Clock()
        self._queue = Queue(
            directories.state / "queue",
            runtime_directory=directories.runtime,
            max_size=settings.telemetry.queue.max_size,
            commit_interval=settings.telemetry.queue.commit_interval,
            boot_id=boot_id(),
        )
        name = device_id(settings.device.id, state_dir=directories.state)
        self._envelope = Envelope(name, settings.device.labels, self._clock, self._queue)
        self._actions = ActionRunner()
        self._rules = RuleSet(Rule.from_settings(action) for action in settings.actions)
        self._pipeline = Pipeline(self._envelope, self._rules, self._actions.submit)
        self._sender = Sender(
            self._queue, open_sink(settings.telemetry.sink, os.environ), linger=settings.telemetry.linger
        )
        self._supervisor = Supervisor(
            configuration.worker(),
            settings.inference.deadline,
            on_results=self._pipeline.take,
            on_health=self._report_health,
        )
        self._rollout = self._make_rollout(configuration)

    async def run(self) -> int:
        """Run until SIGTERM or SIGINT; returns the exit status. Raises QueueLocked, OSError."""
        self._handle_signals()
        await self._queue.open()
        try:
            self._greet()
            for name, part in self._parts().items():
                self._start(name, part)
            self._service.ready("starting")
            await self._stop.wait()
        finally:
            await self._shut_down()
        return 1 if self._failed else 0

    def _parts(self) -> dict[str, Coroutine[Any, Any, None]]:
        return {
            "queue": self._queue.run(),
            "sender": self._sender.run(),
            "worker": self._supervisor.run(),
            "models": self._run_rollout(self._rollout),
            "reload": self._reload_on_request(),
            "housekeeping": self._keep_house(),
        }

    def _start(self, name: str, part: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(part, name=name)
        task.add_done_callback(self._part_ended)
        self._tasks.append(task)
        return task

    def _part_ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.remove(task)
        if task.cancelled() or (error := task.exception()) is None:
            return
        # Nobody can tell what still works after a bug; systemd starts the whole agent afresh.
        log.critical("a part of the agent failed, ending the agent", part=task.get_name(), exc_info=error)
        self._failed = True
        self._stop.set()

    def _handle_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop_on_signal, number)
        loop.add_signal_handler(signal.SIGHUP, self._reload.set)

    def _stop_on_signal(self, number: signal.Signals) -> None:
        if self._stop.is_set():
            # Asked twice: the person does not want to wait. What is queued is safe in the journal.
            os._exit(128 + number)
        log.info("stopping", signal=number.name)
        self._stop.set()

    def _greet(self) -> None:
        settings = self._configuration.settings
        log.info("edge-agent starting", version=__version__, config=str(self._config_file))
        log.info("device", id=self._envelope.device_id, state=str(self._directories.state))
        options = ", ".join(f"{name} {value}" for name, value in settings.source.options.items())
        log.info("source", plugin=settings.source.plugin, options=options)
        log.info("events go to", sink=str(settings.telemetry.sink), waiting=self._queue.depth)

    # -- what happens

    def _make_rollout(self, configuration: Configuration) -> Rollout:
        model = configuration.settings.model
        return Rollout(
            Slots(self._directories.state / "models", str(model.url)),
            open_store(model.url),
            self._supervisor,
            model_name=model.model_name,
            poll_interval=model.poll_interval,
            on_change=self._report_model,
        )

    async def _run_rollout(self, rollout: Rollout) -> None:
        log.info("looking for a model", url=str(self._configuration.settings.model.url))
        await rollout.start()
        await rollout.run()

    def _report_model(self, change: RolloutChange) -> None:
        release, previous, report = change.release, change.previous, change.report
        committed = change.state == "committed"
        self._envelope.put_model(
            time.monotonic_ns(),
            model_name=self._configuration.settings.model.model_name,
            model_version=release.version,
            state=change.state,
            accelerator=report.accelerator if committed else None,
            previous_version=previous.version if previous else None,
            accuracy=release.accuracy,
            reason=None if committed else report.reason,
        )

    def _report_health(self, component: str, state: str, detail: str) -> None:
        self._envelope.put_health(time.monotonic_ns(), component=component, state=state, detail=detail[:1000])

    # -- housekeeping

    async def _keep_house(self) -> None:
        interval = min(TICK, self._service.watchdog_interval or TICK)
        while True:
            self._measure_rate()
            self._count_lost_samples()
            self._queue.report_losses(self._describe_losses, self._clock.wall_ms(time.monotonic_ns()))
            self._service.status(status_line(self.snapshot()))
            if self._supervisor.making_progress:
                self._service.watchdog()
            await asyncio.sleep(interval)

    def _measure_rate(self) -> None:
        samples, now = self._supervisor.status.samples, time.monotonic()
        before, then = self._measured
        self._rate = (samples - before) / max(1e-3, now - then)
        self._measured = (samples, now)

    def _count_lost_samples(self) -> None:
        """Count what never became an event: samples that the model had no time for, or could not work on."""
        status = self._supervisor.status
        now = self._clock.wall_ms(time.monotonic_ns())
        for cause, total in (("source_overrun", status.dropped), ("sample_failed", status.failed)):
            count = total - self._lost_samples[cause]
            self._lost_samples[cause] = total
            if count:
                self._queue.count_loss(cause, count, now, now)
                if cause == "source_overrun":
                    log.warning("the model is too slow for the source, samples were dropped", count=count)

    def _describe_losses(self, first_number: int, losses: Sequence[Loss]) -> list[bytes]:
        return [
            self._envelope.encode_loss(
                number,
                time.monotonic_ns(),
                cause=loss.cause,
                count=loss.count,
                first_timestamp=loss.first_ms,
                last_timestamp=loss.last_ms,
            )
            for number, loss in enumerate(losses, start=first_number)
        ]

    def snapshot(self) -> Snapshot:
        """Say how everything stands."""
        now_ms = self._clock.wall_ms(time.monotonic_ns())
        oldest_ms = self._queue.oldest_ms
        return Snapshot(
            worker=self._supervisor.status,
            model=self._rollout.status,
            sender=self._sender.state,
            model_name=self._configuration.settings.model.model_name,
            latest=self._pipeline.prediction,
            rate=self._rate,
            waiting=self._queue.depth,
            oldest=0.0 if oldest_ms is None else max(0, now_ms - oldest_ms) / 1000,
            queue_trouble=self._queue.trouble,
            reload_problem=self._reload_problem,
        )

    # -- new settings

    async def _reload_on_request(self) -> None:
        while True:
            await self._reload.wait()
            self._reload.clear()
            self._service.reloading()
            self._reload_problem = await self._reload_settings()
            self._service.ready(status_line(self.snapshot()))

    async def _reload_settings(self) -> str | None:
        """Take the file's new settings into use; returns why not."""
        try:
            new = await load_configuration(self._config_file)
            await self._apply(new)
        except SettingsError as error:
            for fault in error.faults:
                log.error(f"{fault}; the old settings go on")
            return str(error.faults[0])
        except ReloadRefused as refused:
            log.error(f"{refused}; the old settings go on")
            return str(refused)
        log.info("settings reloaded", config=str(self._config_file))
        return None

    async def _apply(self, new: Configuration) -> None:
        old = self._configuration
        # The worker is the one part that can refuse; it goes first, so that nothing has to be taken back.
        refused = await self._supervisor.reconfigure(new.worker(), new.settings.inference.deadline)
        if refused is not None:
            raise ReloadRefused(f"{self._config_file}: the worker cannot work with them: {refused}")
        self._configuration = new
        settings = new.settings
        configure_logs(settings.log.level, settings.log.format)
        name = device_id(settings.device.id, state_dir=self._directories.state)
        self._envelope.describe_device(name, settings.device.labels)
        self._rules.replace(Rule.from_settings(action) for action in settings.actions)
        queue = settings.telemetry.queue
        self._queue.configure(max_size=queue.max_size, commit_interval=queue.commit_interval)
        self._sender.linger = settings.telemetry.linger
        # A sink that waits for a person may have been mended: whoever reloads wants it tried now.
        if settings.telemetry.sink != old.settings.telemetry.sink or self._sender.state.status == "needs_person":
            await self._sender.replace_sink(open_sink(settings.telemetry.sink, os.environ))
        await self._apply_model(old, new)

    async def _apply_model(self, old: Configuration, new: Configuration) -> None:
        before, after = old.settings.model, new.settings.model
        if (before.url, before.model_name) == (after.url, after.model_name):
            self._rollout.configure(poll_interval=after.poll_interval)
            self._rollout.poll_now()
            return
        # The old model goes on until one from the new place has been accepted.
        await self._rollout.stop()
        self._rollout = self._make_rollout(new)
        self._start("models", self._run_rollout(self._rollout))

    # -- the end

    async def _shut_down(self) -> None:
        self._service.stopping()
        await self._rollout.stop()
        worker = [task for task in self._tasks if task.get_name() == "worker"]
        await self._supervisor.stop()
        await asyncio.gather(*worker, return_exceptions=True)
        await self._actions.stop(ACTIONS_DEADLINE)
        await self._sender.stop(SENDER_DEADLINE)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        waiting = self._queue.depth
        await self._queue.close(QUEUE_DEADLINE)
        log.info("stopped", results=self._supervisor.status.samples, waiting=waiting)


class ReloadRefused(Exception):
    """New settings that are right in themselves cannot be taken into use now."""
