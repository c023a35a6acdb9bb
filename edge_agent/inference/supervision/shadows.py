"""The shadow as the agent sees it: which model it is, over all lives of the worker, and what it came to."""

from collections.abc import Callable
from typing import Literal

import msgspec
import structlog

from edge_agent.inference.protocol import Load, ShadowEnded, ShadowTally
from edge_agent.latency import Histogram
from edge_agent.records import ModelFile, Terms

log = structlog.get_logger()


class ShadowFigures(msgspec.Struct, frozen=True, kw_only=True):
    """What a shadow came to since it was asked last.

    Of its `samples`, it could not work on `failed`, and said the same as the model in use on `agreed`; `clipped` had
    values outside its range. `mean_ms` is the mean of its invokes, `latency_ms` the 95th percentile, within 4 %.
    """

    samples: int
    agreed: int
    failed: int
    clipped: int
    mean_ms: float
    latency_ms: float


class Shadowing(msgspec.Struct, frozen=True):
    """A shadow, and how it is brought back to a worker."""

    model: ModelFile
    share: float
    terms: Terms


class Shadows:
    """At most one at a time. `running` is the one in use, or to be brought back. `on_end` gets why one has ended."""

    def __init__(self, on_end: Callable[[str], None]) -> None:
        self.running: Shadowing | None = None
        self._on_end = on_end
        self._request: int | None = None
        self._expected: Literal["", "new", "again"] = ""
        self._begin()

    def expect(self) -> None:
        """The worker is asked to run another."""
        self._expected = "new"

    def coming_back(self) -> Shadowing | None:
        """Return what a new worker is to be given, if the one before it has got so far."""
        if self.running is not None and self._expected == "again":
            self.end("a worker ended before it had loaded it again")
        self._expected = "again" if self.running is not None else ""
        return self.running

    def begun(self, load: Load) -> None:
        """The worker runs it now, unless it has been dropped meanwhile. What has come back goes on with its figures."""
        if self._expected == "new":
            self._begin()
        if self._expected:
            # What golden samples say of it is known, should it have to be loaded again.
            terms = msgspec.structs.replace(load.terms, golden="")
            self.running, self._request = Shadowing(load.model, load.share, terms), load.request
        self._expected = ""

    def take_message(self, message: ShadowTally | ShadowEnded) -> None:
        """Take what the worker has counted, or its word that it has closed it; not of a shadow before this one."""
        if message.request != self._request:
            return
        if isinstance(message, ShadowTally):
            self._add(message)
        else:
            self.end(message.reason)

    def _add(self, tally: ShadowTally) -> None:
        self._samples += tally.samples
        self._agreed += tally.agreed
        self._failed += tally.failed
        self._clipped += tally.clipped
        self._invoke_ns += tally.invoke_ns
        self._invoke.merge(tally.invoke)

    def drop(self) -> None:
        """It is not wanted any more. What it came to can still be taken."""
        self.running, self._expected = None, ""

    def end(self, reason: str) -> None:
        """It has ended by itself."""
        if self.running is None:
            return
        log.warning("the shadow has ended", version=self.running.model.version, reason=reason)
        self.drop()
        self._on_end(reason)

    def take(self) -> ShadowFigures | None:
        """Return what has come together since the last call, or None for nothing."""
        if not self._samples:
            return None
        runs = self._invoke.count
        figures = ShadowFigures(
            samples=self._samples,
            agreed=self._agreed,
            failed=self._failed,
            clipped=self._clipped,
            mean_ms=round(self._invoke_ns / runs / 1e6, 3) if runs else 0.0,
            latency_ms=round(self._invoke.quantile(0.95) / 1e6, 3),
        )
        self._begin()
        return figures

    def _begin(self) -> None:
        self._samples = self._agreed = self._failed = self._clipped = self._invoke_ns = 0
        self._invoke = Histogram()
