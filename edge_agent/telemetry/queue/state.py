"""The queue as it is in memory: what the journal's headers and the transactions of the store write down."""

from collections import Counter

from edge_agent.telemetry.queue.journal import Header
from edge_agent.telemetry.queue.lanes import Lanes
from edge_agent.telemetry.queue.losses import Books
from edge_agent.telemetry.queue.seqs import first_seqs
from edge_agent.telemetry.queue.store import Dropped
from edge_agent.telemetry.queue.store_file import Meta


class State:
    """`base` seqs had been given out when the epoch began.

    `dropped` counts events of the queue that were lost, by cause, since the start. `alone`: what is on disk could not
    be read yet. `stored_oldest_ms` is the time of the oldest event in the store.
    """

    def __init__(self, boot_id: str) -> None:
        self.epoch = self.base = 0
        self.alone = False
        self.lanes = Lanes(first_seqs())
        self.books = Books()
        self.dropped: Counter[str] = Counter()
        self.stored_oldest_ms: int | None = None
        self._boot_id = boot_id

    def begin_far_above(self, epoch: int) -> None:
        """Begin an epoch with seqs far above those in the store, so that it can be taken in once it can be read."""
        self.alone = True
        self.lanes = Lanes(first_seqs(epoch << 16))
        self.epoch, self.base = epoch, self.lanes.given

    def count(self, dropped: Dropped) -> None:
        """Take over what a transaction of the store has dropped and counted."""
        for priority, loss in dropped.losses:
            self.lanes[priority].depth -= loss.count
            self.dropped[loss.cause] += loss.count
            self.books.ledger.add(loss)
        self.books.restore(dropped.spans)

    def header(self) -> Header:
        return Header(
            boot_id=self._boot_id,
            epoch=self.epoch,
            base=self.base,
            next_seqs=self.lanes.next_seqs,
            stored=self.lanes.stored,
            saved_ends=self.lanes.saved_ends,
            losses=self.books.ledger.entries(),
            reports=self.books.reports,
            done=self.lanes.done,
            alone=self.alone,
        )

    def meta(self, *, journal: int, running: bool, age: float) -> Meta:
        """Return what a transaction writes; `journal` is the last file whose records are in it."""
        return Meta(
            epoch=self.epoch,
            base=self.base,
            next_seqs=self.lanes.next_seqs,
            journal=journal,
            depths=self.lanes.depths,
            running=running,
            boot_id=self._boot_id,
            age=age,
            losses=self.books.ledger.entries(),
            reports=self.books.reports,
            done=self.lanes.done,
        )
