"""Decides which actions a result sets off. A pure state machine: no input or output, no clock of its own.

A rule has a condition, see `edge_agent.actions.conditions`. The rule fires once its condition was met by every result
for `hold` seconds, measured between captures. It then keeps quiet for `cooldown` seconds; if the condition has held all
along, it fires again at their end, as a reminder.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from msgspec import UnsetType

from edge_agent.actions.conditions import Condition, confident, count, counted, valued, values
from edge_agent.records import ResultEvent
from edge_agent.settings.schema import ActionSettings, Settings

_NS = 1_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One table of `[[actions]]`. `run` is a program and its arguments; `hold`, `cooldown`, `timeout` are seconds.

    `labels` are those of `when`, or empty for any. `min_count` and `max_count` are about the objects in a result,
    `above` and `below` about its values.
    """

    name: str
    run: tuple[str, ...]
    labels: frozenset[str] = frozenset()
    min_confidence: float = 0.0
    min_count: int | None = None
    max_count: int | None = None
    above: float | None = None
    below: float | None = None
    hysteresis: float = 0.0
    hold: float = 0.0
    cooldown: float = 60.0
    timeout: float = 30.0

    @classmethod
    def from_settings(cls, settings: ActionSettings, task: str) -> "Rule":
        """The rule that an admin has written, for results of this task."""
        when = settings.when
        labels = [when.label] if isinstance(when.label, str) else when.label
        # The prediction of a detection is its best object; a rule on "person" means a person beside a better dog too.
        one = 1 if task == "detection" and when.max_count is None else None
        return cls(
            name=settings.name,
            run=tuple(settings.run),
            labels=frozenset(labels or ()),
            min_confidence=when.min_confidence,
            min_count=one if when.min_count is None else when.min_count,
            max_count=when.max_count,
            above=when.above,
            below=when.below,
            hysteresis=when.hysteresis,
            hold=when.hold,
            cooldown=settings.cooldown,
            timeout=settings.timeout,
        )

    @property
    def counts(self) -> bool:
        """Whether it counts objects."""
        return self.min_count is not None or self.max_count is not None

    @property
    def compares(self) -> bool:
        """Whether it compares a value with limits."""
        return self.above is not None or self.below is not None

    def objects(self, event: ResultEvent) -> int:
        """Return how many objects it finds in a result."""
        return count(event, self.labels, self.min_confidence)

    def values(self, event: ResultEvent) -> list[float]:
        """Return the values of a result that it compares."""
        return values(event, self.labels)

    @property
    def predictions(self) -> frozenset[str]:
        """The predictions of the results that it must see; empty for all of them."""
        return frozenset() if self.counts or self.compares else self.labels

    def condition(self) -> Condition:
        """Return what it asks of the results that it must see."""
        if self.counts:
            return counted(
                self.labels,
                min_confidence=self.min_confidence,
                hysteresis=self.hysteresis,
                min_count=self.min_count,
                max_count=self.max_count,
            )
        if self.compares:
            return valued(self.labels, above=self.above, below=self.below, hysteresis=self.hysteresis)
        return confident(min_confidence=self.min_confidence, hysteresis=self.hysteresis)


def rules_of(settings: Settings) -> list[Rule]:
    """Return the rules that an admin has written, in order."""
    return [Rule.from_settings(action, settings.inference.task) for action in settings.actions]


class RuleSet:
    """All rules and how far each of them is. Results must come in the order of their capture."""

    def __init__(self, rules: Iterable[Rule] = ()) -> None:
        self._all: list[_Progress] = []
        self._label: str | UnsetType | None = None
        self.replace(rules)

    @property
    def all(self) -> tuple[Rule, ...]:
        """The rules, in order."""
        return tuple(progress.rule for progress in self._all)

    def watch(self, prediction: str | UnsetType) -> bool:
        """Whether any rule looks at a result with this prediction: if not, `check` may be left out for it."""
        if prediction != self._label:
            self._turn_to(prediction)
        return bool(self._watching)

    def check(self, event: ResultEvent, captured_ns: int) -> Sequence[Rule]:
        """The rules that fire on this result, in order. `captured_ns` is CLOCK_MONOTONIC in nanoseconds."""
        # Almost every result has the label of the one before, and almost no label has a rule.
        if event.prediction != self._label:
            self._turn_to(event.prediction)
        if not self._watching:
            return ()
        return [p.rule for p in self._watching if p.fires(event, captured_ns)]

    def replace(self, rules: Iterable[Rule]) -> None:
        """Take these rules from now on. A rule that is equal to one of the old ones goes on where that one is."""
        known = {p.rule: p for p in self._all}
        self._all = [known.get(rule) or _Progress(rule) for rule in rules]
        labels = {label for p in self._all for label in p.predictions}
        self._by_label: dict[str | UnsetType | None, list[_Progress]] = {
            label: [p for p in self._all if not p.predictions or label in p.predictions] for label in labels
        }
        self._of_any_label = [p for p in self._all if not p.predictions]
        self._watching = self._watching_for(self._label)

    def _turn_to(self, label: str | UnsetType) -> None:
        self._label = label
        before, self._watching = self._watching, self._watching_for(label)
        # Only rules that were watched can be on hold, so a change of label is the one moment to reset any.
        for progress in before:
            if progress not in self._watching:
                progress.due_ns = None

    def _watching_for(self, label: str | UnsetType | None) -> "list[_Progress]":
        return self._by_label.get(label, self._of_any_label)


class _Progress:
    """Where one rule stands. `due_ns`: when it fires if its condition goes on; None while the condition is not met."""

    __slots__ = ("_cooldown_ns", "_hold_ns", "_met", "_quiet_until_ns", "due_ns", "predictions", "rule")

    def __init__(self, rule: Rule) -> None:
        self.rule = rule
        self.predictions = rule.predictions
        self.due_ns: int | None = None
        self._met = rule.condition()
        self._hold_ns = round(rule.hold * _NS)
        self._cooldown_ns = round(rule.cooldown * _NS)
        self._quiet_until_ns = 0

    def fires(self, event: ResultEvent, captured_ns: int) -> bool:
        if not self._met(event, self.due_ns is not None):
            self.due_ns = None
            return False
        if self.due_ns is None:
            self.due_ns = max(captured_ns + self._hold_ns, self._quiet_until_ns)
        if captured_ns < self.due_ns:
            return False
        self.due_ns = self._quiet_until_ns = captured_ns + self._cooldown_ns
        return True
