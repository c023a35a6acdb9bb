"""The models on disk: which one is in use, the one before it, and the one that waits to be tried.

    <state>/models/<hash of the URL>/
        state.json, state.json.bak      the same `State`; the second is for the day the first is damaged
        state.json.damaged              set aside for a person to look at (or state.json.bak.damaged)
        releases/<id>/model.tflite      never changed once its folder has this name
        twins/<id>/cpu.tflite           likewise: the same model for the CPU, named by its own upload
        releases/<id>.part/             a download that is not finished; also in twins/, one at most in each folder

A release is *downloaded* (`candidate`), then *committed* or *rejected*. A twin is *attached* to a release that is on
disk; together they are the candidate, and the model is neither fetched nor copied again for it. Invariants, which hold
after a kill or power cut at any instruction:

- A release named in `state.json` has its file, and its twin's if it has one, whole and on the disk.
- A file is replaced by rename only. Releases with the same model, or the same twin, share its file.
- Folders that `state.json` does not name are rubbish, and removed at the next change or opening; but a download that
  can be gone on with (`edge_agent.models.download`) waits until another one begins.
- A damaged model takes its release away, a damaged twin only itself; the next poll fetches it again.
- A twin that is refused leaves its model where it was: committed, or the candidate.

All calls block on the disk. One lock makes a call that was left behind in a thread harmless.
"""

import hashlib
import shutil
import threading
from pathlib import Path

import msgspec
import structlog

from edge_agent.durable import replace_file, sync
from edge_agent.models.download import can_go_on, drop_notes, size_held
from edge_agent.models.releases import MODEL_FILE, PAIR, TWIN_FILE, Release, RemoteObject, Twin, pair_id
from edge_agent.models.stores import StoreNeedsPerson, file_sha256

REJECTED_KEPT = 50
RESERVE = 64 << 20
_FORMAT = 1
_PART = ".part"
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


class State(msgspec.Struct, frozen=True, kw_only=True):
    """What `state.json` holds. `sequence` is the highest of all manifests that were believed."""

    format: int = _FORMAT
    url: str
    committed: Release | None = None
    previous: Release | None = None
    candidate: Release | None = None
    rejected: tuple[Rejected, ...] = ()
    sequence: int = 0

    def releases(self) -> list[Release]:
        """All that are named."""
        return [one for one in (self.committed, self.previous, self.candidate) if one is not None]


class Slots:
    """The releases of one URL; there must be one object per URL in a process.

    `reserve` is how many bytes a download must leave free on the disk.
    """

    def __init__(self, directory: Path, url: str, *, reserve: int = RESERVE) -> None:
        self._home = directory / hashlib.sha256(url.encode()).hexdigest()[:16]
        self._releases = self._home / "releases"
        self._twins = self._home / "twins"
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

    @property
    def sequence(self) -> int:
        """The highest sequence of a manifest so far: a lower one is an old manifest that somebody shows again."""
        return self._state.sequence

    def note_sequence(self, sequence: int) -> None:
        """Take nothing lower from now on. Raises `OSError`."""
        with self._lock:
            if sequence > self.sequence:
                self._change(sequence=sequence)

    def rejection(self, remote: RemoteObject, *, of: Release | None = None) -> Rejected | None:
        """Why this very upload was refused, if it was; a twin is refused as that `of` a release."""
        refused = remote.id if of is None else pair_id(of.id, remote.id)
        return next((one for one in self._state.rejected if one.id == refused), None)

    @property
    def last_rejected(self) -> Rejected | None:
        """The upload that was refused last."""
        return self._state.rejected[-1] if self._state.rejected else None

    def open(self) -> None:
        """Find out what is on disk, fall back where it is damaged, and tidy up. Raises `OSError`."""
        with self._lock:
            for folder in (self._releases, self._twins):
                folder.mkdir(parents=True, exist_ok=True)
            for folder in (self._home, self._home.parent, self._home.parent.parent):
                sync(folder)
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
                whole = self._if_whole(release) if release is not None and release.id == remote.id else None
                if whole is not None:
                    if whole != self.candidate:
                        self._change(candidate=whole)
                    return whole
        return None

    def begin(self, remote: RemoteObject) -> Path:
        """Make room for a download and return the path to write to. Raises `StoreNeedsPerson` on a full disk."""
        with self._lock:
            return self._make_room(self._releases, remote) / MODEL_FILE

    def begin_twin(self, remote: RemoteObject) -> Path:
        """The same for a twin."""
        with self._lock:
            return self._make_room(self._twins, remote) / TWIN_FILE

    def stored_twin(self, release: Release, remote: RemoteObject) -> Release | None:
        """`release` with this twin as the candidate, if the twin's bytes are on disk already, and whole."""
        with self._lock:
            for twin in (one.cpu for one in self._state.releases()):
                if twin is not None and twin.id == remote.id and _damage(self.twin_path(twin), twin) is None:
                    return self._pair(release, msgspec.structs.replace(twin, url=remote.url))
        return None

    def finish(self, remote: RemoteObject, path: Path) -> Release:
        """Take the checked download at `path` as the candidate. Raises `OSError`; then nothing has changed."""
        with self._lock:
            release = Release(
                id=remote.id,
                url=remote.url,
                version=remote.version,
                generation=remote.generation,
                size=path.stat().st_size,
                checksum=remote.checksum,
                sha256=file_sha256(path),
                accuracy=remote.accuracy,
                labels=remote.labels,
            )
            _settle(path, remote.id)
            self._change(candidate=release)
            return release

    def attach(self, release: Release, remote: RemoteObject, path: Path) -> Release:
        """Take `release` with the checked download at `path` as its twin as the candidate, and return it.

        Raises `OSError`; then nothing has changed.
        """
        with self._lock:
            twin = Twin(
                id=remote.id,
                url=remote.url,
                generation=remote.generation,
                size=path.stat().st_size,
                checksum=remote.checksum,
                sha256=file_sha256(path),
            )
            _settle(path, remote.id)
            return self._pair(release, twin)

    def commit(self, release: Release, *, previous: Release | None) -> None:
        """`release` is the model to run from now on; `previous` is what ran until now."""
        with self._lock:
            self._change(committed=release, previous=previous, candidate=None)

    def reject(self, release: Release, reason: str) -> None:
        """Never try this upload again; the newest 50 are remembered.

        A new model that was tried with its twin stays the candidate without it.
        """
        with self._lock:
            refused = Rejected(release.trial_id, release.version, release.generation, release.checksum, reason)
            older = [one for one in self._state.rejected if one.id != refused.id]
            goes = release.cpu is None or (self.committed is not None and self.committed.id == release.id)
            candidate = None if goes else release.without_twin()
            self._change(candidate=candidate, rejected=(*older, refused)[-REJECTED_KEPT:])

    def discard_candidate(self) -> None:
        """Forget a candidate that the store offers no more."""
        with self._lock:
            if self.candidate is not None:
                self._change(candidate=None)

    def path(self, release: Release) -> Path:
        """Where the model file of a release is."""
        return self._releases / release.id / MODEL_FILE

    def twin_path(self, twin: Twin) -> Path:
        """Where the file of a twin is."""
        return self._twins / twin.id / TWIN_FILE

    def _pair(self, release: Release, twin: Twin) -> Release:
        pair = msgspec.structs.replace(release, cpu=twin)
        self._change(candidate=pair)
        return pair

    def _make_room(self, folder: Path, remote: RemoteObject) -> Path:
        part = folder / f"{remote.id}{_PART}"
        for other in folder.glob(f"*{_PART}"):
            if other != part or not can_go_on(part):
                shutil.rmtree(other, ignore_errors=True)
        part.mkdir(exist_ok=True)
        if shutil.disk_usage(folder).free + size_held(part) < remote.size + self._reserve:
            raise StoreNeedsPerson(
                f"{remote.url} needs {_mib(remote.size)} and {_mib(self._reserve)} of reserve,"
                f" but the disk of {folder} does not have that",
                "free some space there",
            )
        return part

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
            replace_file(self._home / name, text)

    def _without_damage(self, state: State) -> State:
        """Leave out files that are not as they were; the previous release takes a committed one's place."""
        whole = [self._if_whole(one) for one in (state.committed, state.previous, state.candidate)]
        committed, previous, candidate = whole
        if committed is None and previous is not None:
            _log.warning("going back to the previous model", version=previous.version)
            committed, previous = previous, None
        return msgspec.structs.replace(state, committed=committed, previous=previous, candidate=candidate)

    def _if_whole(self, release: Release | None) -> Release | None:
        if release is None or _damaged(self.path(release), release, release.version):
            return None
        if release.cpu is not None and _damaged(self.twin_path(release.cpu), release.cpu, release.version):
            return release.without_twin()
        return release

    def _tidy(self) -> None:
        """Remove what no state names any more; what cannot be removed now is tried again at the next change."""
        named = self._state.releases()
        keep = {one.id for one in named}, {one.cpu.id for one in named if one.cpu is not None}
        for home, names in zip((self._releases, self._twins), keep, strict=True):
            for folder in home.iterdir():
                if folder.name not in names and not (folder.suffix == _PART and can_go_on(folder)):
                    shutil.rmtree(folder, ignore_errors=True)


def _damaged(path: Path, file: Release | Twin, version: str) -> bool:
    damage = _damage(path, file)
    if damage is not None:
        _log.error("model file is damaged", version=version, file=str(path), damage=damage)
    return damage is not None


def _damage(path: Path, file: Release | Twin) -> str | None:
    try:
        if path.stat().st_size != file.size:
            return "the size is wrong"
        return None if file_sha256(path) == file.sha256 else "the SHA-256 is wrong"
    except OSError as error:
        return f"it cannot be read: {error.strerror}"


def _settle(path: Path, name: str) -> None:
    """Put a download on the disk, and then its folder beside it under `name`."""
    home = path.parent.with_name(name)
    drop_notes(path.parent)
    sync(path)
    sync(path.parent)
    shutil.rmtree(home, ignore_errors=True)
    path.parent.rename(home)
    sync(home.parent)


def _mib(size: int) -> str:
    return f"{size / (1 << 20):.1f} MiB"
