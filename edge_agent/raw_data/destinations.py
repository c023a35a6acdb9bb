"""Where pictures end: a bucket, or a folder."""

import errno
import os
from pathlib import Path
from typing import Protocol

from edge_agent.models.stores.base import StoreError, StoreNeedsPerson, StoreUnavailable
from edge_agent.models.stores.gcs import GcsFolder
from edge_agent.settings.location import Location

SETTING = "[telemetry.raw_data].images"
_ADVICE = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), f"free some space, or name another folder in {SETTING}"),
    **dict.fromkeys((errno.EACCES, errno.EPERM), f"let the service's user write there, or change {SETTING}"),
    errno.EROFS: f"name a folder in {SETTING} that the service can write, for instance below its state folder",
    **dict.fromkeys((errno.ENOTDIR, errno.EEXIST, errno.ELOOP, errno.ENAMETOOLONG), f"correct the path in {SETTING}"),
}


class Destination(Protocol):
    """A place for pictures."""

    def put(self, name: str, data: bytes) -> None:
        """Store one picture under its name below the place. Raises `StoreError`.

        To store it again does no harm. Blocks for as long as a bad network makes it.
        """


def open_destination(location: Location) -> Destination:
    """Make the destination that the setting names; nothing is opened or connected before the first picture."""
    if location.scheme == "gs":
        return GcsFolder(location.bucket, location.path, setting=SETTING)
    return Folder(Path(location.path))


class Folder:
    """A folder on the device, a USB stick, a network share. It is made where it is missing."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def put(self, name: str, data: bytes) -> None:
        """Write a file that is whole as soon as it has its name."""
        target = self._path / name
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            new = target.with_suffix(".new")
            with new.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            new.replace(target)
        except OSError as error:
            raise _explained(error, target) from error


def _explained(error: OSError, target: Path) -> StoreError:
    reason = f"cannot write {target.parent}: {(error.strerror or str(error)).lower()}"
    advice = _ADVICE.get(error.errno or 0)
    return StoreUnavailable(reason) if advice is None else StoreNeedsPerson(reason, advice)
