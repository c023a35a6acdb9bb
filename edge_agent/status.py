"""How the agent stands: one line for `systemctl status`, what is wrong first, and the report of `edge-agent status`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from msgspec import UnsetType

from edge_agent.actions.never_said import never_said
from edge_agent.actions.rules import rules_of
from edge_agent.health import DeviceHealth
from edge_agent.inference.accelerators.devices import Device, absent, matching
from edge_agent.inference.accelerators.owners import THIS_SERVICE
from edge_agent.inference.supervision.status import WorkerStatus
from edge_agent.models.rollout.news import RolloutStatus
from edge_agent.raw_data.uploads import UploadsState
from edge_agent.records import Latency, ResultEvent, TimeSource
from edge_agent.report import (
    AcceleratorReport,
    DeviceReport,
    ModelReport,
    QueueReport,
    RawDataReport,
    ResultsReport,
    SendingReport,
    SourceReport,
    StatusReport,
    WorkerReport,
)
from edge_agent.settings.publish import ALL
from edge_agent.settings.schema import Settings
from edge_agent.settings.units import format_duration
from edge_agent.telemetry.sending.sender import SenderState

T = TypeVar("T")
FRESH = 5.0
# In the line; `edge-agent status` has all of it. What runs and what waits must have room behind two or three of them.
LONGEST_PROBLEM = 320
BLOCKED = ("offline", "needs_person", "over_budget")
_NOT_SET = "the clock is not set yet"


@dataclass(frozen=True)
class Snapshot:
    """What the agent knows of its parts at one moment. Ages in seconds; `now` is the clock of `sender.since`.

    `skew` is how far the clock is from that of a server, in words, or empty. `budget` are the bytes used of the day's
    budget, and that budget.
    """

    settings: Settings
    device_id: str
    worker: WorkerStatus
    model: RolloutStatus
    sender: SenderState
    latest: ResultEvent | None
    rate: float
    latencies: Sequence[Latency]
    waiting: int
    oldest: float
    queue_size: int
    dropped: int
    queue_trouble: str | None
    uploads: UploadsState
    reload_problem: str | None
    time_source: TimeSource
    device_problems: Sequence[str]
    now: float
    skew: str = ""
    budget: tuple[int, int] | None = None


def status_line(now: Snapshot) -> str:
    """Return the line for `systemctl status`."""
    return "; ".join([*map(_short, problems(now)), _running(now), *_waiting(now)])


def _short(problem: str) -> str:
    return problem if len(problem) <= LONGEST_PROBLEM else problem[: LONGEST_PROBLEM - 1] + "…"


def problems(now: Snapshot) -> list[str]:
    """Return what is wrong, most important first."""
    sending = _sending_problem(now.sender)
    found = [
        *_model_problem(now.model),
        *_worker_problems(now.worker),
        *_action_problems(now),
        *now.device_problems,
        f"degraded: {degraded}" if (degraded := _degraded(now)) else "",
        sending,
        f"queue: {now.queue_trouble}" if now.queue_trouble else "",
        f"pictures are not uploaded: {now.uploads.trouble}" if now.uploads.trouble else "",
        f"reload refused: {now.reload_problem}" if now.reload_problem else "",
        _NOT_SET if now.time_source == "unverified" and _NOT_SET not in sending else "",
        now.skew,
    ]
    return [problem for problem in found if problem]


def _sending_problem(sender: SenderState) -> str:
    if sender.status == "over_budget":
        return f"only alarms and notices are sent: {sender.reason}"
    return f"events are not sent: {sender.reason}" if sender.status in BLOCKED else ""


def _degraded(now: Snapshot) -> str | None:
    return now.worker.report.degraded if now.worker.report is not None else None


def _model_problem(model: RolloutStatus) -> list[str]:
    if model.version is None:
        return [f"no model yet ({model.refusal or model.last_poll})"]
    if model.refusal:
        return [f"model {model.refusal}"]
    return [f"model: {model.last_poll}"] if model.failures or "rejected" in model.last_poll else []


def _worker_problems(worker: WorkerStatus) -> list[str]:
    found = []
    if worker.state == "restarting":
        found.append(f"the worker died and is started again ({worker.last_death})")
    if worker.waiting:
        found.append(f"the model cannot run now: {worker.waiting}")
    if worker.source.startswith(("trouble", "ended")):
        found.append(f"source {worker.source}")
    if worker.failure:
        found.append(f"no sample can be worked on: {worker.failure}")
    return found


def _action_problems(now: Snapshot) -> Sequence[str]:
    labels = now.worker.report.labels if now.worker.report is not None else None
    return never_said(tuple(rules_of(now.settings)), labels)


def _running(now: Snapshot) -> str:
    if now.model.version is None:
        return "waiting"
    trial = f" (on trial: {now.model.trial})" if now.model.trial else ""
    running = f"{now.settings.model.model_name} {now.model.version}{trial}"
    if now.worker.waiting:
        return f"{running} waits"
    if now.latest is None:
        return f"{running}, no result yet"
    return f"{running} on {now.latest.accelerator}, {now.rate:.1f}/s, {_given(now.latest.prediction) or 'nothing'}"


def _waiting(now: Snapshot) -> list[str]:
    # What has waited less than this is on its way: under load there is always something.
    if now.waiting == 0 or (now.oldest < FRESH and now.sender.status not in BLOCKED):
        return ["events are sent"]
    return [f"{now.waiting} events wait, the oldest for {format_duration(round(now.oldest))}"]


def make_report(
    now: Snapshot,
    *,
    version: str,
    config: str,
    uptime: float,
    devices: Sequence[Device],
    library: str | None,
    device: DeviceHealth | None,
) -> StatusReport:
    """Return the whole report. `uptime` is in seconds, `library` the path of libedgetpu."""
    return StatusReport(
        state="running",
        version=version,
        config=config,
        summary=status_line(now),
        problems=problems(now),
        device_id=now.device_id,
        uptime=uptime,
        clock=now.time_source,
        device=device,
        source=SourceReport(plugin=now.settings.source.plugin, state=now.worker.source),
        model=_report_model(now),
        accelerator=_report_accelerator(now, devices, library),
        results=_report_results(now),
        queue=_report_queue(now),
        sending=_report_sending(now),
        raw_data=_report_raw_data(now) if now.settings.telemetry.raw_data.chooses else None,
        worker=WorkerReport(state=now.worker.state, deaths=now.worker.deaths, last_death=now.worker.last_death),
    )


def _report_model(now: Snapshot) -> ModelReport:
    return ModelReport(
        name=now.settings.model.model_name,
        version=now.model.version,
        last_poll=now.model.last_poll,
        next_poll=now.model.next_poll,
        twin=now.model.twin,
        rejected=now.model.rejected,
        trial=now.model.trial,
        shadow=now.model.shadow,
        pin=now.model.pin,
        hold=now.model.hold,
    )


def _report_accelerator(now: Snapshot, devices: Sequence[Device], library: str | None) -> AcceleratorReport:
    wanted = now.settings.inference.device
    missing = [absent(wanted, devices)] if wanted and not matching(wanted, devices) else []
    loaded = now.worker.report
    in_use = loaded.device if loaded is not None else None
    return AcceleratorReport(
        asked=now.settings.inference.accelerator,
        used=loaded.accelerator if loaded is not None else None,
        device=in_use,
        degraded=_degraded(now),
        remarks=list(loaded.remarks) if loaded is not None else [],
        runtime=now.worker.runtime,
        devices=[_report_device(device, in_use) for device in (*devices, *missing)],
        library=library,
    )


def _report_device(device: Device, in_use: str | None) -> DeviceReport:
    return DeviceReport(
        name=device.name,
        state=device.state.value,
        detail=device.detail,
        speed=device.speed,
        temperature=device.temperature,
        owner=device.owner,
        in_use=device.name == in_use or device.owner == THIS_SERVICE,
    )


def _report_results(now: Snapshot) -> ResultsReport:
    publish = now.settings.telemetry.publish
    return ResultsReport(
        rate=now.rate,
        samples=now.worker.samples,
        dropped=now.worker.dropped,
        failed=now.worker.failed,
        skipped=now.worker.skipped,
        set_aside=now.worker.set_aside,
        clipped=now.worker.clipped,
        latencies=list(now.latencies),
        prediction=_given(now.latest.prediction) if now.latest is not None else None,
        confidence=_given(now.latest.confidence) if now.latest is not None else None,
        value=_given(now.latest.value) if now.latest is not None else None,
        published=None if publish == ALL else publish.words,
    )


def _given(value: T | UnsetType) -> T | None:
    return None if isinstance(value, UnsetType) else value


def _report_queue(now: Snapshot) -> QueueReport:
    return QueueReport(
        waiting=now.waiting,
        oldest=now.oldest,
        size=now.queue_size,
        max_size=now.settings.telemetry.queue.max_size,
        dropped=now.dropped,
        trouble=now.queue_trouble,
    )


def _report_sending(now: Snapshot) -> SendingReport:
    used, budget = now.budget or (None, None)
    return SendingReport(
        sink=str(now.settings.telemetry.sink),
        state=now.sender.status,
        reason=now.sender.reason,
        since=max(0.0, now.now - now.sender.since),
        sent=now.sender.sent_events,
        used_today=used,
        daily_budget=budget,
    )


def _report_raw_data(now: Snapshot) -> RawDataReport:
    images = now.settings.telemetry.raw_data.images
    return RawDataReport(
        images=None if images is None else str(images),
        uploaded=now.uploads.uploaded,
        waiting=now.uploads.waiting,
        dropped=now.uploads.dropped + now.worker.unkept,
        over_budget=now.worker.over_budget,
        trouble=now.uploads.trouble,
    )
