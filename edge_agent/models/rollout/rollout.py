"""How a new model takes over: ask the store, fetch, let the worker try it beside the old one, watch it, and commit.

The loop goes round once per poll, and sooner after a failure (backoff with jitter). Nothing a store or a worker says
ends it. A store's calls run in a daemon thread, so that neither the event loop nor the end of the process waits for
a network that hangs. What is worth a line in the log is logged when it changes, not at every try.

While a new model is on trial, the one before it is ready in the worker and committed on the disk. `_turn` is held by
whoever changes what runs: a round once the store has answered, and the verdict on a trial, which so never waits for a
network.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Literal

import structlog

from edge_agent.models.release.releases import Release
from edge_agent.models.rollout.acquisition import Acquisition
from edge_agent.models.rollout.in_use import InUse
from edge_agent.models.rollout.loading import Loader
from edge_agent.models.rollout.news import RolloutChange, RolloutStatus
from edge_agent.models.rollout.schedule import Schedule
from edge_agent.models.rollout.shadowing import Shadowing
from edge_agent.models.rollout.slots import Slots
from edge_agent.models.rollout.twins import Twins
from edge_agent.models.stores.base import Store
from edge_agent.models.stores.calls import Calls
from edge_agent.models.stores.limits import DownloadLimits
from edge_agent.models.stores.manifest_store import HasGolden
from edge_agent.records import Accelerator, LoadReport, ModelFile, Result, Terms
from edge_agent.settings.trial import TrialSettings
from edge_agent.settings.units import format_duration

STOP_LIMIT = 1.0
INTERRUPTIONS = 3
"""A release whose trials the process has not lived through so often is not tried again."""
NO_TRIAL = TrialSettings(time=0.0)

_log = structlog.get_logger()


class Rollout:
    """Keeps the worker on the version that the store offers, with the twin that `twins` finds.

    `poll_interval` is in seconds. `on_change` is called in the event loop. `golden` is asked for golden samples, within
    `limits`. `pin` is the version to run, `hold` keeps what runs; `trial` is what a new one is watched for. `sleep`,
    `clock` (seconds) and `jitter` (0 to 1) stand for time and chance.
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
        golden: HasGolden | None = None,
        limits: DownloadLimits | None = None,
        pin: str = "",
        hold: bool = False,
        trial: TrialSettings = NO_TRIAL,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        clock: Callable[[], float] = time.monotonic,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self.slots = slots
        self._acquisition = Acquisition(
            slots, store, twins or Twins(slots, None), golden, pin=pin, hold=hold, limits=limits
        )
        self._loader = loader
        self._model_name = model_name
        self._schedule = Schedule(poll_interval, sleep=sleep, clock=clock, jitter=jitter)
        self._on_change = on_change
        self._shadowing = Shadowing(
            slots,
            self._acquisition,
            loader,
            model_file=self._model_file,
            terms=lambda release: self._terms(release, trial=False),
            on_change=on_change,
            clock=clock,
        )
        self._unfit: set[str] = set()
        self._load_failures = 0
        self._last_wait = ""
        self._judge = asyncio.Event()
        self._turn = asyncio.Lock()
        self._in_use = InUse(
            slots,
            loader,
            trial,
            on_change=on_change,
            on_verdict=self._judge.set,
            on_lost=self.poll_now,
            clock=clock,
        )
        self._calls = Calls()
        self._work: list[asyncio.Task[None]] = []
        self._stopped = False

    @property
    def running(self) -> Release | None:
        """The release that the worker accepted last, or has gone back to."""
        return self._in_use.release

    @property
    def status(self) -> RolloutStatus:
        """What goes on, for people."""
        candidate, rejected, running = self.slots.candidate, self.slots.last_rejected, self.running
        return RolloutStatus(
            state=self._state(),
            version=running.version if running else None,
            waiting=candidate.version if candidate is not None and candidate != running else None,
            refusal=self._last_wait,
            last_poll=self._acquisition.last_poll,
            failures=self._acquisition.failures,
            next_poll=self._schedule.rest,
            rejected=f"{rejected.what}: {rejected.reason}" if rejected else None,
            twin=running is not None and self._acquisition.twins.path(running) is not None,
            trial=self._in_use.progress,
            shadow=self._shadowing.words,
            pin=self._acquisition.pin,
            hold=self._acquisition.hold,
        )

    async def start(self) -> None:
        """Open the slots and load the committed release, or the previous one if that can never work.

        Tries once; `run` goes on trying. Raises `OSError` if the state directory cannot be used.
        """
        self._loader.on_revert = self._in_use.reverted
        self._loader.on_shadow_end = self._shadowing.ended
        await self._calls.run(lambda _: self.slots.open())
        await self._load(self._known())

    async def run(self) -> None:
        """Poll until `stop`, the first time at once."""
        self._work = [
            asyncio.create_task(self._loop(), name="model-rollout"),
            asyncio.create_task(self._attend(), name="model-trial"),
        ]
        try:
            done, _ = await asyncio.wait(self._work, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await self.stop()
        for work in done:
            if not work.cancelled():
                work.result()

    def poll_now(self) -> None:
        """Ask the store now rather than at the next poll."""
        self._schedule.look_now()

    def configure(self, *, poll_interval: float, hold: bool = False, trial: TrialSettings = NO_TRIAL) -> None:
        """Take other settings, beginning with a poll now; a trial that goes on is judged by the old ones."""
        schedule, acquisition, in_use = self._schedule, self._acquisition, self._in_use
        before = schedule.poll_interval, acquisition.hold, in_use.settings
        if before != (poll_interval, hold, trial):
            schedule.poll_interval, acquisition.hold, in_use.settings = poll_interval, hold, trial
            self.poll_now()

    def ask(self, store: Store, *, twins: Twins, golden: HasGolden | None, pin: str) -> None:
        """Ask another store for the same model from now on, beginning with a poll now: what runs goes on meanwhile."""
        self._acquisition.turn_to(store, twins=twins, golden=golden, pin=pin)
        self.poll_now()

    def take(self, model: ModelFile, accelerator: Accelerator, results: Sequence[Result], failed: int) -> None:
        """See what a model has made of some samples. Called for every batch: it costs a few microseconds."""
        self._in_use.take(model, accelerator, results, failed)

    async def stop(self) -> None:
        """End `run` within a second, even if the network hangs. A half-finished download waits for the next start.

        A trial is given up, and begins anew at the next start.
        """
        self._stopped = True
        for work in self._work:
            work.cancel()
        if self._work:
            await asyncio.wait(self._work, timeout=STOP_LIMIT)
        self._shadowing.report(last=True)
        await self._in_use.stop()

    async def leave(self) -> None:
        """Stop, with nothing left on trial or beside the model in use: others decide what the worker runs."""
        await self.stop()
        await self._in_use.give_way("models come from somewhere else now")
        await self._loader.shadow(None, 0.0, Terms())

    def _state(self) -> Literal["no model", "waiting for the worker", "on trial", "running", "stopped"]:
        if self._stopped:
            return "stopped"
        if self.running is not None:
            return "on trial" if self._in_use.on_trial is not None else "running"
        return "waiting for the worker" if self._load_failures else "no model"

    # -- the rounds

    async def _loop(self) -> None:
        while not self._stopped:
            self._schedule.begin()
            await self._round()
            delay = self._schedule.delay(
                failures=self._acquisition.all_failures,
                load_failures=self._load_failures,
                opens_in=self._acquisition.opens_in,
            )
            await self._schedule.pause(delay, ends_in=lambda: self._in_use.rest, on_end=self._judge.set)

    async def _round(self) -> None:
        async with self._turn:
            waits = await self._reported(self._load(self._known()))
        await self._reported(self._poll())
        async with self._turn:
            waits_too = await self._reported(self._load_new())
            await self._reported(self._shadow())
        waits = waits_too or (waits and self.running is None)
        self._load_failures = self._load_failures + 1 if waits else 0

    async def _reported(self, step: Awaitable[bool | None]) -> bool:
        """Take a step; a failure is noted, and the running model goes on."""
        try:
            return bool(await step)
        except Exception as error:  # noqa: BLE001  # a full disk, say: it ends up in the log and in `status`
            self._acquisition.failed(error, self.running)
        return False

    async def _poll(self) -> None:
        """Find out what the store offers, and have it on disk. Raises `StoreError` or `OSError`."""
        async with self._turn:
            await self._in_use.write_outcome()
        acquisition, store = self._acquisition, self._acquisition.store
        remote = await acquisition.ask()
        async with self._turn:
            if acquisition.store is not store:
                return  # it was asked on terms that do not hold any more, and is asked anew at once
            decision = acquisition.judge(remote, self._unfit)
            await acquisition.note(decision)
            if (on_trial := self._in_use.on_trial) is not None:
                if decision.spares(on_trial):
                    acquisition.found(decision)
                    return
                await self._in_use.give_way(decision.text)
            await acquisition.follow(decision, beside=self.running is not None)

    async def _shadow(self) -> None:
        if self.running is not None and self._in_use.on_trial is None and not self._new():
            await self._shadowing.follow(self._acquisition.shadow, self.running)

    # -- what the worker is to run

    def _known(self) -> list[Release]:
        """What to run when nothing runs: best first."""
        known = (self.slots.committed, self.slots.previous) if self.running is None else ()
        choices = [choice for one in known if one is not None for choice in one.with_and_without_twin()]
        return [one for one in choices if one.trial_id not in self._unfit]

    def _new(self) -> list[Release]:
        """What the store offers, if it is on disk and not running: best first."""
        new, running = self.slots.candidate, self.running
        if new is None or new != self._acquisition.offered or new == running or not self._in_use.is_settled:
            return []
        choices = [new] if running and running.id == new.id else new.with_and_without_twin()
        return [one for one in choices if one.trial_id not in self._unfit]

    async def _load_new(self) -> bool:
        """Have the worker take what is new, unless that has been the end of this process too often."""
        choices = self._new()
        if not choices:
            return False
        await self._shadowing.end("")
        release = choices[0]
        if self.slots.committed is not None:
            begun = await self._calls.run(lambda _: self.slots.begin_trial(release, INTERRUPTIONS))
            if begun >= INTERRUPTIONS:
                reason = f"its trial was interrupted {begun} times"
                await self._calls.run(lambda _: self.slots.roll_back(release, reason))
                self._tell_rejected(release, LoadReport(accepted=False, reason=reason))
                return False
        return await self._load(choices)

    async def _load(self, choices: list[Release]) -> bool:
        """Have the worker take the first of `choices` that it can; true if one had bad luck and waits."""
        for release in choices:
            terms = self._terms(release)
            self._in_use.about_to_switch()
            report = await self._loader.load(self._model_file(release), terms)
            if report.accepted:
                await self._take_over(release, report, terms)
                return False
            self._in_use.stays()
            if not report.permanent:
                self._wait_for_worker(release, report)
                return True
            await self._refuse(release, report)
        return False

    def _terms(self, release: Release, *, trial: bool | None = None) -> Terms:
        """What worked before is loaded without conditions, as there is nothing better."""
        if release in (self.slots.committed, self.slots.previous) and release != self.slots.candidate:
            return Terms()
        golden, asked = self.slots.golden_path(release), release.acceptance
        watched = self.running is not None and self._in_use.settings.time > 0 and not self._acquisition.pin
        return Terms(
            golden=str(golden) if golden is not None else "",
            tolerance=asked.tolerance,
            min_agreement=asked.min_agreement,
            min_accuracy=asked.min_accuracy,
            max_latency_ms=asked.max_latency_ms,
            trial=watched if trial is None else trial,
        )

    def _model_file(self, release: Release) -> ModelFile:
        return ModelFile(
            path=str(self.slots.path(release)),
            name=self._model_name,
            version=release.version,
            labels=release.labels,
            cpu_path=self._acquisition.twins.path(release),
        )

    async def _take_over(self, release: Release, report: LoadReport, terms: Terms) -> None:
        change = self._change_to(release, report)
        self._last_wait = ""
        facts = {"name": self._model_name, "version": release.version, "accelerator": report.accelerator}
        if change.previous is not None:
            facts |= {"twin": "another"} if change.part == "twin" else {"previous": change.previous.version}
        if terms.trial:
            facts["trial"] = format_duration(self._in_use.settings.time)
        if report.degraded is not None:
            _log.warning("model in use, but degraded", **facts, reason=report.degraded)
        else:
            _log.info("model in use", **facts)
        _log.debug("model loaded", version=release.version, detail=report.detail)
        await self._in_use.switch(change, self._model_file(release), trial=terms.trial)

    def _change_to(self, release: Release, report: LoadReport) -> RolloutChange:
        running = self.running
        before = running or self.slots.committed
        part: Literal["model", "twin"] = "twin" if before is not None and before.id == release.id else "model"
        return RolloutChange(state="committed", release=release, previous=running, report=report, part=part)

    async def _refuse(self, release: Release, report: LoadReport) -> None:
        """A candidate is rejected on disk; one that worked before only until the next start, after a repair perhaps."""
        if release == self.slots.candidate:
            await self._calls.run(lambda _: self.slots.reject(release, report.reason))
        else:
            self._unfit.add(release.trial_id)
        self._tell_rejected(release, report)

    def _tell_rejected(self, release: Release, report: LoadReport) -> None:
        part: Literal["model", "twin"] = "model" if release.cpu is None else "twin"
        with_twin = {} if release.cpu is None else {"twin": release.cpu.url}
        _log.error("model rejected", version=release.version, **with_twin, reason=report.reason)
        change = RolloutChange(
            state="rejected", release=release, previous=self.running, report=report, part=part, reason=report.reason
        )
        self._on_change(change)

    def _wait_for_worker(self, release: Release, report: LoadReport) -> None:
        refusal = f"{release.version} waits: {report.reason}"
        if refusal != self._last_wait:
            _log.warning("model waits for the worker", version=release.version, reason=report.reason)
        self._last_wait = refusal

    # -- what has become of it

    async def _attend(self) -> None:
        """Judge the trial whenever there may be something new."""
        while True:
            await self._judge.wait()
            self._judge.clear()
            async with self._turn:
                settled = self._in_use.is_settled
                await self._reported(self._in_use.settle())
                if settled and not self._in_use.is_settled:
                    self.poll_now()
