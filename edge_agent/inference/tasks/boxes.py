"""Boxes of objects: from the model's input back to the picture, and one box for each object.

Boxes are arrays (n, 4) of left, top, right, bottom.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from edge_agent.inference.interpreter.inputs import Placement

Array = npt.NDArray[Any]


def corners_of_centers(boxes: Array) -> Array:
    """Return the boxes given as center x, center y, width and height."""
    center, half = boxes[:, :2], boxes[:, 2:] / 2
    # What a model overflowed to is no box, and is left out later.
    with np.errstate(invalid="ignore"):
        return np.concatenate([center - half, center + half], axis=1)


def proper(boxes: Array) -> Array:
    """Tell which boxes are boxes: all numbers finite, and left and top no larger than right and bottom."""
    return np.asarray(np.isfinite(boxes).all(axis=1) & (boxes[:, :2] <= boxes[:, 2:]).all(axis=1))


def to_picture(boxes: Array, placement: Placement | None) -> Array:
    """Return boxes that are shares of the model's input as shares of the picture in it, cut off at its edges."""
    if placement is not None:
        offset = np.array([placement.left, placement.top] * 2)
        size = np.array([placement.right - placement.left, placement.bottom - placement.top] * 2)
        boxes = (boxes - offset) / size
    return np.clip(boxes, 0.0, 1.0)


def visible(boxes: Array) -> Array:
    """Tell which boxes have an area."""
    return np.asarray((boxes[:, :2] < boxes[:, 2:]).all(axis=1))


def to_pixels(boxes: Array, width: int, height: int) -> Array:
    """Return shares of a picture in its pixels, at least one each way; right and bottom are the first ones outside."""
    size = np.array([width, height])
    start = np.minimum(np.rint(boxes[:, :2] * size), size - 1)
    end = np.maximum(np.rint(boxes[:, 2:] * size), start + 1)
    return np.concatenate([start, end], axis=1).astype(np.int64)


def overlaps(box: Array, others: Array) -> Array:
    """Return intersection over union, 0..1, of a box with each of the others."""
    sides = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])
    shared = np.clip(sides, 0.0, None).prod(axis=1)
    together = (box[2:] - box[:2]).prod() + (others[:, 2:] - others[:, :2]).prod(axis=1) - shared
    return np.asarray(np.divide(shared, together, out=np.zeros_like(shared), where=together > 0))


def suppress(boxes: Array, classes: Array, most: int, iou_threshold: float) -> list[int]:
    """Return the rows to keep, at most `most`: of boxes of one class that overlap by more the first one stays.

    The boxes have to be sorted, best first. This is the greedy non-maximum suppression that all such models are
    measured with; it stops as soon as there are enough.
    """
    kept: list[int] = []
    left = np.arange(len(boxes))
    while left.size and len(kept) < most:
        best, left = left[0], left[1:]
        kept.append(int(best))
        apart = overlaps(boxes[best], boxes[left]) <= iou_threshold
        left = left[apart | (classes[left] != classes[best])]
    return kept
