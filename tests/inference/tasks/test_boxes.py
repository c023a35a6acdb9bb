"""Boxes: back to the picture, and one for each object."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from edge_agent.inference.interpreter.inputs import ModelInput, Placement
from edge_agent.inference.interpreter.tensors import TensorInfo
from edge_agent.inference.tasks.boxes import (
    corners_of_centers,
    overlaps,
    proper,
    suppress,
    to_picture,
    to_pixels,
    visible,
)

BOXES = arrays.arrays(np.float64, st.tuples(st.integers(0, 40), st.just(4)), elements=st.floats(0, 1)).map(
    lambda boxes: np.sort(boxes.reshape(-1, 2, 2), axis=1).reshape(-1, 4)
)


def iou(one: Any, other: Any) -> float:
    """Intersection over union, from its definition."""
    width = max(0.0, min(one[2], other[2]) - max(one[0], other[0]))
    height = max(0.0, min(one[3], other[3]) - max(one[1], other[1]))
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    union: float = sum(areas) - width * height
    return width * height / union if union > 0 else 0.0


@given(BOXES, st.integers(1, 10), st.floats(0.05, 1.0), st.data())
def test_suppression_is_that_of_the_plain_double_loop(boxes: Any, most: int, threshold: float, data: Any) -> None:
    classes = np.array(data.draw(st.lists(st.integers(0, 2), min_size=len(boxes), max_size=len(boxes))), np.int64)

    kept = suppress(boxes, classes, most, threshold)

    expected: list[int] = []
    for at in range(len(boxes)):
        rivals = [each for each in expected if classes[each] == classes[at]]
        # The array and the loop may differ in the last digit just at the threshold.
        shares = [float(overlaps(boxes[each], boxes[at : at + 1])[0]) for each in rivals]
        assert shares == pytest.approx([iou(boxes[each], boxes[at]) for each in rivals], abs=1e-9)
        if all(share <= threshold for share in shares):
            expected.append(at)
    assert kept == expected[:most]


def test_corners_of_a_center() -> None:
    assert corners_of_centers(np.array([[0.5, 0.4, 0.2, 0.6]])).tolist() == [pytest.approx([0.4, 0.1, 0.6, 0.7])]


def test_what_is_no_box() -> None:
    boxes = np.array([[0, 0, 1, 1], [np.nan, 0, 1, 1], [0, 0, np.inf, 1], [0.6, 0, 0.5, 1], [0, 0.6, 1, 0.5], [0] * 4])
    assert proper(boxes).tolist() == [True, False, False, False, False, True]
    assert visible(boxes[[0, 5]]).tolist() == [True, False]


@given(st.integers(1, 500), st.integers(1, 500), st.integers(1, 300), st.integers(1, 300), st.data())
def test_a_letterbox_is_undone(height: int, width: int, rows: int, columns: int, data: Any) -> None:
    tensor = TensorInfo(0, "x", (1, rows, columns, 3), np.dtype(np.uint8), 1.0)
    model = ModelInput(tensor, resize="nearest", fit="letterbox", mean=0.0, std=1.0)
    placement = model.prepare(np.zeros((height, width, 3), np.uint8)).placement
    assert placement is not None
    left, top, right, bottom = np.sort(data.draw(arrays.arrays(np.float64, (2, 2), elements=st.floats(0, 1))), 0).flat

    # Where a box of the picture lies in the input, by the definition of a placement.
    inner_width, inner_height = placement.right - placement.left, placement.bottom - placement.top
    inside = [
        placement.left + left * inner_width,
        placement.top + top * inner_height,
        placement.left + right * inner_width,
        placement.top + bottom * inner_height,
    ]

    assert to_picture(np.array([inside]), placement)[0].tolist() == pytest.approx([left, top, right, bottom], abs=1e-9)


def test_boxes_end_where_the_picture_does() -> None:
    placement = Placement(200, 100, 0.0, 0.25, 1.0, 0.75)
    boxes = to_picture(np.array([[-0.5, 0.1, 0.5, 0.5], [0.1, 0.0, 0.2, 0.2]]), placement)
    assert boxes.tolist() == [pytest.approx([0, 0, 0.5, 0.5]), pytest.approx([0.1, 0, 0.2, 0])]
    # The second one lies in the border.
    assert visible(boxes).tolist() == [True, False]
    assert to_picture(np.array([[-0.5, 0.1, 0.5, 0.5]]), None)[0].tolist() == [0, 0.1, 0.5, 0.5]


@given(BOXES, st.integers(1, 5000), st.integers(1, 5000))
def test_pixels_lie_in_the_picture_and_are_never_none(boxes: Any, width: int, height: int) -> None:
    pixels = to_pixels(boxes, width, height)
    size = np.array([width, height])
    assert (pixels[:, :2] >= 0).all()
    assert (pixels[:, 2:] <= size).all()
    assert (pixels[:, :2] < pixels[:, 2:]).all()
    # Half a pixel from rounding, and one so that there is something to see.
    assert (np.abs(pixels - boxes * np.tile(size, 2)) <= 1.5).all()


def test_pixels_are_not_one_more_for_a_rounding_error() -> None:
    box = np.array([[0.3, 0.3, 0.6, 0.6]], np.float32).astype(np.float64)
    assert to_pixels(box, 640, 10).tolist() == [[192, 3, 384, 6]]
