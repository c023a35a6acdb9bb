"""A release that runs beside the one in use, on a share of the samples, so that an admin can see how they compare.

Nothing that happens to a shadow touches the release in use. One that has ended by itself is not begun again in this
process; one that becomes the release to run is on the disk already.
"""

import time
from collections.abc import Callable

import structlog

from edge_agent.models.release.releases import Release, Shadow
from edge_agent.models.rollout.acquisition import Acquisition
from edge_agent.models.rollout.loading import Loader
from edge_agent.models.rollout.news import RolloutChange, ShadowReport
from edge_agent.models.rollout.slots import Slots
from edge_agent.models.stores.calls import Calls
from edge_agent.records import LoadReport, ModelFile, Terms

REPORT_INTERVAL = 3_000.0
"""Seconds; with a poll every hour there is a report after each."""
_log = structlog.get_logger()


class Shadowing:
    """Runs at most one shadow. `model_file` and `terms` are how a release is given to the loader."""

    def __init__(
        self,
        slots: Slots,
        acquisition: Acquisition,
        loader: Loader,
        *,
        model_file: Callable[[Release], ModelFile],
        terms: Callable[[Release], Terms],
        on_change: Callable[[RolloutChange], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._slots = slots
        self._acquisition = acquisition
        self._loader = loader
        self._model_file = model_file
        self._terms = terms
        self._on_change = on_change
        self._clock = clock
        self._calls = Calls()
        self._running: Release | None = None
        self._share = 0.0
        self._report = LoadReport(accepted=False)
        self._ended: set[str] = set()
        self._told = 0.0
        self._seen: ShadowReport | None = None

    @property
    def words(self) -> str:
        """What runs beside, for people, or nothing."""
        if self._running is None:
            return ""
        seen = self._seen
        agreement = f", {seen.agreed / seen.samples:.1%} of {seen.samples:,} agree" if seen is not None else ""
        return f"{self._running.version} on {self._share:.3g} of the samples{agreement}"

    async def follow(self, wanted: Shadow | None, beside: Release) -> None:
        """Run what is wanted `beside` the release in use, and tell how it does. Raises `StoreError` or `OSError`."""
        if wanted is not None and (wanted.remote.id in {beside.id, *self._ended} or self._is_rejected(wanted)):
            wanted = None
        if wanted is None:
            await self.end("")
            if self._slots.shadow is not None:
                await self._calls.run(lambda _: self._slots.discard_shadow())
            return
        if self._running is not None and (self._running.id, self._share) == (wanted.remote.id, wanted.share):
            self.report()
            return
        await self.end("")
        await self._begin(wanted)

    async def end(self, reason: str) -> None:
        """Have nothing run beside the release in use."""
        if self._running is None:
            return
        self.report(reason, last=True)
        self._running = None
        await self._loader.shadow(None, 0.0, Terms())

    def ended(self, reason: str) -> None:
        """Take the loader's word that the shadow is no more."""
        if self._running is None:
            return
        _log.warning("shadow has ended", version=self._running.version, reason=reason)
        self._ended.add(self._running.id)
        self.report(reason, last=True)
        self._running = None

    def report(self, reason: str = "", *, last: bool = False) -> None:
        """Tell what the shadow has done, but not too often."""
        if self._running is None or not (last or self._clock() - self._told >= REPORT_INTERVAL):
            return
        self._told = self._clock()
        figures = self._loader.take_shadow()
        if figures is not None and figures.samples:
            self._seen = ShadowReport(
                samples=figures.samples,
                agreed=figures.agreed,
                failed=figures.failed,
                latency_ms=figures.latency_ms,
            )
            self._tell(self._running, self._report, reason, self._seen)
        elif reason:
            self._tell(self._running, self._report, reason)

    async def _begin(self, wanted: Shadow) -> None:
        release = await self._acquisition.fetch(wanted.remote, shadow=True)
        if self._acquisition.shadow != wanted:
            return  # which took long, and now it would have to be offered on other terms
        self._report = await self._loader.shadow(self._model_file(release), wanted.share, self._terms(release))
        if self._report.accepted:
            self._running, self._share, self._told = release, wanted.share, self._clock()
            self._seen = None
            _log.info("shadow runs", version=release.version, share=wanted.share)
        elif self._report.permanent:
            self._ended.add(release.id)
            _log.warning("shadow refused", version=release.version, reason=self._report.reason)
            self._tell(release, self._report, self._report.reason)
        else:
            _log.debug("shadow waits", version=release.version, reason=self._report.reason)

    def _is_rejected(self, wanted: Shadow) -> bool:
        return self._slots.rejection(wanted.remote) is not None

    def _tell(self, release: Release, report: LoadReport, reason: str, seen: ShadowReport | None = None) -> None:
        self._on_change(
            RolloutChange(state="shadow", release=release, previous=None, report=report, reason=reason, shadow=seen)
        )
