"""The models on disk: which one is in use, the one before it, and the one that waits to be tried.

    <state>/models/<hash of the URL>/
        state.json, state.json.bak      the same `State`; the second is for the day the first is damaged
        state.json.damaged              set aside for a person to look at (or state.json.bak.damaged)
        releases/<id>/model.tflite      never changed once its folder has this name
        releases/<id>/golden.npz        golden samples, where the release has some
        twins/<id>/cpu.tflite           likewise: the same model for the CPU, named by its own upload
        releases/<id>.part/             a download that is not finished; also in twins/, one at most in each folder

The way of a release: *downloaded* (its folder ends in `.part`), *verified* and *staged* (`candidate`), *on trial*
(`candidate` and `trial`), *committed* or *rejected*; `committed` stays what it was until then. A *shadow* is staged
beside it, and becomes the candidate without another download. A twin is *attached* to a release that is on
disk; together they are the candidate, and the model is neither fetched nor copied again for it. Invariants, which hold
after a kill or power cut at any instruction:

- A release named in `state.json` has its file, and its twin's if it has one, whole and on the disk.
- `committed` is a release that has passed all that was asked of it, or the first one on this device.
- A file is replaced by rename only. Releases with the same model, or the same twin, share its file.
- Folders that `state.json` does not name are rubbish, and removed at the next change or opening; but a download that
  can be gone on with (`edge_agent.models.stores.download`) waits until another one begins.
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

from edge_agent.durable import sync
from edge_agent.models.release.releases import (
    GOLDEN_FILE,
    MODEL_FILE,
    TWIN_FILE,
    Release,
    RemoteObject,
    Twin,
    pair_id,
)
from edge_agent.models.rollout.integrity import check_golden, damage_of, is_damaged, is_upload, promised_sha256
from edge_agent.models.rollout.state import Rejected, State, Trial, read_state, write_state
from edge_agent.models.stores.base import StoreNeedsPerson
from edge_agent.models.stores.download import can_go_on, drop_notes, size_held

REJECTED_KEPT = 50
RESERVE = 64 << 20
_PART = ".part"
_log = structlog.get_logger()


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
        self._begun = ""

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
    def shadow(self) -> Release | None:
        """A model that is whole on disk, to run beside the one in use."""
        return self._state.shadow

    @property
    def trial(self) -> Trial | None:
        """That the candidate was given to a worker, and how often."""
        return self._state.trial

    @property
    def sequence(self) -> int:
        """The highest sequence of a manifest so far: a lower one is an old manifest that somebody shows again."""
        return self._state.sequence

    @property
    def generation(self) -> int:
        """The highest generation of an object in Cloud Storage so far; they grow with the time of the upload."""
        return self._state.generation

    def note(self, *, sequence: int = 0, generation: int = 0) -> None:
        """Take nothing lower from now on. Raises `OSError`."""
        with self._lock:
            highest = max(sequence, self.sequence), max(generation, self.generation)
            if highest != (self.sequence, self.generation):
                self._change(sequence=highest[0], generation=highest[1])

    def rejection(self, remote: RemoteObject | Release, *, of: Release | None = None) -> Rejected | None:
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
            found = read_state(self._home, self._state.url)
            whole = self._without_damage(found)
            if whole != found:
                write_state(self._home, whole)
            self._state = whole
            self._tidy()

    def stored(self, remote: RemoteObject, *, shadow: bool = False) -> Release | None:
        """The release of this upload if its bytes are on disk already, and whole.

        It becomes the candidate or the shadow.
        """
        with self._lock:
            for release in (self.candidate, self.previous, self.shadow):
                whole = self._if_whole(release, golden=True) if release and is_upload(release, remote) else None
                if whole is not None:
                    if whole != (self.shadow if shadow else self.candidate):
                        self._change(**{"shadow" if shadow else "candidate": whole})
                    return whole
        return None

    def recall(self) -> Release | None:
        """Make the previous release the candidate, if it is still whole; otherwise it is forgotten."""
        with self._lock:
            release = self.previous
            whole = self._if_whole(release)
            if release is not None and whole is None:
                self._change(previous=None)
            elif whole is not None and whole != self.candidate:
                self._change(candidate=whole)
            return whole

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
                if twin is not None and is_upload(twin, remote) and damage_of(self.twin_path(twin), twin) is None:
                    return self._pair(release, msgspec.structs.replace(twin, url=remote.url))
        return None

    def finish(self, remote: RemoteObject, path: Path, *, shadow: bool = False) -> Release:
        """Take the checked download at `path`, with its golden samples beside it, as the candidate or the shadow.

        Raises `FetchFailed` where model or golden samples are not those that were announced, `OSError`; then nothing
        has changed.
        """
        with self._lock:
            check_golden(path.with_name(GOLDEN_FILE), remote)
            release = Release(
                id=remote.id,
                url=remote.url,
                version=remote.version,
                generation=remote.generation,
                size=path.stat().st_size,
                checksum=remote.checksum,
                sha256=promised_sha256(path, remote),
                accuracy=remote.accuracy,
                labels=remote.labels,
                acceptance=remote.acceptance,
            )
            _settle(path, remote.id)
            if shadow:
                self._change(shadow=release)
            else:
                self._change(candidate=release)
            return release

    def attach(self, release: Release, remote: RemoteObject, path: Path) -> Release:
        """Take `release` with the checked download at `path` as its twin as the candidate, and return it.

        Raises `FetchFailed`, `OSError`; then nothing has changed.
        """
        with self._lock:
            twin = Twin(
                id=remote.id,
                url=remote.url,
                generation=remote.generation,
                size=path.stat().st_size,
                checksum=remote.checksum,
                sha256=promised_sha256(path, remote),
            )
            _settle(path, remote.id)
            return self._pair(release, twin)

    def begin_trial(self, release: Release, limit: int) -> int:
        """Note that the candidate goes to the worker, once per process; returns how often that was cut short before.

        At `limit` it is not noted any more.
        """
        with self._lock:
            begun = self.trial.begun if self.trial is not None and self.trial.id == release.id else 0
            if begun and self._begun == release.id:
                return begun - 1
            if begun < limit:
                self._change(trial=Trial(release.id, begun + 1))
                self._begun = release.id
            return begun

    def forgive_trial(self) -> None:
        """The process ends in order, and not over the trial that it has begun."""
        with self._lock:
            if self.trial is not None and self.trial.id == self._begun:
                begun = self.trial.begun - 1
                self._change(trial=Trial(self.trial.id, begun) if begun else None)
            self._begun = ""

    def commit(self, release: Release, *, previous: Release | None) -> None:
        """`release` is the model to run from now on; `previous` is what ran until now."""
        with self._lock:
            self._change(committed=release, previous=previous, candidate=None)

    def reject(self, release: Release, reason: str) -> None:
        """Never try this upload again; the newest 50 are remembered.

        A new model that was tried with its twin stays the candidate without it.
        """
        with self._lock:
            goes = release.cpu is None or (self.committed is not None and self.committed.id == release.id)
            candidate = None if goes else release.without_twin()
            self._change(candidate=candidate, rejected=self._rejected_with(release, reason))

    def roll_back(self, release: Release, reason: str) -> None:
        """Never try a release again that was in use and had to go: with and without its twin, if the model is new."""
        with self._lock:
            new = self.committed is None or self.committed.id != release.id
            gone = release.without_twin() if new else release
            self._change(candidate=None, rejected=self._rejected_with(gone, reason))

    def discard_candidate(self) -> None:
        """Forget a candidate that the store offers no more."""
        with self._lock:
            if self.candidate is not None:
                self._change(candidate=None)

    def discard_shadow(self) -> None:
        """Forget the shadow."""
        with self._lock:
            if self.shadow is not None:
                self._change(shadow=None)

    def path(self, release: Release) -> Path:
        """Where the model file of a release is."""
        return self._releases / release.id / MODEL_FILE

    def golden_path(self, release: Release) -> Path | None:
        """Where its golden samples are, if it has some."""
        return self.path(release).with_name(GOLDEN_FILE) if release.acceptance.golden is not None else None

    def twin_path(self, twin: Twin) -> Path:
        """Where the file of a twin is."""
        return self._twins / twin.id / TWIN_FILE

    def _rejected_with(self, release: Release, reason: str) -> tuple[Rejected, ...]:
        refused = Rejected(release.trial_id, release.version, release.generation, release.checksum, reason)
        older = [one for one in self._state.rejected if one.id != refused.id]
        return (*older, refused)[-REJECTED_KEPT:]

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
        golden = remote.acceptance.golden
        size = remote.size + (golden.size if golden is not None else 0)
        if shutil.disk_usage(folder).free + size_held(part) < size + self._reserve:
            raise StoreNeedsPerson(
                f"{remote.url} needs {_mib(size)} and {_mib(self._reserve)} of reserve,"
                f" but the disk of {folder} does not have that",
                "free some space there",
            )
        return part

    def _change(self, **changes: object) -> None:
        state = self._state.changed(**changes)
        write_state(self._home, state)
        self._state = state
        self._tidy()

    def _without_damage(self, state: State) -> State:
        """Leave out files that are not as they were; the previous release takes a committed one's place."""
        committed, previous = self._if_whole(state.committed), self._if_whole(state.previous)
        candidate, shadow = (self._if_whole(one, golden=True) for one in (state.candidate, state.shadow))
        if committed is None and previous is not None:
            _log.warning("going back to the previous model", version=previous.version)
            committed, previous = previous, None
        return state.changed(committed=committed, previous=previous, candidate=candidate, shadow=shadow)

    def _if_whole(self, release: Release | None, *, golden: bool = False) -> Release | None:
        """Return what is left of a release; `golden` samples are only needed before it is taken into use."""
        if release is None or is_damaged(self.path(release), release, release.version):
            return None
        samples, path = release.acceptance.golden, self.golden_path(release)
        if golden and samples is not None and path is not None and is_damaged(path, samples, release.version):
            return None
        if release.cpu is not None and is_damaged(self.twin_path(release.cpu), release.cpu, release.version):
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


def _settle(path: Path, name: str) -> None:
    """Put a download on the disk, and then its folder beside it under `name`."""
    home = path.parent.with_name(name)
    drop_notes(path.parent)
    for file in sorted(path.parent.iterdir(), reverse=True):
        sync(file)
    sync(path.parent)
    shutil.rmtree(home, ignore_errors=True)
    path.parent.rename(home)
    sync(home.parent)


def _mib(size: int) -> str:
    return f"{size / (1 << 20):.1f} MiB"
