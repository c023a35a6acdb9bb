"""Decides which actions a result sets off. A pure state machine: no input or output, no clock of its own.

A rule's condition is met by a result whose prediction is the rule's label with at least its confidence. The rule
fires once its condition was met by every result for `hold` seconds, measured between captures. It then keeps quiet
for `cooldown` seconds; if the condition has held all along, it fires again at their end, as a reminder.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from edge_agent.settings.schema import ActionSettings

_NS = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Rule:
    """One table of `[[actions]]`. `run` is a program and its arguments; `hold`, `cooldown`, `timeout` are seconds."""

    name: str
    label: str
    min_confidence: float
    hold: float
    cooldown: float
    run: tuple[str, ...]
    timeout: float

    @classmethod
    def from_settings(cls, settings: ActionSettings) -> "Rule":
        """The rule that an admin has written."""
        return cls(
            name=settings.name,
            label=str(settings.when.label),
            min_confidence=settings.when.min_confidence,
            hold=settings.when.hold,
            cooldown=settings.cooldown,
            run=tuple(settings.run),
            timeout=settings.timeout,
        )


class RuleSet:
    """All rules and how far each of them is. Results must come in the order of their capture."""

    def __init__(self, rules: Iterable[Rule] = ()) -> None:
        self._by_label: dict[str, list[_Progress]] = {}
        self._label: str | None = None
        self._watching: Sequence[_Progress] = ()
        self.replace(rules)

    def check(self, prediction: str, confidence: float, captured_ns: int) -> Sequence[Rule]:
        """The rules that fire on this result. `captured_ns` is CLOCK_MONOTONIC in nanoseconds."""
        # Only rules for the label seen last can be on hold, so a change of label is the one moment to reset any.
        if prediction != self._label:
            for progress in self._watching:
                progress.due_ns = None
            self._label = prediction
            self._watching = self._by_label.get(prediction, ())
        if not self._watching:
            return ()
        return [p.rule for p in self._watching if p.fires(confidence, captured_ns)]

    def replace(self, rules: Iterable[Rule]) -> None:
        """Take these rules from now on. A rule that is equal to one of the old ones goes on where that one is."""
        known = {p.rule: p for group in self._by_label.values() for p in group}
        self._by_label = {}
        for rule in rules:
            self._by_label.setdefault(rule.label, []).append(known.get(rule) or _Progress(rule))
        self._watching = self._by_label.get(self._label, ()) if self._label is not None else ()


class _Progress:
    """Where one rule stands. `due_ns`: when it fires if its condition goes on; None while the condition is not met."""

    __slots__ = ("_cooldown_ns", "_hold_ns", "_quiet_until_ns", "due_ns", "rule")

    def __init__(self, rule: Rule) -> None:
        self.rule = rule
        self.due_ns: int | None = None
        self._hold_ns = round(rule.hold * _NS)
        self._cooldown_ns = round(rule.cooldown * _NS)
        self._quiet_until_ns = 0

    def fires(self, confidence: float, captured_ns: int) -> bool:
        if not confidence >= self.rule.min_confidence:  # not "<": a confidence that is no number must not fire
            self.due_ns = None
            return False
        if self.due_ns is None:
            self.due_ns = max(captured_ns + self._hold_ns, self._quiet_until_ns)
        if captured_ns < self.due_ns:
            return False
        self.due_ns = self._quiet_until_ns = captured_ns + self._cooldown_ns
        return True
