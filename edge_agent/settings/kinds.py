"""What most values of the settings are: a number, a text, a table."""

import math
from typing import Annotated, ClassVar

from annotated_types import MinLen

from edge_agent.settings.checks import After, Before
from edge_agent.settings.showing import show


def _no_bool(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError(f"expected a number, not {show(value)}")  # noqa: TRY004 - what pydantic collects
    return value


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise ValueError(f"expected a finite number, not {show(value)}")
    return value


def several(value: object) -> object:
    """Return what `[[actions]]` is, a list. Raises ValueError if it is a table: then it has brackets too few."""
    if isinstance(value, dict):
        raise ValueError("there may be several of them, so each begins with two brackets: [[actions]]")  # noqa: TRY004
    return value


Whole = Annotated[int, Before(_no_bool)]
Number = Annotated[float, Before(_no_bool), After(_finite)]
Text = Annotated[str, MinLen(1)]


class Table:
    """A table of the file. pydantic refuses keys that are no fields of it."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}
