"""What the supervisor and those around it agree on."""

from typing import Protocol

import msgspec

from edge_agent.inference.protocol import Configure
from edge_agent.inference.supervision.deaths import Death
from edge_agent.records import LoadReport, ModelFile


class OnHealth(Protocol):
    """Takes what somebody should know. `exit_status` and `stage` tell of the end of a worker."""

    def __call__(self, component: str, state: str, detail: str, *, exit_status: str = "", stage: str = "") -> None: ...


class Plan(msgspec.Struct, frozen=True):
    """How a model is to be loaded: by which runtime (None: the one at hand), and why not on the Edge TPU, if so."""

    runtime: str | None = None
    avoid_edgetpu: str = ""


class Guard(Protocol):
    """Who looks after the Edge TPU."""

    async def plan(self, model: ModelFile, wanted: Configure, *, device_open: bool) -> Plan:
        """Say how the model is to be loaded. `device_open`: by the worker, so that nobody else must open it."""

    def loaded(self, model: ModelFile, report: LoadReport) -> None:
        """Take note of how a model was loaded."""

    def died(self, death: Death, in_use: LoadReport | None, loading: ModelFile | None) -> None:
        """Take note of a worker's end: over the model in use, or the one it was loading."""
