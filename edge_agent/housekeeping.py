"""What is done every few seconds: count, report what was lost, and tell systemd how things stand."""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence

import structlog
from msgspec import UNSET

from edge_agent import __version__
from edge_agent.actions.runner import ActionRunner
from edge_agent.device.clock import Clock
from edge_agent.health import DeviceHealth, Dropped, QueueHealth
from edge_agent.inference.accelerators.recovery import RecoveryCounts
from edge_agent.inference.supervision.status import WorkerStatus
from edge_agent.inference.supervision.supervisor import Supervisor
from edge_agent.records import Counters, Latency
from edge_agent.service.notify import ServiceManager
from edge_agent.telemetry.events.envelope import Envelope
from edge_agent.telemetry.events.priority import Priority
from edge_agent.telemetry.queue.queue import Loss, Queue

TICK = 5.0

log = structlog.get_logger()


class Housekeeping:
    """`status` is the line for systemd. `counters`, `latencies`, `survey` and `model` (its name, and the version in
    use) are what the regular health event is made of.

    `rate` is samples per second since the tick before, `latencies` is what the last health event said.
    `health_interval` is in seconds.
    """

    def __init__(
        self,
        *,
        supervisor: Supervisor,
        queue: Queue,
        envelope: Envelope,
        clock: Clock,
        service: ServiceManager,
        status: Callable[[], str],
        counters: Callable[[], Counters],
        take_latencies: Callable[[], list[Latency]],
        survey: Callable[[], Awaitable[DeviceHealth | None]],
        model: Callable[[], tuple[str, str | None]],
        health_interval: float,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.rate = 0.0
        self.latencies: list[Latency] = []
        self.health_interval = health_interval
        self._supervisor = supervisor
        self._queue = queue
        self._envelope = envelope
        self._clock = clock
        self._service = service
        self._status = status
        self._counters = counters
        self._take_latencies = take_latencies
        self._survey = survey
        self._model = model
        self._monotonic = monotonic
        self._measured = (0, monotonic())
        self._told_health = monotonic()
        self._lost_samples: Counter[str] = Counter()

    async def run(self) -> None:
        """Tick until cancelled. The watchdog is fed only while the worker makes progress or is being brought back."""
        interval = min(TICK, self._service.watchdog_interval or TICK)
        while True:
            self._measure_rate()
            self.count_lost_samples()
            await self._tell_health()
            self._queue.report_losses(self._describe_losses, self._clock.wall_ms(time.monotonic_ns()))
            self._service.status(self._status())
            if self._supervisor.making_progress:
                self._service.watchdog()
            await asyncio.sleep(interval)

    def _measure_rate(self) -> None:
        samples, now = self._supervisor.status.samples, self._monotonic()
        before, then = self._measured
        self.rate = (samples - before) / max(1e-3, now - then)
        self._measured = (samples, now)

    def count_lost_samples(self) -> None:
        """Count what never became an event: samples that the model had no time for, or could not work on."""
        status = self._supervisor.status
        now = self._clock.wall_ms(time.monotonic_ns())
        for cause, total in (
            ("source_overrun", status.dropped),
            ("sample_failed", status.failed),
            ("source_skipped", status.skipped),
            ("sample_set_aside", status.set_aside),
            ("raw_data_dropped", status.unkept),
        ):
            count = total - self._lost_samples[cause]
            self._lost_samples[cause] = total
            if count:
                self._queue.count_loss(cause, count, now, now)
                if cause == "source_overrun":
                    log.warning("the model is too slow for the source, samples were dropped", count=count)
                if cause == "raw_data_dropped":
                    log.warning("pictures could not be kept", count=count, reason=status.unkept_reason)

    async def _tell_health(self) -> None:
        now = self._monotonic()
        if now - self._told_health < self.health_interval:
            return
        self._told_health = now
        device = await self._survey()
        self.latencies = self._take_latencies()
        name, version = self._model()
        loaded = self._supervisor.status.report
        self._envelope.put_health(
            time.monotonic_ns(),
            component="inference",
            state=self._supervisor.status.state,
            latencies=self.latencies,
            counters=self._counters(),
            queue=self._queue_health(),
            device=device,
            agent_version=__version__,
            model_name=name,
            model_version=version,
            accelerator=loaded.accelerator if loaded is not None else None,
            accelerator_device=loaded.device if loaded is not None else None,
            degraded=loaded.degraded if loaded is not None else None,
        )

    def _queue_health(self) -> QueueHealth:
        now_ms = self._clock.wall_ms(time.monotonic_ns())
        depths, oldest = self._queue.depths, self._queue.oldest_age(now_ms)
        return QueueHealth(
            alarms=depths.get(Priority.ALARM, 0),
            notices=depths.get(Priority.NOTICE, 0),
            health=depths.get(Priority.HEALTH, 0),
            results=depths.get(Priority.RESULT, 0),
            size_bytes=self._queue.size,
            oldest_s=UNSET if oldest is None else oldest,
            dropped=[Dropped(*each) for each in sorted(self._queue.dropped_by_cause.items())] or UNSET,
        )

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


def count(worker: WorkerStatus, device: RecoveryCounts, actions: ActionRunner) -> Counters:
    """Return what the regular health event counts, all since the start of the agent."""
    return Counters(
        samples=worker.samples,
        dropped=worker.dropped,
        failed=worker.failed,
        skipped=worker.skipped,
        set_aside=worker.set_aside,
        clipped=worker.clipped,
        worker_deaths=worker.deaths,
        device_failures=device.failures,
        device_resets=device.resets,
        fallbacks=device.fallbacks,
        returns=device.returns,
        actions_failed=actions.failed.total(),
        actions_skipped=actions.skipped.total(),
    )
