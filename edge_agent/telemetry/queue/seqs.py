"""Sequence numbers of events inside the queue: one row for each priority, all in one space.

The top bits of a seq say the priority, the least important lowest. So the order of seqs is that in which events
are given up, and a database keeps those of one priority together. A state has one seq for each priority, in the
order of `Priority`; whoever reads such a list may index it by priority.
"""

from collections.abc import Iterable

from edge_agent.telemetry.events.priority import Priority
from edge_agent.telemetry.queue.intervals import Span

_BITS = 60


def lane(priority: Priority) -> Span:
    """Return the seqs that events of the priority may have; the first one is never given out."""
    start = (Priority.RESULT - priority) << _BITS
    return start, start + (1 << _BITS)


def priority_of(seq: int) -> Priority:
    return Priority(Priority.RESULT - (seq >> _BITS))


def first_seqs(number: int = 1) -> list[int]:
    """Return the `number`-th seq of each priority."""
    return [lane(priority)[0] + number for priority in Priority]


def given_out(next_seqs: Iterable[int]) -> int:
    """Return how many seqs have been given out, when these come next."""
    return sum((seq & ((1 << _BITS) - 1)) - 1 for seq in next_seqs)
