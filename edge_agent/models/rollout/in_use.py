"""The release that the worker runs, what it does there, the trial that it may be on, and what becomes of that.

What has become of a release is written down before it is told; where the disk is full, both are done later.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec
import structlog

from edge_agent.models.release.releases import Release
from edge_agent.models.rollout.loading import Loader
from edge_agent.models.rollout.news import RolloutChange
from edge_agent.models.rollout.slots import Slots
from edge_agent.models.rollout.trial import Record, Verdict, Watch
from edge_agent.models.stores.base import StoreUnavailable
from edge_agent.models.stores.calls import Calls
from edge_agent.records import Accelerator, ModelFile, Result
from edge_agent.settings.trial import TrialSettings

STOP_LIMIT = 0.3

_log = structlog.get_logger()


@dataclass
class _OnTrial:
    change: RolloutChange
    file: ModelFile
    watch: Watch


class InUse:
    """Keeps the record of the release in use; one on trial is in use, too.

    `on_verdict` is called when a trial may have come to an end, `on_lost` when nobody knows what the worker runs.
    """

    def __init__(
        self,
        slots: Slots,
        loader: Loader,
        settings: TrialSettings,
        *,
        on_change: Callable[[RolloutChange], None],
        on_verdict: Callable[[], None],
        on_lost: Callable[[], None],
        clock: Callable[[], float],
    ) -> None:
        self.release: Release | None = None
        self.settings = settings
        self._slots = slots
        self._loader = loader
        self._on_change = on_change
        self._on_verdict = on_verdict
        self._on_lost = on_lost
        self._clock = clock
        self._calls = Calls()
        self._file: ModelFile | None = None
        self._record = Record(settings.time)
        self._trial: _OnTrial | None = None
        self._outcome: RolloutChange | None = None
        self._switching = False
        self._reverted = ""

    @property
    def on_trial(self) -> Release | None:
        """The release in use, if it is on trial."""
        return self._trial.change.release if self._trial is not None else None

    @property
    def progress(self) -> str:
        """How far the trial is, or nothing."""
        return self._trial.watch.progress(self._clock()) if self._trial is not None else ""

    @property
    def rest(self) -> float | None:
        """After how many seconds there is something to judge, whatever the results."""
        return self._trial.watch.rest(self._clock()) if self._trial is not None else None

    @property
    def is_settled(self) -> bool:
        """Whether all that has become of releases is written down."""
        return self._outcome is None

    def take(self, model: ModelFile, accelerator: Accelerator, results: Sequence[Result], failed: int) -> None:
        """See what a model has made of some samples."""
        now, trial = self._clock(), self._trial
        if trial is not None and model == trial.file:
            trial.watch.note(accelerator, results, failed, now)
            if trial.watch.verdict(now) is not None:
                self._on_verdict()
        elif model == self._file:
            self._record.note(accelerator, results, failed, now)

    def about_to_switch(self) -> None:
        """The loader is asked for another model; it may go back before it is known that it has switched."""
        self._switching, self._reverted = True, ""

    def stays(self) -> None:
        """It has not switched."""
        self._switching = False

    async def switch(self, change: RolloutChange, file: ModelFile, *, trial: bool) -> None:
        """The loader has switched to a release: for a trial, for good, or to one that is committed already."""
        self._switching = False
        self.release = change.release
        if trial:
            self._trial = _OnTrial(change, file, Watch(self.settings, self._record, self._clock()))
            self._on_change(msgspec.structs.replace(change, state="trial"))
            if self._reverted:
                self._on_verdict()
            return
        self._file, self._record = file, Record(self.settings.time)
        if change.release != self._slots.committed and change.release == self._slots.candidate:
            await self._conclude(change)

    def reverted(self, reason: str) -> None:
        """The loader has gone back by itself."""
        self._reverted = reason
        if self._trial is not None or self._switching:
            self._on_verdict()
            return
        _log.warning("the worker went back when the trial was over", reason=reason)
        self.release = None
        self._on_lost()

    async def settle(self) -> None:
        """See what has come of the trial. Raises `OSError` where that cannot be written down now."""
        trial = self._trial
        if trial is None:
            return
        verdict = Verdict(self._reverted) if self._reverted else trial.watch.verdict(self._clock())
        if verdict is None:
            return
        if not verdict.passed:
            change = await self._go_back(trial, verdict.reason)
            _log.error("the new model was worse, and is not used any more", **_facts(change))
            await self._conclude(change)
            return
        self._trial, self._file, self._record = None, trial.file, trial.watch.record
        self._loader.keep()
        _log.info("the new model stays", **_facts(trial.change))
        await self._conclude(msgspec.structs.replace(trial.change, trial=trial.watch.figures()))

    async def give_way(self, reason: str) -> None:
        """End a trial whose release is not wanted any more, which is no fault of it."""
        if self._trial is not None:
            change = await self._go_back(self._trial, reason)
            _log.warning("the new model is not wanted any more", **_facts(change))
            self._on_change(change)

    async def write_outcome(self) -> None:
        """Write down what has become of a release, if that is still to be done. Raises `OSError`."""
        change = self._outcome
        if change is None:
            return
        if change.state == "committed":
            await self._commit(change)
        else:
            await self._calls.run(lambda _: self._slots.roll_back(change.release, change.reason))
        self._outcome = None
        self._on_change(change)

    async def stop(self) -> None:
        """Who ends in order has not died of the trial. Where the disk hangs, it counts as if.

        An outcome that is being written down as the end comes is told, if it has come that far.
        """
        if self._slots.trial is None and self._outcome is None:
            return
        try:
            await self._calls.run(lambda _: self._slots.forgive_trial(), limit=STOP_LIMIT)
        except (StoreUnavailable, OSError) as error:  # a disk that hangs or is full must not hold up the end
            _log.warning("that the trial has ended in order could not be noted", reason=str(error))
        change = self._outcome
        if change is not None and self._is_written(change):
            self._outcome = None
            self._on_change(change)

    def _is_written(self, change: RolloutChange) -> bool:
        if change.state == "committed":
            return self._slots.committed == change.release
        return self._slots.rejection(change.release) is not None

    async def _go_back(self, trial: _OnTrial, reason: str) -> RolloutChange:
        if not self._reverted:
            await self._loader.revert(reason)
        self._trial, self.release = None, trial.change.previous
        return msgspec.structs.replace(trial.change, state="rolled_back", reason=reason, trial=trial.watch.figures())

    async def _conclude(self, change: RolloutChange) -> None:
        self._outcome = change
        await self.write_outcome()

    async def _commit(self, change: RolloutChange) -> None:
        previous = change.previous or self._slots.committed
        if self._slots.committed is not None and self._slots.committed.id == change.release.id:
            previous = self._slots.previous  # another twin makes no other model to go back to
        await self._calls.run(lambda _: self._slots.commit(change.release, previous=previous))


def _facts(change: RolloutChange) -> dict[str, object]:
    facts: dict[str, object] = {"version": change.release.version}
    if change.previous is not None:
        facts["previous"] = change.previous.version
    return facts | ({"reason": change.reason} if change.reason else {})
