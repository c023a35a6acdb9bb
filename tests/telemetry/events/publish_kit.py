"""Results on their way through the pipeline, with a queue that shows what became of them."""

import json
from collections.abc import Callable
from typing import Any

from edge_agent.actions.rules import Rule, RuleSet
from edge_agent.inference.supervision.status import ResultBatch
from edge_agent.pipeline import Pipeline
from edge_agent.records import Box, LoadReport, ModelFile, Result, Score, TimeSource
from edge_agent.telemetry.events.envelope import Envelope
from edge_agent.telemetry.events.publishing import Publisher
from tests.telemetry.event_list import EventList

S, MS = 1_000_000_000, 1_000_000
MODEL = ModelFile("/m.tflite", "vibration", "v1")
ON_TPU = LoadReport(accepted=True, accelerator="edgetpu")


class WallClock:
    """A clock that somebody may set: `offset_ms` is the time at boot."""

    offset_ms = 0

    def wall_ms(self, captured_ns: int) -> int:
        return self.offset_ms + captured_ns // MS

    def time_source(self) -> TimeSource:
        return "unverified"


class Rig:
    """A pipeline. `now_ns` is the capture time of the next result; each takes `step_ns`."""

    def __init__(self, make: Callable[[Envelope], Publisher], *rules: Rule, step_ns: int = S // 30) -> None:
        self.queue = EventList()
        self.clock = WallClock()
        self.envelope = Envelope("edge-001", {}, self.clock, self.queue)
        self.now_ns = 1000 * S
        self.step_ns = step_ns
        self.ran: list[tuple[str, dict[str, Any], int]] = []
        self.publisher = make(self.envelope)
        self.pipeline = Pipeline(self.envelope, RuleSet(rules), self._run, self.publisher)

    def _run(self, rule: Rule, line: bytes, captured_ns: int) -> None:
        self.ran.append((rule.name, json.loads(line), captured_ns))

    def take(
        self, *shown: str | list[Score] | Result, model: ModelFile = MODEL, report: LoadReport = ON_TPU, **more: Any
    ) -> None:
        """Take one batch: of labels, of scores, or of whole results, which keep their capture time."""
        results = [each if isinstance(each, Result) else self.result(each, **more) for each in shown]
        self.pipeline.take(ResultBatch(results, model, report, 0, 0, ""))

    def result(self, shown: str | list[Score] = "normal", *, took_ns: int = 2 * MS, **more: Any) -> Result:
        """The next result."""
        scores = [Score(shown, 0.9, 0), Score("other", 0.1, 1)] if isinstance(shown, str) else shown
        made = Result(self.now_ns, took_ns, scores, **({"clipped": 0.0} | more))
        self.now_ns += self.step_ns
        return made

    def of(self, kind: str) -> list[dict[str, Any]]:
        """The events of a kind so far."""
        return [event for event in self.queue.events if event["kind"] == kind]

    @property
    def published(self) -> list[tuple[str | None, int, int]]:
        """Prediction, `unpublished` and `changes` of the results that became events."""
        return [
            (event.get("prediction"), event.get("unpublished", 0), event.get("changes", 0))
            for event in self.of("result")
        ]


class _NoTimer:
    def cancel(self) -> None:
        """Nothing runs."""


def no_timer(delay: float, callback: Callable[[], None]) -> _NoTimer:
    """Take the place of the event loop's `call_later`, where results alone end a window."""
    return _NoTimer()


def found(label: str, score: float = 0.5) -> Score:
    """An object."""
    return Score(label, score, 0, Box(0.1, 0.1, 0.2, 0.2))
