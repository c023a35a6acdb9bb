"""Which tasks a key is for, and keys of [inference] that the task in the settings has no use for."""

from collections.abc import Iterator, Sequence
from operator import attrgetter
from typing import TYPE_CHECKING

from edge_agent.settings.showing import show

if TYPE_CHECKING:
    from edge_agent.settings.lines import KeyPath
    from edge_agent.settings.schema import Settings

SCORED = ("classification", "detection")
VALUED = ("regression", "anomaly")
_USED_BY = {
    "labels": SCORED + VALUED,
    "top_k": SCORED,
    "threshold": SCORED,
    "iou_threshold": ("detection",),
    "limits.low": VALUED,
    "limits.high": VALUED,
}


def unused(settings: "Settings") -> "Iterator[tuple[KeyPath, str]]":
    """Yield place and message for each key of [inference] that was given and has no effect with the task."""
    inference = settings.inference
    default = type(inference)()
    for key, tasks in _USED_BY.items():
        value_of = attrgetter(key)
        if inference.task not in tasks and value_of(inference) != value_of(default):
            yield ("inference", *key.split(".")), needs(tasks, inference.task)


def needs(tasks: Sequence[str], task: str) -> str:
    """Say that a key is for these tasks, and not for the one in the settings."""
    *others, last = map(show, tasks)
    wanted = f"{', '.join(others)} or {last}" if others else last
    return f"needs [inference].task {wanted}, not {show(task)}"
