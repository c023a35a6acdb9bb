"""One event for all results of a window of time, instead of one for each.

A window is measured by CLOCK_MONOTONIC, between captures: a clock that is set meanwhile neither lengthens nor cuts it.
It begins with its first result, or where the window before has ended if results go on, and ends early when the model
changes, at a reload, and when the agent stops. A window without a result leaves no event.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from msgspec import UNSET, UnsetType

from edge_agent.latency import SparseHistogram
from edge_agent.records import (
    ObjectSummary,
    PredictionSummary,
    Result,
    ResultEvent,
    Score,
    ValueSummary,
)
from edge_agent.telemetry.events.envelope import Envelope, ModelFacts

# A result may still be on its way when its window ends: the model works on it, and the worker sends what it has
# gathered. One that comes later yet counts in the next window.
GRACE = 1.0
_NS = 1_000_000_000


class Timer(Protocol):
    """What is needed of `asyncio.TimerHandle`."""

    def cancel(self) -> None: ...


def _call_later(delay: float, callback: Callable[[], None]) -> Timer:
    return asyncio.get_running_loop().call_later(delay, callback)


class Summaries:
    """Publishes a summary of each window of `window` seconds.

    A result whose sample was chosen to be kept is published nevertheless, and counted in the summary too.
    """

    def __init__(
        self,
        envelope: Envelope,
        window: float,
        *,
        monotonic_ns: Callable[[], int] = time.monotonic_ns,
        call_later: Callable[[float, Callable[[], None]], Timer] = _call_later,
    ) -> None:
        self._envelope = envelope
        self._length_ns = round(window * _NS)
        self._monotonic_ns = monotonic_ns
        self._call_later = call_later
        self._window: _Window | None = None
        self._ended_ns: int | None = None
        self._timer: Timer | None = None

    def publish(self, results: Sequence[Result], facts: ModelFacts) -> Sequence[ResultEvent | None]:
        """Count them; queue the summary of a window that is over, and the results that are published all the same."""
        window = self._window
        for result in results:
            if window is None or result.captured_ns >= window.end_ns or facts is not window.facts:
                window = self._turn(result.captured_ns, facts)
            window.add(result)
        return [None if each.chosen is None else self._envelope.put_results([each], facts)[0] for each in results]

    def close(self) -> None:
        """Queue the summary of a window that is not over yet."""
        self._end(self._monotonic_ns())

    def _turn(self, captured_ns: int, facts: ModelFacts) -> "_Window":
        """End the window, and begin the one that this capture falls into."""
        self._end(captured_ns)
        start_ns = captured_ns
        # No gap and no overlap while results go on.
        if self._ended_ns is not None and captured_ns < self._ended_ns + self._length_ns:
            start_ns = self._ended_ns
        window = self._window = _Window(facts, start_ns, start_ns + self._length_ns)
        delay_ns = window.end_ns - self._monotonic_ns()
        self._timer = self._call_later(max(0, delay_ns) / _NS + GRACE, self._expire)
        return window

    def _expire(self) -> None:
        self._end(self._monotonic_ns())

    def _end(self, now_ns: int) -> None:
        window, self._window = self._window, None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if window is not None:
            self._ended_ns = min(window.end_ns, max(window.start_ns, now_ns))
            window.publish(self._envelope, self._ended_ns)


class _Group:
    """The results with one prediction."""

    __slots__ = ("confidence", "count", "times")

    def __init__(self) -> None:
        self.count = 0
        self.confidence = 0.0
        self.times = SparseHistogram()


class _Window:
    """What is counted of the results of one model. Bounded by the number of the model's labels."""

    def __init__(self, facts: ModelFacts, start_ns: int, end_ns: int) -> None:
        self.facts = facts
        self.start_ns = start_ns
        self.end_ns = end_ns
        self._clipped = 0.0
        self._groups: dict[str | UnsetType, _Group] = {}
        self._objects: dict[str, _Objects] = {}
        self._values: dict[str, _Values] = {}

    def add(self, result: Result) -> None:
        """Count one result."""
        prediction, scores = result.prediction, result.scores
        group = self._groups.get(prediction)
        if group is None:
            group = self._groups[prediction] = _Group()
        group.count += 1
        group.times.add(result.inference_ns)
        self._clipped += result.clipped
        if result.value is not None:
            self._add_values(scores)
        elif scores:
            group.confidence += scores[0].score
            if scores[0].box is not UNSET:
                self._add_objects(scores)

    def _add_objects(self, scores: Sequence[Score]) -> None:
        for each in scores:
            self._objects.setdefault(each.label, _Objects()).add(each.score)
        for label in {each.label for each in scores}:
            self._objects[label].results += 1

    def _add_values(self, scores: Sequence[Score]) -> None:
        for each in scores:
            self._values.setdefault(each.label, _Values()).add(each.score)

    def publish(self, envelope: Envelope, end_ns: int) -> None:
        """Queue the summary."""
        times = SparseHistogram()
        for group in self._groups.values():
            times.merge(group.times)
        envelope.put_summary(
            end_ns,
            self.facts,
            window_ms=(end_ns - self.start_ns) // 1_000_000,
            count=times.count,
            inference_time=times.quantiles(),
            clipped=round(self._clipped / times.count, 4),
            predictions=self._predictions() or None,
            objects=[each.summary(label) for label, each in self._objects.items()] or None,
            values=[each.summary(label) for label, each in self._values.items()] or None,
        )

    def _predictions(self) -> list[PredictionSummary]:
        found = [
            PredictionSummary(
                label=label,
                count=group.count,
                inference_time=group.times.quantiles(),
                confidence=UNSET if self._values else _short(group.confidence / group.count),
            )
            for label, group in self._groups.items()
            if label is not UNSET
        ]
        return sorted(found, key=lambda each: -each.count)


class _Objects:
    __slots__ = ("confidence", "count", "results")

    def __init__(self) -> None:
        self.count = self.results = 0
        self.confidence = 0.0

    def add(self, score: float) -> None:
        self.count += 1
        self.confidence += score

    def summary(self, label: str) -> ObjectSummary:
        return ObjectSummary(label, self.count, self.results, _short(self.confidence / self.count))


class _Values:
    __slots__ = ("_count", "_max", "_min", "_sum")

    def __init__(self) -> None:
        self._count = 0
        self._sum = 0.0
        self._min, self._max = float("inf"), float("-inf")

    def add(self, value: float) -> None:
        self._count += 1
        self._sum += value
        self._min, self._max = min(self._min, value), max(self._max, value)

    def summary(self, label: str) -> ValueSummary:
        return ValueSummary(label, _short(self._sum / self._count), self._min, self._max)


def _short(mean: float) -> float:
    # A model's output has no more than the seven digits of a float32.
    return float(f"{mean:.7g}")
