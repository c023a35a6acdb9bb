"""Marks for `Annotated` types that let pydantic call a function of ours: to check, or to read a value its own way.

A function raises ValueError with the message for the admin. Everything else that reads the annotation, for instance
msgspec, passes over the marks. The agent and the worker import this module, so pydantic is imported only when
pydantic itself asks.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydantic import GetCoreSchemaHandler
    from pydantic_core import CoreSchema


@dataclass(frozen=True, slots=True)
class Before:
    """Calls `check` with what the file says, before pydantic looks at it."""

    check: Callable[[object], object]

    def __get_pydantic_core_schema__(self, source: Any, handler: "GetCoreSchemaHandler") -> "CoreSchema":
        from pydantic_core import core_schema  # noqa: PLC0415 - only in the process that checks the settings

        return core_schema.no_info_before_validator_function(self.check, handler(source))


@dataclass(frozen=True, slots=True)
class After:
    """Calls `check` with a value that is of the annotated type."""

    check: Callable[[Any], object]

    def __get_pydantic_core_schema__(self, source: Any, handler: "GetCoreSchemaHandler") -> "CoreSchema":
        from pydantic_core import core_schema  # noqa: PLC0415 - only in the process that checks the settings

        return core_schema.no_info_after_validator_function(self.check, handler(source))


@dataclass(frozen=True, slots=True)
class Parse:
    """Makes the value with `parse` alone, from what the file says."""

    parse: Callable[[object], object]

    def __get_pydantic_core_schema__(self, _source: Any, _handler: "GetCoreSchemaHandler") -> "CoreSchema":
        from pydantic_core import core_schema  # noqa: PLC0415 - only in the process that checks the settings

        return core_schema.no_info_plain_validator_function(self.parse)
