"""From a detector's outputs to objects and where they are in the picture."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from msgspec import UNSET, UnsetType

from edge_agent.inference.interpreter.inputs import Placement, Prepared
from edge_agent.inference.interpreter.labels import fit_labels, is_background, object_labels
from edge_agent.inference.interpreter.quantization import round_off
from edge_agent.inference.interpreter.tensors import TensorInfo
from edge_agent.inference.tasks.base import Answer, TaskMismatch, require_numbers
from edge_agent.inference.tasks.boxes import proper, suppress, to_picture, to_pixels, visible
from edge_agent.inference.tasks.detectors import Candidates, find_detector
from edge_agent.records import Box, PixelBox, Score

Array = npt.NDArray[Any]

_IMAGE_RANK = 4
# Millionths of a picture's width are below a pixel of any camera.
_DECIMALS = 6


class Detection:
    """Finds the best objects, at most `top_k` with a score of at least `threshold`, each with its box."""

    def __init__(
        self,
        outputs: Sequence[TensorInfo],
        model_input: TensorInfo,
        labels: Sequence[str] | None,
        *,
        top_k: int,
        threshold: float,
        iou_threshold: float,
    ) -> None:
        require_numbers(outputs)
        if len(model_input.shape) != _IMAGE_RANK:
            raise TaskMismatch(f"no detector: it takes no images, its input is {model_input}")
        _, height, width, _ = model_input.shape
        self._detector = find_detector(outputs, (width, height), None if labels is None else len(labels))
        self.outputs = self._detector.outputs
        self._background = False
        if self._detector.classes is None:
            self._labels = object_labels(labels or [])
        else:
            self._labels = fit_labels(labels, self._detector.classes)
            # A column of scores for what is no object.
            self._background = is_background(self._labels[0])
        self.top_k, self.threshold, self._iou_threshold = top_k, threshold, iou_threshold

    def __str__(self) -> str:
        classes = self._detector.classes
        return "objects" if classes is None else f"objects of {classes} classes"

    @property
    def labels(self) -> tuple[str, ...] | None:
        """One for each class but the background; None where classes are but numbers."""
        return tuple(self._labels[1:] if self._background else self._labels) or None

    def decode(self, outputs: Sequence[Array], prepared: Prepared) -> Answer:
        """Return the objects, best first. Raises OutputMismatch.

        Boxes that are none, and those outside the picture, are left out.
        """
        found = self._detector.read(outputs, self.threshold)
        real = proper(found.boxes)
        if self._background:
            real &= found.classes != 0
        boxes = to_picture(np.where(real[:, np.newaxis], found.boxes, 0.0), prepared.placement)
        rows = np.flatnonzero(real & visible(boxes))
        if self._detector.overlapping:
            rows = rows[suppress(boxes[rows], found.classes[rows], self.top_k, self._iou_threshold)]
        return Answer(self._objects(found, boxes, rows[: self.top_k], prepared.placement))

    def _objects(self, found: Candidates, boxes: Array, rows: Array, placement: Placement | None) -> list[Score]:
        shares = [Box(*box) for box in np.round(boxes[rows], _DECIMALS).tolist()]
        pixels: list[PixelBox | UnsetType] = [UNSET] * len(shares)
        if placement is not None:
            in_pixels = to_pixels(boxes[rows], placement.width, placement.height)
            pixels = [PixelBox(*box) for box in in_pixels.tolist()]
        classes, scores = found.classes[rows].tolist(), found.scores[rows].tolist()
        return [
            Score(self._label(number), round_off(score), number, box, inside)
            for number, score, box, inside in zip(classes, scores, shares, pixels, strict=True)
        ]

    def _label(self, number: int) -> str:
        return self._labels[number] if 0 <= number < len(self._labels) else str(number)
