import math
from collections.abc import Iterable
from dataclasses import replace

import hypothesis.strategies as st
from hypothesis import given
from pydantic import TypeAdapter

from edge_agent.actions.rules import Rule, RuleSet
from edge_agent.settings.schema import ActionSettings

S = 1_000_000_000


def rule(name: str, label: str = "failure", *, run: str = "x", **limits: float) -> Rule:
    numbers = {"min_confidence": 0.0, "hold": 0.0, "cooldown": 0.0, "timeout": 30.0} | limits
    return Rule(name=name, label=label, run=(run,), **numbers)


ALARM = rule("alarm", min_confidence=0.8)


def fired(rules: RuleSet, results: Iterable[tuple[str, float, int]]) -> list[tuple[str, int]]:
    """(name of the rule, second) for each time a rule fires; results are (prediction, confidence, second)."""
    return [
        (rule.name, second)
        for prediction, confidence, second in results
        for rule in rules.check(prediction, confidence, second * S)
    ]


def test_fires_on_its_label_with_enough_confidence() -> None:
    rules = RuleSet([ALARM])
    results = [("normal", 0.99, 1), ("failure", 0.79, 2), ("failure", 0.8, 3), ("failure", math.nan, 4)]
    assert fired(rules, results) == [("alarm", 3)]


def test_hold_must_not_be_broken_by_another_label_or_a_low_confidence() -> None:
    rules = RuleSet([rule("held", min_confidence=0.5, hold=3, cooldown=100)])
    results = [("failure", 0.9, 1), ("failure", 0.9, 3), ("normal", 0.9, 3), ("failure", 0.9, 4)]
    results += [("failure", 0.4, 6), ("failure", 0.9, 7), ("failure", 0.9, 9), ("failure", 0.9, 10)]
    assert fired(rules, results) == [("held", 10)]


def test_reminds_after_the_cooldown_while_the_condition_holds() -> None:
    rules = RuleSet([rule("held", hold=2, cooldown=5)])
    assert fired(rules, [("failure", 1.0, second) for second in range(1, 15)]) == [
        ("held", 3),
        ("held", 8),
        ("held", 13),
    ]


def test_after_a_break_both_the_hold_and_the_cooldown_must_have_passed() -> None:
    rules = RuleSet([rule("held", hold=1, cooldown=10)])
    results = [("failure", 1.0, 1), ("failure", 1.0, 2), ("normal", 1.0, 3)]
    results += [("failure", 1.0, second) for second in (4, 11, 12)]
    assert fired(rules, results) == [("held", 2), ("held", 12)]


def test_two_rules_on_one_label_are_apart() -> None:
    sure = rule("sure", min_confidence=0.9, cooldown=100)
    maybe = rule("maybe", min_confidence=0.5, cooldown=100)
    rules = RuleSet([sure, maybe])
    assert fired(rules, [("failure", 0.6, 1), ("failure", 0.95, 2)]) == [("maybe", 1), ("sure", 2)]


def test_a_result_without_a_rule_is_answered_with_nothing() -> None:
    assert RuleSet([ALARM]).check("normal", 1.0, S) == ()
    assert RuleSet().check("failure", 1.0, S) == ()


def test_an_unchanged_rule_keeps_hold_and_cooldown_when_the_rules_are_replaced() -> None:
    kept = rule("kept", hold=10, cooldown=100)
    changed = rule("changed", hold=10, cooldown=100)
    rules = RuleSet([kept, changed])
    rules.check("failure", 1.0, 1 * S)
    rules.replace([rule("changed", run="y", hold=10, cooldown=100), kept])
    assert fired(rules, [("failure", 1.0, 5), ("failure", 1.0, 11), ("failure", 1.0, 15)]) == [
        ("kept", 11),
        ("changed", 15),
    ]
    rules.replace([kept])
    assert fired(rules, [("failure", 1.0, 20), ("failure", 1.0, 111)]) == [("kept", 111)]


def test_a_rule_that_was_taken_out_has_forgotten_everything_when_it_comes_back() -> None:
    held = rule("held", hold=10)
    rules = RuleSet([held])
    rules.check("failure", 1.0, 1 * S)
    rules.replace([])
    rules.replace([held])
    assert fired(rules, [("failure", 1.0, 12), ("failure", 1.0, 22)]) == [("held", 22)]


def naive(rule: Rule, history: list[tuple[str, float, int]]) -> list[int]:
    """The seconds at which the rule fires, worked out for each result anew from the whole history."""
    times: list[int] = []
    for end, (_, _, now) in enumerate(history):
        since = None
        for prediction, confidence, second in reversed(history[: end + 1]):
            if prediction != rule.label or confidence < rule.min_confidence:
                break
            since = second
        held = since is not None and now - since >= rule.hold
        if held and (not times or now - times[-1] >= rule.cooldown):
            times.append(now)
    return times


LABELS = st.sampled_from(["failure", "warning", "normal"])
CONFIDENCE = st.sampled_from([0.2, 0.5, 0.8, 1.0])
RULES = st.builds(
    Rule,
    name=st.just("rule"),
    label=LABELS,
    run=st.just(("x",)),
    timeout=st.just(30.0),
    min_confidence=CONFIDENCE,
    hold=st.integers(0, 6),
    cooldown=st.integers(0, 12),
)
RESULTS = st.lists(st.tuples(LABELS, CONFIDENCE, st.integers(0, 4)), max_size=60)


@given(rules=st.lists(RULES, max_size=4), results=RESULTS)
def test_agrees_with_a_naive_model(rules: list[Rule], results: list[tuple[str, float, int]]) -> None:
    rules = [replace(rule, name=f"rule{n}") for n, rule in enumerate(rules)]
    history: list[tuple[str, float, int]] = []
    now = 1
    for prediction, confidence, gap in results:
        now += gap
        history.append((prediction, confidence, now))
    expected = {rule.name: times for rule in rules if (times := naive(rule, history))}
    seen: dict[str, list[int]] = {}
    for name, second in fired(RuleSet(rules), history):
        seen.setdefault(name, []).append(second)
    assert seen == expected


def test_takes_every_value_of_the_settings() -> None:
    table = {"name": "alarm", "when": {"label": "failure", "min_confidence": 0.8, "hold": "2s"}}
    table |= {"run": ["/usr/local/bin/alarm", "-v"], "cooldown": "5m", "timeout": "3s"}
    assert Rule.from_settings(TypeAdapter(ActionSettings).validate_python(table)) == Rule(
        name="alarm",
        label="failure",
        min_confidence=0.8,
        hold=2.0,
        cooldown=300.0,
        run=("/usr/local/bin/alarm", "-v"),
        timeout=3.0,
    )
