"""What the queue is after a start: the last transaction of the store, and the journal replayed on it.

Nothing is guessed. A journal file that follows the last transaction (or the file before it) without a gap is
applied record by record. After a gap, which is there when the files before were not needed any more, the state
in its header counts. Numbers that a later record proves to have been given out and that are nowhere to be
found are a loss with the cause `damaged`.
"""

import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from edge_agent.telemetry import journal
from edge_agent.telemetry.groups import Group
from edge_agent.telemetry.intervals import Intervals, Span
from edge_agent.telemetry.journal import Committed, Done, Header, JournalFile, Put, Sealed
from edge_agent.telemetry.losses import Ledger, Loss
from edge_agent.telemetry.store import Damage, Meta, Store


class Replay(msgspec.Struct):
    """State of the queue, to which journal files are applied one after the other.

    `puts` are the events that only the journal has, `done` the seqs that are finished, of both kinds. The store
    should have `stored` unsent events below `saved_end`.
    """

    meta: Meta
    damage: Damage | None
    ledger: Ledger
    done: Intervals
    next_seq: int
    number: int
    stored: int
    saved_end: int
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
        if file.header is not None:
            self.ledger = Ledger(file.header.losses)
            self.done = Intervals([*self.done, *file.header.done])
            self.stored, self.saved_end = file.header.stored, file.header.saved_end
        if not self.replayed:  # the files before were not needed any more: nothing is missing
            seqs = (r.next_seq if isinstance(r, Header) else r.seq for r in file.records if isinstance(r, Header | Put))
            self.next_seq = max(self.next_seq, next(seqs, 0))

    def _apply_record(self, record: journal.Record) -> None:
        match record:
            case Header():
                self._begin(record)
            case Put():
                self._put(record)
            case Done(spans=spans, loss=loss):
                self._finish(spans)
                if loss is not None:
                    self.ledger.add(loss)
            case Committed():
                self.stored, self.saved_end = record.stored, record.saved_end

    def _begin(self, header: Header) -> None:
        if header.next_seq == header.base:  # a new epoch: the numbers between were never given out
            self.next_seq = max(self.next_seq, header.next_seq)
        self._reach(header.next_seq)

    def _finish(self, spans: Sequence[Span]) -> None:
        for start, end in spans:
            self.stored -= sum(b - a for a, b in self.done.gaps(start, min(end, self.saved_end)))
            self.done.add(start, end)

    def _reach(self, seq: int) -> None:
        """Go on at `seq`. What is skipped was given out, so it is missing unless it turns out to be finished."""
        self.missing.add(self.next_seq, seq)
        self.next_seq = max(self.next_seq, seq)

    def _put(self, put: Put) -> None:
        self.ledger.subtract(put.reported)
        if put.seq + len(put.events) <= self.meta.next_seq:
            return  # the store has had it already
        self._reach(put.seq)
        self.missing.remove(put.seq, put.seq + len(put.events))
        self.puts.append(put)
        self.next_seq = max(self.next_seq, put.seq + len(put.events))

    def live(self) -> list[Group]:
        """Return the events that only the journal has and that are not finished."""
        pieces: list[Group] = []
        taken = Intervals()
        for put in sorted(self.puts, key=lambda put: put.seq):
            for a, b in self.done.gaps(max(put.seq, self.meta.next_seq), put.seq + len(put.events)):
                for start, end in taken.gaps(a, b):
                    events = put.events[start - put.seq : end - put.seq]
                    pieces.append(Group(start, len(events), put.first_ms, put.last_ms, events))
            taken.add(put.seq, put.seq + len(put.events))
        return pieces

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


def replay(meta: Meta, damage: Damage | None, files: Sequence[JournalFile]) -> Replay:
    """Apply the files that are newer than `meta`, oldest first."""
    state = Replay(
        meta=meta,
        damage=damage,
        ledger=Ledger(meta.losses),
        done=Intervals(meta.done),
        next_seq=meta.next_seq,
        number=meta.journal,
        stored=damage.expected if damage else meta.depth,
        saved_end=meta.next_seq,
        puts=[],
        missing=Intervals(),
    )
    for file in files:
        state.apply(file)
    return state


def count_lost(state: Replay, depth: int) -> Loss | None:
    """Return what is known to be gone: from the store, which has `depth` unsent events, and from the journal."""
    count = max(0, state.stored - depth) + sum(end - start for start, end in state.missing_spans())
    if not count:
        return None
    times = [ms for put in state.puts for ms in (put.first_ms, put.last_ms)]
    if state.damage is not None:
        times += [state.damage.first_ms, state.damage.last_ms]
    return Loss("damaged", count, min(times, default=0), max(times, default=0))


class Recovered(msgspec.Struct, frozen=True, kw_only=True):
    """What the queue goes on with.

    `depth` unsent events are in the store, below `stored_end`; `fresh` ones only in the journal files `files`.
    `fault` is set where the store could be read but not written: it does not know the epoch then.
    """

    store: Store
    stored_end: int
    depth: int
    oldest_ms: int | None
    done: Intervals
    fresh: list[Group]
    losses: list[Loss]
    lost: Loss | None
    next_seq: int
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
) -> Recovered:
    """Open the store and replay the journal files with numbers below `before` (others are in use).

    Raises OSError or sqlite3.Error where the disk cannot be read or written at all.
    """
    store = Store(directory)
    try:
        return _recover(store, journal_directories, before=before, boot_id=boot_id, next_epoch=next_epoch)
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
) -> Recovered:
    found = [(number, path) for number, path in journal.find(journal_directories) if number < before]
    covered = store.meta.journal
    journal.remove(Sealed(number, path, 0) for number, path in found if number <= covered)
    left = [(number, path) for number, path in found if number > covered]
    files = [journal.read(number, path) for number, path in left if path.stat().st_size]
    state, depth = _compare(store, files)
    if state.damage is not store.damage:  # it was the comparison that found the damage
        state, depth = _compare(store, files)
    damage, store.damage = store.damage, None
    lost = count_lost(state, depth)
    if lost is not None:
        state.ledger.add(lost)
    goes_on = damage is None and state.goes_on(boot_id)
    epoch, base, fault = _settle_epoch(store, state, boot_id, next_epoch, goes_on=goes_on)
    return Recovered(
        store=store,
        stored_end=state.meta.next_seq,
        depth=depth,
        oldest_ms=store.oldest_ms(),
        done=state.done,
        fresh=state.live(),
        losses=state.ledger.entries(),
        lost=lost,
        next_seq=state.next_seq,
        epoch=epoch,
        base=base,
        files=[Sealed(number, path, state.next_seq) for number, path in left],
        fault=fault,
    )


def _compare(store: Store, files: Sequence[JournalFile]) -> tuple[Replay, int]:
    """Replay the files, and return also how many unsent events the store has after that."""
    meta = store.meta
    state = replay(meta, store.damage, files)
    finished = [gap for a, b in state.done.clip(0, meta.next_seq) for gap in Intervals(meta.done).gaps(a, b)]
    return state, meta.depth - store.overlap(finished)


def _settle_epoch(
    store: Store, state: Replay, boot_id: str, next_epoch: Callable[[int], int], *, goes_on: bool
) -> tuple[int, int, sqlite3.Error | None]:
    """Go on in the epoch, or begin a new one. The store knows it before the first event has a number of it."""
    epoch, base = store.meta.epoch, store.meta.base
    known = max(epoch, state.header.epoch if state.header else 0)
    if not goes_on:
        epoch, base = next_epoch(known), state.next_seq
    meta = msgspec.structs.replace(store.meta, epoch=epoch, base=base, boot_id=boot_id, running=True)
    if meta == store.meta:
        return epoch, base, None
    try:
        store.note(meta)
    except sqlite3.Error as error:
        return next_epoch(max(known, epoch)), state.next_seq, error
    return epoch, base, None
