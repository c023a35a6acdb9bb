"""Models from a path: a folder on the device, a USB stick, a network share.

Beside `model.tflite` there may be `model.tflite.json`: `{"version": "v1.3", "accuracy": 0.94, "labels": […]}`.
Without a version the content names itself: `sha256-` and the first 12 hexadecimal digits.

A file that is being copied looks like a whole one that is shorter, and of the two files one comes before the other. So
where one is younger than `QUIET` they are looked at again before they are read, and not taken while they change. What
a copy that pauses for longer has left is no model, which the worker finds out, or not what a manifest says.
"""

import hashlib
import json
import os
import stat
import threading
import time
from collections.abc import Callable
from io import BufferedReader
from pathlib import Path

from edge_agent.models.release.manifest import MAX_OBJECT
from edge_agent.models.release.releases import RemoteObject, as_facts, describe
from edge_agent.models.stores.base import Forbidden, Missing, StoreNeedsPerson, StoreUnavailable, too_long, write_all

QUIET = 1.0
"""Seconds without a change, after which a file counts as written."""
_CHUNK = 1 << 18
_SIDECAR_LIMIT = 1 << 20


class FileStore:
    """The model file at `path`, which others may replace at any moment. `setting` is what named it.

    `pause` waits for so many seconds.
    """

    def __init__(
        self, path: Path, *, setting: str = "[model].url", pause: Callable[[float], None] = time.sleep
    ) -> None:
        self.url = path.absolute().as_uri()
        self._path = path
        self._setting = setting
        self._pause = pause
        self._sidecar_path = path.with_name(f"{path.name}.json")
        self._whole = ("", "")
        self._hashed = ("", "")

    def stat(self) -> RemoteObject:
        """Read the sidecar, and the file too if it changed since the last call."""
        try:
            status = self._status(self._path)
            if status.st_size > MAX_OBJECT:
                raise too_long(self.url, status.st_size, MAX_OBJECT)
            self._wait_until_written()
            checksum = self._checksum(status)
            facts = self._sidecar()
            if self._generations()[0] != self._whole:
                raise StoreUnavailable(f"{self._path} changed while it was being read")
        except OSError as error:
            raise self._explained(error) from error
        return describe(
            self.url,
            facts,
            generation=_generation(status),
            size=status.st_size,
            checksum=checksum,
            unnamed=f"sha256-{checksum[len('sha256:') :][:12]}",
            uploaded=status.st_mtime,
        )

    def fetch(self, remote: RemoteObject, destination: Path, stop: threading.Event) -> None:
        """Copy the file and compare what was copied with what `stat` saw."""
        try:
            with self._open(self._path) as source:
                digest = _copy(source, destination, remote.size, stop)
                status = self._path.stat()
        except OSError as error:
            raise self._explained(error) from error
        if (digest, _generation(status)) != (remote.checksum, remote.generation):
            raise StoreUnavailable(f"{self._path} changed while it was being copied")

    def read(self, limit: int) -> tuple[bytes, str]:
        """Return the file, of which no more than `limit` bytes are read, and its generation."""
        try:
            with self._open(self._path) as file:
                data = file.read(limit + 1)
                status = os.fstat(file.fileno())
        except OSError as error:
            raise self._explained(error) from error
        if len(data) > limit:
            raise too_long(self.url, status.st_size, limit)
        return data, _generation(status)

    def _status(self, path: Path) -> os.stat_result:
        """What can be read to its end: neither a device, which has none, nor a pipe, which waits for a writer."""
        status = path.stat()
        if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
            what_to_do = f"let {self._setting} name the model file itself" if path == self._path else "remove it"
            raise StoreNeedsPerson(f"{path} is no file", what_to_do)
        return status

    def _open(self, path: Path) -> BufferedReader:
        self._status(path)
        # Should it be a pipe by now, that does not wait for a writer either.
        return open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))

    def _checksum(self, status: os.stat_result) -> str:
        """SHA-256 of the file, read again only after a change."""
        generation = _generation(status)
        if self._hashed[0] != generation:
            with self._open(self._path) as source:
                checksum = f"sha256:{hashlib.file_digest(source, 'sha256').hexdigest()}"
            if _generation(self._path.stat()) != generation:
                raise StoreUnavailable(f"{self._path} changed while it was being read")
            self._hashed = (generation, checksum)
        return self._hashed[1]

    def _wait_until_written(self) -> None:
        """Look again after a moment if the file or the sidecar has just changed."""
        generations, changed = self._generations()
        if generations == self._whole:
            return
        age = time.time() - changed
        if age < QUIET:
            self._pause(QUIET - max(0.0, age))  # a file from the future: one of the two clocks is wrong
            if self._generations()[0] != generations:
                raise StoreUnavailable(f"{self._path} is still being written")
        self._whole = generations

    def _generations(self) -> tuple[tuple[str, str], float]:
        """Those of the file and of the sidecar, and when the younger one has changed."""
        model = self._path.stat()
        try:
            sidecar = self._sidecar_path.stat()
        except FileNotFoundError:
            return (_generation(model), ""), model.st_mtime
        return (_generation(model), _generation(sidecar)), max(model.st_mtime, sidecar.st_mtime)

    def _sidecar(self) -> dict[str, str]:
        sidecar = self._sidecar_path
        try:
            with self._open(sidecar) as file:
                return as_facts(json.loads(file.read(_SIDECAR_LIMIT)))
        except FileNotFoundError:
            return {}
        except (ValueError, RecursionError) as error:
            raise StoreNeedsPerson(
                f"{sidecar} cannot be read: {error}",
                'write it as {"version": "v1.3"}, or remove it',
            ) from error

    def _explained(self, error: OSError) -> Exception:
        where = error.filename or self._path
        if isinstance(error, FileNotFoundError):
            return Missing(f"there is no file {where}", f"put the model there, or correct {self._setting}")
        if isinstance(error, PermissionError):
            return Forbidden(f"{where} may not be read", "give the agent's user the right to read it")
        if isinstance(error, IsADirectoryError):
            return StoreNeedsPerson(f"{where} is a folder", f"let {self._setting} name the model file itself")
        return StoreUnavailable(f"{where} cannot be read: {error.strerror}")


def _generation(status: os.stat_result) -> str:
    return f"{status.st_size}-{status.st_mtime_ns}"


def _copy(source: BufferedReader, destination: Path, size: int, stop: threading.Event) -> str:
    """Copy `size` bytes, for which there is room, and return their checksum."""
    digest = hashlib.sha256()
    with destination.open("wb", buffering=0) as target:
        while size > 0 and (chunk := source.read(min(size, _CHUNK))):
            size -= len(chunk)
            if stop.is_set():
                raise StoreUnavailable("the copy was stopped")
            digest.update(chunk)
            write_all(target, chunk)
    return f"sha256:{digest.hexdigest()}"
