"""Brings events from the store into memory, and finds out what the store has lost.

One bit of an inner page of SQLite's tree can hide thousands of rows, and SQLite reads past them without an error.
So what the store has is compared with what it should have: at the first hole, so that the order is kept, and again when
all has been gone through. Where there is less, the whole file is checked.
"""

import sqlite3
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import structlog

from edge_agent.telemetry.queue.accounts import Accounts
from edge_agent.telemetry.queue.backlog import Backlog
from edge_agent.telemetry.queue.groups import Group
from edge_agent.telemetry.queue.intervals import Span
from edge_agent.telemetry.queue.losses import DAMAGED, Loss
from edge_agent.telemetry.queue.state import State
from edge_agent.telemetry.queue.store import Store

log = structlog.get_logger()


class Loader:
    """`damaged` are the keys of groups that were found unreadable and counted, and that the store still has.

    `in_thread` calls a function in the store's thread. `failed` is told what went wrong with the disk. Nothing else
    may use the store while a method runs.
    """

    def __init__(
        self,
        directory: Path,
        state: State,
        accounts: Accounts,
        *,
        in_thread: Callable[..., Awaitable[Any]],
        failed: Callable[[Exception], None],
        clock: Callable[[], float],
    ) -> None:
        self.damaged: list[int] = []
        self._directory = directory
        self._state = state
        self._accounts = accounts
        self._in_thread = in_thread
        self._failed = failed
        self._clock = clock
        self._checked = False

    async def load(self, store: Store, backlog: Backlog, max_events: int, max_bytes: int) -> None:
        """Load as much as `take` wants. Failures are trouble: newer events may be in memory."""
        again = True  # once a call, should the damage never end
        while wanted := backlog.wants(max_events, max_bytes):
            try:
                groups = await self._in_thread(store.load, backlog.cursor, backlog.region_end, *wanted)
            except (OSError, sqlite3.Error) as error:
                self._failed(error)
                return
            damaged = await self.check_damage(store)
            suspicious = not self._checked and backlog.misses(groups)
            if again and (damaged or (suspicious and await self._check(store))):
                again = False
                continue
            self._loaded(backlog, groups)
            if backlog.cursor >= backlog.region_end:
                again = not await self._at_the_end(store, backlog, check=again) and again

    def _loaded(self, backlog: Backlog, groups: list[Group]) -> None:
        for group in groups:
            if group.events:
                backlog.loaded(group)
                continue
            self.damaged.append(group.seq)
            spans = backlog.unreadable(group)
            if count := sum(end - start for start, end in spans):
                self._accounts.lose(Loss(DAMAGED, count, group.first_ms, group.last_ms), spans)
        if not groups:
            backlog.cursor = backlog.region_end

    async def _at_the_end(self, store: Store, backlog: Backlog, *, check: bool) -> bool:
        """Count what the store should have had and has not. Return whether to go through it once more."""
        _, missing = backlog.region()  # what is left is in memory, so that it can be counted
        if missing > 0 and check and await self._check(store):
            return True
        self._correct(backlog, missing)
        return False

    async def _check(self, store: Store) -> bool:
        """Look through the file. Return whether it could be, and all that is left of it will be loaded again."""
        self._checked = True
        try:
            await self._in_thread(store.check)
        except (OSError, sqlite3.Error) as error:
            self._failed(error)
            return False
        # Not only after damage: what was written to a damaged tree may have mended it.
        return await self.check_damage(store) or await self._recount(store)

    async def check_damage(self, store: Store) -> bool:
        """Return whether the store had to replace a damaged file. What that has lost is counted then."""
        if store.damage is None:
            return False
        damage, store.damage = store.damage, None
        if not await self._recount(store):
            store.damage = damage  # to be counted when the store can be asked again
            return False
        log.error("the file of the queue was damaged and has been replaced", directory=str(self._directory))
        return True

    async def _recount(self, store: Store) -> bool:
        """Count what is lost, and have the rest loaded from the beginning. Return whether the store could be asked."""
        self._state.lanes.rewind()
        try:
            found = [(backlog, *await self._missing(store, backlog)) for backlog in self._state.lanes]
        except (OSError, sqlite3.Error) as error:
            self._failed(error)
            return False
        for backlog, missing, reports in found:
            self._correct(backlog, missing)
            self._state.books.restore(reports)
        return True

    async def _missing(self, store: Store, backlog: Backlog) -> tuple[int, list[Span]]:
        """Return how many events of a lane the store should have and has not, and which reports of losses are gone."""
        spans, expected = backlog.region()
        reports = [(seq, seq + 1) for seq in self._state.books.reports_in(spans)]
        gone = [span for span in reports if not await self._in_thread(store.overlap, [span])]
        return expected - await self._in_thread(store.overlap, spans), gone

    def _correct(self, backlog: Backlog, missing: int) -> None:
        """Take off the depth what turned out to be missing from the store. It is not known which events it was."""
        backlog.depth -= missing
        if missing > 0:
            now = int(self._clock() * 1000)
            self._accounts.lose(Loss(DAMAGED, missing, self._state.stored_oldest_ms or now, now), [])
