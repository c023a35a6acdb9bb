"""Models that the worker was asked to load, and its answers."""

import asyncio
from collections import Counter

from edge_agent.inference.accelerators.devices import is_edgetpu_model
from edge_agent.inference.protocol import Load, Loaded
from edge_agent.inference.supervision.connection import Connection
from edge_agent.records import LoadReport, ModelFile

# One death over a model may be the device's fault. After so many, the model is not tried again.
MAX_LOAD_DEATHS = 3


class Loads:
    """One request after the other, over all lives of the worker. `current` is the model in use, or to be brought back.

    `models` are those that results may still come from, by the number of their request.
    """

    def __init__(self) -> None:
        self.current: ModelFile | None = None
        self.models: dict[int, tuple[ModelFile, LoadReport]] = {}
        self._pending: dict[int, tuple[ModelFile, asyncio.Future[LoadReport]]] = {}
        self._requests = 0
        self._deaths: Counter[tuple[str, str | None]] = Counter()

    @property
    def in_use(self) -> LoadReport | None:
        """How the model that the worker runs now was loaded."""
        return next((report for _, report in reversed(self.models.values())), None)

    @property
    def pending(self) -> ModelFile | None:
        """What the worker loads now: the oldest request without an answer."""
        return next((model for model, _ in self._pending.values()), None)

    async def request(self, connection: Connection | None, model: ModelFile, avoid: str) -> LoadReport:
        """Ask the worker and wait for its answer. `avoid` is why the Edge TPU must not be touched now, or empty."""
        self._requests += 1
        number = self._requests
        if connection is None or not connection.send(Load(number, model, avoid)):
            return LoadReport(accepted=False, reason="the worker has just ended")
        answer: asyncio.Future[LoadReport] = asyncio.get_running_loop().create_future()
        self._pending[number] = (model, answer)
        return await answer

    def answered(self, message: Loaded) -> None:
        """Take the worker's answer."""
        model, answer = self._pending.pop(message.request)
        if message.report.accepted:
            # Results of the model before this one have all been received: the worker sends in order.
            self.models = {message.request: (model, message.report)}
            del self._deaths[_files(model)]
        if not answer.done():
            answer.set_result(message.report)

    def buried(self, cause: str | None) -> None:
        """Answer for a worker that has ended. `cause` is what it died of while it loaded a model, if it did."""
        self.models.clear()
        for model, answer in self._pending.values():
            if not answer.done():
                answer.set_result(self._unanswered(model, cause))
            # The worker loads one after the other: it was at the first of them.
            cause = None
        self._pending.clear()

    def _unanswered(self, model: ModelFile, cause: str | None) -> LoadReport:
        if cause is None:
            return LoadReport(accepted=False, reason="the worker ended before it had loaded the model")
        self._deaths[_files(model)] += 1
        # While nothing has ever run here, the device is as much to blame as a model that is made for it.
        proven = self.current is not None or not is_edgetpu_model(model.path)
        permanent = self._deaths[_files(model)] >= MAX_LOAD_DEATHS and model != self.current and proven
        return LoadReport(accepted=False, reason=f"the worker died while loading it: {cause}", permanent=permanent)


def _files(model: ModelFile) -> tuple[str, str | None]:
    # A model may come a second time without its twin, which may be what the worker has died of.
    return model.path, model.cpu_path
