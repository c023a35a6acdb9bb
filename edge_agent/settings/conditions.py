"""Finds rules of [[actions]] that could never fire, or that would fire whatever the result.

`contradiction` looks at one `when` by itself, `unmet` at what the settings of the model leave of each of them.
"""

from collections.abc import Iterator
from dataclasses import fields
from typing import TYPE_CHECKING

from edge_agent.settings.showing import show

if TYPE_CHECKING:
    from edge_agent.settings.lines import KeyPath
    from edge_agent.settings.schema import Settings, When

# A detector always has something to offer; below this it is hardly ever an object. Coral's examples begin here, too.
OBJECT_THRESHOLD = 0.4
_SCORED = ("classification", "detection")
_VALUED = ("regression", "anomaly")
# The keys of `when` that are conditions, and the tasks whose results they can be about.
_TASKS = {
    "label": _SCORED + _VALUED,
    "min_confidence": _SCORED,
    "min_count": ("detection",),
    "max_count": ("detection",),
    "above": _VALUED,
    "below": _VALUED,
}


def consistent(when: "When") -> "When":
    """Return it as it is. Raises ValueError if it names no condition, or conditions that do not go together."""
    given = _given(when)
    if not given:
        raise ValueError(f"names no condition; it needs one of {', '.join(_TASKS)}")
    of_value = [key for key in given if _TASKS[key] == _VALUED]
    of_score = [key for key in given if set(_TASKS[key]) <= set(_SCORED)]
    if of_value and of_score:
        raise ValueError(f"{of_value[0]} and {of_score[0]} do not go together: no task gives both values and scores")
    _check_range(when)
    if when.hysteresis and not of_value:
        _check_hysteresis(when)
    return when


def _check_range(when: "When") -> None:
    if when.min_count is not None and when.max_count is not None and when.min_count > when.max_count:
        raise ValueError(f"no number is at least {when.min_count} (min_count) and at most {when.max_count} (max_count)")
    if when.above is not None and when.below is not None and when.above >= when.below:
        raise ValueError(
            f"no value is above {when.above:g} and below {when.below:g}; for values outside a range write two actions"
        )


def _check_hysteresis(when: "When") -> None:
    # What ends "at most so many" is a score that rises, and what ends any other condition is one that falls.
    if (when.max_count is None or when.min_count is not None) and when.hysteresis >= when.min_confidence:
        raise ValueError(
            f"hysteresis {when.hysteresis:g} must be less than min_confidence {when.min_confidence:g}, "
            "or no score would end the condition"
        )
    if when.max_count is not None and when.min_confidence + when.hysteresis > 1:
        raise ValueError(
            f"min_confidence {when.min_confidence:g} and hysteresis {when.hysteresis:g} come to more than 1, "
            "so no score would end the condition"
        )


def unmet(settings: "Settings") -> "Iterator[tuple[KeyPath, str]]":
    """Yield place and message for each condition that can never be met, or always is, with these settings."""
    task, top_k = settings.inference.task, settings.inference.top_k
    at_most = f"an event has at most {top_k} ([inference].top_k)"
    for number, action in enumerate(settings.actions):
        when, path = action.when, ("actions", number, "when")
        for key in _given(when):
            if task not in _TASKS[key]:
                *others, last = (show(each) for each in _TASKS[key])
                wanted = f"{', '.join(others)} or {last}" if others else last
                yield (*path, key), f"needs [inference].task {wanted}, not {show(task)}"
            elif key == "min_count" and when.min_count is not None and when.min_count > top_k:
                yield (*path, key), f"{when.min_count} objects are never found: {at_most}"
            elif key == "max_count" and when.max_count is not None and when.max_count >= top_k:
                yield (*path, key), f"more than {when.max_count} objects are never found: {at_most}"
            elif key == "min_confidence" and (unseen := _unseen(settings, when)) is not None:
                yield (*path, key), unseen


def _unseen(settings: "Settings", when: "When") -> str | None:
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


def _given(when: "When") -> list[str]:
    return [field.name for field in fields(when) if field.name in _TASKS and getattr(when, field.name) != field.default]
