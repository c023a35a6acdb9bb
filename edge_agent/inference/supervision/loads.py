"""Models that the worker was asked to load, and its answers."""

import asyncio
import time
from collections import Counter

from edge_agent.inference.protocol import Load, Loaded
from edge_agent.inference.supervision.connection import Connection
from edge_agent.inference.supervision.guard import Plan
from edge_agent.records import LoadReport, ModelFile

# One death over a model may be the device's fault. After so many, the model is not tried again.
MAX_LOAD_DEATHS = 3


class Unasked(Exception):
    """The worker speaks of a request that it did not get."""

    def __init__(self, request: int) -> None:
        super().__init__(f"it spoke of request {request}, which nobody made")


class Loads:
    """One request after the other, over all lives of the worker. `current` is the model in use, or to be brought back.

    `in_use` is how the model that the worker runs now was loaded.
    """

    def __init__(self) -> None:
        self.current: ModelFile | None = None
        self.in_use: LoadReport | None = None
        self._request_in_use = 0
        self._pending: dict[int, tuple[ModelFile, Plan, asyncio.Future[LoadReport]]] = {}
        self._asked_ns = 0
        self._requests = 0
        self._deaths: Counter[tuple[str, str | None]] = Counter()

    @property
    def pending(self) -> Plan | None:
        """How the worker is to load what it loads now: the oldest request without an answer."""
        return next((plan for _, plan, _ in self._pending.values()), None)

    @property
    def asked_ns(self) -> int | None:
        """The CLOCK_MONOTONIC in ns of the newest request, while there is one without an answer."""
        return self._asked_ns if self._pending else None

    async def request(self, connection: Connection | None, model: ModelFile, plan: Plan) -> LoadReport:
        """Ask the worker and wait for its answer."""
        self._requests += 1
        number = self._requests
        if connection is None or not connection.send(Load(number, model, plan.avoid_edgetpu)):
            return LoadReport(accepted=False, reason="the worker has just ended")
        answer: asyncio.Future[LoadReport] = asyncio.get_running_loop().create_future()
        self._pending[number] = (model, plan, answer)
        self._asked_ns = time.monotonic_ns()
        return await answer

    def answered(self, message: Loaded) -> Plan:
        """Take the worker's answer; returns by which plan it has loaded. Raises Unasked."""
        if message.request not in self._pending:
            raise Unasked(message.request)
        model, plan, answer = self._pending.pop(message.request)
        if message.report.accepted:
            # Whether or not somebody still waits for it: this is what runs now.
            self.current, self.in_use, self._request_in_use = model, message.report, message.request
            del self._deaths[_files(model)]
        if not answer.done():
            answer.set_result(message.report)
        return plan

    def made_by(self, request: int) -> tuple[ModelFile, LoadReport]:
        """Return the model that results come from, and how it was loaded. Raises Unasked.

        The worker sends in order: results of the model before have all been received.
        """
        if self.current is None or self.in_use is None or request != self._request_in_use:
            raise Unasked(request)
        return self.current, self.in_use

    def buried(self, cause: str | None) -> None:
        """Answer for a worker that has ended. `cause` is what it died of while it loaded a model, if it did."""
        self.in_use = None
        for model, plan, answer in self._pending.values():
            if not answer.done():
                answer.set_result(self._unanswered(model, plan, cause))
            # The worker loads one after the other: it was at the first of them.
            cause = None
        self._pending.clear()

    def _unanswered(self, model: ModelFile, plan: Plan, cause: str | None) -> LoadReport:
        if cause is None:
            return LoadReport(accepted=False, reason="the worker ended before it had loaded the model")
        self._deaths[_files(model)] += 1
        # While nothing has ever run here, the device is as much to blame as a model that is made for it.
        proven = self.current is not None or not plan.opens_device
        permanent = self._deaths[_files(model)] >= MAX_LOAD_DEATHS and model != self.current and proven
        return LoadReport(accepted=False, reason=f"the worker died while loading it: {cause}", permanent=permanent)


def _files(model: ModelFile) -> tuple[str, str | None]:
    # A model may come a second time without its twin, which may be what the worker has died of.
    return model.path, model.cpu_path
