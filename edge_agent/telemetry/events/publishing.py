"""Which results become events of their own: every one, some of them, or none but a summary of each window.

Those that do not are no losses. Rules see them nevertheless, and an alarm has its result with it.
"""

from collections.abc import Sequence
from typing import Protocol

from msgspec import UNSET, UnsetType

from edge_agent.records import Result, ResultEvent
from edge_agent.settings.schema import TelemetrySettings
from edge_agent.telemetry.events.envelope import Envelope, KeptBack, ModelFacts
from edge_agent.telemetry.events.summaries import Summaries

# A prediction that flickers is published so often at once, and then no more often than this (seconds).
BURST = 10
PAUSE = 1.0
_NS = 1_000_000_000

_Shown = str | list[str] | UnsetType


class Publisher(Protocol):
    """Takes results in the order of their capture."""

    def publish(self, results: Sequence[Result], facts: ModelFacts) -> Sequence[ResultEvent | None]:
        """Queue what is to be published of them. Returns the event of each result that became one."""
        ...

    def close(self) -> None:
        """Queue what has been gathered so far; nothing comes after it."""
        ...


def make_publisher(settings: TelemetrySettings, envelope: Envelope) -> Publisher:
    """Return the publisher that an admin has asked for."""
    publish = settings.publish
    match publish.mode:
        case "all":
            return Everything(envelope)
        case "change":
            return Selection(envelope, Changes(settings.health_interval))
        case "one_in":
            return Selection(envelope, OneIn(publish.one_in))
        case "summary":
            return Summaries(envelope, publish.window)


class Everything:
    """Publishes every result."""

    def __init__(self, envelope: Envelope) -> None:
        self._envelope = envelope

    def publish(self, results: Sequence[Result], facts: ModelFacts) -> Sequence[ResultEvent | None]:
        """Queue all of them."""
        return self._envelope.put_results(results, facts)

    def close(self) -> None:
        """Nothing has been gathered."""


class Choice(Protocol):
    """Says which results are published. `changes` counts those of the prediction since the last one that was."""

    changes: int

    def picks(self, result: Result) -> bool: ...

    def renew(self) -> None:
        """Pick the next result: it comes from another model, or is made another way."""
        ...


class Selection:
    """Publishes the results that are picked, each with the number of those before it that were not.

    A result whose sample was chosen to be kept is published in any case.
    """

    def __init__(self, envelope: Envelope, choice: Choice) -> None:
        self._envelope = envelope
        self._choice = choice
        self._facts: ModelFacts | None = None
        self._unpublished = 0

    def publish(self, results: Sequence[Result], facts: ModelFacts) -> Sequence[ResultEvent | None]:
        """Queue those that are picked."""
        if facts != self._facts:
            self._facts = facts
            self._choice.renew()
        events: list[ResultEvent | None] = [None] * len(results)
        picked, kept_back = self._pick(results)
        if picked:
            published = self._envelope.put_results([results[place] for place in picked], facts, kept_back)
            for place, event in zip(picked, published, strict=True):
                events[place] = event
        return events

    def _pick(self, results: Sequence[Result]) -> tuple[list[int], list[KeptBack]]:
        """Return the places of the results that are published, and what each says of those before it."""
        choice, unpublished = self._choice, self._unpublished
        places: list[int] = []
        kept_back: list[KeptBack] = []
        for place, result in enumerate(results):
            if choice.picks(result) or result.chosen is not None:
                places.append(place)
                kept_back.append((unpublished or UNSET, choice.changes if choice.changes > 1 else UNSET))
                unpublished = choice.changes = 0
            else:
                unpublished += 1
        self._unpublished = unpublished
        return places, kept_back

    def close(self) -> None:
        """Nothing has been gathered."""


class OneIn:
    """Picks the first result and each `count`th after it."""

    changes = 0

    def __init__(self, count: int) -> None:
        self._count = count
        self._left = 0

    def picks(self, result: Result) -> bool:  # noqa: ARG002  each is as good as any other
        """Tell whether it is the turn of this one."""
        self._left -= 1
        if self._left > 0:
            return False
        self._left = self._count
        return True

    def renew(self) -> None:
        """Begin to count at the next result."""
        self._left = 0


class Changes:
    """Picks a result that shows something else than the last one picked, and at least one in `interval` seconds.

    What flickers is picked `BURST` times in a row and then once in `PAUSE` seconds. Since it is compared with what was
    picked last, the state that stays is always picked in the end.
    """

    def __init__(self, interval: float) -> None:
        self.changes = 0
        self._interval_ns = round(interval * _NS)
        self._before: _Shown | None = None
        self._picked: _Shown | None = None
        self._due_ns = 0
        self._spent_ns = 0

    def picks(self, result: Result) -> bool:
        """Tell whether it is to be published."""
        shown = _shown(result)
        if shown != self._before:
            self._before = shown
            self.changes += 1
        if shown == self._picked:
            if result.captured_ns < self._due_ns:
                return False
        elif not self._may_change(result.captured_ns):
            return False
        self._picked = shown
        self._due_ns = result.captured_ns + self._interval_ns
        return True

    def _may_change(self, now_ns: int) -> bool:
        # Each change that is published uses up a pause; up to BURST of them may be used up in advance.
        spent_ns = max(self._spent_ns, now_ns)
        if spent_ns - now_ns > (BURST - 1) * PAUSE * _NS:
            return False
        self._spent_ns = spent_ns + round(PAUSE * _NS)
        return True

    def renew(self) -> None:
        """Pick the next result, whatever it shows."""
        self._picked = None


def _shown(result: Result) -> _Shown:
    """Return what has to change: the objects of a picture, each by its label, or else the prediction."""
    scores = result.scores
    if scores and scores[0].box is not UNSET:
        return sorted(each.label for each in scores)
    return result.prediction
