"""The delivery of models in a running agent: the roll-out that the settings ask for, and what a reload makes of it."""

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

import structlog

from edge_agent.inference.supervision.status import ResultBatch
from edge_agent.inference.supervision.supervisor import Supervisor
from edge_agent.models.open import golden_of, open_model, open_twins, trusted_keys
from edge_agent.models.release.audience import Device
from edge_agent.models.rollout.news import RolloutChange
from edge_agent.models.rollout.rollout import Rollout
from edge_agent.models.rollout.slots import Slots
from edge_agent.models.stores.base import OnSkew, Store
from edge_agent.models.stores.limits import DownloadLimits
from edge_agent.models.watching import open_watcher
from edge_agent.settings.schema import ModelSettings, Settings

log = structlog.get_logger()


class Delivery:
    """Keeps `rollout`, which is another one after a reload that names another model.

    `directory` has the models on disk, `device_id` is the id of the device as it is now. `on_change` is called in the
    event loop, `on_skew` in any thread.
    """

    def __init__(
        self,
        settings: Settings,
        supervisor: Supervisor,
        directory: Path,
        *,
        device_id: Callable[[], str],
        clock_is_set: Callable[[], bool],
        on_change: Callable[[RolloutChange], None],
        on_skew: OnSkew,
    ) -> None:
        self._settings = settings
        self._supervisor = supervisor
        self._directory = directory
        self._device_id = device_id
        self._on_change = on_change
        self._on_skew = on_skew
        self._slots: dict[str, Slots] = {}
        download = settings.model.download
        self._limits = DownloadLimits(bandwidth=download.bandwidth, window=download.window, clock_is_set=clock_is_set)
        self.rollout = self._make_rollout()

    def take(self, batch: ResultBatch) -> None:
        """See what a model has made of some samples."""
        self.rollout.take(batch.model, batch.report.accelerator, batch.results, batch.failed)

    async def run(self) -> None:
        """Run the roll-out that there is now, until it is stopped."""
        rollout, model = self.rollout, self._settings.model
        log.info("looking for a model", url=str(model.url))
        loop, watcher = asyncio.get_running_loop(), open_watcher(model.url, model.cpu_url)
        if watcher is not None:
            watcher.start(lambda: loop.call_soon_threadsafe(rollout.poll_now))
        try:
            await rollout.start()
            await rollout.run()
        finally:
            if watcher is not None:
                await asyncio.to_thread(watcher.stop)

    async def apply(self, settings: Settings) -> bool:
        """Take other settings; returns whether there is another roll-out, which somebody has to `run`."""
        before, after = self._settings.model, settings.model
        self._settings = settings
        self._limits.configure(bandwidth=after.download.bandwidth, window=after.download.window)
        if _same(before, after):
            # Keys, pin, and whom a release is for: what runs goes on, as the store is asked on other terms.
            slots = self.rollout.slots
            store = self._open_store(slots)
            twins = open_twins(slots, after.url, after.cpu_url, store, self._limits)
            self.rollout.ask(store, twins=twins, golden=golden_of(store), pin=after.pin or "")
            self.rollout.configure(poll_interval=after.poll_interval, hold=after.hold, trial=after.trial)
            return False
        # The old model goes on until one from the new place has been accepted.
        await self.rollout.leave()
        self.rollout = self._make_rollout()
        return True

    def _make_rollout(self) -> Rollout:
        model = self._settings.model
        # A call that was left behind in a thread may still be at the files: whoever comes next waits for its lock.
        slots = self._slots.setdefault(str(model.url), Slots(self._directory, str(model.url)))
        store = self._open_store(slots)
        return Rollout(
            slots,
            store,
            self._supervisor,
            twins=open_twins(slots, model.url, model.cpu_url, store, self._limits),
            golden=golden_of(store),
            limits=self._limits,
            pin=model.pin or "",
            model_name=model.model_name,
            poll_interval=model.poll_interval,
            hold=model.hold,
            trial=model.trial,
            on_change=self._on_change,
        )

    def _open_store(self, slots: Slots) -> Store:
        model = self._settings.model
        return open_model(
            model.url,
            trusted_keys(model.keys, os.environ),
            device=Device(self._device_id(), self._settings.device.labels),
            name=model.model_name,
            pin=model.pin or "",
            committed=lambda: slots.committed,
            on_skew=self._on_skew,
            limits=self._limits,
        )


def _same(before: ModelSettings, after: ModelSettings) -> bool:
    return (before.url, before.cpu_url, before.model_name) == (after.url, after.cpu_url, after.model_name)
