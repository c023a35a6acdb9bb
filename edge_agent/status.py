"""One sentence for the operator: what is wrong first, then what runs and what waits."""

from dataclasses import dataclass

from edge_agent.inference.supervisor import WorkerStatus
from edge_agent.models.rollout import RolloutStatus
from edge_agent.records import ResultEvent
from edge_agent.settings.units import format_duration
from edge_agent.telemetry.sender import SenderState

FRESH = 5.0


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
    found = []
    if now.model.version is None:
        found.append(f"no model yet ({now.model.refusal or now.model.last_poll})")
    elif now.model.refusal:
        found.append(f"model {now.model.refusal}")
    elif now.model.failures or "rejected" in now.model.last_poll:
        found.append(f"model: {now.model.last_poll}")
    if now.worker.state == "restarting":
        found.append(f"the worker died and is started again ({now.worker.last_death})")
    if now.worker.source.startswith(("trouble", "ended")):
        found.append(f"source {now.worker.source}")
    if now.latest is not None and isinstance(now.latest.degraded, str):
        found.append(f"degraded: {now.latest.degraded}")
    if now.sender.status in {"offline", "needs_person"}:
        found.append(f"events are not sent: {now.sender.reason}")
    if now.queue_trouble is not None:
        found.append(f"queue: {now.queue_trouble}")
    if now.reload_problem is not None:
        found.append(f"reload refused: {now.reload_problem}")
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
    if now.waiting == 0 or (now.oldest < FRESH and now.sender.status not in {"offline", "needs_person"}):
        return ["events are sent"]
    return [f"{now.waiting} events wait, the oldest for {format_duration(round(now.oldest))}"]
