"""What a roll-out needs of whoever runs models: the supervisor of the worker."""

from collections.abc import Callable
from typing import Protocol

from edge_agent.records import LoadReport, ModelFile, Terms


class ShadowFigures(Protocol):
    """What a shadow has done since it was asked last.

    `agreed` counts samples of which it said the same, `clipped` those with values out of its range. `latency_ms` is
    what 95 % of its runs did not exceed.
    """

    @property
    def samples(self) -> int: ...
    @property
    def agreed(self) -> int: ...
    @property
    def failed(self) -> int: ...
    @property
    def clipped(self) -> int: ...
    @property
    def latency_ms(self) -> float: ...


class Loader(Protocol):
    """Runs one model, beside it on trial the one before, and now and then a shadow.

    `on_revert` is called when the worker has gone back to the model before by itself, `on_shadow_end` when the shadow
    has ended by itself; both with the reason in a line.
    """

    on_revert: Callable[[str], None]
    on_shadow_end: Callable[[str], None]

    async def load(self, model: ModelFile, terms: Terms) -> LoadReport:
        """Build and warm `model` beside the one in use, and switch to it if it meets the terms."""

    async def revert(self, reason: str) -> None:
        """Go back to the model before the one on trial."""

    def keep(self) -> None:
        """The trial was passed: the model before is not needed any more."""

    async def shadow(self, model: ModelFile | None, share: float, terms: Terms) -> LoadReport:
        """Run `model` on a share of the samples (0 to 1) without using its results; None ends it."""

    def take_shadow(self) -> ShadowFigures | None:
        """Return what the shadow has done since it was asked last."""
