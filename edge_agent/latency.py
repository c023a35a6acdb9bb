"""How long things take, as a histogram of fixed size: exact counts, quantiles within 3.2 %, at about 0.1 us per value.

The buckets are log-linear, as in HdrHistogram: each power of two is cut into `_PARTS` of equal width, so a bucket is at
most 1/16 of its values wide, and its middle at most 1/32 away from each of them.
"""

from typing import Self

import msgspec

from edge_agent.records import Latency, Quantiles

_BITS = 4
_PARTS = 1 << _BITS
# Up to 2**63 ns, which is as far as the clocks of Linux count.
_BUCKETS = (63 - _BITS + 1) * _PARTS
_MS = 1_000_000


class Tally(msgspec.Struct, frozen=True, array_like=True):
    """What a histogram holds, for the way to another process: the counts of its buckets, without those that are 0."""

    counts: dict[int, int]
    max_ns: int


class Histogram:
    """Durations in nanoseconds, of one thread. Anything below 16 ns counts as 16 ns."""

    __slots__ = ("_counts", "max_ns")

    def __init__(self) -> None:
        self._counts = [0] * _BUCKETS
        self.max_ns = 0

    def add(self, ns: int) -> None:
        """Count one duration."""
        if ns < _PARTS:  # noqa: PLR1730 - max() takes three times as long
            ns = _PARTS
        shift = ns.bit_length() - 5  # _BITS + 1; a name would cost a look-up for every value
        self._counts[(shift << 4) + (ns >> shift)] += 1
        if ns > self.max_ns:  # noqa: PLR1730
            self.max_ns = ns

    def merge(self, tally: Tally) -> Self:
        """Count all durations of another histogram."""
        for bucket, count in tally.counts.items():
            self._counts[bucket] += count
        self.max_ns = max(self.max_ns, tally.max_ns)
        return self

    def take(self) -> Tally:
        """Return what has been counted, and begin at nothing."""
        taken = Tally({bucket: count for bucket, count in enumerate(self._counts) if count}, self.max_ns)
        for bucket in taken.counts:
            self._counts[bucket] = 0
        self.max_ns = 0
        return taken

    @property
    def count(self) -> int:
        """How many durations have been counted."""
        return sum(self._counts)

    def quantile(self, share: float) -> int:
        """Return the duration in ns that this share (0..1) of them does not exceed; 0 when there are none."""
        rank, seen = max(1.0, share * self.count), 0
        for bucket, count in enumerate(self._counts):
            seen += count
            if seen >= rank:
                return min(_middle(bucket), self.max_ns)
        return 0

    def summary(self, stage: str) -> Latency | None:
        """Return what a health event says of this stage, or None when nothing was counted."""
        if not self.count:
            return None
        return Latency(
            stage=stage,
            count=self.count,
            p50_ms=round(self.quantile(0.5) / _MS, 3),
            p90_ms=round(self.quantile(0.9) / _MS, 3),
            p99_ms=round(self.quantile(0.99) / _MS, 3),
            max_ms=round(self.max_ns / _MS, 3),
        )


class SparseHistogram:
    """The same, in as much memory as the durations differ: for many histograms, most of which count little."""

    __slots__ = ("_counts", "max_ns")

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}
        self.max_ns = 0

    def add(self, ns: int) -> None:
        """Count one duration."""
        if ns < _PARTS:  # noqa: PLR1730 - as above
            ns = _PARTS
        shift = ns.bit_length() - 5
        bucket = (shift << 4) + (ns >> shift)
        self._counts[bucket] = self._counts.get(bucket, 0) + 1
        if ns > self.max_ns:  # noqa: PLR1730
            self.max_ns = ns

    def merge(self, other: "SparseHistogram") -> None:
        """Count all durations of another histogram."""
        for bucket, count in other._counts.items():
            self._counts[bucket] = self._counts.get(bucket, 0) + count
        self.max_ns = max(self.max_ns, other.max_ns)

    @property
    def count(self) -> int:
        """How many durations have been counted."""
        return sum(self._counts.values())

    def quantile(self, share: float) -> int:
        """Return the duration in ns that this share (0..1) of them does not exceed; 0 when there are none."""
        rank, seen = max(1.0, share * self.count), 0
        for bucket, count in sorted(self._counts.items()):
            seen += count
            if seen >= rank:
                return min(_middle(bucket), self.max_ns)
        return 0

    def quantiles(self) -> Quantiles:
        """Return what a summary event says of them."""
        return Quantiles(
            p50_ms=round(self.quantile(0.5) / _MS, 3),
            p95_ms=round(self.quantile(0.95) / _MS, 3),
            p99_ms=round(self.quantile(0.99) / _MS, 3),
            max_ms=round(self.max_ns / _MS, 3),
        )


def _middle(bucket: int) -> int:
    shift = max(0, (bucket >> _BITS) - 1)
    return ((bucket - (shift << _BITS)) << shift) + (1 << shift >> 1)
