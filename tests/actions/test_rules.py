import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import hypothesis
import hypothesis.strategies as st
import pytest
from hypothesis import given
from msgspec import UNSET
from pydantic import TypeAdapter

from edge_agent.actions.rules import Rule, RuleSet
from edge_agent.records import ResultEvent, Score
from edge_agent.settings.schema import ActionSettings

S = 1_000_000_000

Shown = tuple[ResultEvent, int]  # a result, and the second of its capture


def rule(name: str, label: str = "failure", *, run: str = "x", **more: Any) -> Rule:
    return Rule(name=name, run=(run,), **{"labels": frozenset({label} - {""}), "cooldown": 0, **more})


ALARM = rule("alarm", min_confidence=0.8)


def event(scores: Sequence[tuple[str, float]] = (), **more: Any) -> ResultEvent:
    """A result as the envelope makes it: of scores (label, score) or, with `value`, of a number and what it means."""
    of_scores: dict[str, Any] = {"prediction": scores[0][0], "confidence": scores[0][1]} if scores else {}
    return ResultEvent(
        event_id="edge-001/1/1",
        device_id="edge-001",
        timestamp=1,
        time_source="synchronized",
        results=[Score(label, score, 0) for label, score in scores],
        inference_time_ms=2.0,
        model_name="m",
        model_version="v1",
        accelerator="cpu",
        clipped=0.0,
        **(of_scores | more),
    )


def results(*shown: tuple[str, float, int]) -> list[Shown]:
    """Results of a classification: (prediction, confidence, second)."""
    return [(event([(prediction, confidence)]), second) for prediction, confidence, second in shown]


def values(*numbers: float) -> list[Shown]:
    """One result of a regression each second, the first in second 1."""
    return [(event(value=value), second) for second, value in enumerate(numbers, 1)]


def pictures(*objects: Sequence[tuple[str, float]]) -> list[Shown]:
    """One result of a detection each second, the first in second 1."""
    return [(event(scores), second) for second, scores in enumerate(objects, 1)]


def fired(rules: RuleSet, history: Iterable[Shown], *, watched: bool = False) -> list[tuple[str, int]]:
    """(name of the rule, second) for each time a rule fires. `watched`: shown only results that any rule looks at."""
    return [
        (rule.name, second)
        for result, second in history
        if not watched or rules.watch(result.prediction)
        for rule in rules.check(result, second * S)
    ]


def test_fires_on_its_label_with_enough_confidence() -> None:
    shown = results(("normal", 0.99, 1), ("failure", 0.79, 2), ("failure", 0.8, 3), ("failure", math.nan, 4))
    assert fired(RuleSet([ALARM]), shown) == [("alarm", 3)]


def test_hold_must_not_be_broken_by_another_label_or_a_low_confidence() -> None:
    rules = RuleSet([rule("held", min_confidence=0.5, hold=3, cooldown=100)])
    shown = results(("failure", 0.9, 1), ("failure", 0.9, 3), ("normal", 0.9, 3), ("failure", 0.9, 4))
    shown += results(("failure", 0.4, 6), ("failure", 0.9, 7), ("failure", 0.9, 9), ("failure", 0.9, 10))
    assert fired(rules, shown) == [("held", 10)]


def test_nothing_found_breaks_a_hold_too() -> None:
    rules = RuleSet([rule("held", hold=2, cooldown=100)])
    shown = [*results(("failure", 0.9, 1)), (event(), 2), *results(("failure", 0.9, 3), ("failure", 0.9, 5))]
    assert fired(rules, shown) == [("held", 5)]


def test_reminds_after_the_cooldown_while_the_condition_holds() -> None:
    rules = RuleSet([rule("held", hold=2, cooldown=5)])
    shown = results(*(("failure", 1.0, second) for second in range(1, 15)))
    assert fired(rules, shown) == [("held", 3), ("held", 8), ("held", 13)]


def test_after_a_break_both_the_hold_and_the_cooldown_must_have_passed() -> None:
    rules = RuleSet([rule("held", hold=1, cooldown=10)])
    shown = results(("failure", 1.0, 1), ("failure", 1.0, 2), ("normal", 1.0, 3))
    shown += results(*(("failure", 1.0, second) for second in (4, 11, 12)))
    assert fired(rules, shown) == [("held", 2), ("held", 12)]


def test_two_rules_on_one_label_are_apart_and_fire_in_their_order() -> None:
    sure = rule("sure", min_confidence=0.9, cooldown=100)
    maybe = rule("maybe", min_confidence=0.5)
    rules = RuleSet([sure, rule("any", "", min_confidence=0.1), maybe])
    assert fired(rules, results(("failure", 0.6, 1), ("failure", 0.95, 2), ("normal", 0.9, 3))) == [
        ("any", 1),
        ("maybe", 1),
        ("sure", 2),
        ("any", 2),
        ("maybe", 2),
        ("any", 3),
    ]


def test_a_hold_goes_on_from_one_label_of_a_list_to_another() -> None:
    either = rule("either", labels=frozenset({"failure", "warning"}), hold=2, cooldown=100)
    rules = RuleSet([either, rule("one", "failure", hold=2)])
    shown = results(*(("failure" if second % 2 else "warning", 1.0, second) for second in range(1, 5)))
    assert fired(rules, shown) == [("either", 3)]


def test_a_result_without_a_rule_is_answered_with_nothing() -> None:
    [(normal, _)] = results(("normal", 1.0, 1))
    assert RuleSet([ALARM]).check(normal, S) == ()
    assert RuleSet().check(normal, S) == ()
    assert RuleSet([ALARM]).check(event(), S) == ()


def test_a_confidence_may_waver_as_far_as_the_hysteresis_says() -> None:
    rules = RuleSet([rule("held", min_confidence=0.8, hysteresis=0.1, hold=2, cooldown=100)])
    scores = [0.75, 0.8, 0.7, 0.69, 0.8, 0.7, 0.7]
    assert fired(rules, results(*(("failure", score, second) for second, score in enumerate(scores, 1)))) == [
        ("held", 7)
    ]
    # Another label ends the condition, so the next one has to reach the whole limit again.
    assert fired(rules, results(("normal", 1.0, 110), ("failure", 0.75, 111), ("failure", 0.75, 120))) == []


def test_a_value_above_its_limit_until_it_has_fallen_behind_the_hysteresis() -> None:
    rules = RuleSet([rule("hot", "", above=80, hysteresis=5)])
    assert fired(rules, values(80, 80.5, 76, 75, 80, 81, math.nan, 79, math.inf)) == [
        ("hot", 2),
        ("hot", 3),
        ("hot", 6),
        ("hot", 9),
    ]


def test_a_value_below_and_one_between_two_limits() -> None:
    rules = RuleSet([rule("cold", "", below=10, hysteresis=2), rule("band", "", above=5, below=10)])
    assert fired(rules, values(10, 9, 11, 12, 5, 6)) == [
        ("cold", 2),
        ("band", 2),
        ("cold", 3),
        ("cold", 5),
        ("cold", 6),
        ("band", 6),
    ]


def test_a_verdict_on_a_value_needs_no_confidence() -> None:
    rules = RuleSet([rule("low", "low"), rule("lower", "low", below=-5), rule("sure", "low", min_confidence=0.1)])
    assert fired(rules, [(event(prediction="low", value=-1.0), 1), (event(prediction="low", value=-6.0), 2)]) == [
        ("low", 1),
        ("low", 2),
        ("lower", 2),
    ]
    assert fired(rules, [(event(prediction="high", value=-9.0), 3)]) == []


def test_a_label_names_one_of_several_values() -> None:
    rules = RuleSet([rule("damp", "humidity", above=60, hysteresis=5), rule("high", "high", above=25)])
    shown = [
        (event([("temperature", 20.0), ("humidity", 61.0)], prediction="normal", value=20.0), 1),
        (event([("temperature", 70.0), ("humidity", 56.0)], prediction="high", value=70.0), 2),
        (event([("temperature", 70.0), ("humidity", 55.0)], prediction="normal", value=70.0), 3),
        (event([("humidity", 61.0)]), 4),  # the score of a class
    ]
    assert fired(rules, shown) == [("damp", 1), ("damp", 2), ("high", 2)]


def test_objects_are_counted_by_label_and_score() -> None:
    rules = RuleSet([rule("pair", "person", min_confidence=0.5, min_count=2)])
    three = [("dog", 0.9), ("person", 0.8), ("person", 0.5)]
    assert fired(rules, pictures(three, three[:2], [("person", 0.6), ("person", 0.49)], [], three)) == [
        ("pair", 1),
        ("pair", 5),
    ]
    either = rule("either", labels=frozenset({"person", "dog"}), min_count=3)
    assert fired(RuleSet([either, rule("any", "", min_count=4)]), pictures(three, [*three, ("cat", 0.1)])) == [
        ("either", 1),
        ("either", 2),
        ("any", 2),
    ]
    assert either.objects(event([*three, ("cat", 0.1)])) == 3


def test_nobody_has_been_there_for_a_while() -> None:
    nobody = rule("nobody", "person", min_confidence=0.5, max_count=0, hold=2, hysteresis=0.2, cooldown=100)
    dog, ghost, person = ("dog", 0.9), ("person", 0.6), ("person", 0.7)
    # A ghost does not let it begin, and does not break it either; a person does.
    assert fired(RuleSet([nobody]), pictures([ghost], [], [ghost, dog], [person], [dog], [ghost], [])) == [
        ("nobody", 7)
    ]


def test_a_count_may_waver_as_far_as_the_hysteresis_says() -> None:
    pair = rule("pair", "person", min_confidence=0.5, min_count=2, max_count=2, hysteresis=0.2)
    sure, weak, ghost = ("person", 0.5), ("person", 0.3), ("person", 0.2)
    assert fired(RuleSet([pair]), pictures([sure, weak], [sure, sure], [sure, weak], [sure, ghost], [sure, weak])) == [
        ("pair", 2),
        ("pair", 3),
    ]
    more = ("person", 0.69)
    assert fired(RuleSet([pair]), pictures([sure] * 3, [sure] * 2, [sure, sure, more], [("person", 0.7)] * 3)) == [
        ("pair", 2),
        ("pair", 3),
    ]


@pytest.mark.parametrize("labels", [frozenset({"failure"}), frozenset[str]()])
def test_an_unchanged_rule_keeps_hold_and_cooldown_when_the_rules_are_replaced(labels: frozenset[str]) -> None:
    kept = rule("kept", labels=labels, hold=10, cooldown=100)
    changed = rule("changed", labels=labels, hold=10, cooldown=100)
    rules = RuleSet([kept, changed])
    assert fired(rules, results(("failure", 1.0, 1))) == []
    rules.replace([replace(changed, run=("y",)), replace(kept)])
    shown = results(("failure", 1.0, 5), ("failure", 1.0, 11), ("failure", 1.0, 15))
    assert fired(rules, shown) == [("kept", 11), ("changed", 15)]
    rules.replace([kept])
    assert fired(rules, results(("failure", 1.0, 20), ("failure", 1.0, 111))) == [("kept", 111)]


def test_a_rule_that_was_taken_out_has_forgotten_everything_when_it_comes_back() -> None:
    held = rule("held", hold=10)
    rules = RuleSet([held])
    assert fired(rules, results(("failure", 1.0, 1))) == []
    rules.replace([])
    rules.replace([held])
    assert fired(rules, results(("failure", 1.0, 12), ("failure", 1.0, 22))) == [("held", 22)]


def test_a_result_that_no_rule_looks_at_need_not_be_shown() -> None:
    rules = RuleSet([ALARM])
    assert [rules.watch(prediction) for prediction in ("failure", "normal", UNSET)] == [True, False, False]
    assert not RuleSet().watch("failure")
    assert RuleSet([rule("any", "")]).watch(UNSET)


# ------------------------------------------------------------------------------------------ against a naive model


def naive(rule: Rule, history: list[Shown]) -> list[int]:
    """The seconds at which the rule fires, worked out for each result anew from the whole history."""
    times: list[int] = []
    for end, (_, now) in enumerate(history):
        since = None
        for start in range(end, -1, -1):
            if all(
                meets(rule, result, begun=start < place)
                for place, (result, _) in enumerate(history[start : end + 1], start)
            ):
                since = history[start][1]
        held = since is not None and now - since >= rule.hold
        if held and (not times or now - times[-1] >= rule.cooldown):
            times.append(now)
    return times


def meets(rule: Rule, result: ResultEvent, *, begun: bool) -> bool:
    """Whether a result meets the rule, at the begin of a row of such results or in it; straight from the manual."""
    slack = rule.hysteresis if begun else 0.0
    of_label = [each for each in result.results if not rule.labels or each.label in rule.labels]
    if rule.min_count is not None or rule.max_count is not None:
        least = sum(each.score >= rule.min_confidence - slack for each in of_label)
        most = sum(each.score >= rule.min_confidence + slack for each in of_label)
        return least >= (rule.min_count or 0) and (rule.max_count is None or most <= rule.max_count)
    if rule.above is not None or rule.below is not None:
        named = [each.score for each in of_label] if rule.labels and result.prediction not in rule.labels else []
        first = [result.value] if not rule.labels or result.prediction in rule.labels else []
        return result.value is not UNSET and any(
            (rule.above is None or value > rule.above - slack) and (rule.below is None or value < rule.below + slack)
            for value in [*named, *first]
            if value is not UNSET
        )
    if rule.labels and result.prediction not in rule.labels:
        return False
    if result.confidence is UNSET:
        return result.prediction is not UNSET and rule.min_confidence == 0
    return result.confidence >= rule.min_confidence - slack


# Powers of two, so that sums and differences of limits are exact.
EIGHTHS = st.integers(0, 8).map(lambda eighths: eighths / 8)
LABELS = st.sampled_from(["failure", "warning", "normal"])
TIMES = {"hold": st.integers(0, 6), "cooldown": st.integers(0, 12), "hysteresis": st.sampled_from([0.0, 0.125, 0.5])}
COMMON = {"name": st.just("rule"), "run": st.just(("x",)), "labels": st.frozensets(LABELS, max_size=2), **TIMES}
MAYBE = st.none() | EIGHTHS
RULES = st.one_of(
    st.builds(Rule, **COMMON, min_confidence=EIGHTHS),
    st.builds(
        Rule,
        **COMMON,
        min_confidence=EIGHTHS,
        min_count=st.none() | st.integers(1, 3),
        max_count=st.none() | st.integers(0, 3),
    ),
    st.builds(Rule, **COMMON, above=MAYBE, below=MAYBE),
)
SCORES = st.lists(st.tuples(LABELS, EIGHTHS), max_size=4).map(lambda scores: sorted(scores, key=lambda each: -each[1]))
EVENTS = SCORES.map(event) | st.builds(event, SCORES, value=EIGHTHS, prediction=LABELS | st.just(UNSET))
SHOWN = st.tuples(EVENTS, st.integers(0, 4))
# Long ones too: Hypothesis by itself makes few of them, and a row of results that wavers is a matter of many.
RESULTS = st.lists(SHOWN, max_size=5) | st.lists(SHOWN, min_size=15, max_size=30)


@hypothesis.settings(max_examples=200)
@given(
    rules=st.lists(RULES, min_size=1, max_size=6),
    shown=RESULTS,
    reload_after=st.integers(0, 30),
    watched=st.booleans(),
)
def test_agrees_with_a_naive_model(
    rules: list[Rule],
    shown: list[tuple[ResultEvent, int]],
    reload_after: int,
    watched: bool,
) -> None:
    rules = [replace(rule, name=f"rule{n}") for n, rule in enumerate(rules)]
    history: list[Shown] = []
    now = 1
    for result, gap in shown:
        now += gap
        history.append((result, now))
    expected = {(rule.name, second) for rule in rules for second in naive(rule, history)}
    rule_set = RuleSet(rules)
    seen = fired(rule_set, history[:reload_after], watched=watched)
    rule_set.replace([replace(rule) for rule in rules])  # equal ones: this must not be noticed
    seen += fired(rule_set, history[reload_after:], watched=watched)
    assert set(seen) == expected
    order = {rule.name: n for n, rule in enumerate(rules)}
    if all(gap for _, gap in shown):
        assert seen == sorted(seen, key=lambda each: (each[1], order[each[0]]))


# ------------------------------------------------------------------------------------------ from the settings


def from_settings(when: dict[str, Any], task: str, **more: Any) -> Rule:
    table = {"name": "alarm", "when": when, "run": ["/usr/local/bin/alarm", "-v"], **more}
    return Rule.from_settings(TypeAdapter(ActionSettings).validate_python(table), task)


def test_takes_every_value_of_the_settings() -> None:
    when = {"label": ["person", "child"], "min_confidence": 0.8, "hold": "2s", "hysteresis": 0.1}
    when |= {"min_count": 2, "max_count": 5}
    assert from_settings(when, "detection", cooldown="5m", timeout="3s") == Rule(
        name="alarm",
        run=("/usr/local/bin/alarm", "-v"),
        labels=frozenset({"person", "child"}),
        min_confidence=0.8,
        min_count=2,
        max_count=5,
        hysteresis=0.1,
        hold=2.0,
        cooldown=300.0,
        timeout=3.0,
    )
    hot = from_settings({"label": "high", "above": 5, "below": 90}, "regression")
    assert (hot.labels, hot.above, hot.below, hot.counts) == (frozenset({"high"}), 5.0, 90.0, False)


def test_a_rule_on_a_label_means_any_object_of_a_detection() -> None:
    rules = RuleSet([from_settings({"label": "person", "min_confidence": 0.5}, "detection")])
    assert fired(rules, pictures([("dog", 0.9), ("person", 0.6)])) == [("alarm", 1)]
    nobody = RuleSet([from_settings({"label": "person", "max_count": 0}, "detection")])
    assert fired(nobody, pictures([("dog", 0.9)])) == [("alarm", 1)]
    assert not from_settings({"label": "person"}, "classification").counts
