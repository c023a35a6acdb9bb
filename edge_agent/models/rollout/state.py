"""What is known of the models on disk, in a small file that is whole after a power cut.

`state.json` and `state.json.bak` hold the same `State`; the second is for the day the first is damaged. Members that
are not there have their default, so the file of an older agent is read as it is.
"""

from pathlib import Path

import msgspec
import structlog

from edge_agent.durable import replace_file
from edge_agent.models.release.releases import PAIR, Release

_FORMAT = 1
_NAMES = ("state.json", "state.json.bak")
_log = structlog.get_logger()


class Rejected(msgspec.Struct, frozen=True):
    """An upload that was refused for good, and why. `id` names the twin too if it was refused together with one."""

    id: str
    version: str
    generation: str
    checksum: str
    reason: str

    @property
    def what(self) -> str:
        """The version, for people."""
        return self.version if PAIR not in self.id else f"{self.version} with its model for the CPU"


class Trial(msgspec.Struct, frozen=True):
    """The candidate `id` was given to the worker, and nothing has come of it yet.

    `begun` counts the processes that did so: all but one of them have come to a sudden end over it.
    """

    id: str
    begun: int


class State(msgspec.Struct, frozen=True, kw_only=True):
    """What `state.json` holds.

    `sequence` is the highest of all manifests that were believed, `generation` that of all uploads to Cloud Storage.
    `shadow` runs beside the committed release, if any does, and is never run in its place.
    """

    format: int = _FORMAT
    url: str
    committed: Release | None = None
    previous: Release | None = None
    candidate: Release | None = None
    rejected: tuple[Rejected, ...] = ()
    sequence: int = 0
    generation: int = 0
    trial: Trial | None = None
    shadow: Release | None = None

    def releases(self) -> list[Release]:
        """All that are named."""
        return [one for one in (self.committed, self.previous, self.candidate, self.shadow) if one is not None]

    def changed(self, **changes: object) -> "State":
        """Return it with other members. A trial goes with the candidate that it is of."""
        state = msgspec.structs.replace(self, **changes)
        trial, candidate = state.trial, state.candidate
        if trial is not None and (candidate is None or candidate.id != trial.id):
            state = msgspec.structs.replace(state, trial=None)
        return state


def read_state(home: Path, url: str) -> State:
    """Read the state in a folder; a damaged file is set aside for a person to look at. Raises `OSError`."""
    for name in _NAMES:
        path = home / name
        try:
            return _decode(path.read_bytes())
        except FileNotFoundError:
            continue
        except ValueError as error:
            aside = path.with_name(f"{name}.damaged")
            path.replace(aside)
            _log.error("model state is damaged", file=str(path), set_aside=str(aside), error=str(error))
    return State(url=url)


def write_state(home: Path, state: State) -> None:
    """Put the state on the disk. Raises `OSError`; then one of the files may hold it, and the other does not."""
    text = msgspec.json.format(msgspec.json.encode(state), indent=2)
    for name in _NAMES:
        replace_file(home / name, text)


def _decode(text: bytes) -> State:
    state = msgspec.json.decode(text, type=State)
    if state.format != _FORMAT:
        raise ValueError(f"format {state.format} is not {_FORMAT}")
    return state
