"""What is wrong with the settings, told so that the person at the keyboard can mend it.

A fault reads `file:line: [table].key: what is wrong`. The agent keeps this module loaded; what finds the faults and
puts them into words is in others, which only the check of the settings loads.
"""

from collections.abc import Iterable
from dataclasses import dataclass

VARIABLE = "environment variable "
# How the message begins when a value that has no default is not given.
MISSING = "is missing"


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong. `place` is a file or an environment variable, `key` is like `[model].url`."""

    place: str
    line: int | None
    key: str
    message: str

    def __str__(self) -> str:
        place = f"{self.place}:{self.line}" if self.line else self.place
        return ": ".join(part for part in (place, self.key, self.message) if part)


class SettingsError(Exception):
    """The settings cannot be used. `faults` lists all that is wrong, in the order of the file."""

    def __init__(self, faults: Iterable[Fault]) -> None:
        self.faults = sorted(faults, key=lambda fault: (fault.place.startswith(VARIABLE), fault.place, fault.line or 0))
        super().__init__("\n".join(str(fault) for fault in self.faults))


class NotSetUp(SettingsError):
    """All that is given is right, but what every agent needs is not there yet, as on the day of installation."""

    @property
    def missing(self) -> list[str]:
        """The keys that are to be given, like `[model].url`."""
        return [fault.key for fault in self.faults]
