"""One sentence for the operator: what is wrong first, then what runs and what waits."""

from dataclasses import dataclass

from edge_agent.inference.supervisor import WorkerStatus
from edge_agent.models.rollout import RolloutStatus
from edge_agent.records import ResultEvent
from edge_agent.settings.units import format_duration
from edge_agent.telemetry.sender import SenderState

FRESH = 5.0
BLOCKED = ("offline", "needs_person")


@dataclass(frozen=True)
class Snapshot:
    """What the agent knows of its parts at one moment. Ages in seconds."""

    worker: WorkerStatus
    model: RolloutStatus
    sender: SenderState
    model_name: str
    latest: ResultEvent | None
    rate: float
    waiting: int
    oldest: float
    queue_trouble: str | None
    reload_problem: str | None


def status_line(now: Snapshot) -> str:
    """Return the line for `systemctl status`."""
    return "; ".join([*problems(now), _running(now), *_waiting(now)])


def problems(now: Snapshot) -> list[str]:
    """Return what is wrong, most important first."""
    sending = f"events are not sent: {now.sender.reason}" if now.sender.status in BLOCKED else ""
    degraded = now.latest.degraded if now.latest is not None else None
    found = [
        *_model_problem(now.model),
        *_worker_problems(now.worker),
        f"degraded: {degraded}" if isinstance(degraded, str) else "",
        sending,
        f"queue: {now.queue_trouble}" if now.queue_trouble else "",
        f"reload refused: {now.reload_problem}" if now.reload_problem else "",
    ]
    return [problem for problem in found if problem]


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
    if worker.source.startswith(("trouble", "ended")):
        found.append(f"source {worker.source}")
    if worker.failure:
        found.append(f"no sample can be worked on: {worker.failure}")
    return found


def _running(now: Snapshot) -> str:
    if now.model.version is None:
        return "waiting"
    running = f"{now.model_name} {now.model.version}"
    if now.latest is None:
        return f"{running}, no result yet"
    return f"{running} on {now.latest.accelerator}, {now.rate:.1f}/s, {now.latest.prediction}"


def _waiting(now: Snapshot) -> list[str]:
    # What has waited less than this is on its way: under load there is always something.
    if now.waiting == 0 or (now.oldest < FRESH and now.sender.status not in BLOCKED):
        return ["events are sent"]
    return [f"{now.waiting} events wait, the oldest for {format_duration(round(now.oldest))}"]
