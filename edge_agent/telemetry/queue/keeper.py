"""Keeps the state of the queue on disk: the journal at once, the store when it is due.

Everything runs on the event loop, except what `in_thread` is given: it runs in the one store thread. `using_store`
is held over every step that needs the store to stay as it is between two such calls.
"""

import asyncio
import contextlib
import shutil
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import structlog

from edge_agent.telemetry.events.priority import Priority
from edge_agent.telemetry.queue import journal
from edge_agent.telemetry.queue.accounts import Accounts
from edge_agent.telemetry.queue.files import Lock, QueueLocked, RejectedFile
from edge_agent.telemetry.queue.intervals import Intervals
from edge_agent.telemetry.queue.journal import Committed, Journal, Sealed
from edge_agent.telemetry.queue.loader import Loader
from edge_agent.telemetry.queue.losses import EXPIRED, Ledger
from edge_agent.telemetry.queue.recovery import Recovered, recover
from edge_agent.telemetry.queue.retention import Bounds, Retention
from edge_agent.telemetry.queue.seqs import first_seqs
from edge_agent.telemetry.queue.state import State
from edge_agent.telemetry.queue.store import Commit, Store
from edge_agent.telemetry.queue.trouble import Trouble

_EARLY_JOURNAL = journal.MAX_SIZE // 8
_NO_NUMBER = 1 << 62
_FAR_ABOVE = 1 << 60  # no journal gets that many files

T = TypeVar("T")
log = structlog.get_logger()


class Keeper:
    """Owns the backlogs, the ledger of losses, the journal and the store."""

    def __init__(
        self,
        directory: Path,
        runtime_directory: Path | None,
        *,
        retention: Retention,
        boot_id: str,
        clock: Callable[[], float],
    ) -> None:
        self.retention = retention
        self.bound(retention.bounds)
        self.state = State(boot_id)
        self.rejected = RejectedFile(directory)
        self.using_store = asyncio.Lock()
        self._directory = directory
        self._journal_directory = runtime_directory or directory
        self._boot_id = boot_id
        self._clock = clock
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="queue-store")
        self._lock = Lock(directory / "queue.lock")
        self._journal = Journal(self._journal_directory)
        self._first_journal = _NO_NUMBER
        self._store: Store | None = None
        self._saved_ledger = Ledger()
        self._noted = False  # whether the store knows this epoch
        self._aged_seqs = first_seqs()
        self._was_changed = False
        self._older = False  # the age of the queue is to be written down
        self._trouble = Trouble(directory)
        self.accounts = Accounts(self.state, self._journal)
        self._loader = Loader(
            directory, self.state, self.accounts, in_thread=self.in_thread, failed=self._failed, clock=clock
        )

    def bound(self, bounds: Bounds) -> None:
        self.retention.bounds = bounds
        self.early = bounds.early  # kept, because each `put` asks

    # -- opening and closing

    async def open(self) -> None:
        try:
            await self.in_thread(self._lock.take)
        except QueueLocked:
            await asyncio.to_thread(self._thread.shutdown)
            raise
        if not await self._recover():
            self.state.begin_far_above(self._next_epoch(0))
        self._aged_seqs = self.state.lanes.next_seqs
        self._journal.number = await self.in_thread(self._last_journal)
        self._first_journal = self._journal.number + 1
        await self._begin_journal(needed=True)
        self.accounts.unsaved.set()

    async def close(self) -> None:
        """Write everything and the last number, and let go of the files."""
        await self.tick(closing=True)
        await self.in_thread(self._shut)
        await asyncio.to_thread(self._thread.shutdown)

    def abandon(self) -> None:
        """Close without waiting for the store thread. What it has not written is in the journal."""
        self._thread.submit(self._shut)
        self._thread.shutdown(wait=False)

    def _shut(self) -> None:
        with contextlib.suppress(sqlite3.Error):  # the transaction before it was reported, or has succeeded
            if self._store is not None:
                self._store.close()
        self._journal.close()
        self._lock.release()

    async def _recover(self) -> bool:
        """Take in what the disk holds. Return whether it could be read."""
        try:
            found = await self.in_thread(self._read_disk, not self._trouble.looks_like_damage())
        except (OSError, sqlite3.Error) as error:
            self._failed(error)
            return False
        self._store, self.state.alone = found.store, False
        self.state.lanes.adopt(found.stored_ends, found.depths, found.done, found.fresh, found.next_seqs)
        self.retention.adopt(found.store.meta.age, found.store.positions)
        self._journal.sealed[:0] = found.files
        self.state.books.adopt(found.books.ledger.entries(), found.books.reports)
        self._saved_ledger = Ledger(found.store.meta.losses)
        self.state.stored_oldest_ms = found.oldest_ms
        if found.lost is not None:
            self.state.dropped[found.lost.cause] += found.lost.count
            log.error("part of the queue is damaged and lost", events=found.lost.count, directory=str(self._directory))
        if not self.state.epoch:
            self.state.epoch, self.state.base = found.epoch, found.base
            self._noted = found.fault is None
        if found.fault is not None:
            self._failed(found.fault)
        return True

    def _read_disk(self, patient: bool) -> Recovered:  # noqa: FBT001  run_in_executor passes by position only
        self._directory.mkdir(parents=True, exist_ok=True)
        return recover(
            self._directory,
            (self._directory, self._journal_directory),
            before=self._first_journal,
            boot_id=self._boot_id,
            next_epoch=self._next_epoch,
            patient=patient,
        )

    def _next_epoch(self, last: int) -> int:
        return max(last + 1, int(self._clock() * 1000))

    def _last_journal(self) -> int:
        try:
            numbers = [number for number, _ in journal.find((self._directory, self._journal_directory))]
        except OSError:
            numbers = []
        # A store that cannot be read may cover any number so far, and would have these files deleted once it can be.
        return max([self._store.meta.journal if self._store else _FAR_ABOVE + self._next_epoch(0), *numbers])

    # -- the journal

    @property
    def full(self) -> bool:
        """Whether so much is in memory or in the journal file that the next tick should not wait."""
        return self.state.lanes.memory > self.early or self._journal.size > _EARLY_JOURNAL

    async def _begin_journal(self, *, needed: bool) -> None:
        """Go on in a new file. Where none can be created, the one in use is ended only if that is needed."""
        fd = await self.in_thread(self._journal.prepare)
        if fd is not None:
            self._journal.begin(fd, self.state.header())
        elif needed:
            self._journal.end(self.state.lanes.next_seqs, torn=True)

    def _must_begin_journal(self) -> bool:
        # Nothing ends the files while the store fails: a few large ones then, instead of two a second.
        least = self.retention.bounds.journal if self._trouble.reason else 0
        return self._journal.failed or bool(self._journal.written and self._journal.size > least)

    async def _bound_journal(self) -> None:
        """Keep the files to twice what is unsent while the store fails, which would end them."""
        most = 2 * self.state.lanes.memory + self.retention.bounds.journal
        if self._trouble.reason and self._journal.total > most and await self.in_thread(self._journal.has_room, most):
            self._journal.write_again(self.state.lanes.unsaved())

    # -- reading

    async def load(self, priority: Priority, max_events: int, max_bytes: int) -> None:
        """Load as much of the store as `take` wants."""
        async with self.using_store:
            if self._store is not None:
                await self._loader.load(self._store, self.state.lanes[priority], max_events, max_bytes)

    # -- ticks

    async def tick(self, *, closing: bool = False) -> None:
        async with self.using_store:
            self._trouble.tick(closing=closing)
            if self._store is None and not self._trouble.waiting:
                await self._recover()
            self._grow_older()
            save = self._store is not None and not self._trouble.waiting and (closing or self._must_save())
            if save:
                await self.in_thread(self._measure)
            if closing:
                self._journal.end(self.state.lanes.next_seqs, torn=False)
            elif save or self._must_begin_journal():
                await self._begin_journal(needed=save)
            self.state.lanes.begin_run()
            self._aged_seqs, self._was_changed = self.state.lanes.next_seqs, self._changed()
            if save and self._store is not None:
                await self._save(self._store, closing=closing)
            await self._bound_journal()
            await self.in_thread(self._clean_up, self._journal.take_sealed(self.state.lanes.first_unsaved()))
            if self._at_rest():
                self.accounts.unsaved.clear()

    def _grow_older(self) -> None:
        """Every now and then, write down how old the queue is, and give up what is too old."""
        self._older = self.retention.note(self.state.lanes.next_seqs) or self._older
        ends = self.retention.expired_ends()
        if self._older and ends is not None:
            self.accounts.lose_runs(EXPIRED, self.state.lanes.drop_older(ends))

    def _measure(self) -> None:
        with contextlib.suppress(OSError):  # the store will say what is wrong
            self.retention.measure(shutil.disk_usage(self._directory).free, self._stored_size)

    def _changed(self) -> bool:
        """Whether the store has something to be told beside new events."""
        finished = self.state.lanes.finished_below_saved()
        return bool(
            finished or self._loader.damaged or self.state.books.ledger != self._saved_ledger or not self._noted
        )

    def _must_save(self) -> bool:
        lanes = self.state.lanes
        unsaved = [(seq, aged) for seq, aged in zip(lanes.first_unsaved(), self._aged_seqs, strict=True) if seq]
        if unsaved and (self._journal.failed or lanes.memory > self.early):
            return True
        if any(seq < aged for seq, aged in unsaved) or self._must_grow_older():
            return True
        return self.size > self.retention.limit[0] or (self._was_changed and self._changed())

    def _must_grow_older(self) -> bool:
        return self._older and any(self.state.lanes.stored)

    async def _save(self, store: Store, *, closing: bool) -> None:
        """One transaction with all that happened before the journal file that is in use now."""
        commit = self._commit(closing=closing)
        saved = Intervals(self.state.lanes.done)
        try:
            if self._trouble.looks_like_damage():
                await self.in_thread(store.check)
            dropped = await self.in_thread(store.commit, commit)
            self.state.stored_oldest_ms = await self.in_thread(store.oldest_ms)
        except (OSError, sqlite3.Error) as error:
            self._failed(error)
            return
        self.state.lanes.end_save(remaining=Intervals(store.meta.done), saved=saved)
        self._loader.damaged = [seq for seq in self._loader.damaged if seq not in commit.damaged]
        self._noted, self._older = True, False
        self._saved_ledger = Ledger(store.meta.losses)
        self.state.count(dropped)
        await self._loader.check_damage(store)
        self.accounts.record(journal.frame(Committed(self.state.lanes.stored, self.state.lanes.saved_ends)))
        self._trouble.over()

    def _commit(self, *, closing: bool) -> Commit:
        lanes = self.state.lanes
        limit, cause = self.retention.limit
        expired = self.retention.expired_ends() if self._older else None
        if expired or self.size > limit:
            lanes.unload()
        groups = lanes.begin_save()
        return Commit(
            meta=self.state.meta(journal=self._journal.number - 1, running=not closing, age=self.retention.age),
            positions=self.retention.positions,
            groups=groups,
            damaged=self._loader.damaged.copy(),
            expired=lanes.stored_below(expired) if expired else [],
            droppable=lanes.droppable(),
            out=lanes.out_spans(),
            limit=limit,
            cause=cause,
        )

    def _clean_up(self, files: list[Sealed]) -> None:
        try:
            journal.remove(files)
            self.rejected.write()
        except OSError as error:
            log.warning("a file of the queue could not be written or deleted", error=str(error))

    def _at_rest(self) -> bool:
        """Whether the next tick would find nothing to do."""
        busy = self._journal.written or self._journal.failed or self._journal.sealed or self.rejected.waiting
        healthy = self._store is not None and self._trouble.reason is None
        quiet = not any(self.state.lanes.first_unsaved()) and not self._changed() and not self._must_grow_older()
        return healthy and not busy and quiet

    # -- how it is

    @property
    def size(self) -> int:
        return self.state.lanes.memory + self._stored_size

    @property
    def _stored_size(self) -> int:
        return self._store.meta.size if self._store else 0

    @property
    def oldest_ms(self) -> int | None:
        stored = None if self.state.lanes.loaded_all() else self.state.stored_oldest_ms
        return min((ms for ms in (stored, self.state.lanes.oldest_ms()) if ms is not None), default=None)

    @property
    def trouble(self) -> str | None:
        shortage = self.retention.shortage if any(self.state.lanes.stored) else None
        return "; ".join(reason for reason in (self._trouble.reason, self._journal.trouble, shortage) if reason) or None

    @property
    def waiting_to_retry(self) -> bool:
        return self._trouble.waiting

    def _failed(self, error: Exception) -> None:
        self._trouble.failed(error, self.retention.bounds.memory)
        self.accounts.unsaved.set()

    async def in_thread(self, function: Callable[..., T], *arguments: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *arguments)
