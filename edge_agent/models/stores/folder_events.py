"""What inotify tells of a folder, by way of the library `watchdog`, which is imported with this module."""

import os
from collections.abc import Callable
from pathlib import Path

from watchdog.events import FileClosedEvent, FileMovedEvent, FileSystemEvent, FileSystemEventHandler
from watchdog.observers.api import BaseObserver
from watchdog.observers.inotify import InotifyObserver


def observe(folder: Path, note: Callable[[set[str]], None]) -> BaseObserver:
    """Call `note`, in another thread, with the names of a file that was closed after writing, or renamed.

    Raises `OSError`: the folder is gone, or one of the system's limits is reached. Stop and join what is returned.
    """
    # Without full events, a file moved in from another folder looks like one that is only being created.
    observer = InotifyObserver(generate_full_events=True)
    try:
        # inotify is asked not to follow symbolic links, also when the folder itself is one.
        observer.schedule(_Handler(note), str(folder.resolve()), event_filter=[FileClosedEvent, FileMovedEvent])
        observer.start()
    except BaseException:
        observer.stop()
        raise
    return observer


class _Handler(FileSystemEventHandler):
    def __init__(self, note: Callable[[set[str]], None]) -> None:
        self._note = note

    def on_any_event(self, event: FileSystemEvent) -> None:
        self._note({os.fsdecode(path).rpartition("/")[2] for path in (event.src_path, event.dest_path)})
