"""The backlogs of all priorities, and what they come to together."""

import sys
from collections.abc import Iterator, Sequence

from edge_agent.telemetry.events.priority import Priority
from edge_agent.telemetry.queue.backlog import Backlog, Run
from edge_agent.telemetry.queue.groups import Group
from edge_agent.telemetry.queue.intervals import Intervals, Span
from edge_agent.telemetry.queue.seqs import given_out, priority_of


class Lanes:
    """One `Backlog` for each priority: `lanes[Priority.ALARM]`, or `all`, the most important first.

    `given` is how many seqs have been given out. It is kept, because each `put` asks, and counts it up.
    """

    def __init__(self, next_seqs: Sequence[int]) -> None:
        self.all = tuple(Backlog(priority, next_seqs[priority]) for priority in Priority)
        self.given = given_out(next_seqs)

    def __getitem__(self, priority: Priority) -> Backlog:
        return self.all[priority]

    def __iter__(self) -> Iterator[Backlog]:
        return iter(self.all)

    def adopt(
        self,
        stored_ends: Sequence[int],
        depths: Sequence[int],
        done: Intervals,
        fresh: Sequence[Group],
        next_seqs: Sequence[int],
    ) -> None:
        """Put what was recovered before what is there."""
        for priority, backlog in zip(Priority, self.all, strict=True):
            groups = [group for group in fresh if priority_of(group.seq) is priority]
            finished = Intervals(done.clip(*backlog.lane))
            backlog.adopt(stored_ends[priority], depths[priority], finished, groups, next_seqs[priority])
        self.given = given_out(self.next_seqs)

    # -- together

    @property
    def next_seqs(self) -> list[int]:
        return [backlog.next_seq for backlog in self.all]

    @property
    def saved_ends(self) -> list[int]:
        return [backlog.saved_end for backlog in self.all]

    @property
    def stored(self) -> list[int]:
        """How many unsent events of each priority are in the store."""
        return [backlog.stored() for backlog in self.all]

    @property
    def depths(self) -> list[int]:
        return [backlog.depth for backlog in self.all]

    @property
    def depth(self) -> int:
        return sum(self.depths)

    @property
    def memory(self) -> int:
        alarms, notices, health, results = self.all  # written out, because each `put` asks
        return alarms.memory + notices.memory + health.memory + results.memory

    @property
    def done(self) -> list[Span]:
        """The finished seqs of all lanes, in order."""
        return [span for backlog in reversed(self.all) for span in backlog.done]

    def finished_below_saved(self) -> bool:
        """Whether the store has events that are finished."""
        return any(backlog.done.clip(backlog.lane[0], backlog.saved_end) for backlog in self.all)

    def out_spans(self) -> Intervals:
        return Intervals(span for backlog in self.all for span in backlog.out_spans())

    def first_unsaved(self) -> list[int | None]:
        """Return the oldest seq of each priority that is unsent and not in the store."""
        return [backlog.first_unsaved() for backlog in self.all]

    def loaded_all(self) -> bool:
        return all(backlog.cursor >= backlog.region_end for backlog in self.all)

    def oldest_ms(self) -> int | None:
        """Return the time of the oldest event in memory."""
        return min((ms for backlog in self.all if (ms := backlog.oldest_ms()) is not None), default=None)

    def available(self, least: Priority) -> bool:
        """Whether `take` may find something that is at least so important."""
        return any(backlog.available for backlog in self.all[: least + 1])

    # -- given up

    def drop_fresh(self, excess: int) -> list[Run]:
        """Drop the oldest of the least important fresh events until `excess` bytes are free. Return them."""
        dropped: list[Run] = []
        for backlog in reversed(self.all):
            runs = backlog.drop_fresh(excess)
            excess -= sum(run.size for run in runs)
            dropped += runs
        return dropped

    def drop_older(self, ends: Sequence[int]) -> list[Run]:
        """Drop the fresh events below `ends` and return them."""
        return [
            run
            for backlog, end in zip(self.all, ends, strict=True)
            for run in backlog.drop_fresh(sys.maxsize, before=end)
        ]

    # -- saved

    def begin_run(self) -> None:
        for backlog in self.all:
            backlog.begin_run()

    def unload(self) -> None:
        """Forget what was loaded: it is in the store."""
        for backlog in self.all:
            backlog.unload()

    def rewind(self) -> None:
        """Go through the store from its beginning again."""
        for backlog in self.all:
            backlog.rewind()

    def stored_below(self, ends: Sequence[int]) -> list[Span]:
        """Return the seqs below `ends` that are in the store."""
        return [(b.lane[0], min(end, b.region_end)) for b, end in zip(self.all, ends, strict=True)]

    def droppable(self) -> list[Span]:
        """Return the seqs that only the store has, in the order in which they are given up."""
        return [(backlog.cursor, backlog.region_end) for backlog in reversed(self.all)]

    def unsaved(self) -> list[Group]:
        """Return all unsent events that are not in the store."""
        return [group for backlog in reversed(self.all) for group in backlog.unsaved()]

    def begin_save(self) -> list[Group]:
        """Return all events that are not in the store, as groups to be written."""
        return [group for backlog in reversed(self.all) for group in backlog.begin_save()]

    def end_save(self, *, remaining: Intervals, saved: Intervals) -> None:
        """Note that what `begin_save` returned is in the store now; `saved` was `done` at that time.

        Of that, the store still has the finished seqs `remaining`.
        """
        for backlog in self.all:
            left = Intervals(remaining.clip(*backlog.lane))
            backlog.end_save(remaining=left, saved=Intervals(saved.clip(*backlog.lane)))
