"""Pictures on their way: in the hand-over folder where the worker puts them, and on the disk while they have to wait.

All functions block; the uploader calls them in its thread. A picture that is uploaded at once never reaches the disk
where the hand-over folder is in memory. Each destination has its own folders: pictures for one that the settings do not
name any more are given up, as the references in their events are right for that one only.
"""

import contextlib
import errno
import hashlib
import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from edge_agent.durable import sync
from edge_agent.picture_names import SUFFIX

FOLDER = "raw-data"
# A bad week of a device with the default budget; never more than a small card can spare.
MAX_FILES, MAX_BYTES = 2000, 50_000_000
_JPEG_END = b"\xff\xd9"


class Picture(msgspec.Struct, frozen=True):
    """A file. `written_ms` is when it was written, in ms since 1970."""

    path: Path
    size: int
    written_ms: int


class Damaged(Exception):
    """The file holds no whole picture."""


class Spool:
    """The pictures for one destination, or none. `runtime` is a folder in memory, if there is one.

    `destination` is the URL of the settings, "" for none. Pictures that wait leave `min_free` bytes of the disk free.
    """

    def __init__(
        self,
        state: Path,
        runtime: Path | None,
        destination: str,
        *,
        min_free: int,
        max_files: int = MAX_FILES,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        self._max_files, self._max_bytes, self._min_free = max_files, max_bytes, min_free
        key = hashlib.sha256(destination.encode()).hexdigest()[:16] if destination else "none"
        self.waiting = state / FOLDER / "waiting" / key
        self.handover = (runtime or state) / FOLDER / "new" / key

    def clean(self) -> list[Picture]:
        """Give up what is for other destinations. Returns it. Raises OSError."""
        lost: list[Picture] = []
        for own in (self.waiting, self.handover):
            for folder in _entries(own.parent):
                if folder.is_dir() and folder != own:
                    lost += _pictures(folder)
                    shutil.rmtree(folder)
        return lost

    def remove_unfinished(self) -> None:
        """Remove what a killed worker or agent has left unfinished, and no event refers to. Raises OSError.

        Only before the worker starts.
        """
        for folder in (self.waiting, self.handover):
            for entry in _entries(folder):
                if entry.suffix != SUFFIX:
                    entry.unlink(missing_ok=True)

    def oldest(self) -> Picture | None:
        """Return the picture to be uploaded next."""
        return min(self.pictures(), key=_age, default=None)

    def pictures(self) -> list[Picture]:
        """Return all of them."""
        return [*_pictures(self.waiting), *_pictures(self.handover)]

    def read(self, picture: Picture) -> bytes:
        """Return the content. Raises Damaged, OSError."""
        data = picture.path.read_bytes()
        if not data.endswith(_JPEG_END):
            raise Damaged(f"{picture.path} holds no whole picture ({len(data)} bytes)")
        return data

    def remove(self, picture: Picture) -> None:
        """Forget a picture that was uploaded or is given up."""
        # It may have gone from the hand-over folder to the disk meanwhile.
        for folder in (self.handover, self.waiting):
            (folder / picture.path.name).unlink(missing_ok=True)

    def settle(self) -> list[Picture]:
        """Bring what has been handed over to the disk, where it survives a power cut.

        Returns what is given up as too much waits, or too little of the disk is free: the oldest. Raises OSError.
        """
        new = _pictures(self.handover)
        if not new:
            return []
        self.waiting.mkdir(parents=True, exist_ok=True)
        lost = self._too_many(new)
        for picture in lost:
            picture.path.unlink(missing_ok=True)
        for picture in new:
            if picture not in lost:
                with contextlib.suppress(FileNotFoundError):  # uploaded this moment
                    _move(picture.path, self.waiting)
        sync(self.waiting)
        return lost

    def _too_many(self, new: Sequence[Picture]) -> list[Picture]:
        """Return which of the waiting and the new pictures have to go, so that the others can wait."""
        waiting = sorted([*_pictures(self.waiting), *new], key=_age)
        total, files = sum(picture.size for picture in waiting), len(waiting)
        free = shutil.disk_usage(self.waiting).free - sum(picture.size for picture in new)
        lost = []
        for picture in waiting:
            if total <= self._max_bytes and files <= self._max_files and free >= self._min_free:
                break
            total, files, free = total - picture.size, files - 1, free + picture.size
            lost.append(picture)
        return lost


def _age(picture: Picture) -> int:
    return picture.written_ms


def _entries(folder: Path) -> Iterable[Path]:
    try:
        return list(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def _pictures(folder: Path) -> list[Picture]:
    found = []
    for path in _entries(folder):
        with contextlib.suppress(FileNotFoundError):
            status = path.stat()
            if path.suffix == SUFFIX:
                found.append(Picture(path, status.st_size, status.st_mtime_ns // 1_000_000))
    return found


def _move(path: Path, folder: Path) -> None:
    """Move a file to a folder, so that at any moment one whole file is there."""
    target = folder / path.name
    try:
        sync(path)
        path.rename(target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        new = target.with_suffix(".new")
        shutil.copyfile(path, new)
        status = path.stat()
        os.utime(new, ns=(status.st_atime_ns, status.st_mtime_ns))
        sync(new)
        new.rename(target)
        path.unlink(missing_ok=True)
