"""The models on disk: which one is in use, the one before it, and the one that waits to be tried.

    <state>/models/<hash of the URL>/
        state.json, state.json.bak      the same `State`; the second is for the day the first is damaged
        state.json.damaged              set aside for a person to look at (or state.json.bak.damaged)
        releases/<id>/model.tflite      never changed once its folder has this name
        releases/<id>.part/             a download that is not finished

A release is *downloaded* (`candidate`), then *committed* or *rejected*. Invariants, which hold after a kill or power
cut at any instruction: a release named in `state.json` has its file, whole and on the disk; a file is replaced by
rename only; folders that `state.json` does not name are rubbish and removed at the next opening.

All calls block on the disk. One lock makes a call that was left behind in a thread harmless.
"""

import hashlib
import os
import shutil
import threading
from pathlib import Path

import msgspec
import structlog

from edge_agent.models.releases import MODEL_FILE, Release, RemoteObject
from edge_agent.models.stores import StoreNeedsPerson

REJECTED_KEPT = 50
RESERVE = 64 << 20
_FORMAT = 1
_PART = ".part"
_log = structlog.get_logger()


class Rejected(msgspec.Struct, frozen=True):
    """An upload that was refused for good, and why."""

    id: str
    version: str
    generation: str
    checksum: str
    reason: str


class State(msgspec.Struct, frozen=True, kw_only=True):
    """What `state.json` holds."""

    format: int = _FORMAT
    url: str
    committed: Release | None = None
    previous: Release | None = None
    candidate: Release | None = None
    rejected: tuple[Rejected, ...] = ()

    def keeps(self) -> set[str]:
        named = (self.committed, self.previous, self.candidate)
        return {release.id for release in named if release is not None}


class Slots:
    """The releases of one URL; there must be one object per URL in a process.

    `reserve` is how many bytes a download must leave free on the disk.
    """

    def __init__(self, directory: Path, url: str, *, reserve: int = RESERVE) -> None:
        self._home = directory / hashlib.sha256(url.encode()).hexdigest()[:16]
        self._releases = self._home / "releases"
        self._reserve = reserve
        self._lock = threading.Lock()
        self._state = State(url=url)

    @property
    def committed(self) -> Release | None:
        """The model to run."""
        return self._state.committed

    @property
    def previous(self) -> Release | None:
        """The model that ran before it."""
        return self._state.previous

    @property
    def candidate(self) -> Release | None:
        """A model that is whole on disk and waits to be accepted."""
        return self._state.candidate

    def rejection(self, remote: RemoteObject) -> Rejected | None:
        """Why this very upload was refused, if it was."""
        return next((one for one in self._state.rejected if one.id == remote.id), None)

    @property
    def last_rejected(self) -> Rejected | None:
        """The upload that was refused last."""
        return self._state.rejected[-1] if self._state.rejected else None

    def open(self) -> None:
        """Find out what is on disk, fall back where it is damaged, and tidy up. Raises `OSError`."""
        with self._lock:
            self._releases.mkdir(parents=True, exist_ok=True)
            for folder in (self._home, self._home.parent, self._home.parent.parent):
                _sync(folder)
            found = self._read_state()
            whole = self._without_damage(found)
            if whole != found:
                self._write_state(whole)
            self._state = whole
            self._tidy()

    def stored(self, remote: RemoteObject) -> Release | None:
        """The release of this upload if its bytes are on disk already, and whole. It becomes the candidate."""
        with self._lock:
            for release in (self.candidate, self.previous):
                if release is not None and release.id == remote.id and self._damage(release) is None:
                    if release != self.candidate:
                        self._change(candidate=release)
                    return release
        return None

    def begin(self, remote: RemoteObject) -> Path:
        """Make room for a download and return the path to write to. Raises `StoreNeedsPerson` on a full disk."""
        with self._lock:
            part = self._releases / f"{remote.id}{_PART}"
            shutil.rmtree(part, ignore_errors=True)
            free = shutil.disk_usage(self._releases).free
            if free < remote.size + self._reserve:
                raise StoreNeedsPerson(
                    f"{remote.url} needs {_mib(remote.size)} and {_mib(self._reserve)} of reserve,"
                    f" but the disk of {self._releases} does not have that",
                    "free some space there",
                )
            part.mkdir()
            return part / MODEL_FILE

    def finish(self, remote: RemoteObject, path: Path) -> Release:
        """Take the checked download at `path` as the candidate. Raises `OSError`; then nothing has changed."""
        with self._lock:
            home = self._releases / remote.id
            release = Release(
                id=remote.id,
                url=remote.url,
                version=remote.version,
                generation=remote.generation,
                size=path.stat().st_size,
                checksum=remote.checksum,
                sha256=_sha256(path),
                accuracy=remote.accuracy,
                labels=remote.labels,
            )
            _sync(path)
            _sync(path.parent)
            shutil.rmtree(home, ignore_errors=True)
            path.parent.rename(home)
            _sync(self._releases)
            self._change(candidate=release)
            return release

    def commit(self, release: Release, *, previous: Release | None) -> None:
        """`release` is the model to run from now on; `previous` is what ran until now."""
        with self._lock:
            self._change(committed=release, previous=previous, candidate=None)

    def reject(self, release: Release, reason: str) -> None:
        """Never try this upload again; the newest 50 are remembered."""
        with self._lock:
            refused = Rejected(release.id, release.version, release.generation, release.checksum, reason)
            older = [one for one in self._state.rejected if one.id != release.id]
            self._change(candidate=None, rejected=(*older, refused)[-REJECTED_KEPT:])

    def discard_candidate(self) -> None:
        """Forget a candidate that the store offers no more."""
        with self._lock:
            if self.candidate is not None:
                self._change(candidate=None)

    def path(self, release: Release) -> Path:
        """Where the model file of a release is."""
        return self._releases / release.id / MODEL_FILE

    def _change(self, **changes: object) -> None:
        state = msgspec.structs.replace(self._state, **changes)
        self._write_state(state)
        self._state = state
        self._tidy()

    def _read_state(self) -> State:
        for name in ("state.json", "state.json.bak"):
            path = self._home / name
            try:
                return self._decode(path.read_bytes())
            except FileNotFoundError:
                continue
            except (msgspec.DecodeError, ValueError) as error:
                aside = path.with_name(f"{name}.damaged")
                path.replace(aside)
                _log.error("model state is damaged", file=str(path), set_aside=str(aside), error=str(error))
        return State(url=self._state.url)

    def _decode(self, text: bytes) -> State:
        state = msgspec.json.decode(text, type=State)
        if state.format != _FORMAT:
            raise ValueError(f"format {state.format} is not {_FORMAT}")
        return state

    def _write_state(self, state: State) -> None:
        text = msgspec.json.format(msgspec.json.encode(state), indent=2)
        for name in ("state.json", "state.json.bak"):
            _write(self._home / name, text)

    def _without_damage(self, state: State) -> State:
        """Leave out releases whose file is not as it was; the previous one takes a committed one's place."""
        whole = [self._if_whole(one) for one in (state.committed, state.previous, state.candidate)]
        committed, previous, candidate = whole
        if committed is None and previous is not None:
            _log.warning("going back to the previous model", version=previous.version)
            committed, previous = previous, None
        return msgspec.structs.replace(state, committed=committed, previous=previous, candidate=candidate)

    def _if_whole(self, release: Release | None) -> Release | None:
        if release is None:
            return None
        damage = self._damage(release)
        if damage is None:
            return release
        file = str(self.path(release))
        _log.error("model file is damaged", version=release.version, file=file, damage=damage)
        return None

    def _damage(self, release: Release) -> str | None:
        path = self.path(release)
        try:
            if path.stat().st_size != release.size:
                return "the size is wrong"
            return None if _sha256(path) == release.sha256 else "the SHA-256 is wrong"
        except OSError as error:
            return f"it cannot be read: {error.strerror}"

    def _tidy(self) -> None:
        """Remove what no state names any more; what cannot be removed now is tried again at the next change."""
        keep = self._state.keeps()
        for folder in self._releases.iterdir():
            if folder.name not in keep:
                shutil.rmtree(folder, ignore_errors=True)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write(path: Path, text: bytes) -> None:
    """Replace a small file so that at any moment either the old or the new one is there."""
    temporary = path.with_name(f"{path.name}.new")
    with temporary.open("wb") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    _sync(path.parent)


def _sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _mib(size: int) -> str:
    return f"{size / (1 << 20):.1f} MiB"
