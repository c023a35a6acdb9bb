"""Finds what cannot be with what stands in another table: each key is right, and yet they have no effect together."""

from collections.abc import Iterator
from operator import attrgetter

from edge_agent.settings.lines import KeyPath
from edge_agent.settings.publish import LESS
from edge_agent.settings.raw_data import RULES, rules_of
from edge_agent.settings.schema import Settings
from edge_agent.settings.tasks import OBJECT_THRESHOLD, SCORED, VALUED, needs
from edge_agent.settings.when import TASKS, When, conditions_of

Found = Iterator[tuple[KeyPath, str]]

_USED_BY = {
    "labels": SCORED + VALUED,
    "top_k": SCORED,
    "threshold": SCORED,
    "iou_threshold": ("detection",),
    "limits.low": VALUED,
    "limits.high": VALUED,
}


def contradictions(settings: Settings) -> Found:
    """Yield place and message for each key that has no effect, or not the one it is there for, with the others."""
    yield from _unused(settings)
    yield from _conditions(settings)
    yield from _unchanging(settings)
    yield from _raw_data(settings)


def _unused(settings: Settings) -> Found:
    """Yield place and message for each key of [inference] that was given and has no effect with the task."""
    inference = settings.inference
    default = type(inference)()
    for key, tasks in _USED_BY.items():
        value_of = attrgetter(key)
        if inference.task not in tasks and value_of(inference) != value_of(default):
            yield ("inference", *key.split(".")), needs(tasks, inference.task)


def _conditions(settings: Settings) -> Found:
    """Yield place and message for each condition that can never be met, or always is, with these settings."""
    task, top_k = settings.inference.task, settings.inference.top_k
    at_most = f"an event has at most {top_k} ([inference].top_k)"
    for number, action in enumerate(settings.actions):
        when, path = action.when, ("actions", number, "when")
        for key in conditions_of(when):
            if task not in TASKS[key]:
                yield (*path, key), needs(TASKS[key], task)
            elif key == "min_count" and when.min_count is not None and when.min_count > top_k:
                yield (*path, key), f"{when.min_count} objects are never found: {at_most}"
            elif key == "max_count" and when.max_count is not None and when.max_count >= top_k:
                yield (*path, key), f"more than {when.max_count} objects are never found: {at_most}"
            elif key == "min_confidence" and (unseen := _unseen(settings, when)) is not None:
                yield (*path, key), unseen


def _unseen(settings: Settings, when: When) -> str | None:
    """Tell that the rule is about scores that the threshold keeps from it."""
    threshold = settings.inference.threshold
    if threshold is None:
        threshold = OBJECT_THRESHOLD if settings.inference.task == "detection" else 0.0
    # With max_count alone the limit rises, see actions.conditions.
    falls = when.hysteresis if when.max_count is None or when.min_count is not None else 0.0
    least = round(when.min_confidence - falls, 9)
    if least >= threshold:
        return None
    why = f" (less hysteresis {falls:g})" if falls else ""
    return (
        f"no score from {least:g}{why} to {threshold:g} is ever seen: [inference].threshold leaves it out; "
        f"set that to {least:g}"
    )


def _unchanging(settings: Settings) -> Found:
    """Yield place and message if results are to be published on a change of what they do not have."""
    if settings.telemetry.publish.mode != "change":
        return
    task, limits = settings.inference.task, settings.inference.limits
    path = ("telemetry", "publish")
    if task == "raw":
        yield path, f"the task raw has no prediction that could change; write {LESS}"
    elif task in {"regression", "anomaly"} and limits.low is None and limits.high is None:
        yield (
            path,
            f"without [inference.limits] a value has no prediction that could change; set one, or write {LESS}",
        )


def _raw_data(settings: Settings) -> Found:
    """Yield place and message for each rule that no sample can ever meet with the settings of the model."""
    for rule in rules_of(settings.telemetry.raw_data):
        if (why := _never(rule, settings)) is not None:
            yield ("telemetry", "raw_data", rule), why


def _never(rule: str, settings: Settings) -> str | None:
    inference, limit = settings.inference, settings.telemetry.raw_data.max_confidence
    if inference.task not in RULES[rule]:
        return needs(RULES[rule], inference.task)
    if rule == "max_margin" and inference.top_k == 1:
        return "needs the best two classes: [inference].top_k must be at least 2, not 1"
    threshold = OBJECT_THRESHOLD if inference.threshold is None else inference.threshold
    if rule == "max_confidence" and inference.task == "detection" and limit is not None and limit < threshold:
        return f"no object has a score of {limit:g} or less: [inference].threshold, {threshold:g}, leaves it out"
    return None
