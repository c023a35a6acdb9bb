"""What becomes of results: events in the queue, alarms, and a line for the operator when the prediction changes."""

import time
from collections.abc import Callable, Sequence
from typing import Protocol

import structlog

from edge_agent.actions.rules import Rule
from edge_agent.inference.worker_status import ResultBatch
from edge_agent.records import LoadReport, ModelFile, ResultEvent
from edge_agent.telemetry.envelope import Envelope, ModelFacts

log = structlog.get_logger()

# A prediction that flickers is shown with the number of changes, and ever more rarely (seconds).
FIRST_INTERVAL, LONGEST_INTERVAL = 1.0, 60.0
ALARM_INTERVAL = 10.0
CLIPPED_WARNING = 0.05


class Rules(Protocol):
    """What is needed of `edge_agent.actions.rules.RuleSet`."""

    def check(self, prediction: str, confidence: float, captured_ns: int) -> Sequence[Rule]: ...


class Pipeline:
    """Takes the worker's results. Runs on the event loop and never waits for anything."""

    def __init__(
        self,
        envelope: Envelope,
        rules: Rules,
        run_action: Callable[[Rule, bytes], None],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.rules = rules
        self.prediction: ResultEvent | None = None
        self._envelope = envelope
        self._run_action = run_action
        self._clock = clock
        self._facts: tuple[ModelFile, LoadReport, ModelFacts] | None = None
        self._changes = 0
        self._shown_at = -FIRST_INTERVAL
        self._interval = FIRST_INTERVAL

    def take(self, batch: ResultBatch) -> None:
        """Turn a batch of results into events, alarms and log lines."""
        if batch.failed:
            log.warning("samples could not be worked on", count=batch.failed, reason=batch.failure)
        if not batch.results:
            return
        events = self._envelope.put_results(batch.results, self._facts_of(batch))
        check = self.rules.check
        for result, event in zip(batch.results, events, strict=True):
            for rule in check(event.prediction or "", event.confidence or 0.0, result.captured_ns):
                self._raise_alarm(rule, event)
        self._show_change(events)

    def _facts_of(self, batch: ResultBatch) -> ModelFacts:
        if self._facts is None or self._facts[0] is not batch.model or self._facts[1] is not batch.report:
            model, report = batch.model, batch.report
            facts = ModelFacts(model.name, model.version, report.accelerator, report.degraded)
            self._facts = (model, report, facts)
        return self._facts[2]

    def _raise_alarm(self, rule: Rule, event: ResultEvent) -> None:
        log.warning(
            "alarm",
            action=rule.name,
            prediction=event.prediction,
            confidence=round(event.confidence or 0.0, 3),
            event_id=event.event_id,
            _per=rule.name,
            _every=ALARM_INTERVAL,
        )
        self._run_action(rule, self._envelope.put_alarm(event, rule.name))

    def _show_change(self, events: list[ResultEvent]) -> None:
        previous = self.prediction
        for event in events:
            if previous is None or event.prediction != previous.prediction:
                self._changes += 1
            previous = event
        self.prediction = previous
        now = self._clock()
        if not self._changes or now - self._shown_at < self._interval or previous is None:
            return
        facts = {
            "confidence": round(previous.confidence or 0.0, 3),
            "inference_ms": round(previous.inference_time_ms, 3),
        }
        if previous.clipped >= CLIPPED_WARNING:
            facts["clipped"] = previous.clipped
        if self._changes > 1:
            facts["changes"] = self._changes
        self._interval = min(LONGEST_INTERVAL, self._interval * 2) if self._changes > 1 else FIRST_INTERVAL
        log.info("prediction", now=previous.prediction, **facts)
        self._changes = 0
        self._shown_at = now
