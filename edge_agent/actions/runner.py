"""Runs the actions that rules set off, without ever holding up the agent.

A rule runs once at a time, and `MAX_RUNNING` run at a time in all. A firing that finds no room is skipped, counted in
`ActionRunner.skipped` and logged when it is the first of a row: the next firing says the same thing again.
"""

import asyncio
import os
import signal
from collections import Counter
from collections.abc import Mapping

import structlog

from edge_agent.actions.command import Command, Outcome
from edge_agent.actions.rules import Rule
from edge_agent.programs import without_secrets

MAX_RUNNING = 4
# A rule may fire ten times a second; the lines that say so, seldom (seconds).
LOG_INTERVAL = 10.0
GRACE = 5.0

log = structlog.get_logger()


class ActionRunner:
    """Belongs to one event loop. `skipped` counts, by name of the rule, the firings that were not run."""

    def __init__(self, *, environ: Mapping[str, str] = os.environ, grace: float = GRACE) -> None:
        """`environ` goes to the programs, less what is secret; `grace` is in seconds, from SIGTERM to SIGKILL."""
        self.skipped: Counter[str] = Counter()
        self._environ = without_secrets(environ)
        self._grace = grace
        self._running: dict[str, tuple[Command, asyncio.Task[None]]] = {}
        self._skipped_in_a_row: Counter[str] = Counter()
        self._stopping = False
        self._ending = False

    def submit(self, rule: Rule, event_json: bytes) -> None:
        """Run the rule's program with the event on its standard input. Returns at once; problems go to the log."""
        if self._stopping:
            self._skip(rule, "the agent is stopping")
        elif rule.name in self._running:
            self._skip(rule, "its last run has not ended")
        elif len(self._running) >= MAX_RUNNING:
            self._skip(rule, f"{MAX_RUNNING} other actions are running")
        else:
            self._start(rule, event_json)

    async def stop(self, deadline: float) -> None:
        """End what is running within `deadline` seconds: half of it to finish, the rest after SIGTERM, then SIGKILL."""
        self._stopping = True
        tasks = {task for _, task in self._running.values()}
        for number in (signal.SIGTERM, signal.SIGKILL):
            tasks = await _still_running(tasks, deadline / 2)
            self._signal_all(number)
        await self._abandon(await _still_running(tasks, 1.0))

    def _start(self, rule: Rule, event_json: bytes) -> None:
        if skipped := self._skipped_in_a_row.pop(rule.name, 0):
            log.info("action runs again after skipped firings", action=rule.name, skipped=skipped)
        command = Command(
            rule.run,
            stdin=event_json + b"\n",
            environ=self._environ,
            timeout=rule.timeout,
            grace=self._grace,
        )
        task = asyncio.create_task(self._run(rule, command), name=f"action {rule.name}")
        self._running[rule.name] = (command, task)

    async def _run(self, rule: Rule, command: Command) -> None:
        try:
            outcome = await command.run()
        except RuntimeError as error:  # no thread to be had
            outcome = Outcome(str(error), "look at TasksMax and memory", output="", seconds=0.0)
        finally:
            del self._running[rule.name]
        self._report(rule, outcome)

    def _report(self, rule: Rule, outcome: Outcome) -> None:
        facts = {"action": rule.name, "program": rule.run[0], "seconds": round(outcome.seconds, 1)}
        output = {"output": outcome.output} if outcome.output else {}
        if not outcome.problem:
            log.info("action done", **facts, **output, _per=rule.name, _every=LOG_INTERVAL)
        elif self._ending:
            log.warning("action did not end before the agent did", **facts, problem=outcome.problem, **output)
        else:
            reason = {"problem": outcome.problem, "advice": outcome.advice}
            log.warning("action failed", **facts, **reason, **output, _per=rule.name)

    def _skip(self, rule: Rule, why: str) -> None:
        self.skipped[rule.name] += 1
        self._skipped_in_a_row[rule.name] += 1
        if self._skipped_in_a_row[rule.name] == 1:
            log.warning("action skipped", action=rule.name, reason=why)

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
