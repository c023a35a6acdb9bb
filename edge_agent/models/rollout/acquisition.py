"""From a store to the disk: what it offers, whether this device is to take that, and the files of it.

`ask` is the one call that waits for the network without being about to change anything; what comes back is judged in
one go against what is on the disk. Whoever tries models gives way to the outcome before it is followed.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import structlog

from edge_agent.models.release.releases import GOLDEN_FILE, Release, RemoteObject, Shadow
from edge_agent.models.rollout.slots import Slots
from edge_agent.models.rollout.twins import Twins
from edge_agent.models.stores.base import Postponed, Store, StoreError, StoreNeedsPerson, StoreUnavailable
from edge_agent.models.stores.calls import Calls
from edge_agent.models.stores.limits import DownloadLimits
from edge_agent.models.stores.manifest_store import HasGolden

Level = Literal["debug", "info", "warning"]
_log = structlog.get_logger()


@dataclass(frozen=True)
class Decision:
    """What to do about what the store offers, and what to tell of it.

    "stay": all goes on as it is. "hold": nothing new is tried, what waits for that goes on waiting. "withdraw": what
    waits is not wanted any more. "fetch": `remote` is to be tried. "follow": `remote` is in use, perhaps with another
    twin. "recall": the previous release is to be tried.
    """

    kind: Literal["stay", "hold", "withdraw", "fetch", "follow", "recall"]
    text: str
    level: Level = "debug"
    remote: RemoteObject | None = None

    def spares(self, release: Release) -> bool:
        """Whether a release that is on trial may go on."""
        if self.kind in {"stay", "hold"}:
            return True
        return self.kind in {"fetch", "follow"} and self.remote is not None and self.remote.id == release.id


class Acquisition:
    """Brings what `store` offers onto the disk, with what `twins` and `golden` have of it.

    `offered` is to be tried, `shadow` to be run beside.
    `last_poll` is what the last poll found, in words; `failures` counts those in a row that found nothing out.
    """

    def __init__(
        self,
        slots: Slots,
        store: Store,
        twins: Twins,
        golden: HasGolden | None,
        *,
        pin: str,
        hold: bool,
        limits: DownloadLimits | None = None,
    ) -> None:
        self.store = store
        self.twins = twins
        self.golden = golden
        self.hold = hold
        self.pin = pin
        self.offered: Release | None = None
        self.shadow: Shadow | None = None
        self.last_poll = "not asked yet"
        self.failures = 0
        self._slots = slots
        self._twin_failures = 0
        self._calls = Calls(limits)
        self.opens_in: float | None = None

    @property
    def all_failures(self) -> int:
        """The same for whichever of the model and its twin fails longer."""
        return max(self.failures, self._twin_failures)

    def turn_to(self, store: Store, *, twins: Twins, golden: HasGolden | None, pin: str) -> None:
        """Ask another store, or on other terms. What was offered before is not to be tried unless it is again."""
        self.store, self.twins, self.golden, self.pin = store, twins, golden, pin
        self.offered = self.shadow = None

    async def ask(self) -> RemoteObject | None:
        """Ask the store. Raises `StoreError`. None: nobody needs to be asked, as the pinned version is on the disk."""
        self.opens_in = None
        return None if self._can_recall() else await self._calls.stat(self.store)

    def judge(self, remote: RemoteObject | None, unfit: set[str]) -> Decision:
        """Say what to do about what `ask` has found. `unfit` are the releases that the worker refuses for now."""
        if remote is None:
            return Decision("recall", f"{self.pin} is pinned, and is on the disk")
        decision = self._untimely(remote) or self._unwanted(remote)
        if decision is not None:
            return decision
        told = "".join(f"; {each}" for each in (remote.withheld, remote.outlook) if each)
        committed = self._slots.committed
        if not self._is_new(remote, unfit):
            level, text = self._nothing_new(remote, unfit)
            kind: Literal["follow", "withdraw"] = "follow" if self._known_as(remote) is not None else "withdraw"
            return Decision(kind, text + told, level, remote)
        if self.hold and committed is not None and committed.id not in unfit:
            held = f"{remote.version} is offered, and {committed.version} is held{told}"
            return Decision("hold", held, "info", remote)
        return Decision("fetch", f"{remote.version} is offered{told}", remote=remote)

    async def note(self, decision: Decision) -> None:
        """Take nothing older from now on. Raises `OSError`."""
        remote = decision.remote
        if remote is not None and not self.pin:
            sequence, generation = remote.sequence, _upload_number(remote) or 0
            await self._calls.run(lambda _: self._slots.note(sequence=sequence, generation=generation))

    async def follow(self, decision: Decision, *, beside: bool) -> None:
        """Have on the disk what was decided, to be tried `beside` another. Raises `StoreError` or `OSError`."""
        remote, store, twins = decision.remote, self.store, self.twins
        offered = await self._bring(decision, beside=beside)
        if self.store is not store:
            return  # which took long, and now it would have to be offered on other terms
        if decision.kind != "stay":
            self.offered = offered
            wanted = remote is not None and not self.pin and not self.hold
            self.shadow = remote.shadow if wanted and remote is not None else None
        self.found(decision, twins=twins if decision.kind in {"fetch", "follow"} else None)

    async def _bring(self, decision: Decision, *, beside: bool) -> Release | None:
        """Have it on the disk; returns what is to be tried."""
        remote = decision.remote
        match decision.kind:
            case "recall":
                return await self._calls.run(lambda _: self._slots.recall())
            case "fetch" if remote is not None:
                return await self.twins.follow(await self.fetch(remote, beside=beside), remote)
            case "follow" if remote is not None and (known := self._known_as(remote)) is not None:
                followed = await self.twins.follow(known, remote)
                if followed != self._slots.committed:
                    return followed
        if decision.kind in {"follow", "withdraw"}:
            # What waited for the worker is not wanted any more.
            await self._calls.run(lambda _: self._slots.discard_candidate())
        return None

    async def fetch(self, remote: RemoteObject, *, shadow: bool = False, beside: bool = True) -> Release:
        """Return the release of this upload, as the candidate or the shadow. Raises `StoreError` or `OSError`."""
        if beside:
            await self._calls.run(lambda _: self._calls.limits.check_memory(remote))
        stored = await self._calls.run(lambda _: self._slots.stored(remote, shadow=shadow))
        if stored is not None:
            return stored
        self._calls.limits.admit(remote, urgent=self._slots.committed is None)
        for remark in remote.remarks:
            _log.warning("model metadata not understood", url=remote.url, version=remote.version, remark=remark)
        _log.info("fetching a model", url=remote.url, version=remote.version, bytes=remote.size)
        path = await self._calls.run(lambda _: self._slots.begin(remote))
        await self._calls.fetch(self.store, remote, path)
        await self._fetch_golden(remote, path.with_name(GOLDEN_FILE))
        return await self._calls.run(lambda _: self._slots.finish(remote, path, shadow=shadow))

    def found(self, decision: Decision, *, twins: Twins | None = None) -> None:
        """Note what a poll found, of the twin too if that was looked for."""
        self.failures, self._twin_failures = 0, twins.failures if twins else 0
        level, what = decision.level, decision.text
        if twins is not None and twins.trouble:
            self.opens_in = twins.opens_in
            level, what = "warning", f"{what}; the model for the CPU: {twins.trouble}"
        if what != self.last_poll:
            getattr(_log, level)("asked for a new model", found=what)
        self.last_poll = what

    def failed(self, error: Exception, running: Release | None) -> None:
        """Note why a poll found nothing out; what is no fault of the store ends up here, too: a full disk, say."""
        if isinstance(error, Postponed):
            self.opens_in = error.seconds
            self.found(Decision("hold", str(error), "info"))
            return
        known = isinstance(error, StoreError)
        what = str(error) if known else f"{type(error).__name__}: {error}"
        self.failures += 1
        if what != self.last_poll:
            log = _log.error if not known or isinstance(error, StoreNeedsPerson) else _log.warning
            log("no new model can be had", reason=what, goes_on_with=running and running.version)
        self.last_poll = what

    def _can_recall(self) -> bool:
        committed, previous = self._slots.committed, self._slots.previous
        if not self.pin or previous is None or previous.version != self.pin:
            return False
        return (committed is None or committed.version != self.pin) and self._slots.rejection(previous) is None

    def _untimely(self, remote: RemoteObject) -> Decision | None:
        """What is older than what was seen before is taken for nothing new, and a pin asks for one version only."""
        if self.pin:
            return self._beside_the_pin(remote, self.pin)
        if remote.sequence < self._slots.sequence:
            again = "publish it again if devices shall go back to it"
            return Decision("stay", f"{remote.version} is offered by an older manifest than before: {again}", "warning")
        generation = _upload_number(remote)
        if generation is not None and generation < self._slots.generation:
            again = "upload it again if devices shall go back to it"
            return Decision("stay", f"{remote.version} is offered by an older upload than before: {again}", "warning")
        return None

    def _unwanted(self, remote: RemoteObject) -> Decision | None:
        """What this device may not take, or will not again."""
        rejection = self._slots.rejection(remote)
        if rejection is not None:
            rejected = f"{remote.version} was rejected: {rejection.reason}; {remote.another_try}"
            return Decision("withdraw", rejected, "warning", remote)
        if remote.withheld and self._known_as(remote) is None:
            return Decision("withdraw", remote.withheld, "info", remote)
        return None

    def _beside_the_pin(self, remote: RemoteObject, pin: str) -> Decision | None:
        committed = self._slots.committed
        if remote.version == pin:
            return None
        if committed is not None and committed.version == pin:
            return Decision("withdraw", f"{pin} is pinned; {remote.version} is offered", "info")
        missing = f"{pin} is pinned, and neither on the disk nor offered: {remote.version} is"
        return Decision("withdraw", missing, "warning")

    def _is_new(self, remote: RemoteObject, unfit: set[str]) -> bool:
        """Whether it has another version, or takes the place of a committed one that does not work."""
        committed = self._slots.committed
        if committed is None or remote.version != committed.version:
            return True
        return committed.id in unfit and remote.checksum != committed.checksum

    def _known_as(self, remote: RemoteObject) -> Release | None:
        """The committed release if it has the same bytes, or the candidate that gives it another twin."""
        committed, candidate = self._slots.committed, self._slots.candidate
        if committed is None or committed.checksum != remote.checksum:
            return None
        return candidate if candidate is not None and candidate.id == committed.id else committed

    def _nothing_new(self, remote: RemoteObject, unfit: set[str]) -> tuple[Level, str]:
        committed = self._slots.committed
        if committed is not None and committed.id in unfit:
            return "warning", f"{remote.version} is all there is, and the worker refuses it"
        if committed is None or committed.checksum == remote.checksum:
            return "debug", f"{remote.version} is the newest"
        return "warning", (
            f"the object changed but its version is still {remote.version}, so it is not fetched:"
            " give each upload a version of its own (x-goog-meta-version)"
        )

    async def _fetch_golden(self, remote: RemoteObject, path: Path) -> None:
        golden = remote.acceptance.golden
        if golden is None:
            return
        store = self.golden
        if store is None:
            raise StoreUnavailable(f"{remote.url} has golden samples, and its store cannot fetch them")
        await self._calls.fetch_file(lambda stop: store.fetch_golden(remote, path, stop), path)


def _upload_number(remote: RemoteObject) -> int | None:
    """The generation of an object in Cloud Storage that is no manifest: those of a manifest are made of checksums."""
    plain = remote.url.startswith("gs://") and not remote.of_release
    return int(remote.generation) if plain and remote.generation.isdecimal() else None
