"""A folder as a stream of files: those that are there, and those that arrive.

A file that arrives counts once it is complete: closed after writing, or moved into the folder under its final name.
inotify tells both. It does not tell what another machine writes to a network share, nor what the kernel had to
leave out in a flood, so the user of this module scans again from time to time.
"""

import errno
import os
import re
import threading
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from watchdog.events import FileClosedEvent, FileMovedEvent, FileSystemEvent, FileSystemEventHandler
from watchdog.observers.inotify import InotifyObserver

# Names are forgotten beyond this many: the next scan finds the files again, as long as they exist.
MAX_ARRIVALS = 10_000

_WILDCARD = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class Version:
    """Changes whenever the content of a file does."""

    inode: int
    modified_ns: int
    size: int

    @classmethod
    def of(cls, status: os.stat_result) -> "Version":
        """Take it from the status of a file."""
        return cls(status.st_ino, status.st_mtime_ns, status.st_size)


@dataclass(frozen=True)
class Selection:
    """The files of one folder that are wanted: one by `name`, or those of `pattern`, or those with a suffix."""

    folder: Path
    suffixes: tuple[str, ...]
    name: str | None = None
    pattern: str | None = None

    @classmethod
    def of(cls, path: Path, suffixes: tuple[str, ...]) -> "Selection":
        """Understand `path` as a folder, a file, or a folder and a pattern. Raises ValueError."""
        if path.is_dir():
            return cls(path, suffixes)
        if path.exists():
            return cls(path.parent, suffixes, name=path.name)
        if not path.parent.is_dir() and _WILDCARD.search(str(path.parent)):
            raise ValueError(f"{path}: only the file name may have wildcards, not the folders before it")
        if not path.parent.is_dir():
            raise FileNotFoundError(errno.ENOENT, "no such folder", str(path.parent))
        if not _WILDCARD.search(path.name):
            raise FileNotFoundError(errno.ENOENT, "no such file or folder", str(path))
        return cls(path.parent, suffixes, pattern=path.name)

    def wants(self, name: str) -> bool:
        """Tell whether a file of this name belongs to the selection. Hidden files are for programs, not for us."""
        if self.name is not None:
            return name == self.name
        if self.pattern is not None:
            return fnmatchcase(name, self.pattern) and name.startswith(".") == self.pattern.startswith(".")
        return not name.startswith(".") and name.lower().endswith(self.suffixes)

    def scan(self) -> dict[str, Version]:
        """Return the wanted files, sorted by name. Raises OSError when the folder cannot be read."""
        found = {}
        with os.scandir(self.folder) as entries:
            for entry in entries:
                if self.wants(entry.name):
                    with suppress(FileNotFoundError):  # removed just now
                        if entry.is_file():
                            found[entry.name] = Version.of(entry.stat())
        return dict(sorted(found.items()))

    def folder_id(self) -> tuple[int, int]:
        """Tell this folder from another one that took its place under the same name. Raises OSError."""
        status = self.folder.stat()
        return status.st_dev, status.st_ino


class Arrivals(FileSystemEventHandler):
    """Collects the names of files as they become complete in a folder. Runs threads until `stop`."""

    def __init__(self, selection: Selection) -> None:
        """Begin to watch. Raises OSError: the folder is gone, or the system's limit of watches is reached."""
        self._selection = selection
        self._names: dict[str, None] = {}
        self._arrived = threading.Condition()
        # Without full events, a file moved in from another folder looks like one that is only being created.
        self._observer = InotifyObserver(generate_full_events=True)
        try:
            # inotify is asked not to follow symbolic links, also when the folder itself is one.
            folder = str(selection.folder.resolve())
            self._observer.schedule(self, folder, event_filter=[FileClosedEvent, FileMovedEvent])
            self._observer.start()
        except BaseException:
            self._observer.stop()
            raise

    @property
    def alive(self) -> bool:
        """Whether arrivals are still seen; no longer, once the folder was removed, even if a new one is there."""
        return all(emitter.is_alive() for emitter in self._observer.emitters)

    def take(self, timeout: float) -> list[str]:
        """Return the names that have come since the last call; wait for one at most `timeout` seconds."""
        with self._arrived:
            self._arrived.wait_for(lambda: self._names, timeout)
            names, self._names = list(self._names), {}
        return names

    def stop(self) -> None:
        """End the threads."""
        self._observer.stop()
        self._observer.join()

    def on_closed(self, event: FileSystemEvent) -> None:
        """A file was closed after writing."""
        self._add(os.fsdecode(event.src_path))

    def on_moved(self, event: FileSystemEvent) -> None:
        """A file was renamed, or moved in; also out, and then it has no destination."""
        self._add(os.fsdecode(event.dest_path))

    def _add(self, path: str) -> None:
        name = os.path.basename(path)  # noqa: PTH119  a Path for each event costs more than the rest of it
        if name and self._selection.wants(name):
            with self._arrived:
                if len(self._names) < MAX_ARRIVALS:
                    self._names[name] = None
                    self._arrived.notify_all()
