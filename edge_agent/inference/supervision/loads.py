"""Models that the worker was asked to load, its answers, and what it has in which role."""

import asyncio
import dataclasses
import time
from collections import Counter

import msgspec

from edge_agent.inference.protocol import Keep, Load, Loaded, Revert, Reverted, Role
from edge_agent.inference.supervision.connection import Connection
from edge_agent.inference.supervision.deaths import Death
from edge_agent.inference.supervision.guard import Plan
from edge_agent.records import LoadReport, ModelFile, Terms

# One death over a model may be the device's fault. After so many, the model is not tried again.
MAX_LOAD_DEATHS = 3


class Unasked(Exception):
    """The worker speaks of a request that it did not get."""

    def __init__(self, request: int) -> None:
        super().__init__(f"it spoke of request {request}, which nobody made")


class Running(msgspec.Struct, frozen=True):
    """A model that the worker has: by which request and plan, and how it was loaded."""

    request: int
    model: ModelFile
    plan: Plan
    report: LoadReport


@dataclasses.dataclass(frozen=True)
class Asked:
    """A request without an answer."""

    load: Load
    plan: Plan
    answer: asyncio.Future[LoadReport]


class Loads:
    """One request after the other, over all lives of the worker.

    `current` is the model in use, or to be brought back. `before` is the one to go back to while that is on trial, else
    None. `running` is what the worker runs now, `spare` what it keeps beside it. `spare_is_safe`: nothing has gone
    wrong when it was brought back, nor was the worker killed again and again.
    """

    def __init__(self) -> None:
        self.current: ModelFile | None = None
        self.before: ModelFile | None = None
        self.running: Running | None = None
        self.spare: Running | None = None
        self.spare_is_safe = True
        self._killed = False
        self._pending: dict[int, Asked] = {}
        self._asked_ns = 0
        self._requests = 0
        self._deaths: Counter[tuple[str, str | None]] = Counter()
        self._going_back: asyncio.Future[None] | None = None

    @property
    def in_use(self) -> LoadReport | None:
        """How the model that the worker runs now was loaded."""
        return self.running.report if self.running is not None else None

    @property
    def on_device(self) -> bool:
        """Whether the worker has the Edge TPU open for the model in use."""
        return self.running is not None and self.running.report.accelerator == "edgetpu"

    @property
    def is_going_back(self) -> bool:
        """Whether the worker was told to go back, and has not said yet that it has."""
        return self._going_back is not None and not self._going_back.done()

    @property
    def pending(self) -> Plan | None:
        """How the worker is to load what it loads now: the oldest request without an answer."""
        return next((asked.plan for asked in self._pending.values()), None)

    @property
    def asked_ns(self) -> int | None:
        """The CLOCK_MONOTONIC in ns of the newest request, while there is one without an answer."""
        return self._asked_ns if self._pending or self.is_going_back else None

    async def request(
        self,
        connection: Connection | None,
        model: ModelFile,
        plan: Plan,
        terms: Terms = Terms(),  # noqa: B008  it is frozen
        *,
        role: Role = "use",
        share: float = 1.0,
    ) -> LoadReport:
        """Ask the worker and wait for its answer."""
        self._requests += 1
        load = Load(self._requests, model, plan.avoid_edgetpu, terms, role, share)
        if connection is None or not connection.send(load):
            return LoadReport(accepted=False, reason="the worker has just ended")
        answer: asyncio.Future[LoadReport] = asyncio.get_running_loop().create_future()
        self._pending[load.request] = Asked(load, plan, answer)
        self._asked_ns = time.monotonic_ns()
        return await answer

    def answered(self, message: Loaded) -> Asked:
        """Take the worker's answer; returns what was asked. Raises Unasked."""
        if message.request not in self._pending:
            raise Unasked(message.request)
        asked = self._pending.pop(message.request)
        if message.report.accepted:
            # Whether or not somebody still waits for it: this is what runs now.
            self._place(asked, Running(message.request, asked.load.model, asked.plan, message.report))
            del self._deaths[_files(asked.load.model)]
        if not asked.answer.done():
            asked.answer.set_result(message.report)
        return asked

    def _place(self, asked: Asked, loaded: Running) -> None:
        match asked.load.role:
            case "use":
                on_trial = asked.load.terms.trial
                self.before, self.spare = (self.current, self.running) if on_trial else (None, None)
                self.current, self.running = loaded.model, loaded
                self.spare_is_safe, self._killed = True, False
            case "again":
                self.current, self.running = loaded.model, loaded
            case "spare":
                self.spare, self.spare_is_safe = loaded, True

    def made_by(self, request: int) -> tuple[ModelFile, LoadReport]:
        """Return the model that results come from, and how it was loaded. Raises Unasked.

        The worker sends in order: results of the model before have all been received.
        """
        if self.running is None or request != self.running.request:
            raise Unasked(request)
        return self.running.model, self.running.report

    # -- the way back

    def give_up(self) -> None:
        """The model before is the one to be brought back from now on, and the trial is over."""
        self.current, self.before = self.before, None

    async def go_back(self, connection: Connection) -> bool:
        """Have the worker go back to what it keeps; false where that is nothing, or it has ended."""
        if self.spare is None or not connection.send(Revert(self.spare.request)):
            return False
        self._going_back = asyncio.get_running_loop().create_future()
        self._asked_ns = time.monotonic_ns()
        try:
            await self._going_back
        finally:
            self._going_back = None
        return True

    def reverted(self, message: Reverted) -> Running:
        """Take the worker's word that it runs what it has kept; returns that. Raises Unasked."""
        if self.spare is None or self.spare.request != message.request:
            raise Unasked(message.request)
        self.running, self.spare = self.spare, None
        self.current, self.before = self.running.model, None
        if self._going_back is not None and not self._going_back.done():
            self._going_back.set_result(None)
        return self.running

    def keep(self, connection: Connection | None) -> None:
        """The trial is over, and the worker need not keep the model before."""
        self.before = None
        # It may have gone back already, which it then says: so it is still known what it has kept.
        if connection is not None and self.running is not None:
            connection.send(Keep(self.running.request))

    # -- the end of a worker

    def judge(self, death: Death) -> Death:
        """Say whether the model on trial has ended the worker: at a sample, or thrice as it was brought back."""
        if self.before is None or self.current is None:
            return death
        if death.outside:
            # Once it may have been a person. Twice it is the memory killer, and two models may be one too many.
            self.spare_is_safe, self._killed = self.spare_is_safe and not self._killed, True
        comes_back = self.running is None and death.last.loading and not death.outside
        often = comes_back and self._deaths[_files(self.current)] + 1 >= MAX_LOAD_DEATHS
        return dataclasses.replace(death, of_trial=death.over_model or often)

    def buried(self, cause: str | None) -> None:
        """Answer for a worker that has ended. `cause` is what it died of while it loaded a model, if it did."""
        self.running = self.spare = None
        for asked in self._pending.values():
            report = self._unanswered(asked, cause)
            if not asked.answer.done():
                asked.answer.set_result(report)
            # The worker loads one after the other: it was at the first of them.
            cause = None
        self._pending.clear()
        if self._going_back is not None and not self._going_back.done():
            self._going_back.set_result(None)

    def _unanswered(self, asked: Asked, cause: str | None) -> LoadReport:
        if cause is None:
            return LoadReport(accepted=False, reason="the worker ended before it had loaded the model")
        model = asked.load.model
        self._deaths[_files(model)] += 1
        # While nothing has ever run here, the device is as much to blame as a model that is made for it.
        proven = self.current is not None or not asked.plan.opens_device
        permanent = self._deaths[_files(model)] >= MAX_LOAD_DEATHS and model != self.current and proven
        return LoadReport(accepted=False, reason=f"the worker died while loading it: {cause}", permanent=permanent)


def _files(model: ModelFile) -> tuple[str, str | None]:
    # A model may come a second time without its twin, which may be what the worker has died of.
    return model.path, model.cpu_path
