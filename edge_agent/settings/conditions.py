"""Finds rules of [[actions]] that could never fire, or always would, with the settings of the model."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from edge_agent.settings.tasks import needs
from edge_agent.settings.when import TASKS, When, conditions_of

if TYPE_CHECKING:
    from edge_agent.settings.lines import KeyPath
    from edge_agent.settings.schema import Settings

# A detector always has something to offer; below this it is hardly ever an object. Coral's examples begin here, too.
OBJECT_THRESHOLD = 0.4


def unmet(settings: "Settings") -> "Iterator[tuple[KeyPath, str]]":
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


def _unseen(settings: "Settings", when: When) -> str | None:
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
