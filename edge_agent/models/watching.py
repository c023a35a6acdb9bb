"""Notices a release that is copied into a local folder, so that it is not found by the next poll only.

inotify tells when a file was closed after writing or renamed into place. It tells nothing of a folder that is not
there yet, of a stick that is mounted over it, or of what another machine writes to a network share; and it has limits
for each user. So the files are looked at once a minute, too, which costs a few calls of stat(2), and that is all where
the folder cannot be watched. Whether what was found is whole and new is for the poll to find out.
"""

import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import structlog

from edge_agent.models.open import sibling
from edge_agent.settings.location import Location

LOOK_INTERVAL = 60.0
"""Seconds between two looks at the files."""
QUIET = 2.0
"""Seconds without an event after which a copy counts as finished: model and sidecar come one after the other."""
LONGEST_WAIT = 30.0
"""Seconds for which events that do not end are waited for."""
_STOP_LIMIT = 1.0
_log = structlog.get_logger()

State = tuple[tuple[int, ...] | None, ...]


class Watcher(Protocol):
    """Calls `wake`, in a thread of its own, when there may be something new."""

    def start(self, wake: Callable[[], object]) -> None:
        """Begin; returns at once."""

    def stop(self) -> None:
        """End; `wake` is not called any more, and the threads have ended."""


def open_watcher(url: Location, cpu_url: Location | None = None) -> Watcher | None:
    """Make what watches the files that the settings name, or None where the model is no file."""
    if url.scheme != "file":
        return None
    twin = cpu_url or sibling(url)
    files = [Path(each.path) for each in (url, twin) if each is not None and each.scheme == "file"]
    return FolderWatcher(files)


class FolderWatcher:
    """Watches `files`, the first of which names the folder, each with its sidecar.

    `look_interval` and `quiet` are in seconds.
    """

    def __init__(self, files: Iterable[Path], *, look_interval: float = LOOK_INTERVAL, quiet: float = QUIET) -> None:
        self._files = [path for file in files for path in (file, file.with_name(f"{file.name}.json"))]
        self._folder = self._files[0].parent
        self._names = {path.name for path in self._files if path.parent == self._folder}
        self._look_interval = look_interval
        self._quiet = quiet
        self._changed = threading.Condition()
        self._events = 0
        self._stopping = False
        self._told = ""
        self._thread: threading.Thread | None = None

    def start(self, wake: Callable[[], object]) -> None:
        """Begin; returns at once."""
        # A daemon: looking at a network share that is gone may hang, and the end of the process does not wait for it.
        self._thread = threading.Thread(target=self._run, args=(wake,), name="model-folder", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End; `wake` is not called any more."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(_STOP_LIMIT)

    def _run(self, wake: Callable[[], object]) -> None:
        observer, watched = None, None
        seen = self._look()
        while True:
            folder = self._folder_id()
            if watched is None or watched != folder or not _alive(observer):
                _end(observer)
                observer = self._watch() if folder is not None else None
                watched = folder if observer is not None else None
            told = self._wait_for_event()
            if self._stopping:
                break
            before, seen = seen, self._look()
            # A file that was closed may have been seen at its full length while it was still open.
            if told or seen != before:
                wake()
        _end(observer)

    def _wait_for_event(self) -> bool:
        """Wait until the files have been quiet after an event, or for the next look; true if there was an event."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._stopping or self._events, self._look_interval):
                return False
            for _ in range(max(1, int(LONGEST_WAIT / self._quiet)) if self._quiet else 0):
                self._events = 0
                if self._stopping or not self._changed.wait_for(lambda: self._stopping or self._events, self._quiet):
                    break
            self._events = 0
        return True

    def _watch(self) -> Any:
        """Begin to watch the folder; None where that is not possible, which is told once."""
        from edge_agent.models.stores.folder_events import observe  # noqa: PLC0415  its library only where the model is a file

        try:
            observer = observe(self._folder, self._note)
        except OSError as error:
            self._tell(error.strerror or str(error))
            return None
        self._told = ""
        return observer

    def _tell(self, reason: str) -> None:
        if reason != self._told:
            self._told = reason
            _log.info(
                "the model's folder cannot be watched, and is looked at now and then",
                folder=str(self._folder),
                reason=reason,
                seconds=self._look_interval,
            )

    def _note(self, names: set[str]) -> None:
        if names & self._names:
            with self._changed:
                self._events += 1
                self._changed.notify_all()

    def _look(self) -> State:
        return tuple(_version(path) for path in self._files)

    def _folder_id(self) -> tuple[int, int] | None:
        try:
            status = self._folder.stat()
        except OSError as error:
            if not self._told:
                _log.debug("the model's folder is not there", folder=str(self._folder), reason=error.strerror)
            self._told = self._told or "not there"
            return None
        return status.st_dev, status.st_ino


def _version(path: Path) -> tuple[int, ...] | None:
    with suppress(OSError):
        status = path.stat()
        return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
    return None


def _alive(observer: Any) -> bool:
    return observer is not None and all(emitter.is_alive() for emitter in observer.emitters)


def _end(observer: Any) -> None:
    if observer is not None:
        observer.stop()
        observer.join()
