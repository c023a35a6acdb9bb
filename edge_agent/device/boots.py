"""What is known of the time, kept over restarts: `boots.json` in the state directory.

    {"newest_ms": 1767225600000, "boots": {"3f0c…": 1767139200000}}

`boots` has, for each boot in which the clock was set, what must be added to its CLOCK_MONOTONIC (ms) to get the time;
so an event that waited on disk through a reboot can still be dated. `newest_ms` is a time that has certainly passed.
"""

from pathlib import Path

import msgspec
import structlog

from edge_agent.durable import replace_file

MOST_BOOTS = 64
"""Two months of one boot a day, in 4 kB."""

log = structlog.get_logger()


class _Known(msgspec.Struct):
    newest_ms: int = 0
    boots: dict[str, int] = {}


class Boots:
    """The file at `path`. A damaged one counts as none: that costs the dates of events that wait, nothing else."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known = _load(path)

    @property
    def newest_ms(self) -> int:
        """A time (ms since the epoch) that has passed; 0 if none is known."""
        return self._known.newest_ms

    def offset_ms(self, boot_id: str) -> int | None:
        """What must be added to the monotonic milliseconds of that boot; None if it is not known."""
        return self._known.boots.get(boot_id)

    def learn(self, boot_id: str, offset_ms: int, now_ms: int) -> None:
        """Take over what a clock that is set says. The oldest boots are forgotten."""
        boots = self._known.boots
        boots.pop(boot_id, None)
        boots[boot_id] = offset_ms
        for forgotten in list(boots)[:-MOST_BOOTS]:
            del boots[forgotten]
        self._known.newest_ms = now_ms

    def save(self) -> None:
        """Write the file. Blocks; raises OSError."""
        replace_file(self._path, msgspec.json.encode(self._known) + b"\n")


def _load(path: Path) -> _Known:
    try:
        return msgspec.json.decode(path.read_bytes(), type=_Known)
    except FileNotFoundError:
        return _Known()
    except (OSError, ValueError) as error:
        log.warning("what was known of earlier boots' clocks cannot be read", file=str(path), reason=str(error))
        return _Known()
