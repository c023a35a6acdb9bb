"""Durations and sizes as people write them: "200ms", "1h30m", "256MB", "1GiB".

A field of type `Duration` (float, seconds) or `Size` (int, bytes) takes both the written form and the plain
number when pydantic validates it, in a model or in a dataclass. Everything else that reads the annotation, for
instance msgspec, sees a float or an int. The worker imports this module, so pydantic is imported only when
pydantic itself asks.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Annotated, Any

from edge_agent.settings.showing import show

if TYPE_CHECKING:
    from pydantic import GetCoreSchemaHandler
    from pydantic_core import CoreSchema

# From long to short: parts of a duration must stand in this order.
_SECONDS = {
    "d": Fraction(86400),
    "h": Fraction(3600),
    "m": Fraction(60),
    "s": Fraction(1),
    "ms": Fraction(1, 1000),
    "us": Fraction(1, 1_000_000),
}
_BYTES = {
    "b": 1,
    **{f"{letter}b": 1000**power for power, letter in enumerate("kmgt", start=1)},
    **{f"{letter}ib": 1024**power for power, letter in enumerate("kmgt", start=1)},
}
_SIZE_NAMES = ("TiB", "TB", "GiB", "GB", "MiB", "MB", "KiB", "kB", "B")
MAX_SECONDS = 3_200_000_000  # a hundred years
_NUMBER = r"\d{1,400}(?:\.\d{1,400})?"
_PART = re.compile(rf"\s*({_NUMBER})\s*([a-zµμ]+)\s*")
_PLAIN = re.compile(rf"\s*({_NUMBER})\s*")
_ALIASES = {"min": "m", "µs": "us", "μs": "us"}


def parse_duration(value: object) -> float:
    """Return seconds. `value` is a text such as "1h30m", or a number of seconds. Raises ValueError."""
    seconds = _sum_of_parts(value) if isinstance(value, str) else _plain_number(value)
    if seconds is None or not 0 <= seconds <= MAX_SECONDS:
        raise ValueError(f'{show(value)} is no duration; write for instance "200ms", "10s" or "1h30m"')
    return float(seconds)


def _plain_number(value: object) -> float | None:
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _sum_of_parts(text: str) -> Fraction | None:
    if plain := _PLAIN.fullmatch(text):
        return Fraction(plain[1])
    order = list(_SECONDS)
    total, position, last = Fraction(0), 0, -1
    while part := _PART.match(text, position):
        unit = _ALIASES.get(part[2], part[2])
        if unit not in _SECONDS or order.index(unit) <= last:
            return None
        total += Fraction(part[1]) * _SECONDS[unit]
        position, last = part.end(), order.index(unit)
    return total if position == len(text) and last >= 0 else None


def parse_size(value: object) -> int:
    """Return bytes, rounded down. `value` is a text such as "256MB" or "1GiB", or bytes. Raises ValueError."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    if isinstance(value, str):
        if plain := re.fullmatch(r"\s*(\d{1,400})\s*", value):
            return int(plain[1])
        part = _PART.fullmatch(value.lower())
        if part and part[2] in _BYTES:
            return int(Fraction(part[1]) * _BYTES[part[2]])
    raise ValueError(f'{show(value)} is no size; write for instance "500kB", "256MB" or "1GiB"')


def format_duration(seconds: float) -> str:
    """Return the written form; `parse_duration` gives exactly the same number back."""
    rest = Fraction(repr(float(seconds)))
    if 0 < rest < 1:
        return f"{_decimal(rest * 1000)}ms"
    text = ""
    for unit in ("d", "h", "m"):
        count, rest = divmod(rest, _SECONDS[unit])
        text += f"{count}{unit}" if count else ""
    return f"{text}{_decimal(rest)}s" if rest or not text else text


def _decimal(number: Fraction) -> str:
    # Only decimal fractions come here, so multiplying by ten ends at a whole number.
    digits, places = number, 0
    while digits.denominator != 1:
        digits, places = digits * 10, places + 1
    text = str(digits.numerator).rjust(places + 1, "0")
    return f"{text[:-places]}.{text[-places:]}" if places else text


def format_size(size: int) -> str:
    """Return the written form in the largest unit that gives a whole number."""
    if size == 0:
        return "0B"
    unit = next(name for name in _SIZE_NAMES if size % _BYTES[name.lower()] == 0)
    return f"{size // _BYTES[unit.lower()]}{unit}"


def approximate_size(size: float) -> str:
    """Return bytes as a person reads them, with three digits: "1.21 GB"."""
    for unit in ("B", "kB", "MB"):
        if size < 999.5:  # noqa: PLR2004  what is more would be rounded to 1000
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} GB"


@dataclass(frozen=True, slots=True)
class Unit:
    """Marks a number as one that people write with a unit."""

    parse: Callable[[object], float]
    format: Callable[[Any], str]

    def __get_pydantic_core_schema__(self, source: Any, handler: "GetCoreSchemaHandler") -> "CoreSchema":
        from pydantic_core import core_schema  # noqa: PLC0415 - the worker must not load pydantic

        return core_schema.no_info_before_validator_function(self.parse, handler(source))


Duration = Annotated[float, Unit(parse_duration, format_duration)]
Size = Annotated[int, Unit(parse_size, format_size)]
