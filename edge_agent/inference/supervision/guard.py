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
    """How a model is to be loaded: by which runtime (None: the one at hand), and why not on the Edge TPU, if so.

    `compiled`: it is made for the Edge TPU, which the settings do not rule out. `beside`: the worker has the device
    open already, with the model in use. `looks_well`: the kernel shows a device that can be opened.
    """

    runtime: str | None = None
    avoid_edgetpu: str = ""
    compiled: bool = False
    beside: bool = False
    looks_well: bool = False

    @property
    def opens_device(self) -> bool:
        """Whether the worker is to open the Edge TPU for it."""
        return self.compiled and not self.beside and not self.avoid_edgetpu


class Guard(Protocol):
    """Who looks after the Edge TPU."""

    async def plan(self, model: ModelFile, wanted: Configure, *, device_open: bool) -> Plan:
        """Say how the model is to be loaded. `device_open`: by the worker, so that nobody else must open it."""

    def loaded(self, plan: Plan, report: LoadReport) -> None:
        """Take note of how a model was loaded."""

    def died(self, death: Death, in_use: LoadReport | None, loading: Plan | None) -> None:
        """Take note of a worker's end: over the model in use, or over the one that it was loading by this plan."""

    def acquit(self, deaths: int) -> None:
        """Take back so many of the last deaths: they were a sample's doing, as the device works without it."""
