"""What becomes of results: events in the queue, alarms, and a line for the operator when the prediction changes."""

import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import structlog
from msgspec import UNSET, UnsetType

from edge_agent.actions.never_said import never_said
from edge_agent.actions.rules import Rule
from edge_agent.inference.supervision.status import ResultBatch
from edge_agent.records import LoadReport, ModelFile, Result, ResultEvent
from edge_agent.telemetry.events.envelope import Envelope, ModelFacts
from edge_agent.telemetry.events.publishing import Publisher

log = structlog.get_logger()

# A prediction that flickers is shown with the number of changes, and ever more rarely (seconds).
FIRST_INTERVAL, LONGEST_INTERVAL = 1.0, 60.0
ALARM_INTERVAL = 10.0
CLIPPED_WARNING = 0.05


class Rules(Protocol):
    """What is needed of `edge_agent.actions.rules.RuleSet`."""

    def watch(self, prediction: str | UnsetType) -> bool: ...
    def check(self, event: ResultEvent, captured_ns: int) -> Sequence[Rule]: ...
    @property
    def all(self) -> tuple[Rule, ...]: ...


class Pipeline:
    """Takes the worker's results. Runs on the event loop and never waits for anything."""

    def __init__(
        self,
        envelope: Envelope,
        rules: Rules,
        run_action: Callable[[Rule, bytes, int], None],
        publisher: Publisher,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`run_action` gets the rule, the JSON of its alarm, and the CLOCK_MONOTONIC ns of the sample's capture."""
        self.rules = rules
        self._envelope = envelope
        self._run_action = run_action
        self._publisher = publisher
        self._clock = clock
        self._facts: tuple[ModelFile, LoadReport, ModelFacts] | None = None
        self._latest: tuple[Result, ModelFacts] | None = None
        self._before: str | UnsetType | None = None
        self._changes = 0
        self._shown_at = -FIRST_INTERVAL
        self._interval = FIRST_INTERVAL

    def take(self, batch: ResultBatch) -> None:
        """Turn a batch of results into events, alarms and log lines."""
        if batch.failed:
            log.warning("samples could not be worked on", count=batch.failed, reason=batch.failure)
        if not batch.results:
            return
        facts = self._facts_of(batch)
        events = self._publisher.publish(batch.results, facts)
        watch, check, before = self.rules.watch, self.rules.check, self._before
        for result, published in zip(batch.results, events, strict=True):
            event = published
            prediction = result.prediction if event is None else event.prediction
            if prediction != before:
                self._changes += 1
                before = prediction
            if event is None:
                # Not even made, unless a rule looks at it.
                if not watch(prediction):
                    continue
                event = self._envelope.describe(result, facts)
            for rule in check(event, result.captured_ns):
                self._raise_alarm(rule, event, result.captured_ns)
        self._before = before
        self._latest = (batch.results[-1], facts)
        self._show_change()

    @property
    def prediction(self) -> ResultEvent | None:
        """The latest result, whether or not it was published."""
        return None if self._latest is None else self._envelope.describe(*self._latest)

    def publish_by(self, publisher: Publisher) -> None:
        """Publish results in another way from now on; what was gathered in the old way goes out."""
        self._publisher.close()
        self._publisher = publisher
        # The rules may be others, too, and are compared once more with what the model can say.
        self._facts = None

    def close(self) -> None:
        """Queue what has been gathered of results; none come after it."""
        self._publisher.close()

    def _facts_of(self, batch: ResultBatch) -> ModelFacts:
        if self._facts is None or self._facts[0] is not batch.model or self._facts[1] is not batch.report:
            model, report = batch.model, batch.report
            facts = ModelFacts(model.name, model.version, report.accelerator, report.degraded)
            self._facts = (model, report, facts)
            for sentence in never_said(self.rules.all, report.labels):
                log.warning("an action cannot be set off", reason=sentence)
        return self._facts[2]

    def _raise_alarm(self, rule: Rule, event: ResultEvent, captured_ns: int) -> None:
        reason = _reason(rule, event)
        alarm_id, alarm = self._envelope.put_alarm(event, rule.name)
        log.warning("alarm", action=rule.name, **reason, event_id=alarm_id, _per=rule.name, _every=ALARM_INTERVAL)
        self._run_action(rule, alarm, captured_ns)

    def _show_change(self) -> None:
        now = self._clock()
        if not self._changes or now - self._shown_at < self._interval or (latest := self.prediction) is None:
            return
        facts = _facts(latest)
        facts["inference_ms"] = round(latest.inference_time_ms, 3)
        if latest.clipped >= CLIPPED_WARNING:
            facts["clipped"] = latest.clipped
        if self._changes > 1:
            facts["changes"] = self._changes
        self._interval = min(LONGEST_INTERVAL, self._interval * 2) if self._changes > 1 else FIRST_INTERVAL
        log.info("prediction", now=_shown(latest), **facts)
        self._changes = 0
        self._shown_at = now


def _shown(event: ResultEvent) -> str | float:
    """Return what a result comes to, in a word."""
    if event.prediction is not UNSET:
        return event.prediction
    if event.value is not UNSET:
        return _short(event.value)
    return "nothing" if event.outputs is UNSET else "raw outputs"


def _facts(event: ResultEvent) -> dict[str, Any]:
    """Return what else a person wants to read of it; what it does not have is left out."""
    facts: dict[str, Any] = {}
    if event.confidence is not UNSET:
        facts["confidence"] = round(event.confidence, 3)
    if event.value is not UNSET:
        facts["value"] = _short(event.value)
    if event.results and event.results[0].box is not UNSET:
        facts["objects"] = len(event.results)
    return facts


def _reason(rule: Rule, event: ResultEvent) -> dict[str, Any]:
    """Return what a person wants to read of a rule that fired: what it is about, not the best of all classes."""
    if rule.counts:
        reason: dict[str, Any] = {"objects": rule.objects(event)}
    elif rule.compares:
        reason = {"prediction": _shown(event), "value": ", ".join(f"{value:.6g}" for value in rule.values(event))}
    else:
        return {"prediction": _shown(event), **_facts(event)}
    return reason | {"of": ", ".join(sorted(rule.labels))} if rule.labels else reason


def _short(value: float) -> float:
    return float(f"{value:.6g}")
