"""What the events of the kind `model` say of a roll-out."""

from typing import Any

import msgspec
import pytest

from edge_agent.announcer import Announcer
from edge_agent.models.release.releases import Release
from edge_agent.models.rollout.news import RolloutChange, ShadowReport
from edge_agent.models.rollout.trial import TrialFigures
from edge_agent.records import LoadReport

REPORT = LoadReport(accepted=True, accelerator="edgetpu", agreement=0.9, accuracy=0.95, latency_ms=2.5)
GOLDEN = {"agreement": 0.9, "golden_accuracy": 0.95}
FIGURES = TrialFigures(samples=1200, failed=3, clipped=0.01, latency_ms=3.5)


class Envelope:
    """Takes what would become events."""

    def __init__(self) -> None:
        self.models: list[dict[str, Any]] = []
        self.health: list[tuple[str, str]] = []

    def put_model(self, _captured_ns: int, **fields: Any) -> None:
        self.models.append({name: value for name, value in fields.items() if value is not None})

    def put_health(self, _captured_ns: int, **fields: Any) -> None:
        self.health.append((fields["state"], fields["detail"]))


def _release(version: str) -> Release:
    return Release(
        id="0123456789abcdef", url="u", version=version, generation="1", size=1, checksum="c", sha256="s", accuracy=0.9
    )


def _told(**more: Any) -> Envelope:
    envelope = Envelope()
    change = RolloutChange(**({"release": _release("v2"), "previous": _release("v1"), "report": REPORT} | more))
    Announcer(envelope, "boot", lambda: "vibration").model(change)  # type: ignore[arg-type]
    return envelope


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"state": "trial"}, {"accelerator": "edgetpu", "latency_ms": 2.5} | GOLDEN),
        (
            {"state": "committed", "trial": FIGURES},
            {"accelerator": "edgetpu"} | GOLDEN | msgspec.structs.asdict(FIGURES),
        ),
        (
            {"state": "rolled_back", "trial": FIGURES, "reason": "it is slow"},
            {"reason": "it is slow"} | GOLDEN | msgspec.structs.asdict(FIGURES),
        ),
        (
            {"state": "rejected", "report": LoadReport(accepted=False), "reason": "it is no model"},
            {"reason": "it is no model"},
        ),
        (
            {"state": "shadow", "shadow": ShadowReport(samples=1000, agreed=970, failed=2, latency_ms=1.5)},
            {"accelerator": "edgetpu", "samples": 1000, "failed": 2, "latency_ms": 1.5} | GOLDEN | {"agreement": 0.97},
        ),
    ],
)
def test_each_state_with_its_figures(change: dict[str, Any], expected: dict[str, Any]) -> None:
    given = {"model_name": "vibration", "model_version": "v2", "previous_version": "v1", "accuracy": 0.9}
    assert _told(**change).models == [given | {"state": change["state"]} | expected]


def test_another_twin_is_a_matter_of_health() -> None:
    told = _told(state="rolled_back", part="twin", reason="it fails")
    assert (told.models, told.health) == ([], [("twin rolled_back", "v2: it fails")])
    assert _told(state="committed", part="twin").health == [("twin committed", "v2")]
