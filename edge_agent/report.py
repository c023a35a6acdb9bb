"""The answers to `edge-agent status` and `edge-agent reload`, as JSON and as text.

The control socket carries a `StatusReport` as JSON; `render` makes the text of it, in the process of whoever asked.
"""

from collections.abc import Iterator
from typing import Literal

import msgspec
from msgspec import UNSET

from edge_agent.health import DeviceHealth, NetworkInterface
from edge_agent.records import Accelerator, Latency, TimeSource
from edge_agent.settings.units import approximate_size, format_duration

_WIDTH = 11
_SUPERSPEED, _HIGH_SPEED = 5000, 480


class SourceReport(msgspec.Struct, frozen=True, kw_only=True):
    """Where samples come from. `state` is in words."""

    plugin: str
    state: str


class DeviceReport(msgspec.Struct, frozen=True, kw_only=True):
    """One Edge TPU. `speed` is that of its USB link in Mbit/s, `temperature` is in °C; what it does not tell is None.

    `in_use` is whether this service has it, `owner` who else has, in words. `detail` says what to do, if anything.
    """

    name: str
    state: str
    detail: str
    speed: int | None
    temperature: float | None
    owner: str | None
    in_use: bool


class AcceleratorReport(msgspec.Struct, frozen=True, kw_only=True):
    """What runs the model, what was asked for, and what is there.

    `device` is the Edge TPU in use, `degraded` why it is not as asked, if so, and `remarks` are what is not as it could
    be.
    """

    asked: str
    used: Accelerator | None
    device: str | None
    degraded: str | None
    remarks: list[str]
    runtime: str
    devices: list[DeviceReport]
    library: str | None


class ModelReport(msgspec.Struct, frozen=True, kw_only=True):
    """The model in use. `next_poll` is in seconds from now. `twin`: there is the same model for the CPU, too.

    `trial` is how far its trial is, `shadow` what runs beside it; both are empty if nothing is. `pin` is the version
    that the settings ask for, `hold`: they ask for no new one.
    """

    name: str
    version: str | None
    twin: bool
    last_poll: str
    next_poll: float | None
    rejected: str | None
    trial: str = ""
    shadow: str = ""
    pin: str = ""
    hold: bool = False


class ResultsReport(msgspec.Struct, frozen=True, kw_only=True):
    """What came out since the start. `rate` is per second, over the last moments.

    `latencies` are those of the last health event, or so far if there was none. `published` tells which results become
    events, or is None if all do. The other counts are those of `edge_agent.records.Counters`.
    """

    rate: float
    samples: int
    dropped: int
    failed: int
    skipped: int
    set_aside: int
    clipped: int
    latencies: list[Latency]
    prediction: str | None
    confidence: float | None
    value: float | None
    published: str | None = None


class QueueReport(msgspec.Struct, frozen=True, kw_only=True):
    """What waits to be sent. `oldest` is in seconds, sizes are in bytes; `dropped` counts events lost on purpose."""

    waiting: int
    oldest: float
    size: int
    max_size: int
    dropped: int
    trouble: str | None


class SendingReport(msgspec.Struct, frozen=True, kw_only=True):
    """How sending goes. `since` is how long the state has lasted, in seconds.

    `used_today` of the `daily_budget` went over the line, in bytes; both are None where there is no such budget.
    """

    sink: str
    state: str
    reason: str
    since: float
    sent: int
    used_today: int | None = None
    daily_budget: int | None = None


class RawDataReport(msgspec.Struct, frozen=True, kw_only=True):
    """What is kept of the input. The counts of pictures and of samples are since the start; `trouble` is in words."""

    images: str | None
    uploaded: int
    waiting: int
    dropped: int
    over_budget: int
    trouble: str


class WorkerReport(msgspec.Struct, frozen=True, kw_only=True):
    """The process that reads the source and runs the model."""

    state: str
    deaths: int
    last_death: str


class StatusReport(msgspec.Struct, frozen=True, kw_only=True):
    """Everything. The parts are absent while the service is idle; `uptime` is in seconds.

    `problems` are sentences, most important first; `summary` is the line in `systemctl status`.
    """

    state: Literal["idle", "running"]
    version: str
    config: str
    summary: str
    problems: list[str]
    device_id: str | None = None
    uptime: float | None = None
    clock: TimeSource | None = None
    device: DeviceHealth | None = None
    source: SourceReport | None = None
    model: ModelReport | None = None
    accelerator: AcceleratorReport | None = None
    results: ResultsReport | None = None
    queue: QueueReport | None = None
    sending: SendingReport | None = None
    raw_data: RawDataReport | None = None
    worker: WorkerReport | None = None


class Reloaded(msgspec.Struct, frozen=True):
    """The answer to `edge-agent reload`: why the new settings are refused, if they are, and in words how it goes on."""

    faults: list[str]
    outcome: str


def render(report: StatusReport) -> str:
    """Return the report as text for a terminal, problems first."""
    return "\n".join(_aligned(name, text) for name, text in _lines(report)) + "\n"


def _aligned(name: str, text: str) -> str:
    return f"{name:<{_WIDTH}}  {''.join(char if char.isprintable() else ' ' for char in text)}"


def _lines(report: StatusReport) -> Iterator[tuple[str, str]]:
    yield "edge-agent", ", ".join(_headline(report))
    for problem in report.problems:
        yield "problem", problem
    yield "settings", report.config
    if report.source:
        yield "source", f"{report.source.plugin}: {report.source.state}"
    if report.model:
        yield "model", "; ".join(_model(report.model))
    if report.accelerator:
        yield from _accelerator_lines(report.accelerator)
    if report.results:
        yield from _results_lines(report.results)
    yield from _outgoing_lines(report)
    if report.worker:
        yield "worker", "; ".join(_worker(report.worker))
    yield from _machine_lines(report)


def _headline(report: StatusReport) -> Iterator[str]:
    yield report.version
    if report.device_id:
        yield f"device {report.device_id}"
    yield report.state if report.uptime is None else f"{report.state} for {format_duration(round(report.uptime))}"


def _model(model: ModelReport) -> Iterator[str]:
    yield f"{model.name} {model.version}" if model.version else f"{model.name}: none yet"
    if model.trial:
        yield f"on trial: {model.trial}"
    if model.twin:
        yield "with a twin for the CPU"
    if model.pin:
        yield f"pinned to {model.pin}"
    if model.hold:
        yield "held"
    yield model.last_poll
    if model.shadow:
        yield f"beside it {model.shadow}"
    if model.next_poll is not None:
        yield f"next look in {format_duration(round(model.next_poll))}"
    if model.rejected:
        yield f"rejected: {model.rejected}"


def _accelerator_lines(accelerator: AcceleratorReport) -> Iterator[tuple[str, str]]:
    yield "accelerator", "; ".join(_accelerator(accelerator))
    for device in accelerator.devices:
        yield f"  {device.name}", "; ".join(_device(device))
    for remark in accelerator.remarks:
        yield "  remark", remark


def _accelerator(accelerator: AcceleratorReport) -> Iterator[str]:
    used = " ".join(filter(None, [accelerator.used or "none now", accelerator.device]))
    yield f"{used} ({accelerator.asked} was asked for)"
    if accelerator.runtime:
        yield accelerator.runtime
    yield accelerator.library or "no libedgetpu"
    if not accelerator.devices:
        yield "no Edge TPU is plugged in"


def _device(device: DeviceReport) -> Iterator[str]:
    figures = [device.state]
    if device.speed is not None:
        figures.append(f"USB {_usb_version(device.speed)} ({device.speed} Mbit/s)")
    if device.temperature is not None:
        figures.append(f"{device.temperature:.0f} °C")
    if device.in_use:
        figures.append("in use by this service")
    yield ", ".join(figures)
    if device.detail:
        yield device.detail


def _usb_version(speed: int) -> int:
    return 3 if speed >= _SUPERSPEED else 2 if speed >= _HIGH_SPEED else 1


def _results_lines(results: ResultsReport) -> Iterator[tuple[str, str]]:
    yield "results", "; ".join(_results(results))
    if results.latencies:
        yield "  latency", "median " + "; ".join(map(_latency, results.latencies))


def _results(results: ResultsReport) -> Iterator[str]:
    yield f"{results.rate:.1f}/s"
    if results.prediction is not None and results.confidence is not None:
        yield f"now {results.prediction} ({results.confidence:.2f})"
    if results.value is not None:
        yield f"now {results.value:g}{f' ({results.prediction})' if results.prediction else ''}"
    yield f"{results.samples} since the start"
    if results.published is not None:
        yield f"published: {results.published}"
    if results.dropped:
        yield f"{_counted(results.dropped, 'sample')} dropped as the model is too slow"
    if results.failed:
        yield f"{_counted(results.failed, 'sample')} failed"
    if results.skipped:
        yield f"{_counted(results.skipped, 'sample')} skipped by the source"
    if results.set_aside:
        yield f"{_counted(results.set_aside, 'sample')} left out as they had ended the worker"
    if results.clipped:
        yield f"{_counted(results.clipped, 'sample')} beyond the model's range"


def _latency(latency: Latency) -> str:
    return f"{latency.stage} {latency.p50_ms:g} ms (p99 {latency.p99_ms:g})"


def _outgoing_lines(report: StatusReport) -> Iterator[tuple[str, str]]:
    if report.queue:
        yield "queue", "; ".join(_queue(report.queue))
    if report.sending:
        yield "sending", "; ".join(_sending(report.sending))
    if report.raw_data:
        yield "raw_data", "; ".join(_raw_data(report.raw_data))


def _queue(queue: QueueReport) -> Iterator[str]:
    waiting = "1 event waits" if queue.waiting == 1 else f"{queue.waiting} events wait"
    yield f"{waiting}, the oldest for {format_duration(round(queue.oldest))}" if queue.waiting else "empty"
    yield f"{approximate_size(queue.size)} of {approximate_size(queue.max_size)}"
    if queue.dropped:
        yield f"{_counted(queue.dropped, 'event')} dropped"
    if queue.trouble:
        yield queue.trouble


def _sending(sending: SendingReport) -> Iterator[str]:
    yield f"{sending.sink}: {sending.state.replace('_', ' ')} for {format_duration(round(sending.since))}"
    if sending.reason:
        yield sending.reason
    yield f"{_counted(sending.sent, 'event')} sent since the start"
    if sending.used_today is not None and sending.daily_budget is not None:
        yield f"{approximate_size(sending.used_today)} of the day's {approximate_size(sending.daily_budget)} used"


def _raw_data(raw_data: RawDataReport) -> Iterator[str]:
    if raw_data.images is None:
        yield "values of chosen samples, no pictures"
    else:
        yield f"{raw_data.images}: {_counted(raw_data.uploaded, 'picture')} uploaded since the start"
    if raw_data.waiting:
        yield "1 waits" if raw_data.waiting == 1 else f"{raw_data.waiting} wait"
    if raw_data.dropped:
        yield f"{raw_data.dropped} dropped"
    if raw_data.over_budget:
        yield f"{_counted(raw_data.over_budget, 'sample')} left out for the daily budget"
    if raw_data.trouble:
        yield raw_data.trouble


def _machine_lines(report: StatusReport) -> Iterator[tuple[str, str]]:
    if report.device:
        yield "device", "; ".join(_board(report.device))
        if report.device.network:
            yield "  network", "; ".join(map(_interface, report.device.network))
    if report.clock:
        yield "clock", "set" if report.clock == "synchronized" else "not known to be set; events say so in time_source"


def _board(health: DeviceHealth) -> Iterator[str]:
    if health.board is not UNSET:
        yield health.board
    if health.cpu_temperature_c is not UNSET:
        yield f"{health.cpu_temperature_c:.0f} °C" + (", slowed down" if health.throttled is True else "")
    if health.undervoltage is not UNSET:
        yield "voltage too low" if health.undervoltage else "voltage right"
    if health.load_5m is not UNSET:
        yield f"load {health.load_5m:g}"
    for name, available, total in (
        ("memory", health.memory_available_bytes, health.memory_total_bytes),
        ("disk", health.disk_free_bytes, health.disk_total_bytes),
    ):
        if available is not UNSET and total is not UNSET:
            yield f"{name} {approximate_size(available)} of {approximate_size(total)} free"
    if health.disk_life_used_percent is not UNSET:
        yield f"{health.disk_life_used_percent} % of the disk's life used"
    if health.battery is not UNSET:
        yield f"battery {health.battery.charge_percent} %"


def _interface(interface: NetworkInterface) -> str:
    words = [interface.name, interface.type, "up" if interface.up else "down"]
    if interface.speed_mbps is not UNSET:
        words.append(f"{interface.speed_mbps} Mbit/s")
    if interface.signal_dbm is not UNSET:
        words.append(f"{interface.signal_dbm} dBm")
    return " ".join(words)


def _worker(worker: WorkerReport) -> Iterator[str]:
    yield worker.state
    if worker.deaths:
        yield f"died {_counted(worker.deaths, 'time')} since the start, the last time: {worker.last_death}"


def _counted(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"
