"""`when` of [[actions]]: the conditions of a rule, and whether they go together.

Whether the settings of the model leave anything of them is a matter of `edge_agent.settings.conditions`.
"""

from dataclasses import dataclass, fields
from typing import Annotated

from annotated_types import Ge, Le, MinLen, doc

from edge_agent.settings.checks import Parse
from edge_agent.settings.kinds import Number, Table, Text, Whole
from edge_agent.settings.showing import show
from edge_agent.settings.tasks import SCORED, VALUED
from edge_agent.settings.units import Duration, parse_duration

# The keys of `when` that are conditions, and the tasks whose results they can be about.
TASKS = {
    "label": SCORED + VALUED,
    "min_confidence": SCORED,
    "min_count": ("detection",),
    "max_count": ("detection",),
    "above": VALUED,
    "below": VALUED,
}


def _label_or_labels(value: object) -> list[str] | str | None:
    one = value if isinstance(value, list) and value else [value]
    if value is not None and not all(isinstance(item, str) and item for item in one):
        raise ValueError(f"expected a name or a list of names, not {show(value)}")
    return value  # type: ignore[return-value]  # just checked


@dataclass(frozen=True, kw_only=True)
class When(Table):
    """`when` of [[actions]]: the results that a rule is about. All that is given must be so."""

    label: Annotated[
        Annotated[list[Text], MinLen(1)] | Text | None,
        Parse(_label_or_labels),
        doc(
            "The prediction, the objects, or the named values that the rule is about; a list means any of them, and "
            "without it all are meant."
        ),
    ] = None
    min_confidence: Annotated[
        Number, Ge(0), Le(1), doc("The score that it needs, from 0 to 1, and not below the threshold.")
    ] = 0.0
    min_count: Annotated[
        Whole | None,
        Ge(1),
        doc("How many objects of these labels and with this score there must be at least, for the task detection."),
    ] = None
    max_count: Annotated[
        Whole | None, Ge(0), doc("How many of them there may be at most, for the task detection; 0 means none.")
    ] = None
    above: Annotated[Number | None, doc("The value must be above this, for the tasks regression and anomaly.")] = None
    below: Annotated[Number | None, doc("The value must be below this, for the tasks regression and anomaly.")] = None
    hysteresis: Annotated[
        Number,
        Ge(0),
        doc("How far score or value may fall back behind its limit, once it was met, before the condition ends."),
    ] = 0.0
    hold: Annotated[Duration, doc("How long this must last before the rule fires.")] = parse_duration("0s")


def consistent(when: When) -> When:
    """Return it as it is. Raises ValueError if it names no condition, or conditions that do not go together."""
    given = conditions_of(when)
    if not given:
        raise ValueError(f"names no condition; it needs one of {', '.join(TASKS)}")
    of_value = [key for key in given if TASKS[key] == VALUED]
    of_score = [key for key in given if set(TASKS[key]) <= set(SCORED)]
    if of_value and of_score:
        raise ValueError(f"{of_value[0]} and {of_score[0]} do not go together: no task gives both values and scores")
    _check_range(when)
    if when.hysteresis and not of_value:
        _check_hysteresis(when)
    return when


def _check_range(when: When) -> None:
    if when.min_count is not None and when.max_count is not None and when.min_count > when.max_count:
        raise ValueError(f"no number is at least {when.min_count} (min_count) and at most {when.max_count} (max_count)")
    if when.above is not None and when.below is not None and when.above >= when.below:
        raise ValueError(
            f"no value is above {when.above:g} and below {when.below:g}; for values outside a range write two actions"
        )


def _check_hysteresis(when: When) -> None:
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


def conditions_of(when: When) -> list[str]:
    """Return the keys that are conditions and were given."""
    return [field.name for field in fields(when) if field.name in TASKS and getattr(when, field.name) != field.default]
