"""The layouts in which detectors put out their objects.

Files do not say which layout they have: it is found by names, shapes, and, where these leave a choice, by the values.
"""

import math
import re
from collections.abc import Sequence
from typing import Any, Protocol

import msgspec
import numpy as np
import numpy.typing as npt

from edge_agent.inference.interpreter.tensors import TensorInfo
from edge_agent.inference.tasks.base import OutputMismatch, TaskMismatch, listed
from edge_agent.inference.tasks.boxes import corners_of_centers, proper

Array = npt.NDArray[Any]

# More objects than that are in no event; without a threshold a YOLO model has some 10,000 that are none.
MAX_CANDIDATES = 1000
_SIDES = 4
_OBJECTNESS = 5
_END_TO_END = 6
# The pixels that a cell of YOLO's grids is wide and high, and how many boxes each cell may have.
_GRIDS = ((8, 16, 32), (16, 32), (8, 16, 32, 64), (4, 8, 16, 32))
_BOXES_OF_A_CELL = (1, 3)
# Shares of the picture lie about 0..1, pixels go up to the size of the input.
_PIXELS = 2.0


class Candidates(msgspec.Struct, frozen=True):
    """Objects, best first: boxes (n, 4) as left, top, right, bottom in shares of the input, scores (n), classes (n)."""

    boxes: Array
    scores: Array
    classes: Array


class Detector(Protocol):
    """One layout."""

    @property
    def outputs(self) -> tuple[int, ...]:
        """The numbers of the tensors that `read` takes."""

    @property
    def classes(self) -> int | None:
        """How many classes there are, or None where the outputs do not tell."""

    @property
    def overlapping(self) -> bool:
        """Whether each object may come several times."""

    def read(self, outputs: Sequence[Array], threshold: float) -> Candidates:
        """Return the objects with at least this score. Raises OutputMismatch."""


def best_rows(scores: Array, threshold: float) -> Array:
    """Return the rows of the best scores, best first and of equal ones the first, without those that are no numbers."""
    rows = np.flatnonzero((scores >= threshold) & (scores < np.inf))
    if rows.size > MAX_CANDIDATES:
        rows = np.sort(rows[np.argpartition(-scores[rows], MAX_CANDIDATES)[:MAX_CANDIDATES]])
    return rows[np.argsort(-scores[rows], kind="stable")]


class PostProcessed:
    """Models that end in the operation TFLite_Detection_PostProcess: boxes, classes, scores, and mostly a count.

    Boxes (1, N, 4) are ymin, xmin, ymax, xmax in shares of the input, classes and scores (1, N), count (1): rows
    beyond it hold nothing. Converters put the outputs in any order and give them any name. Boxes and count differ in
    shape. Classes and scores do not: names give a first guess, but a class is a whole number, so the values decide.
    """

    overlapping = False
    classes = None

    def __init__(self, outputs: Sequence[TensorInfo]) -> None:
        [self._boxes] = [tensor for tensor in outputs if _is_boxes(tensor)]
        rest = [tensor for tensor in outputs if tensor is not self._boxes]
        # With a single row all three have one value, and the count has the fewest dimensions.
        lists = sorted(rest, key=lambda tensor: (tensor.size != self._boxes.shape[1], -len(tensor.shape)))[:2]
        counts = [tensor for tensor in rest if tensor not in lists]
        told = [_role(tensor) for tensor in lists]
        if set(told) != {"class", "score"}:
            # The operation's own order, and the one that TensorFlow 2 mostly makes of it.
            told = ["class", "score"] if outputs[0] is self._boxes else ["score", "class"]
        self._class, self._score = lists[told.index("class")], lists[told.index("score")]
        self._count = counts[0] if counts else None
        self.outputs = tuple(tensor.index for tensor in (self._boxes, self._class, self._score, *counts))
        self._swapped = False

    @staticmethod
    def fits(outputs: Sequence[TensorInfo]) -> bool:
        """Tell whether the outputs have these shapes."""
        boxes = [tensor for tensor in outputs if _is_boxes(tensor)]
        if len(boxes) != 1 or len(outputs) not in {3, 4}:
            return False
        rest = [tensor for tensor in outputs if tensor is not boxes[0]]
        lists = [tensor for tensor in rest if tensor.size == boxes[0].shape[1]]
        return len(lists) >= 2 and all(tensor in lists or tensor.size == 1 for tensor in rest)  # noqa: PLR2004  see above

    def read(self, outputs: Sequence[Array], threshold: float) -> Candidates:
        """Return the objects with at least this score. Raises OutputMismatch."""
        count = self._boxes.shape[1]
        if self._count is not None:
            told = self._count.real(outputs[3]).item()
            count = max(0, min(count, round(told))) if np.isfinite(told) else 0
        pair = [
            (tensor, tensor.real(values).reshape(-1)[:count])
            for tensor, values in ((self._class, outputs[1]), (self._score, outputs[2]))
        ]
        self._learn_order(pair)
        (_, classes), (_, scores) = reversed(pair) if self._swapped else pair
        rows = best_rows(scores, threshold)
        boxes = self._boxes.real(outputs[0]).reshape(-1, _SIDES)[rows]
        return Candidates(boxes[:, [1, 0, 3, 2]], scores[rows], np.rint(classes[rows]).astype(np.int64))

    def _learn_order(self, pair: Sequence[tuple[TensorInfo, Array]]) -> None:
        whole = [_is_whole(tensor, values) for tensor, values in pair]
        if not any(whole):
            raise OutputMismatch(
                f"neither '{self._class.name}' nor '{self._score.name}' holds the numbers of classes, which are whole"
            )
        large = [bool((values > 1.5).any()) for _, values in pair]  # noqa: PLR2004  a score is at most 1
        # Where no object is found, or all are of the first two classes and certain, what was known goes on.
        if whole[0] != whole[1]:
            self._swapped = whole[1]
        elif large[0] != large[1]:
            self._swapped = large[1]


class BoxesAndScores:
    """Models without that operation: boxes (1, N, 4), also ymin, xmin, ymax, xmax, and scores (1, N, classes)."""

    overlapping = True

    def __init__(self, outputs: Sequence[TensorInfo], size: tuple[int, int]) -> None:
        boxes = [tensor for tensor in outputs if _is_boxes(tensor)]
        if len(boxes) > 1:
            boxes = [tensor for tensor in boxes if _role(tensor) == "box"]
            if len(boxes) != 1:
                raise TaskMismatch(
                    f"no detector: {' and '.join(repr(tensor.name) for tensor in outputs)} could both be the boxes; a "
                    "signature that names them would tell"
                )
        [self._boxes] = boxes
        [self._scores] = [tensor for tensor in outputs if tensor is not self._boxes]
        self.outputs = (self._boxes.index, self._scores.index)
        self.classes = self._scores.shape[2]
        self._units = _Units(size)
        self._looked_at = False

    @staticmethod
    def fits(outputs: Sequence[TensorInfo]) -> bool:
        """Tell whether the outputs have these shapes."""
        boxes = [tensor for tensor in outputs if _is_boxes(tensor)]
        same_length = len({tensor.shape[:2] for tensor in outputs}) == 1
        return len(outputs) == 2 and bool(boxes) and same_length and all(len(each.shape) == 3 for each in outputs)  # noqa: PLR2004

    def read(self, outputs: Sequence[Array], threshold: float) -> Candidates:
        """Return the objects with at least this score."""
        boxes, scores = outputs[0][0], outputs[1][0]
        self._look_at(self._boxes.real(boxes))
        self._units.learn(self._boxes, boxes)
        best = self._scores.real(scores.max(axis=1))
        rows = best_rows(best, threshold)
        corners = self._units.shares(self._boxes.real(boxes[rows])[:, [1, 0, 3, 2]])
        return Candidates(corners, best[rows], scores[rows].argmax(axis=1))

    def _look_at(self, boxes: Array) -> None:
        """Raise TaskMismatch for boxes that are told in another way, as an SSD without its last operation does."""
        if not self._looked_at and 2 * np.count_nonzero(proper(boxes)) < len(boxes):
            raise TaskMismatch(
                f"no detector: most boxes in '{self._boxes.name}' end before they begin, so they are no ymin, xmin, "
                "ymax, xmax; a model with boxes relative to anchors needs TFLite_Detection_PostProcess at its end"
            )
        self._looked_at = True


class Yolo:
    """YOLO's single output, each row (or column) an object: center x, center y, width, height, and scores of classes.

    Version 5 and 7 put out rows, (1, N, 5 + classes), in which the score of being an object at all comes fifth and
    multiplies the others; version 8 and 11 put out columns, (1, 4 + classes, N), without it.
    """

    overlapping = True

    def __init__(self, output: TensorInfo, size: tuple[int, int], classes: int | None) -> None:
        _, first, second = output.shape
        self._columns = first < second
        channels = min(first, second)
        # The number of labels is the better witness; the layout is only what is usual.
        self._objectness = not self._columns
        if classes is not None and channels in {_SIDES + classes, _OBJECTNESS + classes}:
            self._objectness = channels == _OBJECTNESS + classes
        self._first = _OBJECTNESS if self._objectness else _SIDES
        self.classes = channels - self._first
        if self.classes < 1:
            raise TaskMismatch(f"no detector: an output of shape {output.dimensions} has no room for box and classes")
        self._output = output
        self.outputs = (output.index,)
        self._units = _Units(size)

    def read(self, outputs: Sequence[Array], threshold: float) -> Candidates:
        """Return the objects with at least this score."""
        rows = outputs[0][0].T if self._columns else outputs[0][0]
        real = self._output.real
        self._units.learn(self._output, rows[:, :_SIDES])
        if self._objectness:
            # No score can be better than this, and few rows are any good.
            rows = rows[real(rows[:, _SIDES]) >= threshold]
        scores = real(rows[:, self._first :].max(axis=1))
        if self._objectness:
            with np.errstate(invalid="ignore"):
                scores = scores * real(rows[:, _SIDES])
        chosen = best_rows(scores, threshold)
        boxes = corners_of_centers(real(rows[chosen, :_SIDES]))
        return Candidates(self._units.shares(boxes), scores[chosen], rows[chosen, self._first :].argmax(axis=1))


class EndToEnd:
    """YOLO's single output where each object comes once: rows (1, N, 6) of left, top, right, bottom, score and class.

    So do version 10 and later ones, and all that are exported together with their suppression. Rows that are left over
    are zeros.
    """

    overlapping = False
    classes = None

    def __init__(self, output: TensorInfo, size: tuple[int, int]) -> None:
        self._output = output
        self.outputs = (output.index,)
        self._size = np.array(size * 2, np.float64)
        self._pixels = False

    @staticmethod
    def fits(output: TensorInfo, size: tuple[int, int]) -> bool:
        """Tell whether the output has this shape, and is no grid with one class, which has a row for each cell."""
        _, rows, columns = output.shape
        grids = [sum(math.prod(math.ceil(side / pixels) for side in size) for pixels in grid) for grid in _GRIDS]
        return columns == _END_TO_END < rows and rows not in [n * cells for cells in grids for n in _BOXES_OF_A_CELL]

    def read(self, outputs: Sequence[Array], threshold: float) -> Candidates:
        """Return the objects with at least this score. Raises OutputMismatch."""
        rows = self._output.real(outputs[0][0])
        boxes, scores, classes = rows[:, :_SIDES], rows[:, _SIDES], rows[:, _SIDES + 1]
        chosen = best_rows(scores, threshold)
        boxes, scores, classes = boxes[chosen], scores[chosen], classes[chosen]
        if not _is_whole(self._output, classes):
            raise OutputMismatch(
                f"'{self._output.name}' has six values in a row, but the last is not the number of a class"
            )
        # A box of the picture's first two pixels is none.
        self._pixels = self._pixels or bool((boxes[scores > 0] > _PIXELS).any())
        return Candidates(boxes / self._size if self._pixels else boxes, scores, np.rint(classes).astype(np.int64))


class _Units:
    """Whether boxes are pixels of the input or shares of it: found by the values of all rows of the first run."""

    def __init__(self, size: tuple[int, int]) -> None:
        self._size = np.array(size * 2, np.float64)
        self._pixels: bool | None = None

    def learn(self, tensor: TensorInfo, boxes: Array) -> None:
        if self._pixels is None:
            real = np.abs(tensor.real(boxes))
            real = real[np.isfinite(real)]
            self._pixels = bool(real.size and np.median(real) > _PIXELS)

    def shares(self, boxes: Array) -> Array:
        return boxes / self._size if self._pixels else boxes


def find_detector(outputs: Sequence[TensorInfo], size: tuple[int, int], labels: int | None) -> Detector:
    """Return the reader for these outputs of a model with an input of (width, height). Raises TaskMismatch.

    `labels` is how many labels there are, if any.
    """
    if PostProcessed.fits(outputs):
        return PostProcessed(outputs)
    if BoxesAndScores.fits(outputs):
        return BoxesAndScores(outputs, size)
    if len(outputs) == 1 and len(outputs[0].shape) == 3 and outputs[0].shape[0] == 1:  # noqa: PLR2004  see Yolo
        return EndToEnd(outputs[0], size) if EndToEnd.fits(outputs[0], size) else Yolo(outputs[0], size, labels)
    raise TaskMismatch(
        "no detector: expected boxes, classes, scores and their count (TFLite_Detection_PostProcess), or boxes 1xNx4 "
        f"and scores 1xNxC, or one output of a YOLO model; found {listed(outputs)}"
    )


def _is_boxes(tensor: TensorInfo) -> bool:
    return len(tensor.shape) == 3 and tensor.shape[0] == 1 and tensor.shape[2] == _SIDES  # noqa: PLR2004  1xNx4


_ROLES = {
    "box": re.compile(r"box|location|PostProcess$"),
    "class": re.compile(r"class|categor|label|PostProcess:1$"),
    "score": re.compile(r"score|prob|confiden|PostProcess:2$"),
}


def _role(tensor: TensorInfo) -> str | None:
    """Return what the tensor's names say that it holds, if they agree."""
    names = (tensor.name, *tensor.also)
    found = {role for role, words in _ROLES.items() for name in names if words.search(name)}
    return found.pop() if len(found) == 1 else None


def _is_whole(tensor: TensorInfo, values: Array) -> bool:
    # A quantised class is as near to its number as the scale allows.
    with np.errstate(invalid="ignore"):
        return bool((np.abs(values - np.rint(values)) <= tensor.scale / 2 + 1e-6).all())
