"""Whether two detectors have found the same objects in a picture."""

from collections.abc import Sequence

import numpy as np
from msgspec import UNSET

from edge_agent.inference.tasks.boxes import overlaps
from edge_agent.records import Score

# Intersection over union from which two boxes are those of one object, as in the PASCAL VOC challenge.
SAME_PLACE = 0.5


def compare_objects(
    expected: Sequence[Score], found: Sequence[Score], tolerance: float, *, threshold: float, most: int
) -> str:
    """Say which object one has and the other has not, or empty.

    An object is the same if class and place are, and the scores are no more than `tolerance` apart. Both lists have the
    objects of at least `threshold`, and of these the best `most`: what comes close to either end may be missing in one.
    """
    for ours, theirs, words in (
        (expected, found, "is expected and not found"),
        (found, expected, "is found and not expected"),
    ):
        # One that is missing there must have been cut off, by the threshold or by better ones.
        surely = max(threshold, theirs[-1].score if len(theirs) >= most else threshold) + tolerance
        for each in _unmatched(ours, theirs, tolerance):
            if each.score > surely:
                return f"{each.label!a} with a score of {each.score:.2g} {words}"
    return ""


def _unmatched(ours: Sequence[Score], theirs: Sequence[Score], tolerance: float) -> list[Score]:
    left, alone = list(theirs), []
    for each in ours:
        same = [other for other in left if _is_same(each, other, tolerance)]
        if same:
            # Of several in one place, the one that lies best: the others may be of other objects.
            left.remove(max(same, key=lambda other: _overlap(each, other)))
        else:
            alone.append(each)
    return alone


def _is_same(one: Score, other: Score, tolerance: float) -> bool:
    close = abs(one.score - other.score) <= tolerance + 1e-6
    return one.index == other.index and close and _overlap(one, other) >= SAME_PLACE


def _overlap(one: Score, other: Score) -> float:
    if one.box is UNSET or other.box is UNSET:
        return 0.0
    first, second = (np.array([box.left, box.top, box.right, box.bottom]) for box in (one.box, other.box))
    return float(overlaps(first, second[np.newaxis])[0])
