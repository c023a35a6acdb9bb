"""Keeps the state of the queue on disk: the journal at once, the store when it is due.

Everything runs on the event loop, except what `in_thread` is given: it runs in the one store thread. `using_store`
is held over every step that needs the store to stay as it is between two such calls.
"""

import asyncio
import contextlib
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import structlog

from edge_agent.telemetry import journal
from edge_agent.telemetry.backlog import Backlog
from edge_agent.telemetry.groups import Group
from edge_agent.telemetry.intervals import Intervals, Span
from edge_agent.telemetry.journal import Committed, Done, Header, Journal, Sealed
from edge_agent.telemetry.losses import Ledger, Loss
from edge_agent.telemetry.queue_files import Lock, QueueLocked, RejectedFile
from edge_agent.telemetry.recovery import Recovered, recover
from edge_agent.telemetry.store import Commit, Meta, Store

MEMORY_LIMIT = 32 * 1024 * 1024

_EARLY_JOURNAL = journal.MAX_SIZE // 8
_MAX_BACKOFF = 64  # ticks between two tries of a store that fails
_FAILURES_OF_DAMAGE = 8  # in succession: then it may be the file and not the disk
_NO_NUMBER = 1 << 62
_FAR_ABOVE = 1 << 60  # no journal gets that many files

T = TypeVar("T")
log = structlog.get_logger()


class Keeper:
    """Owns the backlog, the ledger of losses, the journal and the store."""

    def __init__(
        self,
        directory: Path,
        runtime_directory: Path | None,
        *,
        max_size: int,
        boot_id: str,
        clock: Callable[[], float],
    ) -> None:
        self.limit(max_size)
        self.epoch = 0
        self.base = 1
        self.dropped = 0
        self.backlog = Backlog()
        self.ledger = Ledger()
        self.rejected = RejectedFile(directory)
        self.using_store = asyncio.Lock()
        self.unsaved = asyncio.Event()  # there is something for a tick to do
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
        self._damaged: list[int] = []  # groups that were found unreadable
        self._noted = False  # whether the store knows this epoch
        self._aged_seq = 0
        self._was_changed = False
        self._stored_oldest_ms: int | None = None
        self._trouble: str | None = None
        self._failures = self._skip = 0

    def limit(self, max_size: int) -> None:
        """Bound what is stored and waiting, and what of it may be in memory only."""
        self.max_size = max_size
        self.memory_limit = min(MEMORY_LIMIT, max_size)
        self.early = self.memory_limit // 4  # so many bytes do not wait for the next tick

    # -- opening and closing

    async def open(self) -> None:
        try:
            await self.in_thread(self._lock.take)
        except QueueLocked:
            await asyncio.to_thread(self._thread.shutdown)
            raise
        if not await self._recover():
            # Seqs far above those in the store, so that it can be taken in once it can be read.
            self.epoch = self._next_epoch(0)
            self.base = self.epoch << 16
            self.backlog = Backlog(self.base)
        self._aged_seq = self.backlog.next_seq
        self._journal.number = await self.in_thread(self._last_journal)
        self._first_journal = self._journal.number + 1
        await self._begin_journal(needed=True)
        self.unsaved.set()

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
            found = await self.in_thread(self._read_disk)
        except (OSError, sqlite3.Error) as error:
            self._failed(error)
            return False
        self._store = found.store
        self.backlog.adopt(found.stored_end, found.depth, found.done, found.fresh, found.next_seq)
        self._journal.sealed[:0] = found.files
        for loss in found.losses:
            self.ledger.add(loss)
        self._saved_ledger = Ledger(found.store.meta.losses)
        self._stored_oldest_ms = found.oldest_ms
        if found.lost is not None:
            self.dropped += found.lost.count
            log.error("part of the queue is damaged and lost", events=found.lost.count, directory=str(self._directory))
        if not self.epoch:
            self.epoch, self.base = found.epoch, found.base
            self._noted = found.fault is None
        if found.fault is not None:
            self._failed(found.fault)
        return True

    def _read_disk(self) -> Recovered:
        self._directory.mkdir(parents=True, exist_ok=True)
        return recover(
            self._directory,
            (self._directory, self._journal_directory),
            before=self._first_journal,
            boot_id=self._boot_id,
            next_epoch=self._next_epoch,
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

    def record(self, frame: bytes) -> None:
        self._journal.append(frame)
        self.unsaved.set()

    @property
    def full(self) -> bool:
        """Whether so much is in memory or in the journal file that the next tick should not wait."""
        return self.backlog.memory > self.early or self._journal.size > _EARLY_JOURNAL

    def lose(self, loss: Loss, spans: list[Span]) -> None:
        """Count events of the queue that are given up; `spans` as far as it is known which."""
        self.dropped += loss.count
        self.note_loss(loss, spans)

    def note_loss(self, loss: Loss, spans: list[Span]) -> None:
        self.record(journal.frame(Done(spans, loss)))
        self.ledger.add(loss)

    async def _begin_journal(self, *, needed: bool) -> None:
        """Go on in a new file. Where none can be created, the one in use is ended only if that is needed."""
        fd = await self.in_thread(self._journal.prepare)
        if fd is not None:
            self._journal.begin(fd, self._header())
        elif needed:
            self._journal.end(self.backlog.next_seq, torn=True)

    # -- reading

    async def load(self, max_events: int, max_bytes: int) -> None:
        """Load as much of the store as `take` wants. Failures are trouble: newer events may be in memory."""
        async with self.using_store:
            while self._store is not None and (wanted := self.backlog.wants(max_events, max_bytes)):
                span = self.backlog.cursor, self.backlog.region_end
                try:
                    groups = await self.in_thread(self._store.load, *span, *wanted)
                except (OSError, sqlite3.Error) as error:
                    self._failed(error)
                    return
                await self._check_damage(self._store)
                self._loaded(groups)

    def _loaded(self, groups: list[Group]) -> None:
        for group in groups:
            if group.events:
                self.backlog.loaded(group)
                continue
            self._damaged.append(group.seq)
            spans = self.backlog.unreadable(group)
            if count := sum(end - start for start, end in spans):
                self.lose(Loss("damaged", count, group.first_ms, group.last_ms), spans)
        if not groups:
            self.backlog.cursor = self.backlog.region_end
        if self.backlog.cursor >= self.backlog.region_end:  # what is left is in memory, so that it can be counted
            _, missing = self.backlog.region()
            self._correct(missing)

    async def _check_damage(self, store: Store) -> None:
        """Count what was lost if the store had to replace a damaged file."""
        if store.damage is None:
            return
        store.damage = None
        spans, expected = self.backlog.region()
        self._correct(expected - await self.in_thread(store.overlap, spans))
        log.error("the file of the queue was damaged and has been replaced", directory=str(self._directory))

    def _correct(self, missing: int) -> None:
        """Take off the depth what turned out to be missing from the store. It is not known which events it was."""
        self.backlog.depth -= missing
        if missing > 0:
            now = int(self._clock() * 1000)
            self.lose(Loss("damaged", missing, self._stored_oldest_ms or now, now), [])

    # -- ticks

    async def tick(self, *, closing: bool = False) -> None:
        async with self.using_store:
            self._skip = 0 if closing else max(0, self._skip - 1)
            if self._store is None and not self._skip:
                await self._recover()
            save = self._store is not None and not self._skip and (closing or self._must_save())
            if closing:
                self._journal.end(self.backlog.next_seq, torn=False)
            elif save or self._journal.written or self._journal.failed:
                await self._begin_journal(needed=save)
            self.backlog.begin_run()
            self._aged_seq, self._was_changed = self.backlog.next_seq, self._changed()
            if save and self._store is not None:
                await self._save(self._store, closing=closing)
            await self.in_thread(self._clean_up, self._journal.take_sealed(self.backlog.first_unsaved()))
            if self._at_rest():
                self.unsaved.clear()

    def _changed(self) -> bool:
        """Whether the store has something to be told beside new events."""
        finished = self.backlog.done.clip(0, self.backlog.saved_end)
        return bool(finished or self._damaged or self.ledger != self._saved_ledger or not self._noted)

    def _must_save(self) -> bool:
        oldest = self.backlog.first_unsaved()
        if oldest is not None and (oldest < self._aged_seq or self._journal.failed or self.backlog.memory > self.early):
            return True
        return self.size > self.max_size or (self._was_changed and self._changed())

    async def _save(self, store: Store, *, closing: bool) -> None:
        """One transaction with all that happened before the journal file that is in use now."""
        commit = self._commit(closing=closing)
        saved = self.backlog.done.copy()
        try:
            if self._failures == _FAILURES_OF_DAMAGE:
                self._failures = 0
                await self.in_thread(store.check)
            dropped = await self.in_thread(store.commit, commit)
            self._stored_oldest_ms = await self.in_thread(store.oldest_ms)
        except (OSError, sqlite3.Error) as error:
            self._failed(error)
            return
        self.backlog.end_save(remaining=Intervals(store.meta.done), saved=saved)
        self._damaged = [seq for seq in self._damaged if seq not in commit.damaged]
        self._noted = True
        self._saved_ledger = Ledger(store.meta.losses)
        if dropped is not None:
            self.backlog.depth -= dropped.count
            self.dropped += dropped.count
            self.ledger.add(dropped)
        await self._check_damage(store)
        self.record(journal.frame(Committed(self.backlog.stored(), self.backlog.saved_end)))
        self._works()

    def _commit(self, *, closing: bool) -> Commit:
        backlog = self.backlog
        if self.size > self.max_size:
            backlog.unload()
        groups = backlog.begin_save()
        return Commit(
            meta=Meta(
                epoch=self.epoch,
                base=self.base,
                next_seq=backlog.next_seq,
                journal=self._journal.number - 1,
                depth=backlog.depth,
                running=not closing,
                boot_id=self._boot_id,
                losses=self.ledger.entries(),
                done=list(backlog.done),
            ),
            groups=groups,
            damaged=self._damaged.copy(),
            droppable=(backlog.cursor, backlog.region_end),
            out=backlog.out_spans(),
            max_size=self.max_size,
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
        healthy = self._store is not None and self._trouble is None
        return healthy and not busy and self.backlog.first_unsaved() is None and not self._changed()

    def _header(self) -> Header:
        return Header(
            boot_id=self._boot_id,
            epoch=self.epoch,
            base=self.base,
            next_seq=self.backlog.next_seq,
            stored=self.backlog.stored(),
            saved_end=self.backlog.saved_end,
            losses=self.ledger.entries(),
            done=list(self.backlog.done),
        )

    # -- how it is

    @property
    def size(self) -> int:
        return self.backlog.memory + (self._store.meta.size if self._store else 0)

    @property
    def oldest_ms(self) -> int | None:
        stored = self._stored_oldest_ms if self.backlog.cursor < self.backlog.region_end else None
        return min((ms for ms in (stored, self.backlog.oldest_ms()) if ms is not None), default=None)

    @property
    def trouble(self) -> str | None:
        return "; ".join(reason for reason in (self._trouble, self._journal.trouble) if reason) or None

    @property
    def waiting_to_retry(self) -> bool:
        return self._skip > 0

    def _failed(self, error: Exception) -> None:
        if self._trouble is None:
            log.error("the queue cannot use its directory", directory=str(self._directory), error=str(error))
        self._trouble = (
            f"cannot use {self._directory}: {error}; events are kept in memory, at most {self.memory_limit >> 20} MB"
        )
        self._skip = min(2**self._failures, _MAX_BACKOFF)
        self._failures = min(self._failures + 1, _FAILURES_OF_DAMAGE)
        self.unsaved.set()

    def _works(self) -> None:
        if self._trouble is not None:
            log.info("the queue can use its directory again", directory=str(self._directory))
        self._trouble = None
        self._failures = 0

    async def in_thread(self, function: Callable[..., T], *arguments: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *arguments)
