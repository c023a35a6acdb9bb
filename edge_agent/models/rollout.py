"""How a new model takes over: ask the store, fetch, let the worker try it beside the old one, and only then commit.

The loop goes round once per poll, and sooner after a failure (backoff with jitter). Nothing a store or a worker says
ends it. A store's calls run in a daemon thread, so that neither the event loop nor the end of the process waits for
a network that hangs. What is worth a line in the log is logged when it changes, not at every try.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from typing import Literal, Protocol

import msgspec
import structlog

from edge_agent.models.calls import Calls
from edge_agent.models.releases import Release, RemoteObject
from edge_agent.models.slots import Slots
from edge_agent.models.stores import Store, StoreError, StoreNeedsPerson
from edge_agent.models.twins import Twins
from edge_agent.records import LoadReport, ModelFile

FIRST_BACKOFF = 5.0
LONGEST_LOAD_BACKOFF = 300.0
STOP_LIMIT = 1.0

_log = structlog.get_logger()


class Loader(Protocol):
    """Whoever runs models: the supervisor of the worker."""

    async def load(self, model: ModelFile) -> LoadReport:
        """Build and warm `model` beside the one in use, and switch to it if that went well."""


class RolloutChange(msgspec.Struct, frozen=True, kw_only=True):
    """A release was taken into use, or refused for good, instead of `previous`.

    `part` is "twin" where that is all that is new, or all that was given up: no other version runs then.
    """

    state: Literal["committed", "rejected"]
    release: Release
    previous: Release | None
    report: LoadReport
    part: Literal["model", "twin"] = "model"


class RolloutStatus(msgspec.Struct, frozen=True, kw_only=True):
    """For people. `version` runs, `waiting` is to be tried; `next_poll` is in seconds from now.

    `refusal` is why the worker cannot take a model now, with its version, and empty if it can. `twin` is whether what
    runs has a twin for the CPU.
    """

    state: Literal["no model", "waiting for the worker", "running", "stopped"]
    version: str | None
    waiting: str | None
    refusal: str
    last_poll: str
    failures: int
    next_poll: float | None
    rejected: str | None
    twin: bool = False


class Rollout:
    """Keeps the worker on the version that the store offers, with the twin that `twins` finds.

    `poll_interval` is in seconds. `on_change` is called in the event loop. `sleep`, `clock` (seconds) and `jitter`
    (0 to 1) stand for time and chance.
    """

    def __init__(
        self,
        slots: Slots,
        store: Store,
        loader: Loader,
        *,
        model_name: str,
        poll_interval: float,
        on_change: Callable[[RolloutChange], None],
        twins: Twins | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        clock: Callable[[], float] = time.monotonic,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._slots = slots
        self._store = store
        self._twins = twins or Twins(slots, None)
        self._loader = loader
        self._model_name = model_name
        self._poll_interval = poll_interval
        self._on_change = on_change
        self._sleep = sleep
        self._clock = clock
        self._jitter = jitter
        self._running: Release | None = None
        self._uncommitted: RolloutChange | None = None
        self._offered: Release | None = None
        self._refused: set[str] = set()
        self._poll_failures = 0
        self._twin_failures = 0
        self._load_failures = 0
        self._last_poll = "not asked yet"
        self._last_wait = ""
        self._next_poll: float | None = None
        self._wake = asyncio.Event()
        self._calls = Calls()
        self._work: asyncio.Task[None] | None = None
        self._stopped = False

    @property
    def running(self) -> Release | None:
        """The release that the worker accepted last."""
        return self._running

    @property
    def status(self) -> RolloutStatus:
        """What goes on, for people."""
        candidate, rejected = self._slots.candidate, self._slots.last_rejected
        return RolloutStatus(
            state=self._state(),
            version=self._running.version if self._running else None,
            waiting=candidate.version if candidate else None,
            refusal=self._last_wait,
            last_poll=self._last_poll,
            failures=self._poll_failures,
            next_poll=None if self._next_poll is None else max(0.0, self._next_poll - self._clock()),
            rejected=f"{rejected.what}: {rejected.reason}" if rejected else None,
            twin=self._running is not None and self._twins.path(self._running) is not None,
        )

    async def start(self) -> None:
        """Open the slots and load the committed release, or the previous one if that can never work.

        Tries once; `run` goes on trying. Raises `OSError` if the state directory cannot be used.
        """
        await self._calls.run(lambda _: self._slots.open())
        await self._load(self._known())

    async def run(self) -> None:
        """Poll until `stop`, the first time at once."""
        self._work = asyncio.create_task(self._loop(), name="model-rollout")
        try:
            await asyncio.wait({self._work})
        finally:
            await self.stop()
        if self._work.done() and not self._work.cancelled():
            self._work.result()

    def poll_now(self) -> None:
        """Ask the store now rather than at the next poll."""
        self._wake.set()

    def configure(self, *, poll_interval: float) -> None:
        """Take another interval (seconds), beginning with a poll now."""
        if poll_interval != self._poll_interval:
            self._poll_interval = poll_interval
            self.poll_now()

    async def stop(self) -> None:
        """End `run` within a second, even if the network hangs. A half-finished download is thrown away."""
        self._stopped = True
        if self._work is not None:
            self._work.cancel()
            await asyncio.wait({self._work}, timeout=STOP_LIMIT)

    def _state(self) -> Literal["no model", "waiting for the worker", "running", "stopped"]:
        if self._stopped:
            return "stopped"
        if self._running is not None:
            return "running"
        return "waiting for the worker" if self._load_failures else "no model"

    async def _loop(self) -> None:
        while not self._stopped:
            self._wake.clear()
            await self._round()
            await self._pause(self._delay())

    async def _round(self) -> None:
        waits = await self._reported(self._load(self._known()))
        await self._reported(self._poll())
        waits_too = await self._reported(self._load(self._new()))
        waits = waits_too or (waits and self._running is None)
        self._load_failures = self._load_failures + 1 if waits else 0

    async def _reported(self, step: Awaitable[bool | None]) -> bool:
        """Take a step; a failure is noted, and the running model goes on."""
        try:
            return bool(await step)
        except StoreError as error:
            self._failed(str(error), needs_person=isinstance(error, StoreNeedsPerson))
        except Exception as error:  # noqa: BLE001  # a full disk, say: it ends up in the log and in `status`
            self._failed(f"{type(error).__name__}: {error}", needs_person=True)
        return False

    def _delay(self) -> float:
        delays = [self._poll_interval]
        if failures := max(self._poll_failures, self._twin_failures):
            delays.append(_backoff(failures))
        if self._load_failures:
            delays.append(min(_backoff(self._load_failures), LONGEST_LOAD_BACKOFF))
        return min(delays) * (0.9 + 0.2 * self._jitter())

    async def _pause(self, delay: float) -> None:
        self._next_poll = self._clock() + delay
        timer = asyncio.ensure_future(self._sleep(delay))
        wake = asyncio.ensure_future(self._wake.wait())
        try:
            await asyncio.wait({timer, wake}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            timer.cancel()
            wake.cancel()

    async def _poll(self) -> None:
        """Find out what the store offers, and have it on disk. Raises `StoreError` or `OSError`."""
        await self._commit()
        remote = await self._calls.stat(self._store)
        if remote.sequence < self._slots.sequence:
            again = "publish it again if devices shall go back to it"
            self._found("warning", f"{remote.version} is offered by an older manifest than before: {again}")
            return
        if remote.sequence > self._slots.sequence:
            await self._calls.run(lambda _: self._slots.note_sequence(remote.sequence))
        rejection = self._slots.rejection(remote)
        if remote.withheld and self._known_as(remote) is None:
            await self._withdraw()
            self._found("debug", remote.withheld)
        elif rejection is not None:
            await self._withdraw()
            again = "upload it again to have it tried again"
            self._found("warning", f"{remote.version} was rejected: {rejection.reason}; {again}")
        elif self._is_new(remote):
            release = await self._fetch(remote)
            self._offered = await self._twins.follow(release, remote)
            self._found("debug", f"{remote.version} is offered", twins=self._twins)
        elif (known := self._known_as(remote)) is None:
            await self._withdraw()
            self._found(*self._nothing_new(remote))
        else:
            followed = await self._twins.follow(known, remote)
            if followed == self._slots.committed:
                await self._withdraw()
            else:
                self._offered = followed
            self._found(*self._nothing_new(remote), twins=self._twins)

    def _is_new(self, remote: RemoteObject) -> bool:
        """Whether it has another version, or takes the place of a committed one that does not work."""
        committed = self._slots.committed
        if committed is None or remote.version != committed.version:
            return True
        return committed.id in self._refused and remote.checksum != committed.checksum

    def _known_as(self, remote: RemoteObject) -> Release | None:
        """The committed release if it has the same bytes, or the candidate that gives it another twin."""
        committed, candidate = self._slots.committed, self._slots.candidate
        if committed is None or committed.checksum != remote.checksum:
            return None
        return candidate if candidate is not None and candidate.id == committed.id else committed

    def _nothing_new(self, remote: RemoteObject) -> tuple[Literal["debug", "warning"], str]:
        committed = self._slots.committed
        if committed is not None and committed.id in self._refused:
            return "warning", f"{remote.version} is all there is, and the worker refuses it"
        if committed is None or committed.checksum == remote.checksum:
            return "debug", f"{remote.version} is the newest"
        return "warning", (
            f"the object changed but its version is still {remote.version}, so it is not fetched:"
            " give each upload a version of its own (x-goog-meta-version)"
        )

    async def _withdraw(self) -> None:
        """The store offers nothing to try; what waited for the worker is not wanted any more."""
        self._offered = None
        await self._calls.run(lambda _: self._slots.discard_candidate())

    async def _fetch(self, remote: RemoteObject) -> Release:
        stored = await self._calls.run(lambda _: self._slots.stored(remote))
        if stored is not None:
            return stored
        for remark in remote.remarks:
            _log.warning("model metadata not understood", url=remote.url, version=remote.version, remark=remark)
        _log.info("fetching a model", url=remote.url, version=remote.version, bytes=remote.size)
        path = await self._calls.run(lambda _: self._slots.begin(remote))
        await self._calls.fetch(self._store, remote, path)
        return await self._calls.run(lambda _: self._slots.finish(remote, path))

    def _found(self, level: Literal["debug", "warning"], what: str, *, twins: Twins | None = None) -> None:
        """Note what a poll found, of the twin too if that was looked for."""
        self._poll_failures, self._twin_failures = 0, twins.failures if twins else 0
        if twins is not None and twins.trouble:
            level, what = "warning", f"{what}; the model for the CPU: {twins.trouble}"
        if what != self._last_poll:
            getattr(_log, level)("asked for a new model", found=what)
        self._last_poll = what

    def _failed(self, what: str, *, needs_person: bool) -> None:
        self._poll_failures += 1
        if what != self._last_poll:
            log = _log.error if needs_person else _log.warning
            log("no new model can be had", reason=what, goes_on_with=self._running and self._running.version)
        self._last_poll = what

    def _known(self) -> list[Release]:
        """What to run when nothing runs: best first."""
        known = (self._slots.committed, self._slots.previous) if self._running is None else ()
        choices = [choice for one in known if one is not None for choice in one.with_and_without_twin()]
        return [one for one in choices if one.trial_id not in self._refused]

    def _new(self) -> list[Release]:
        """What the store offers, if it is on disk and not running: best first."""
        new = self._slots.candidate
        if new is None or new != self._offered or new == self._running:
            return []
        choices = [new] if self._running and self._running.id == new.id else new.with_and_without_twin()
        return [one for one in choices if one.trial_id not in self._refused]

    async def _load(self, choices: list[Release]) -> bool:
        """Have the worker take the first of `choices` that it can; true if one had bad luck and waits."""
        for release in choices:
            report = await self._loader.load(self._model_file(release))
            if report.accepted:
                await self._take(release, report)
                return False
            if not report.permanent:
                self._wait_for_worker(release, report)
                return True
            await self._refuse(release, report)
        return False

    def _model_file(self, release: Release) -> ModelFile:
        return ModelFile(
            path=str(self._slots.path(release)),
            name=self._model_name,
            version=release.version,
            labels=release.labels,
            cpu_path=self._twins.path(release),
        )

    async def _take(self, release: Release, report: LoadReport) -> None:
        change = self._committed_change(release, report)
        self._running, self._last_wait = release, ""
        facts = {"name": self._model_name, "version": release.version, "accelerator": report.accelerator}
        if change.part == "twin":
            facts["twin"] = "another"
        elif change.previous is not None:
            facts["previous"] = change.previous.version
        if report.degraded is not None:
            _log.warning("model in use, but degraded", **facts, reason=report.degraded)
        else:
            _log.info("model in use", **facts)
        _log.debug("model loaded", version=release.version, detail=report.detail)
        if release != self._slots.committed and release == self._slots.candidate:
            self._uncommitted = change
            await self._commit()

    def _committed_change(self, release: Release, report: LoadReport) -> RolloutChange:
        before = self._running or self._slots.committed
        part: Literal["model", "twin"] = "twin" if before is not None and before.id == release.id else "model"
        return RolloutChange(state="committed", release=release, previous=self._running, report=report, part=part)

    async def _commit(self) -> None:
        """Write down that the running release is the one to start with; raises `OSError`, and is then done later."""
        change = self._uncommitted
        if change is None:
            return
        previous = change.previous or self._slots.committed
        if self._slots.committed is not None and self._slots.committed.id == change.release.id:
            previous = self._slots.previous  # another twin makes no other model to go back to
        await self._calls.run(lambda _: self._slots.commit(change.release, previous=previous))
        self._uncommitted = None
        _log.debug("model committed", version=change.release.version, previous=previous and previous.version)
        self._on_change(change)

    async def _refuse(self, release: Release, report: LoadReport) -> None:
        """A candidate is rejected on disk; one that worked before only until the next start, after a repair perhaps."""
        if release == self._slots.candidate:
            await self._calls.run(lambda _: self._slots.reject(release, report.reason))
        else:
            self._refused.add(release.trial_id)
        part: Literal["model", "twin"] = "model" if release.cpu is None else "twin"
        with_twin = {} if release.cpu is None else {"twin": release.cpu.url}
        _log.error("model rejected", version=release.version, **with_twin, reason=report.reason)
        self._on_change(
            RolloutChange(state="rejected", release=release, previous=self._running, report=report, part=part)
        )

    def _wait_for_worker(self, release: Release, report: LoadReport) -> None:
        refusal = f"{release.version} waits: {report.reason}"
        if refusal != self._last_wait:
            _log.warning("model waits for the worker", version=release.version, reason=report.reason)
        self._last_wait = refusal


def _backoff(failures: int) -> float:
    return float(FIRST_BACKOFF * 2 ** min(failures - 1, 20))
