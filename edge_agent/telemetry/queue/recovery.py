"""What the queue is after a start: the last transaction of the store, and the journal replayed on it.

Nothing is guessed. A journal file that follows the last transaction (or the file before it) without a gap is
applied record by record. After a gap, which is there when the files before were not needed any more, the state
in its header counts. Numbers that a later record proves to have been given out and that are nowhere to be
found are a loss with the cause `damaged`.
"""

import contextlib
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import structlog

from edge_agent.telemetry.events.priority import Priority
from edge_agent.telemetry.queue import journal
from edge_agent.telemetry.queue.groups import Group
from edge_agent.telemetry.queue.intervals import Intervals, Span
from edge_agent.telemetry.queue.journal import Committed, Done, Header, JournalFile, Put, Sealed
from edge_agent.telemetry.queue.losses import DAMAGED, Books, Ledger, Loss
from edge_agent.telemetry.queue.seqs import given_out, lane, priority_of
from edge_agent.telemetry.queue.store import Damage, Store
from edge_agent.telemetry.queue.store_file import Meta

log = structlog.get_logger()


class Replay(msgspec.Struct):
    """State of the queue, to which journal files are applied one after the other. Lists are by priority.

    `puts` are the events that only the journal has, `done` the seqs that are finished, of both kinds. The store
    should have `stored` unsent events below `saved_ends`.
    """

    meta: Meta
    damage: Damage | None
    books: Books
    done: Intervals
    next_seqs: list[int]
    number: int
    stored: list[int]
    saved_ends: list[int]
    puts: list[Put]
    missing: Intervals
    clean: bool = True
    header: Header | None = None
    replayed: int = 0

    def apply(self, file: JournalFile) -> None:
        if file.number != self.number + 1:
            self._jump(file)
        for record in file.records:
            self._apply_record(record)
        self.number = file.number
        self.clean = file.clean
        self.header = file.header or self.header
        self.replayed += 1

    def _jump(self, file: JournalFile) -> None:
        header, stranger = file.header, self._is_stranger(file)
        if header is not None:
            self.done = Intervals([*self.done, *header.done])
            if stranger:
                self.books.adopt(header.losses, header.reports)
            else:
                self.books = Books(header.losses, header.reports)
                self.stored, self.saved_ends = header.stored.copy(), header.saved_ends.copy()
        if stranger or not self.replayed:  # the files before were not needed any more: nothing is missing
            for priority, seq in _first_seqs(file.records).items():
                self.next_seqs[priority] = max(self.next_seqs[priority], seq)

    def _is_stranger(self, file: JournalFile) -> bool:
        """Whether an agent wrote the file that knew nothing of the store and of what was replayed so far."""
        before = self.header.epoch if self.header else None
        return file.header is not None and file.header.alone and file.header.epoch != before

    def _apply_record(self, record: journal.Record) -> None:
        match record:
            case Header():
                self._begin(record)
            case Put():
                self._put(record)
            case Done(spans=spans, loss=loss):
                self._finish(spans)
                self.books.finish(spans, loss)
            case Committed():
                self.stored, self.saved_ends = record.stored.copy(), record.saved_ends.copy()

    def _begin(self, header: Header) -> None:
        new_epoch = given_out(header.next_seqs) == header.base  # the numbers between were never given out
        for priority, seq in zip(Priority, header.next_seqs, strict=True):
            if new_epoch:
                self.next_seqs[priority] = max(self.next_seqs[priority], seq)
            self._reach(priority, seq)

    def _finish(self, spans: Sequence[Span]) -> None:
        for start, end in spans:
            priority = priority_of(start)
            saved = min(end, self.saved_ends[priority])
            self.stored[priority] -= sum(b - a for a, b in self.done.gaps(start, saved))
            self.done.add(start, end)

    def _reach(self, priority: Priority, seq: int) -> None:
        """Go on at `seq`. What is skipped was given out, so it is missing unless it turns out to be finished."""
        self.missing.add(self.next_seqs[priority], seq)
        self.next_seqs[priority] = max(self.next_seqs[priority], seq)

    def _put(self, put: Put) -> None:
        priority, end = priority_of(put.seq), put.seq + len(put.events)
        self.books.report(put.seq, put.reported)
        if end <= self.meta.next_seqs[priority]:
            return  # the store has had it already
        self._reach(priority, put.seq)
        self.missing.remove(put.seq, end)
        self.puts.append(put)
        self.next_seqs[priority] = max(self.next_seqs[priority], end)

    def live(self) -> list[Group]:
        """Return the events that only the journal has and that are not finished."""
        pieces: list[Group] = []
        taken = Intervals()
        for put in sorted(self.puts, key=lambda put: put.seq):
            for a, b in self.done.gaps(max(put.seq, self._stored_end(put.seq)), put.seq + len(put.events)):
                for start, end in taken.gaps(a, b):
                    events = put.events[start - put.seq : end - put.seq]
                    pieces.append(Group(start, len(events), put.first_ms, put.last_ms, events))
            taken.add(put.seq, put.seq + len(put.events))
        return pieces

    def _stored_end(self, seq: int) -> int:
        return self.meta.next_seqs[priority_of(seq)]

    def missing_spans(self) -> list[Span]:
        return [gap for a, b in self.missing for gap in self.done.gaps(a, b)]

    def goes_on(self, boot_id: str) -> bool:
        """Whether it is proven which number comes next."""
        if not self.replayed:
            return not self.meta.running and self.meta.epoch > 0
        if self.header is None:
            return False
        same = self.header.epoch == self.meta.epoch and self.header.boot_id == boot_id
        return self.clean and same


def _first_seqs(records: Sequence[journal.Record]) -> dict[Priority, int]:
    """Return the first seq that the records name, for each priority of which they name any."""
    first: dict[Priority, int] = {}
    for record in records:
        seqs = record.next_seqs if isinstance(record, Header) else [record.seq] if isinstance(record, Put) else []
        for seq in seqs:
            first.setdefault(priority_of(seq), seq)
    return first


def replay(meta: Meta, damage: Damage | None, files: Sequence[JournalFile]) -> Replay:
    """Apply the files that are newer than `meta`, oldest first."""
    state = Replay(
        meta=meta,
        damage=damage,
        books=Books(meta.losses, meta.reports),
        done=Intervals(meta.done),
        next_seqs=meta.next_seqs.copy(),
        number=meta.journal,
        stored=(damage.expected if damage else meta.depths).copy(),
        saved_ends=meta.next_seqs.copy(),
        puts=[],
        missing=Intervals(),
    )
    for file in files:
        state.apply(file)
    return state


def count_lost(state: Replay, depths: Sequence[int]) -> Loss | None:
    """Return what is known to be gone: from the store, which has `depths` unsent events, and from the journal."""
    from_store = _lost_from_store(state, depths)
    from_journal = _loss(state, sum(end - start for start, end in state.missing_spans()))
    found = Ledger(loss for loss in (from_store, from_journal) if loss is not None)
    return next(iter(found.entries()), None)


def _lost_from_store(state: Replay, depths: Sequence[int]) -> Loss | None:
    return _loss(state, sum(max(0, should - has) for should, has in zip(state.stored, depths, strict=True)))


def _loss(state: Replay, count: int) -> Loss | None:
    if not count:
        return None
    times = [ms for put in state.puts for ms in (put.first_ms, put.last_ms)]
    if state.damage is not None:
        times += [state.damage.first_ms, state.damage.last_ms]
    return Loss(DAMAGED, count, min(times, default=0), max(times, default=0))


class Recovered(msgspec.Struct, frozen=True, kw_only=True):
    """What the queue goes on with. Lists are by priority.

    `depths` unsent events are in the store, below `stored_ends`; `fresh` ones only in the journal files `files`.
    `fault` is set where the store could be read but not written: it does not know the epoch then.
    """

    store: Store
    stored_ends: list[int]
    depths: list[int]
    oldest_ms: int | None
    done: Intervals
    fresh: list[Group]
    books: Books
    lost: Loss | None
    next_seqs: list[int]
    epoch: int
    base: int
    files: list[Sealed]
    fault: sqlite3.Error | None


def recover(
    directory: Path,
    journal_directories: Sequence[Path],
    *,
    before: int,
    boot_id: str,
    next_epoch: Callable[[int], int],
    patient: bool,
) -> Recovered:
    """Open the store and replay the journal files with numbers below `before` (others are in use).

    `patient`: a file that cannot be read is a reason to try again later, and not yet damaged. Raises OSError or
    sqlite3.Error where the disk cannot be read or written.
    """
    store = Store(directory)
    try:
        return _recover(
            store, journal_directories, before=before, boot_id=boot_id, next_epoch=next_epoch, patient=patient
        )
    except (OSError, sqlite3.Error):
        store.close()  # or its lock would keep out the next try
        raise


def _recover(
    store: Store,
    journal_directories: Sequence[Path],
    *,
    before: int,
    boot_id: str,
    next_epoch: Callable[[int], int],
    patient: bool,
) -> Recovered:
    found = [(number, path) for number, path in journal.find(journal_directories) if number < before]
    covered = store.meta.journal
    with contextlib.suppress(OSError):  # they are not needed, and will be found again at the next start
        journal.remove(Sealed(number, path, []) for number, path in found if number <= covered)
    left = [(number, path) for number, path in found if number > covered]
    files = [file for number, path in left if (file := _read(number, path, patient=patient)) is not None]
    state, depths = _compare(store, files)
    if state.damage is not store.damage:  # it was the comparison that found the damage
        state, depths = _compare(store, files)
    damage, store.damage = store.damage, None
    known = _with_damage(store, state, depths) if damage is not None else store.meta
    lost = count_lost(state, depths)
    if lost is not None:
        state.books.ledger.add(lost)
        state.books.restore(_lost_reports(store, state))
    goes_on = damage is None and state.goes_on(boot_id)
    epoch, base, fault = _settle_epoch(store, known, state, boot_id, next_epoch, goes_on=goes_on)
    return Recovered(
        store=store,
        stored_ends=state.meta.next_seqs,
        depths=depths,
        oldest_ms=store.oldest_ms(),
        done=state.done,
        fresh=state.live(),
        books=state.books,
        lost=lost,
        next_seqs=state.next_seqs,
        epoch=epoch,
        base=base,
        files=[Sealed(number, path, state.next_seqs) for number, path in left],
        fault=fault,
    )


def _read(number: int, path: Path, *, patient: bool) -> JournalFile | None:
    """Read a journal file, or None if it is empty. One that cannot be read counts as damaged in the end."""
    try:
        return journal.read(number, path) if path.stat().st_size else None
    except OSError as error:
        if patient and not isinstance(error, IsADirectoryError):
            raise
        log.error("a journal file of the queue cannot be read and is lost", path=str(path), error=error.strerror)
        return JournalFile(number, path, [], clean=False)


def _compare(store: Store, files: Sequence[JournalFile]) -> tuple[Replay, list[int]]:
    """Replay the files, and return also how many unsent events of each priority the store has after that."""
    meta = store.meta
    state = replay(meta, store.damage, files)
    known, depths = Intervals(meta.done), meta.depths.copy()
    for priority, end in zip(Priority, meta.next_seqs, strict=True):
        finished = [gap for a, b in state.done.clip(lane(priority)[0], end) for gap in known.gaps(a, b)]
        depths[priority] -= store.overlap(finished)
    return state, depths


def _lost_reports(store: Store, state: Replay) -> list[Span]:
    """Return the seqs of the reports that neither the store nor the journal has."""
    return [*state.missing_spans(), *_reports_gone_from_store(store, state)]


def _reports_gone_from_store(store: Store, state: Replay) -> list[Span]:
    stored = state.books.reports_in([(lane(Priority.NOTICE)[0], state.saved_ends[Priority.NOTICE])])
    return [(seq, seq + 1) for seq in stored if not store.overlap([(seq, seq + 1)])]


def _with_damage(store: Store, state: Replay, depths: Sequence[int]) -> Meta:
    """Return the state of the store with what the damage has cost it: the new file does not show that any more.

    What is missing from the journal is not in it, as the journal will show that again.
    """
    books = Books(store.meta.losses, store.meta.reports)
    if (lost := _lost_from_store(state, depths)) is not None:
        books.ledger.add(lost)
    books.restore(_reports_gone_from_store(store, state))
    return msgspec.structs.replace(store.meta, losses=books.ledger.entries(), reports=books.reports)


def _settle_epoch(
    store: Store, meta: Meta, state: Replay, boot_id: str, next_epoch: Callable[[int], int], *, goes_on: bool
) -> tuple[int, int, sqlite3.Error | None]:
    """Go on in the epoch, or begin a new one. The store knows it before the first event has a number of it."""
    epoch, base = meta.epoch, meta.base
    known = max(epoch, state.header.epoch if state.header else 0)
    if not goes_on:
        epoch, base = next_epoch(known), given_out(state.next_seqs)
    meta = msgspec.structs.replace(meta, epoch=epoch, base=base, boot_id=boot_id, running=True)
    if meta == store.meta:
        return epoch, base, None
    try:
        store.note(meta)
    except sqlite3.Error as error:
        return next_epoch(max(known, epoch)), given_out(state.next_seqs), error
    return epoch, base, None
