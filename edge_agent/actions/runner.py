"""Runs the actions that rules set off, without ever holding up the agent.

A rule runs once at a time, and `MAX_RUNNING` run at a time in all. A firing that finds no room is skipped, counted in
`ActionRunner.skipped` and logged when it is the first of a row: the next firing says the same thing again. What fails
is counted in `ActionRunner.failed`. Of both the cloud hears too, once a minute for each rule at most.
"""

import asyncio
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Mapping

import structlog

from edge_agent.actions.command import Command, Outcome
from edge_agent.actions.rules import Rule
from edge_agent.latency import Histogram
from edge_agent.programs import without_secrets
from edge_agent.repeats import Repeats

MAX_RUNNING = 4
# A rule may fire ten times a second; the lines that say so, seldom (seconds).
LOG_INTERVAL = 10.0
EVENT_INTERVAL = 60.0
GRACE = 5.0
# After SIGKILL: who has not ended by then hangs in the kernel, or in being started.
ABANDON_AFTER = 1.0

# Tells a program when its sample was captured: CLOCK_MONOTONIC in nanoseconds.
CAPTURED = "CAPTURED_MONOTONIC_NS"
# Called with a component, its state and a detail.
Health = Callable[[str, str, str], None]

log = structlog.get_logger()


class ActionRunner:
    """Belongs to one event loop.

    `skipped` and `failed` count, by name of the rule, the firings that were not run, and the runs that failed.
    `reactions` are the times from the capture of a sample until the program had been started.
    """

    def __init__(
        self,
        on_health: Health,
        *,
        environ: Mapping[str, str] = os.environ,
        grace: float = GRACE,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`on_health` hears of failed and skipped actions, `clock` says how long ago it last did.

        `environ` goes to the programs, less what is secret; `grace` is in seconds, from SIGTERM to SIGKILL.
        """
        self.skipped: Counter[str] = Counter()
        self.failed: Counter[str] = Counter()
        self.reactions = Histogram()
        self._on_health = on_health
        self._told = Repeats(clock)
        self._environ = without_secrets(environ)
        self._grace = grace
        self._running: dict[str, tuple[Command, asyncio.Task[None]]] = {}
        self._skipped_in_a_row: Counter[str] = Counter()
        self._stopping = False
        self._ending = False

    def submit(self, rule: Rule, event_json: bytes, captured_ns: int) -> None:
        """Run the rule's program with the event on its standard input. Returns at once.

        `captured_ns` is the CLOCK_MONOTONIC of the sample that set it off.
        """
        if self._stopping:
            self._skip(rule, "the agent is stopping")
        elif rule.name in self._running:
            self._skip(rule, "its last run has not ended")
        elif len(self._running) >= MAX_RUNNING:
            self._skip(rule, f"{MAX_RUNNING} other actions are running")
        else:
            self._start(rule, event_json, captured_ns)

    async def stop(self, deadline: float) -> None:
        """End what is running within `deadline` seconds: half of it to finish, the rest after SIGTERM, then SIGKILL."""
        self._stopping = True
        tasks = {task for _, task in self._running.values()}
        for number in (signal.SIGTERM, signal.SIGKILL):
            tasks = await _still_running(tasks, deadline / 2)
            self._signal_all(number)
        await self._abandon(await _still_running(tasks, ABANDON_AFTER))

    def _start(self, rule: Rule, event_json: bytes, captured_ns: int) -> None:
        if skipped := self._skipped_in_a_row.pop(rule.name, 0):
            log.info("action runs again after skipped firings", action=rule.name, skipped=skipped)
        command = Command(
            rule.run,
            stdin=event_json + b"\n",
            environ={**self._environ, CAPTURED: str(captured_ns)},
            timeout=rule.timeout,
            grace=self._grace,
            on_start=lambda started_ns: self.reactions.add(started_ns - captured_ns),
        )
        task = asyncio.create_task(self._run(rule, command, captured_ns), name=f"action {rule.name}")
        task.add_done_callback(lambda task: self._look_for_bug(rule, task))
        self._running[rule.name] = (command, task)

    async def _run(self, rule: Rule, command: Command, captured_ns: int) -> None:
        try:
            outcome = await command.run()
        except RuntimeError as error:  # no thread to be had
            outcome = Outcome(str(error), "look at TasksMax and memory")
        finally:
            del self._running[rule.name]
        self._report(rule, outcome, captured_ns)

    def _look_for_bug(self, rule: Rule, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            log.critical("an action failed in the agent, not in its program", action=rule.name, exc_info=error)
            self._fail(rule, f"the agent itself failed: {error!r}")

    def _report(self, rule: Rule, outcome: Outcome, captured_ns: int) -> None:
        facts: dict[str, object] = {"action": rule.name, "program": rule.run[0], "seconds": round(outcome.seconds, 1)}
        if outcome.started_ns is not None:
            facts["reaction_ms"] = round((outcome.started_ns - captured_ns) / 1e6, 1)
        output = {"output": outcome.output} if outcome.output else {}
        if not outcome.problem:
            log.info("action done", **facts, **output, _per=rule.name, _every=LOG_INTERVAL)
            return
        if self._ending:
            log.warning("action did not end before the agent did", **facts, problem=outcome.problem, **output)
        else:
            reason = {"problem": outcome.problem, "advice": outcome.advice}
            log.warning("action failed", **facts, **reason, **output, _per=rule.name)
        self._fail(rule, outcome.problem)

    def _fail(self, rule: Rule, problem: str) -> None:
        self.failed[rule.name] += 1
        self._tell(rule, "failed", problem)

    def _skip(self, rule: Rule, why: str) -> None:
        self.skipped[rule.name] += 1
        self._skipped_in_a_row[rule.name] += 1
        if self._skipped_in_a_row[rule.name] == 1:
            log.warning("action skipped", action=rule.name, reason=why)
        self._tell(rule, "skipped", why)

    def _tell(self, rule: Rule, state: str, reason: str) -> None:
        untold = self._told.held_back((rule.name, state), EVENT_INTERVAL)
        if untold is not None:
            more = f" (and {untold} times before, since this was last told)" if untold else ""
            self._on_health("action", state, f"{rule.name}: {reason}{more}")

    def _signal_all(self, number: signal.Signals) -> None:
        self._ending = True
        for command, _ in self._running.values():
            command.signal(number)

    async def _abandon(self, tasks: set[asyncio.Task[None]]) -> None:
        for name in self._running:
            log.error("action could not be ended", action=name)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _still_running(tasks: set[asyncio.Task[None]], seconds: float) -> set[asyncio.Task[None]]:
    return (await asyncio.wait(tasks, timeout=seconds))[1] if tasks else tasks
