"""The unsent events of one priority in their order, and who has them: memory, the store, or a batch that is out.

    front  |  region [cursor, region_end) in the store, not loaded  |  fresh (in memory, from `saved_end` on)

`front` was loaded from the store or put back. `fresh` is not in the store yet. Every seq below `saved_end`
that is not finished stands in a group of the store. No I/O here, so that each step is whole.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence

from edge_agent.telemetry.events.priority import Priority
from edge_agent.telemetry.queue.groups import MAX_BYTES, MAX_EVENTS, Group
from edge_agent.telemetry.queue.intervals import Intervals, Span
from edge_agent.telemetry.queue.seqs import lane, priority_of

# What an event takes in memory beside its bytes: the object, its place in a list, rounding.
OVERHEAD = 64


class Run:
    """Consecutive events in memory."""

    __slots__ = ("events", "first_ms", "last_ms", "length", "seq")

    def __init__(self, seq: int, events: list[bytes], first_ms: int, last_ms: int, length: int) -> None:
        self.seq = seq
        self.events = events
        self.first_ms = first_ms
        self.last_ms = last_ms
        self.length = length  # bytes of all events

    @property
    def end(self) -> int:
        return self.seq + len(self.events)

    @property
    def size(self) -> int:
        return self.length + OVERHEAD * len(self.events)

    def cut(self, start: int, end: int) -> "Run":
        start, end = max(start, self.seq), min(end, self.end)
        if (start, end) == (self.seq, self.end):
            return self
        events = self.events[start - self.seq : end - self.seq]
        return Run(start, events, self.first_ms, self.last_ms, sum(map(len, events)))


class Batch:
    """Events of one priority that somebody is sending: `events`, oldest first. Hand it back by `ack` or `release`."""

    def __init__(self, runs: Sequence[Run]) -> None:
        self.priority = priority_of(runs[0].seq)
        self.events: Sequence[bytes] = (
            runs[0].events if len(runs) == 1 else [event for run in runs for event in run.events]
        )
        self._spans = [(run.seq, run.end) for run in runs]
        self.runs = list(runs)  # without what was rejected

    def seq_of(self, index: int) -> int:
        if not 0 <= index < len(self.events):
            raise IndexError(f"the batch has {len(self.events)} events, no number {index}")
        for start, end in self._spans:
            if index < end - start:
                break
            index -= end - start
        return start + index

    def live(self) -> list[Span]:
        return [(run.seq, run.end) for run in self.runs]

    def remove(self, seq: int) -> Run:
        """Take one event out of what will be acknowledged and return it. Raises ValueError if it is not there."""
        for position, run in enumerate(self.runs):
            if run.seq <= seq < run.end:
                pieces = [run.cut(a, b) for a, b in ((run.seq, seq), (seq + 1, run.end)) if a < b]
                self.runs[position : position + 1] = pieces
                return run.cut(seq, seq + 1)
        raise ValueError("this event of the batch was rejected before")


class Backlog:
    """All counters are kept, never computed: a backlog of a gigabyte opens like an empty one."""

    def __init__(self, priority: Priority, next_seq: int) -> None:
        self.lane = lane(priority)
        self.next_seq = next_seq
        self.saved_end = next_seq  # every live event below it is in the store
        self.store_end = next_seq  # the same, should the transaction under way succeed
        self.cursor = self.region_end = self.lane[0]
        self.done = Intervals()  # finished, but its group may still stand in the store
        self.depth = 0
        self.memory = 0  # bytes of fresh events, out or not
        self.out: set[Batch] = set()
        self._front: deque[Run] = deque()
        self._fresh: deque[Run] = deque()
        self._tail: Run | None = None

    def adopt(self, stored_end: int, depth: int, done: Intervals, fresh: Sequence[Group], next_seq: int) -> None:
        """Put what was recovered before what is there."""
        self.next_seq = max(self.next_seq, next_seq)
        runs = [_run(group) for group in fresh]
        self._fresh.extendleft(reversed(runs))
        self.memory += sum(run.size for run in runs)
        self.depth += depth + sum(len(run.events) for run in runs)
        self.cursor, self.region_end = self.lane[0] if depth else stored_end, stored_end
        self.saved_end = self.store_end = stored_end
        for start, end in done:
            self.done.add(start, min(end, stored_end))

    # -- in

    def put(self, events: Sequence[bytes], length: int, first_ms: int, last_ms: int) -> None:
        tail = self._tail
        count = len(events)
        if tail is not None and len(tail.events) < MAX_EVENTS and self._fresh and self._fresh[-1] is tail:
            tail.events.extend(events)
            tail.first_ms = min(tail.first_ms, first_ms)
            tail.last_ms = max(tail.last_ms, last_ms)
            tail.length += length
        else:
            self._tail = Run(self.next_seq, list(events), first_ms, last_ms, length)
            self._fresh.append(self._tail)
        self.next_seq += count
        self.depth += count
        self.memory += length + OVERHEAD * count

    # -- out

    @property
    def available(self) -> bool:
        """Whether `take` may find something."""
        return bool(self._front or self._fresh) or self.cursor < self.region_end

    def wants(self, max_events: int, max_bytes: int) -> tuple[int, int] | None:
        """Return how many events and bytes to load before `take`, or None where that is not needed."""
        events = max_events - sum(len(run.events) for run in self._front)
        length = max_bytes - sum(run.length for run in self._front)
        return (events, length) if self.cursor < self.region_end and events > 0 and length > 0 else None

    def take(self, max_events: int, max_bytes: int) -> Batch | None:
        """Take the oldest events in memory: at least one, if there is one."""
        runs: list[Run] = []
        for source in (self._front, self._fresh):
            while source and max_events > 0 and max_bytes > 0:
                run = _fitting(source[0], max_events, max_bytes, at_least_one=not runs)
                if run is None:
                    return self._give(runs)
                whole = source.popleft()
                if run is not whole:
                    source.appendleft(whole.cut(run.end, whole.end))
                runs.append(run)
                max_events -= len(run.events)
                max_bytes -= run.length
        return self._give(runs)

    def _give(self, runs: list[Run]) -> Batch | None:
        if not runs:
            return None
        batch = Batch(runs)
        self.out.add(batch)
        return batch

    def loaded(self, group: Group) -> None:
        """Take over a group of the region, without what is out or finished."""
        run = _run(group)
        pieces = [run.cut(start, end) for start, end in self._pass_by(group)]
        if pieces and self._front and pieces[0].seq < self._front[-1].seq:  # after `rewind`
            self._front = _inserted(self._front, *pieces)
        else:
            self._front.extend(pieces)

    def unreadable(self, group: Group) -> list[Span]:
        """Skip a damaged group of the region and return which events are lost by that."""
        return self.finish(self._pass_by(group))

    def _pass_by(self, group: Group) -> list[Span]:
        """Move the cursor behind a group, and return what of it is to be sent and not in memory."""
        claimed = self._in_memory() if self._front and group.seq < self._front[-1].end else self.out_spans()
        spans = [
            gap
            for start, end in self.done.gaps(max(group.seq, self.cursor), min(group.end, self.region_end))
            for gap in claimed.gaps(start, end)
        ]
        self.cursor = max(self.cursor, group.end)
        return spans

    def _in_memory(self) -> Intervals:
        """Return what was loaded, out or not."""
        return Intervals([*self.out_spans(), *((run.seq, run.end) for run in self._front)])

    def rewind(self) -> None:
        """Go through the store from its beginning again. What was loaded stays: the store may have lost it since."""
        self.cursor = self.lane[0]

    def region(self) -> tuple[list[Span], int]:
        """Return the unsent seqs that only the store has, with gaps, and how many events there should be."""
        claimed = Intervals([*self.done, *self._in_memory()])
        runs = [*self._front, *self._fresh, *(run for batch in self.out for run in batch.runs)]
        return claimed.gaps(self.cursor, self.region_end), self.depth - sum(len(run.events) for run in runs)

    def misses(self, groups: Sequence[Group]) -> bool:
        """Return whether more is missing before and between these groups than is known to be gone."""
        ends = [self.cursor, *(group.end for group in groups)]
        holes = Intervals((end, group.seq) for end, group in zip(ends, groups, strict=False) if end < group.seq)
        if not holes:
            return False
        spans, expected = self.region()
        return sum(holes.overlap(*span) for span in spans) > sum(end - start for start, end in spans) - expected

    def stored(self) -> int:
        """Return how many unsent events are in the store."""
        return self.depth - sum(len(run.events) for run in self._unsaved())

    def unload(self) -> None:
        """Forget what was loaded: it is in the store."""
        if self._front:
            self.cursor = min(self.cursor, self._front[0].seq)
            self._front.clear()

    # -- finished

    def ack(self, batch: Batch) -> list[Span]:
        """Finish a batch and return its seqs. Raises ValueError if it is not out."""
        self._take_back(batch)
        self._forget(batch.runs)
        return self.finish(batch.live())

    def release(self, batch: Batch) -> None:
        """Put a batch back in its place. Raises ValueError if it is not out."""
        self._take_back(batch)
        for run in batch.runs:
            if run.seq >= self.saved_end:
                self._fresh = _inserted(self._fresh, run)
                self._tail = None
            elif run.seq < self.cursor:  # what stands behind the cursor will be loaded again
                self._front = _inserted(self._front, run.cut(run.seq, self.cursor))

    def reject(self, batch: Batch, index: int) -> Run:
        """Finish one event of a batch and return it."""
        if batch not in self.out:
            raise ValueError("the batch is not out")
        run = batch.remove(batch.seq_of(index))
        self._forget([run])
        self.finish([(run.seq, run.end)])
        return run

    def drop_fresh(self, excess: int, before: int | None = None) -> list[Run]:
        """Drop the oldest fresh events, below `before` if given, until `excess` bytes are free. Return them."""
        dropped: list[Run] = []
        while excess > 0 and self._fresh and (before is None or self._fresh[0].end <= before):
            run = self._fresh.popleft()
            size = count = 0
            while count < len(run.events) and size < excess:
                size += len(run.events[count]) + OVERHEAD
                count += 1
            if count < len(run.events):
                self._fresh.appendleft(run.cut(run.seq + count, run.end))
            dropped.append(run.cut(run.seq, run.seq + count))
            excess -= size
            self.memory -= size
        self.finish([(run.seq, run.end) for run in dropped])
        return dropped

    def finish(self, spans: list[Span]) -> list[Span]:
        for start, end in spans:
            self.depth -= end - start
            self.done.add(start, min(end, self.store_end))
        return spans

    def _forget(self, runs: Iterable[Run]) -> None:
        self.memory -= sum(run.size for run in runs if run.seq >= self.saved_end)

    def _take_back(self, batch: Batch) -> None:
        if batch not in self.out:
            raise ValueError("the batch is not out: it was handed back before")
        self.out.remove(batch)

    # -- saved

    def out_spans(self) -> Intervals:
        return Intervals(span for batch in self.out for span in batch.live())

    def first_unsaved(self) -> int | None:
        """Return the oldest seq that is unsent and not in the store."""
        return min((run.seq for run in self._unsaved()), default=None)

    def _unsaved(self) -> Iterator[Run]:
        yield from self._fresh
        for batch in self.out:
            yield from (run for run in batch.runs if run.seq >= self.saved_end)

    def begin_run(self) -> None:
        """Do not extend the newest run any more, so that its time range stays narrow."""
        self._tail = None

    def begin_save(self) -> list[Group]:
        """Return all events that are not in the store, as groups to be written."""
        self.store_end = self.next_seq
        self.begin_run()
        return self.unsaved()

    def unsaved(self) -> list[Group]:
        """Return all unsent events that are not in the store."""
        return list(_groups(sorted(self._unsaved(), key=lambda run: run.seq)))

    def end_save(self, *, remaining: Intervals, saved: Intervals) -> None:
        """Note that what `begin_save` returned is in the store now; `saved` was `done` at that time.

        Of that, the store still has the finished seqs `remaining`.
        """
        since = [gap for start, end in self.done for gap in saved.gaps(start, end)]
        self.done = Intervals([*remaining, *since])
        end = self.store_end
        saved_runs = [run for run in self._fresh if run.seq < end]
        if self.cursor >= self.region_end:
            self.cursor = saved_runs[0].seq if saved_runs else end
        self.region_end = self.saved_end = end
        self._fresh = deque(run for run in self._fresh if run.seq >= end)
        self.memory = sum(run.size for run in self._unsaved())

    def oldest_ms(self) -> int | None:
        """Return the time of the oldest event in memory."""
        runs = [*self._front, *self._fresh][:1]
        runs += [batch.runs[0] for batch in self.out if batch.runs]
        return min((run.first_ms for run in runs), default=None)


def _run(group: Group) -> Run:
    return Run(group.seq, group.events, group.first_ms, group.last_ms, sum(map(len, group.events)))


def _inserted(runs: deque[Run], *others: Run) -> deque[Run]:
    return deque(sorted([*runs, *others], key=lambda run: run.seq))


def _fitting(run: Run, max_events: int, max_bytes: int, *, at_least_one: bool) -> Run | None:
    if len(run.events) <= max_events and run.length <= max_bytes:
        return run
    count = length = 0
    for event in run.events[:max_events]:
        if length + len(event) > max_bytes:
            break
        length += len(event)
        count += 1
    count = max(count, 1) if at_least_one else count
    return run.cut(run.seq, run.seq + count) if count else None


def _groups(runs: Iterable[Run]) -> Iterator[Group]:
    """Join consecutive runs, and cut at `MAX_EVENTS` events or about `MAX_BYTES` bytes."""
    events: list[bytes] = []
    seq = length = first_ms = last_ms = 0
    for run in runs:
        for piece in _pieces(run):
            full = len(events) + len(piece.events) > MAX_EVENTS or length + piece.length > MAX_BYTES
            if events and (full or piece.seq != seq + len(events)):
                yield Group(seq, len(events), first_ms, last_ms, events)
                events, length = [], 0
            if not events:
                seq, first_ms, last_ms = piece.seq, piece.first_ms, piece.last_ms
            events += piece.events
            length += piece.length
            first_ms, last_ms = min(first_ms, piece.first_ms), max(last_ms, piece.last_ms)
    if events:
        yield Group(seq, len(events), first_ms, last_ms, events)


def _pieces(run: Run) -> Iterator[Run]:
    position = run.seq
    while position < run.end:
        rest = run.cut(position, run.end)
        piece = _fitting(rest, MAX_EVENTS, MAX_BYTES, at_least_one=True)
        assert piece is not None  # noqa: S101  # at least one event always fits
        yield piece
        position = piece.end
