"""The twin of a model that was compiled for the Edge TPU: the same model for the CPU, for when there is no Edge TPU.

Its store is asked after the model's, once per poll. Whatever goes wrong with a twin is told, and never stops the model
itself: the model goes first, and the twin follows at a later poll. What is on disk stays in use until another twin
takes its place, even if the store has none any more.

Which twin belongs to a model: where both have the metadata `version`, these are the same. Otherwise the twin was not
uploaded more than `HEAD_START` before the model; an older one is taken for the twin of an older model.
"""

import structlog

from edge_agent.models.release.releases import Release, RemoteObject
from edge_agent.models.rollout.slots import Slots
from edge_agent.models.stores.base import (
    Forbidden,
    Missing,
    Postponed,
    Store,
    StoreError,
    StoreNeedsPerson,
    StoreUnavailable,
    Untrusted,
)
from edge_agent.models.stores.calls import Calls
from edge_agent.models.stores.limits import DownloadLimits

HEAD_START = 3600.0
"""Seconds; room for a person who uploads the twin first, over a slow line."""

_log = structlog.get_logger()


class Twins:
    """Finds the twin of a release and has it on disk. `expected` is whether the settings name it; `limits` say when.

    `trouble` is why the store's twin is not used, in the same words at every try, and empty if there is nothing to
    tell. `failures` counts the polls in a row with such trouble. `opens_in` is in how many seconds it may be fetched,
    if it waits for that.
    """

    def __init__(
        self, slots: Slots, store: Store | None, *, expected: bool = False, limits: DownloadLimits | None = None
    ) -> None:
        self._slots = slots
        self._store = store
        self._expected = expected
        self._calls = Calls(limits)
        self._absence = ""
        self.trouble = ""
        self.failures = 0
        self.opens_in: float | None = None

    def path(self, release: Release) -> str | None:
        """Where the twin of a release is on disk, if it came from where the settings say."""
        if self._store is None or release.cpu is None or release.cpu.url != self._store.url:
            return None
        return str(self._slots.twin_path(release.cpu))

    async def follow(self, release: Release, model: RemoteObject) -> Release:
        """Return `release`, which is `model` on disk, with the twin that the store offers, or else as it is.

        A release that has got another twin is the candidate.
        """
        if self._store is None:
            return release
        self.opens_in = None
        try:
            followed = await self._follow(self._store, release, model)
        except (StoreError, OSError) as error:
            self._fail(error)
            return self._without_new_twin(release) if isinstance(error, Untrusted) else release
        self._told("")
        return followed

    async def _follow(self, store: Store, release: Release, model: RemoteObject) -> Release:
        twin = await self._calls.stat(store)
        _check(twin, model)
        has = release.cpu
        if has is not None and (has.url, has.checksum) == (twin.url, twin.checksum) and twin.may_be(has.sha256):
            return release
        rejection = self._slots.rejection(twin, of=release)
        if rejection is not None:
            raise StoreNeedsPerson(f"{twin.url} was rejected: {rejection.reason}", twin.another_try)
        stored = await self._calls.run(lambda _: self._slots.stored_twin(release, twin))
        if stored is not None:
            return stored
        self._calls.limits.admit(twin, urgent=self._slots.committed is None)
        _log.info("fetching the model for the CPU", url=twin.url, version=model.version, bytes=twin.size)
        path = await self._calls.run(lambda _: self._slots.begin_twin(twin))
        await self._calls.fetch(store, twin, path)
        return await self._calls.run(lambda _: self._slots.attach(release, twin, path))

    def _without_new_twin(self, release: Release) -> Release:
        """A twin that is not in use yet may have come before there were keys."""
        committed = self._slots.committed
        return committed if committed is not None and committed.id == release.id else release.without_twin()

    def _fail(self, error: StoreError | OSError) -> None:
        if isinstance(error, Postponed):
            self.opens_in = error.seconds
        if self._expected or not isinstance(error, Missing | Forbidden):
            self.trouble = str(error)
            self.failures += not isinstance(error, Postponed)
            return
        if str(error) != self._absence:
            log = _log.debug if isinstance(error, Missing) else _log.info
            log("there is no model for the CPU", reason=error.reason)
        self._told(str(error))

    def _told(self, absence: str) -> None:
        self._absence, self.trouble, self.failures = absence, "", 0


def _check(twin: RemoteObject, model: RemoteObject) -> None:
    """Raise `StoreUnavailable` if the twin is another model's; during an upload it is for a few seconds."""
    if twin.version_given and model.version_given:
        if twin.version != model.version:
            raise StoreUnavailable(f"{twin.url} is version {twin.version}, not {model.version}, and is not used")
        return
    if twin.uploaded is None or model.uploaded is None or twin.uploaded < model.uploaded - HEAD_START:
        raise StoreUnavailable(f"{twin.url} may belong to an older model and is not used: give both the same version")
