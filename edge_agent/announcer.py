"""Events in which the agent tells of itself: its parts, its models, its clock, and what needs a hand."""

import time
from collections.abc import Callable

from edge_agent.models.rollout.news import RolloutChange
from edge_agent.telemetry.events.envelope import Envelope

LONGEST_DETAIL = 1000


class Announcer:
    """Puts events into the queue. `model_name` is what the settings call the model now."""

    def __init__(self, envelope: Envelope, boot_id: str, model_name: Callable[[], str]) -> None:
        self._envelope = envelope
        self._boot_id = boot_id
        self._model_name = model_name

    def health(self, component: str, state: str, detail: str, *, exit_status: str = "", stage: str = "") -> None:
        """Tell of a change in a part; `exit_status` and `stage` are those of a worker that has ended."""
        self._envelope.put_health(
            time.monotonic_ns(),
            component=component,
            state=state,
            detail=detail[:LONGEST_DETAIL],
            exit_status=exit_status or None,
            stage=stage or None,
        )

    def model(self, change: RolloutChange) -> None:
        """Tell what has become of a model, or of another twin of the one in use."""
        release, previous, report = change.release, change.previous, change.report
        if change.part == "twin":
            detail = f"{release.version}: {change.reason}" if change.reason else release.version
            self.health("model", f"twin {change.state}", detail)
            return
        self._envelope.put_model(
            time.monotonic_ns(),
            model_name=self._model_name(),
            model_version=release.version,
            state=change.state,
            accelerator=report.accelerator if change.state in {"trial", "committed", "shadow"} else None,
            previous_version=previous.version if previous else None,
            accuracy=release.accuracy,
            reason=change.reason[:LONGEST_DETAIL] or None,
            **{"agreement": report.agreement, "golden_accuracy": report.accuracy} | _figures(change),
        )

    def clock(self, state: str, detail: str) -> None:
        """Tell of the clock."""
        now_ns = time.monotonic_ns()
        # Always with the boot: whoever has got events of it with a wrong time can tell the right one.
        boot = {"boot_id": self._boot_id, "monotonic_ms": now_ns // 1_000_000}
        self._envelope.put_health(now_ns, component="clock", state=state, detail=detail, **boot)

    def device_alarm(self, detail: str) -> None:
        """Ask for a hand at the Edge TPU."""
        self._envelope.put_device_alarm(time.monotonic_ns(), action="accelerator", detail=detail[:LONGEST_DETAIL])


def _figures(change: RolloutChange) -> dict[str, float | None]:
    """What it came to in its trial, beside another, or at least on the golden samples."""
    if (shadow := change.shadow) is not None:
        agreement = round(shadow.agreed / shadow.samples, 4) if shadow.samples else None
        return {
            "samples": shadow.samples,
            "failed": shadow.failed,
            "agreement": agreement,
            "latency_ms": shadow.latency_ms,
        }
    if (trial := change.trial) is not None:
        return {
            "samples": trial.samples,
            "failed": trial.failed,
            "clipped": trial.clipped,
            "latency_ms": trial.latency_ms,
        }
    return {"latency_ms": change.report.latency_ms}
