"""What a worker has beside the model in use: the one to go back to, and the shadow."""

from collections.abc import Callable

import structlog

from edge_agent.inference.checks.model_check import check_model
from edge_agent.inference.protocol import EndShadow, Role
from edge_agent.inference.supervision.connection import Connection
from edge_agent.inference.supervision.guard import Plan
from edge_agent.inference.supervision.loads import Loads
from edge_agent.inference.supervision.shadows import Shadows
from edge_agent.records import LoadReport, ModelFile, Terms

log = structlog.get_logger()


class Beside:
    """Loads what is not to take over, and brings it back to new workers.

    The device is not opened for its sake: libedgetpu would hold up the results for seconds. So it runs on the Edge TPU
    if the model in use does, and else on the CPU, if it can.
    """

    def __init__(self, loads: Loads, *, on_shadow_end: Callable[[str], None]) -> None:
        self.shadows = Shadows(on_shadow_end)
        self._loads = loads

    async def start_shadow(
        self, connection: Connection | None, model: ModelFile, share: float, terms: Terms
    ) -> LoadReport:
        """Run a shadow. A refusal says why not."""
        if (refusal := await check_files(model)) is not None:
            return refusal
        if connection is None or self._loads.running is None:
            return LoadReport(accepted=False, reason="no model is in use that it could run beside")
        self.shadows.expect()
        return await self._load(connection, model, terms, role="shadow", share=share)

    def end_shadow(self, connection: Connection | None) -> None:
        """Run it no longer."""
        self.shadows.drop()
        if connection is not None:
            connection.send(EndShadow())

    async def restore(self, connection: Connection) -> None:
        """Bring back what the worker before had, unless that has ended a worker."""
        before = self._loads.before
        if before is not None and self._loads.spare_is_safe:
            self._loads.spare_is_safe = False
            report = await self._load(connection, before, Terms(), role="spare")
            if not report.accepted:
                log.warning("the model before is not kept ready any more", version=before.version, reason=report.reason)
        if (shadow := self.shadows.coming_back()) is not None:
            report = await self._load(connection, shadow.model, shadow.terms, role="shadow", share=shadow.share)
            if not report.accepted:
                self.shadows.end(report.reason)

    async def _load(
        self, connection: Connection, model: ModelFile, terms: Terms, *, role: Role, share: float = 1.0
    ) -> LoadReport:
        on_device = self._loads.on_device
        plan = Plan(avoid_edgetpu="" if on_device else "the model in use runs without it", beside=on_device)
        return await self._loads.request(connection, model, plan, terms, role=role, share=share)


async def check_files(model: ModelFile) -> LoadReport | None:
    """Return why the files of a model must not be loaded beside another, or None."""
    for path, whose in ((model.path, ""), (model.cpu_path, "its twin for the CPU: ")):
        if path is not None and (verdict := await check_model(path)).reason:
            return LoadReport(accepted=False, reason=whose + verdict.reason, permanent=verdict.permanent)
    return None
