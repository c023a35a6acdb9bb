"""Sets of whole numbers, kept as half-open spans: which events are out, and which are finished."""

from collections.abc import Iterable, Iterator

Span = tuple[int, int]


class Intervals:
    """Disjoint, sorted spans `[start, end)`. Neighbours are merged, so a drained backlog is one span."""

    __slots__ = ("_spans",)

    def __init__(self, spans: Iterable[Span] = ()) -> None:
        self._spans: list[Span] = []
        for start, end in spans:
            self.add(start, end)

    def __iter__(self) -> Iterator[Span]:
        return iter(self._spans)

    def __bool__(self) -> bool:
        return bool(self._spans)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Intervals) and self._spans == other._spans

    __hash__ = None  # type: ignore[assignment]  # mutable

    def __repr__(self) -> str:
        return f"Intervals({self._spans})"

    def copy(self) -> "Intervals":
        other = Intervals()
        other._spans = self._spans.copy()
        return other

    def add(self, start: int, end: int) -> None:
        if start >= end:
            return
        before = [span for span in self._spans if span[1] < start]
        after = [span for span in self._spans if span[0] > end]
        touching = self._spans[len(before) : len(self._spans) - len(after)]
        if touching:
            start, end = min(start, touching[0][0]), max(end, touching[-1][1])
        self._spans = [*before, (start, end), *after]

    def remove(self, start: int, end: int) -> None:
        kept: list[Span] = []
        for a, b in self._spans:
            kept += [(x, y) for x, y in ((a, min(b, start)), (max(a, end), b)) if x < y]
        self._spans = kept

    def clip(self, start: int, end: int) -> list[Span]:
        """Return what of `[start, end)` is in the set."""
        return [(max(a, start), min(b, end)) for a, b in self._spans if a < end and b > start]

    def gaps(self, start: int, end: int) -> list[Span]:
        """Return what of `[start, end)` is not in the set."""
        found: list[Span] = []
        for a, b in self.clip(start, end):
            if start < a:
                found.append((start, a))
            start = b
        if start < end:
            found.append((start, end))
        return found

    def overlap(self, start: int, end: int) -> int:
        """Return how many numbers of `[start, end)` are in the set."""
        return sum(b - a for a, b in self.clip(start, end))
