"""The agent: builds the parts from the settings, runs them, and stops them in order.

Order of stopping: first the worker, so that what it has finished still becomes events; then the actions; then the
sender, which flushes what it can; the queue last, which keeps the rest on disk.
"""

import asyncio
import os
import time
from collections.abc import Coroutine
from dataclasses import asdict
from pathlib import Path
from typing import Any

import structlog

from edge_agent import __version__
from edge_agent.actions.rules import RuleSet, rules_of
from edge_agent.actions.runner import ActionRunner
from edge_agent.announcer import Announcer
from edge_agent.configuration import Configuration, load_configuration
from edge_agent.delivery import Delivery
from edge_agent.device.boots import Boots
from edge_agent.device.clock import Clock
from edge_agent.device.identity import boot_id, device_id
from edge_agent.device.monitor import DeviceMonitor
from edge_agent.device.sensors import Sensors
from edge_agent.device.timekeeper import Timekeeper
from edge_agent.directories import Directories
from edge_agent.housekeeping import Housekeeping, count
from edge_agent.inference.accelerators.devices import find_library, list_devices
from edge_agent.inference.accelerators.recovery import Recovery
from edge_agent.inference.accelerators.watch import DeviceWatch
from edge_agent.inference.runtime.choice import RuntimeChoice
from edge_agent.inference.supervision.status import ResultBatch
from edge_agent.inference.supervision.supervisor import Supervisor
from edge_agent.latency import Histogram
from edge_agent.lifecycle import Lifecycle
from edge_agent.pipeline import Pipeline
from edge_agent.raw_data.destinations import Destination as PictureDestination
from edge_agent.raw_data.open import open_images
from edge_agent.raw_data.spool import Spool
from edge_agent.raw_data.uploads import Uploads
from edge_agent.records import Latency
from edge_agent.report import Reloaded, StatusReport
from edge_agent.service.logs import configure as configure_logs
from edge_agent.settings.faults import SettingsError
from edge_agent.settings.location import Destination
from edge_agent.settings.schema import Settings
from edge_agent.status import Snapshot, make_report, status_line
from edge_agent.telemetry.envelope import Envelope
from edge_agent.telemetry.metering import Meter
from edge_agent.telemetry.open import open_sink
from edge_agent.telemetry.publishing import make_publisher
from edge_agent.telemetry.queue import Queue
from edge_agent.telemetry.sender import Sender
from edge_agent.telemetry.sinks import Sink
from edge_agent.telemetry.stamping import StampingSink

log = structlog.get_logger()

# Ctrl-C has to be done within two seconds. The worker has its own deadline (supervisor.STOP_DEADLINE, 1.4 s), the
# rest shares what is left; systemd's TimeoutStopSec lies far above.
ACTIONS_DEADLINE = 0.1
SENDER_DEADLINE = 0.2
UPLOADS_DEADLINE = 0.2
QUEUE_DEADLINE = 1.0
# Which runtime gets along with the Edge TPU's driver, in the state directory.
RUNTIMES_FILE = "runtimes.json"
# What the day has sent, where [telemetry] daily_budget is set, in the state directory.
METER_FILE = "sent-today.json"
# What the clock was worth in each boot, there too.
BOOTS_FILE = "boots.json"
OLD_GO_ON = "the old settings go on"


class Agent:
    """One running agent. Make it inside the event loop, then `run` it."""

    def __init__(
        self, config_file: Path, configuration: Configuration, directories: Directories, lifecycle: Lifecycle
    ) -> None:
        settings = configuration.settings
        self._config_file = config_file
        self._configuration = configuration
        self._directories = directories
        self._lifecycle = lifecycle
        self._started = time.monotonic()
        self._reload_problem: str | None = None
        self._failed = False
        self._tasks: list[asyncio.Task[None]] = []
        self._boot_id = boot_id()
        self._clock = Clock()
        self._timekeeper = Timekeeper(
            self._clock,
            Boots(directories.state / BOOTS_FILE),
            boot_id=self._boot_id,
            on_change=self._tell_clock,
        )
        self._queue = Queue(
            directories.state / "queue",
            runtime_directory=directories.runtime,
            boot_id=self._boot_id,
            **asdict(settings.telemetry.queue),
        )
        name = device_id(settings.device.id, state_dir=directories.state)
        self._envelope = Envelope(name, settings.device.labels, self._clock, self._queue, boot_id=self._boot_id)
        self._announcer = Announcer(
            self._envelope, self._boot_id, lambda: self._configuration.settings.model.model_name
        )
        self._actions = ActionRunner(self._announcer.health)
        self._rules = RuleSet(rules_of(settings))
        publisher = make_publisher(settings.telemetry, self._envelope)
        self._pipeline = Pipeline(self._envelope, self._rules, self._actions.submit, publisher)
        self._meter = Meter(
            directories.state / METER_FILE,
            bandwidth=settings.telemetry.bandwidth,
            daily_budget=settings.telemetry.daily_budget,
            wall=lambda: self._clock.now_ms() / 1000 if self._clock.is_set else None,
        )
        sink = self._open_sink(settings.telemetry.sink)
        self._sender = Sender(self._queue, sink, linger=settings.telemetry.linger, meter=self._meter)
        self._uploads = Uploads(self._queue.count_loss)
        spool, destination = self._open_images(settings)
        self._uploads.use(spool, destination)
        self._runtimes = RuntimeChoice(directories.state / RUNTIMES_FILE)
        self._recovery = Recovery(
            self._runtimes,
            on_health=self._announcer.health,
            on_alarm=self._announcer.device_alarm,
        )
        self._supervisor = Supervisor(
            configuration.worker(name, spool.handover),
            settings.inference.deadline,
            guard=self._recovery,
            on_results=self._take_results,
            on_health=self._announcer.health,
        )
        self._delivery = Delivery(
            settings,
            self._supervisor,
            directories.state / "models",
            device_id=lambda: self._envelope.device_id,
            clock_is_set=lambda: self._clock.is_set,
            on_change=self._announcer.model,
            on_skew=self._timekeeper.compare_soon,
        )
        self._monitor = DeviceMonitor(
            Sensors(directories.state),
            on_health=self._announcer.health,
            worker_pid=lambda: self._supervisor.worker_pid,
        )
        self._housekeeping = Housekeeping(
            supervisor=self._supervisor,
            queue=self._queue,
            envelope=self._envelope,
            clock=self._clock,
            service=lifecycle.service,
            status=self._status_line,
            counters=lambda: count(self._supervisor.status, self._recovery.counts, self._actions),
            take_latencies=self._take_latencies,
            survey=self._monitor.survey,
            model=lambda: (self._configuration.settings.model.model_name, self._delivery.rollout.status.version),
            health_interval=settings.telemetry.health_interval,
        )
        self._device_watch = DeviceWatch(self._recovery, wanted=self._wanted_device, again=self._try_device_again)

    async def run(self) -> int:
        """Run until told to stop; returns the exit status. Raises QueueLocked, OSError."""
        await self._queue.open()
        try:
            self._greet()
            for name, part in self._parts().items():
                self._start(name, part)
            self._lifecycle.answer_status(self._report)
            self._lifecycle.service.ready("starting")
            await self._lifecycle.stopping.wait()
        finally:
            await self._shut_down()
        return 1 if self._failed else 0

    def _parts(self) -> dict[str, Coroutine[Any, Any, None]]:
        return {
            "clock": self._timekeeper.run(),
            "queue": self._queue.run(),
            "sender": self._sender.run(),
            "uploads": self._uploads.run(),
            "worker": self._supervisor.run(),
            "models": self._delivery.run(),
            "devices": self._device_watch.run(),
            "sensors": self._monitor.run(),
            "reload": self._lifecycle.serve_reloads(self._reload, self._status_line),
            "housekeeping": self._housekeeping.run(),
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
        self._lifecycle.stopping.set()

    def _greet(self) -> None:
        settings = self._configuration.settings
        log.info("edge-agent starting", version=__version__, config=str(self._config_file))
        log.info("device", id=self._envelope.device_id, state=str(self._directories.state))
        # Not its options: an address or an argument of a program may be as good as a password.
        log.info("source", plugin=settings.source.plugin)
        telemetry = settings.telemetry
        log.info("events go to", sink=str(telemetry.sink), publish=telemetry.publish.words, waiting=self._queue.depth)

    def _open_sink(self, destination: Destination) -> Sink:
        return StampingSink(open_sink(destination, os.environ, self._meter), self._timekeeper)

    def _open_images(self, settings: Settings) -> tuple[Spool, PictureDestination | None]:
        return open_images(settings.telemetry, self._directories.state, self._directories.runtime)

    # -- what happens

    def _tell_clock(self, state: str, detail: str) -> None:
        self._announcer.clock(state, detail)

    def _take_results(self, batch: ResultBatch) -> None:
        self._delivery.take(batch)
        self._pipeline.take(batch)
        self._uploads.note(batch.results)

    def _wanted_device(self) -> str | None:
        """Which Edge TPU is wanted and not in use."""
        return self._configuration.settings.inference.device if self._recovery.degraded else None

    async def _try_device_again(self) -> None:
        if self._delivery.rollout.running is None:
            self._delivery.rollout.poll_now()
        else:
            await self._supervisor.load_again()

    def _take_latencies(self) -> list[Latency]:
        reactions = Histogram().merge(self._actions.reactions.take()).summary("action")
        return self._supervisor.latencies.take() + ([reactions] if reactions is not None else [])

    # -- how it stands

    def _status_line(self) -> str:
        return status_line(self._snapshot())

    async def _report(self) -> StatusReport:
        # Reading sysfs waits for the kernel, and for a device that is going away this can take its time.
        devices, library = await asyncio.to_thread(lambda: (list_devices(), find_library()))
        return make_report(
            self._snapshot(),
            version=__version__,
            config=str(self._config_file),
            uptime=time.monotonic() - self._started,
            devices=devices,
            library=library,
            device=await self._monitor.show(),
        )

    def _snapshot(self) -> Snapshot:
        now_ms = self._clock.wall_ms(time.monotonic_ns())
        return Snapshot(
            settings=self._configuration.settings,
            device_id=self._envelope.device_id,
            worker=self._supervisor.status,
            model=self._delivery.rollout.status,
            sender=self._sender.state,
            latest=self._pipeline.prediction,
            rate=self._housekeeping.rate,
            latencies=self._housekeeping.latencies or self._supervisor.latencies.sum_up(),
            waiting=self._queue.depth,
            oldest=self._queue.oldest_age(now_ms) or 0.0,
            queue_size=self._queue.size,
            dropped=self._queue.dropped,
            queue_trouble=self._queue.trouble,
            uploads=self._uploads.state,
            reload_problem=self._reload_problem,
            time_source=self._clock.time_source(),
            device_problems=self._monitor.problems,
            skew=self._timekeeper.skew,
            budget=self._meter.budget,
            now=time.monotonic(),
        )

    # -- new settings

    async def _reload(self) -> Reloaded:
        """Take the file's new settings into use, or go on with the old ones."""
        refusal = await self._reload_settings()
        for fault in refusal:
            log.error(f"{fault}; {OLD_GO_ON}")
        self._reload_problem = refusal[0] if refusal else None
        if refusal:
            return Reloaded(refusal, OLD_GO_ON)
        log.info("settings reloaded", config=str(self._config_file))
        return Reloaded([], "settings reloaded")

    async def _reload_settings(self) -> list[str]:
        try:
            await self._apply(await load_configuration(self._config_file))
        except SettingsError as error:
            return [str(fault) for fault in error.faults]
        except ReloadRefused as refused:
            return [str(refused)]
        return []

    async def _apply(self, new: Configuration) -> None:
        old, settings = self._configuration, new.settings
        name = device_id(settings.device.id, state_dir=self._directories.state)
        await self._runtimes.forget()
        # The worker is the one part that can refuse; it goes first, so that nothing has to be taken back.
        spool, destination = self._open_images(settings)
        worker = new.worker(name, spool.handover)
        refused = await self._supervisor.reconfigure(worker, settings.inference.deadline)
        if refused is not None:
            raise ReloadRefused(f"{self._config_file}: the worker cannot work with them: {refused}")
        self._configuration = new
        configure_logs(settings.log.level, settings.log.format)
        self._uploads.use(spool, destination)
        # Before the device gets another name: what has been gathered is of the old one.
        self._pipeline.publish_by(make_publisher(settings.telemetry, self._envelope))
        self._envelope.describe_device(name, settings.device.labels)
        self._rules.replace(rules_of(settings))
        self._queue.configure(**asdict(settings.telemetry.queue))
        self._housekeeping.health_interval = settings.telemetry.health_interval
        telemetry = settings.telemetry
        self._sender.configure(
            linger=telemetry.linger, bandwidth=telemetry.bandwidth, daily_budget=telemetry.daily_budget
        )
        # A sink that waits for a person may have been mended: whoever reloads wants it tried now.
        if settings.telemetry.sink != old.settings.telemetry.sink or self._sender.state.status == "needs_person":
            await self._sender.replace_sink(self._open_sink(settings.telemetry.sink))
        if await self._delivery.apply(settings):
            self._start("models", self._delivery.run())
        if self._recovery.degraded:
            # As with the sink: whoever reloads wants the Edge TPU tried now. That may take longer than he waits.
            self._recovery.begin_afresh()
            self._start("device", self._try_device_again())

    # -- the end

    def _named(self, name: str) -> list[asyncio.Task[None]]:
        return [task for task in self._tasks if task.get_name() == name]

    async def _shut_down(self) -> None:
        self._lifecycle.service.stopping()
        # The end of the worker would look as if the new settings were to blame.
        for reload in self._named("reload"):
            reload.cancel()
        await self._delivery.rollout.stop()
        worker = self._named("worker")
        await self._supervisor.stop()
        await asyncio.gather(*worker, return_exceptions=True)
        self._pipeline.close()
        self._housekeeping.count_lost_samples()
        await self._actions.stop(ACTIONS_DEADLINE)
        await self._sender.stop(SENDER_DEADLINE)
        await self._uploads.stop(UPLOADS_DEADLINE)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        waiting = self._queue.depth
        await self._queue.close(QUEUE_DEADLINE)
        log.info("stopped", results=self._supervisor.status.samples, waiting=waiting)


class ReloadRefused(Exception):
    """New settings that are right in themselves cannot be taken into use now."""
