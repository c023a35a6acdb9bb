"""What a rule asks of a result. Each condition has two answers: for a rule whose condition is not met yet, and for one
whose condition has been met by the result before, which hysteresis lets go on a little longer.

A confidence, score or value that is no number never meets anything.
"""

from collections.abc import Callable, Set

from msgspec import UNSET

from edge_agent.records import ResultEvent

# Called with the result, and whether the result before it has met the condition.
Condition = Callable[[ResultEvent, bool], bool]


def confident(*, min_confidence: float, hysteresis: float) -> Condition:
    """Return the condition that the prediction is that sure. A verdict on a value has no confidence: it counts as 0."""
    begins, goes_on = min_confidence, _difference(min_confidence, hysteresis)

    def met(event: ResultEvent, before: bool) -> bool:  # noqa: FBT001 - as all conditions are called
        confidence = event.confidence
        if confidence is UNSET:
            return begins <= 0 and event.prediction is not UNSET
        return confidence >= (goes_on if before else begins)

    return met


def valued(labels: Set[str], *, above: float | None, below: float | None, hysteresis: float) -> Condition:
    """Return the condition that the value lies above, below, or between.

    With labels, it is any value of such a name, for a model that gives several; or the first one, while the prediction,
    which is what the limits say of it, is one of the labels.
    """
    begins = (above, below)
    goes_on = (
        None if above is None else _difference(above, hysteresis),
        None if below is None else _difference(below, -hysteresis),
    )

    def met(event: ResultEvent, before: bool) -> bool:  # noqa: FBT001
        low, high = goes_on if before else begins
        return any((low is None or value > low) and (high is None or value < high) for value in values(event, labels))

    return met


def values(event: ResultEvent, labels: Set[str]) -> list[float]:
    """Return the values that a rule with these labels is about."""
    if event.value is UNSET:
        return []
    if not labels or event.prediction in labels:
        return [event.value]
    return [each.score for each in event.results if each.label in labels]


def counted(
    labels: Set[str], *, min_confidence: float, hysteresis: float, min_count: int | None, max_count: int | None
) -> Condition:
    """Return the condition that there are so many objects of one of the labels (none: of any) and with that score.

    Meanwhile a weaker object may stand in for those that there must be, and does not count as one too many.
    """
    weaker, stronger = _difference(min_confidence, hysteresis), _difference(min_confidence, -hysteresis)

    def met(event: ResultEvent, before: bool) -> bool:  # noqa: FBT001
        if min_count is not None and count(event, labels, weaker if before else min_confidence) < min_count:
            return False
        return max_count is None or count(event, labels, stronger if before else min_confidence) <= max_count

    return met


def count(event: ResultEvent, labels: Set[str], min_score: float) -> int:
    """Return how many objects of one of the labels (none: of any) have at least that score."""
    return sum(1 for each in event.results if each.score >= min_score and (not labels or each.label in labels))


def _difference(limit: float, hysteresis: float) -> float:
    return round(limit - hysteresis, 9)  # 0.8 - 0.1 is to be 0.7
