"""Objects out of the outputs of detectors, whatever their layout."""

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.inference.interpreter.inputs import Placement, Prepared
from edge_agent.inference.interpreter.labels import LabelsError
from edge_agent.inference.interpreter.tensors import TensorInfo
from edge_agent.inference.tasks.base import OutputMismatch, TaskMismatch
from edge_agent.inference.tasks.detection import Detection
from edge_agent.inference.tasks.detectors import MAX_CANDIDATES, best_rows
from edge_agent.records import Box, PixelBox, Score
from tests.inference.conftest import NOTHING

IMAGE = TensorInfo(0, "image", (1, 100, 200, 3), np.dtype(np.uint8), 1.0)
UINT8, INT8, FLOAT = np.dtype(np.uint8), np.dtype(np.int8), np.dtype(np.float32)
PICTURE = Prepared(None, 0.0, Placement(400, 100))


def detection(outputs: Any, labels: Any = None, **options: Any) -> Detection:
    defaults: dict[str, Any] = {"top_k": 10, "threshold": 0.25, "iou_threshold": 0.5}
    return Detection(outputs, IMAGE, labels, **(defaults | options))


def decode(task: Detection, tensors: Any, values: Any, prepared: Prepared = NOTHING) -> list[Score]:
    """What the task says of values in the order of the tensors."""
    at = {tensor.index: each for tensor, each in zip(tensors, values, strict=True)}
    return task.decode([at[index] for index in task.outputs], prepared).scores


def found(scores: list[Score]) -> list[tuple[str, float, tuple[float, ...]]]:
    boxes = [score.box for score in scores]
    assert all(isinstance(box, Box) for box in boxes)
    corners = [(box.left, box.top, box.right, box.bottom) for box in boxes if isinstance(box, Box)]
    return [(score.label, score.score, box) for score, box in zip(scores, corners, strict=True)]


# ------------------------------------------------------------------------------------------ post-processed

# ymin, xmin, ymax, xmax.
BOXES = np.array([[[0.1, 0.2, 0.3, 0.4], [0.5, 0.6, 0.7, 0.8], [0, 0, 1, 1]]], np.float32)
CLASSES = np.array([[2, 0, 5]], np.float32)
SCORES = np.array([[0.9, 0.5, 0.125]], np.float32)
COUNT = np.array([3], np.float32)
VALUES = {"boxes": BOXES, "classes": CLASSES, "scores": SCORES, "count": COUNT}
EXPECTED = [("2", 0.9, (0.2, 0.1, 0.4, 0.3)), ("0", 0.5, (0.6, 0.5, 0.8, 0.7))]
OWN = {"boxes": "", "classes": ":1", "scores": ":2", "count": ":3"}


def postprocessed(order: Any, names: Any = None) -> list[TensorInfo]:
    called = names or {each: f"TFLite_Detection_PostProcess{suffix}" for each, suffix in OWN.items()}
    return [TensorInfo(10 + at, called[each], VALUES[each].shape, FLOAT) for at, each in enumerate(order)]


@pytest.mark.parametrize("order", list(itertools.permutations(VALUES)))
@pytest.mark.parametrize(
    "names",
    [None, dict.fromkeys(VALUES, "StatefulPartitionedCall"), {each: f"detection_{each}" for each in VALUES}],
    ids=["own", "nothing", "words"],
)
def test_the_four_outputs_are_told_apart_in_any_order(order: Any, names: Any) -> None:
    tensors = postprocessed(order, names)
    task = detection(tensors)
    # Nothing was found at first, which tells nothing of classes and scores.
    empty = [np.zeros_like(VALUES[each]) for each in order]
    assert decode(task, tensors, empty) == []
    assert found(decode(task, tensors, [VALUES[each] for each in order])) == EXPECTED


def test_values_overrule_a_wrong_name_and_what_they_told_is_kept() -> None:
    names = {"boxes": "boxes", "classes": "scores", "scores": "classes", "count": "count"}
    order = list(VALUES)
    tensors = postprocessed(order, names)
    task = detection(tensors)
    assert found(decode(task, tensors, list(VALUES.values()))) == EXPECTED
    certain = [BOXES, np.array([[1, 0, 0]], np.float32), np.array([[1, 1, 0]], np.float32), np.array([2], np.float32)]
    assert [score.label for score in decode(task, tensors, certain)] == ["1", "0"]


def test_objects_that_are_certain_are_told_from_their_classes_by_size() -> None:
    order = ["boxes", "scores", "classes", "count"]
    tensors = postprocessed(order, dict.fromkeys(VALUES, "Identity"))
    certain = [BOXES, np.array([[1, 1, 0]], np.float32), np.array([[7, 1, 0]], np.float32), COUNT]
    assert [score.label for score in decode(detection(tensors), tensors, certain)] == ["7", "1"]


def test_rows_beyond_the_count_hold_nothing() -> None:
    order = list(VALUES)
    tensors = postprocessed(order)
    for count, expected in ((1, 1), (0, 0), (np.nan, 0), (-1, 0), (99, 2)):
        values = [BOXES, CLASSES, SCORES, np.array([count], np.float32)]
        assert len(decode(detection(tensors), tensors, values)) == expected
    # A count is not always there.
    assert len(decode(detection(tensors[:3]), tensors[:3], [BOXES, CLASSES, SCORES])) == 2


def test_a_single_row_looks_like_its_count_but_for_the_dimensions() -> None:
    tensors = postprocessed(list(VALUES), dict.fromkeys(VALUES, "Identity"))
    tensors = [
        TensorInfo(t.index, t.name, s, FLOAT) for t, s in zip(tensors, [(1, 1, 4), (1, 1), (1, 1), (1,)], strict=True)
    ]
    values = [BOXES[:, :1], CLASSES[:, :1], SCORES[:, :1], np.array([1], np.float32)]
    for order in itertools.permutations(range(4)):
        mixed = [tensors[at] for at in order]
        assert found(decode(detection(mixed), mixed, [values[at] for at in order])) == EXPECTED[:1]


def test_quantised_classes_are_the_nearest_whole_numbers() -> None:
    scale = 89 / 255
    tensors = [
        TensorInfo(1, "a", (1, 3, 4), UINT8, 1 / 255),
        TensorInfo(2, "a", (1, 3), UINT8, 1 / 256),
        TensorInfo(3, "a", (1,), UINT8, 1.0),
        TensorInfo(4, "a", (1, 3), INT8, scale, -128),
    ]
    values = [
        np.rint(BOXES * 255).astype(np.uint8),
        np.rint(SCORES * 256).astype(np.uint8),
        np.array([3], np.uint8),
        (np.rint(np.array([[5, 17, 88]]) / scale) - 128).astype(np.int8),
    ]
    scores = decode(detection(tensors, threshold=0.0), tensors, values)
    assert [(score.label, score.index) for score in scores] == [("5", 5), ("17", 17), ("88", 88)]
    assert [score.score for score in scores] == pytest.approx([0.9, 0.5, 0.125], abs=1 / 256)


def test_outputs_of_which_none_can_be_classes_are_refused() -> None:
    tensors = postprocessed(list(VALUES))
    with pytest.raises(OutputMismatch, match="holds the numbers of classes, which are whole"):
        decode(detection(tensors), tensors, [BOXES, CLASSES + 0.25, SCORES, COUNT])


def test_labels_of_objects_are_found_by_class_number() -> None:
    tensors = postprocessed(list(VALUES))
    values = list(VALUES.values())
    assert detection(tensors, ["???", "person", "bicycle"]).labels == ("person", "bicycle")
    assert detection(tensors).labels is None
    for labels, expected in (
        (["person", "bicycle", "car"], ["car", "person"]),
        (["???", "person", "bicycle", "car"], ["car", "person"]),
        (["person", "1"], ["2", "person"]),
    ):
        assert [score.label for score in decode(detection(tensors, labels), tensors, values)] == expected


def test_rubbish_boxes_and_scores_are_left_out() -> None:
    boxes = np.array(
        [[[0.1, np.nan, 0.3, 0.4], [0.7, 0.6, 0.5, 0.8], [1.5, 0, 2, 1], [0.1, 0.2, 0.3, 0.4]]], np.float32
    )
    tensors = [
        TensorInfo(1, "boxes", (1, 4, 4), FLOAT),
        TensorInfo(2, "classes", (1, 4), FLOAT),
        TensorInfo(3, "scores", (1, 4), FLOAT),
    ]
    classes, scores = np.array([[1, 2, 3, 4]], np.float32), np.array([[0.9, 0.8, 0.7, 0.6]], np.float32)
    assert [score.label for score in decode(detection(tensors), tensors, [boxes, classes, scores])] == ["4"]
    scores[0, 3] = np.nan
    assert decode(detection(tensors), tensors, [boxes, classes, scores]) == []


def test_top_k_and_threshold_bound_what_is_told() -> None:
    tensors = postprocessed(list(VALUES))
    values = list(VALUES.values())
    assert len(decode(detection(tensors, threshold=0.0), tensors, values)) == 3
    assert len(decode(detection(tensors, threshold=0.0, top_k=1), tensors, values)) == 1
    assert len(decode(detection(tensors, threshold=0.9), tensors, values)) == 0  # 0.9 as float32 is a little less
    assert len(decode(detection(tensors, threshold=0.5), tensors, values)) == 2


def test_a_box_is_told_in_pixels_of_the_picture_where_there_is_one() -> None:
    tensors = postprocessed(list(VALUES))
    [first, _] = decode(detection(tensors), tensors, list(VALUES.values()), PICTURE)
    assert first.pixels == PixelBox(80, 10, 160, 30)
    [first, _] = decode(detection(tensors), tensors, list(VALUES.values()))
    assert not isinstance(first.pixels, PixelBox)


# ------------------------------------------------------------------------------------------ boxes and scores

PAIR = [TensorInfo(1, "raw_boxes", (1, 5, 4), FLOAT), TensorInfo(2, "raw_scores", (1, 5, 3), FLOAT)]
PAIR_BOXES = np.array(
    [[[0, 0, 0.5, 0.5], [0, 0, 0.5, 0.45], [0, 0, 0.5, 0.4], [0.5, 0.5, 1, 1], [0.9, 0.9, 0.1, 0.1]]], np.float32
)
PAIR_SCORES = np.array([[[0.5, 0.1, 0], [0.75, 0, 0], [0, 0.625, 0], [0.1, 0, 0.375], [0.9, 0, 0]]], np.float32)
PAIR_FOUND = [
    ("0", 0.75, (0, 0, 0.45, 0.5)),
    ("1", 0.625, (0, 0, 0.4, 0.5)),
    ("2", 0.375, (0.5, 0.5, 1, 1)),
]


def rounded(scores: list[Score]) -> list[Any]:
    return [
        (label, pytest.approx(score, abs=0.01), pytest.approx(box, abs=0.01)) for label, score, box in found(scores)
    ]


@pytest.mark.parametrize("order", [[0, 1], [1, 0]])
def test_boxes_and_scores_are_suppressed_for_each_class(order: Any) -> None:
    tensors, values = [PAIR[at] for at in order], [[PAIR_BOXES, PAIR_SCORES][at] for at in order]
    assert rounded(decode(detection(tensors), tensors, values)) == PAIR_FOUND


def test_boxes_and_scores_may_be_quantised_and_boxes_in_pixels() -> None:
    tensors = [
        TensorInfo(1, "raw_boxes", (1, 5, 4), UINT8, 200 / 255),
        TensorInfo(2, "raw_scores", (1, 5, 3), INT8, 1 / 256, -128),
    ]
    # The input is 100 high and 200 wide.
    boxes = np.rint(PAIR_BOXES * np.array([100, 200, 100, 200]) / (200 / 255)).astype(np.uint8)
    scores = (np.rint(np.minimum(PAIR_SCORES * 256, 255)) - 128).astype(np.int8)
    assert rounded(decode(detection(tensors), tensors, [boxes, scores])) == PAIR_FOUND


def test_a_background_column_is_no_object() -> None:
    task = detection(PAIR, ["background", "cat", "dog"])
    assert task.labels == ("cat", "dog")
    objects = decode(task, PAIR, [PAIR_BOXES, PAIR_SCORES])
    assert [score.label for score in objects] == ["cat", "dog"]


def test_four_classes_look_like_boxes_unless_a_name_tells() -> None:
    tensors = [TensorInfo(1, "Identity", (1, 5, 4), FLOAT), TensorInfo(2, "Identity_1", (1, 5, 4), FLOAT)]
    with pytest.raises(TaskMismatch, match="'Identity' and 'Identity_1' could both be the boxes"):
        detection(tensors)
    named = [
        TensorInfo(1, "Identity", (1, 5, 4), FLOAT),
        TensorInfo(2, "Identity_1", (1, 5, 4), FLOAT, also=("boxes",)),
    ]
    scores = np.concatenate([PAIR_SCORES, np.zeros((1, 5, 1), np.float32)], axis=2)
    assert len(decode(detection(named), named, [scores, PAIR_BOXES])) == 3


# ------------------------------------------------------------------------------------------ YOLO

OBJECTS = [
    # center x, center y, width, height, class, score
    (0.3, 0.4, 0.2, 0.2, 0, 0.875),
    (0.31, 0.4, 0.2, 0.2, 0, 0.75),  # the same one again
    (0.3, 0.4, 0.2, 0.2, 2, 0.5),  # another class there
    (0.7, 0.6, 0.1, 0.4, 1, 0.625),
]
YOLO_FOUND = [
    ("0", 0.875, (0.2, 0.3, 0.4, 0.5)),
    ("1", 0.625, (0.65, 0.4, 0.75, 0.8)),
    ("2", 0.5, (0.2, 0.3, 0.4, 0.5)),
]


def yolo(*, columns: bool, objectness: bool, pixels: bool, rows: int = 40) -> Any:
    first = 5 if objectness else 4
    values = np.zeros((1, rows, first + 3), np.float32)
    # The grid cells without an object have boxes, too.
    values[0, :, :4] = np.random.default_rng(4).uniform(0.1, 0.9, (rows, 4))
    for at, (*box, number, score) in enumerate(OBJECTS):
        row = 7 * (at + 1)
        values[0, row, :4] = box
        values[0, row, first + number] = 1.0 if objectness else score
        if objectness:
            values[0, row, 4] = score
    if pixels:
        values[0, :, :4] *= [200, 100, 200, 100]
    return values.transpose(0, 2, 1) if columns else values


@pytest.mark.parametrize("columns", [False, True])
@pytest.mark.parametrize("pixels", [False, True])
@pytest.mark.parametrize("labels", [None, ["a", "b", "c"]])
def test_yolo_in_rows_with_and_in_columns_without_objectness(columns: bool, pixels: bool, labels: Any) -> None:
    values = yolo(columns=columns, objectness=not columns, pixels=pixels)
    tensors = [TensorInfo(3, "Identity", values.shape, FLOAT)]
    named = [(labels[int(label)] if labels else label, *rest) for label, *rest in YOLO_FOUND]
    assert rounded(decode(detection(tensors, labels), tensors, [values])) == named


@pytest.mark.parametrize("columns", [False, True])
def test_the_number_of_labels_tells_more_than_the_layout(columns: bool) -> None:
    values = yolo(columns=columns, objectness=columns, pixels=False)
    tensors = [TensorInfo(3, "Identity", values.shape, FLOAT)]
    task = detection(tensors, ["0", "1", "2"])
    assert str(task) == "objects of 3 classes"
    assert rounded(decode(task, tensors, [values])) == YOLO_FOUND


@pytest.mark.parametrize(("dtype", "zero_point"), [(UINT8, 0), (INT8, -128)])
@pytest.mark.parametrize("columns", [False, True])
def test_a_quantised_yolo(dtype: Any, zero_point: int, columns: bool) -> None:
    values = yolo(columns=columns, objectness=not columns, pixels=False)
    quantized = (np.rint(values * 255) + zero_point).astype(dtype)
    tensors = [TensorInfo(3, "Identity", values.shape, dtype, 1 / 255, zero_point)]
    assert rounded(decode(detection(tensors), tensors, [quantized])) == YOLO_FOUND


def test_a_yolo_full_of_rubbish_finds_nothing_and_a_bit_of_it_harms_nobody() -> None:
    values = yolo(columns=False, objectness=True, pixels=False)
    tensors = [TensorInfo(3, "Identity", values.shape, FLOAT)]
    assert decode(detection(tensors), tensors, [np.full_like(values, np.nan)]) == []
    values[0, 1] = np.nan
    values[0, 2] = np.inf
    values[0, 3, :4] = np.inf
    values[0, 3, 4:6] = 1
    values[0, 4, 4:] = [np.inf, 0, 0, 0]
    assert rounded(decode(detection(tensors), tensors, [values])) == YOLO_FOUND


def test_without_a_threshold_the_best_of_thousands_come() -> None:
    values = yolo(columns=True, objectness=False, pixels=False, rows=8400)
    tensors = [TensorInfo(3, "Identity", values.shape, FLOAT)]
    scores = decode(detection(tensors, threshold=0.0, top_k=3), tensors, [values])
    assert rounded(scores) == YOLO_FOUND


@given(
    st.lists(st.floats(0, 1, width=16) | st.sampled_from([np.nan, np.inf]), max_size=50),
    st.floats(0, 1),
    st.integers(1, 2),
)
def test_best_rows_are_those_of_a_plain_sort(scores: Any, threshold: float, often: int) -> None:
    repeated = np.array(scores * (often * MAX_CANDIDATES // 25))
    rows = best_rows(repeated, threshold)
    ranked = sorted(
        (at for at, score in enumerate(repeated) if threshold <= score < np.inf), key=lambda at: (-repeated[at], at)
    )
    assert repeated[rows].tolist() == repeated[ranked[:MAX_CANDIDATES]].tolist()
    if len(ranked) <= MAX_CANDIDATES:
        assert rows.tolist() == ranked


# ------------------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ([(1, 1001)], "found 1x1001"),
        ([(1, 10, 4)], "an output of shape 1x10x4 has no room for box and classes"),
        ([(1, 10, 4), (1, 10)], "found 1x10x4, 1x10"),
        ([(1, 10, 4), (1, 10), (1, 7), (1,)], "found 1x10x4, 1x10, 1x7, 1"),
        ([], "found none"),
    ],
)
def test_what_is_no_detector_is_refused(shapes: Any, message: str) -> None:
    with pytest.raises(TaskMismatch, match=f"no detector: .*{message}"):
        detection([TensorInfo(at, "x", shape, FLOAT) for at, shape in enumerate(shapes)])


def test_a_detector_takes_images() -> None:
    with pytest.raises(TaskMismatch, match="it takes no images, its input is uint8 of shape 1x128"):
        Detection(
            postprocessed(list(VALUES)),
            TensorInfo(0, "x", (1, 128), UINT8, 1.0),
            None,
            top_k=1,
            threshold=0.0,
            iou_threshold=0.5,
        )


def test_labels_that_do_not_fit_a_known_number_of_classes_are_refused() -> None:
    with pytest.raises(LabelsError, match="2 labels, but the model has 3 outputs"):
        detection(PAIR, ["a", "b"])


def end_to_end(*, pixels: bool, quantised: bool = False) -> tuple[TensorInfo, Any]:
    """The objects once each, best first, and rows that are left over."""
    values = np.zeros((1, 300, 6), np.float32)
    for row, (label, score, box) in enumerate(YOLO_FOUND):
        values[0, row] = (*box, score, int(label))
    if pixels:
        values[0, :, :4] *= [200, 100, 200, 100]
    if not quantised:
        return TensorInfo(1, "output0", values.shape, FLOAT), values
    return TensorInfo(1, "output0", values.shape, INT8, 2 / 255, -128), (np.rint(values * 127.5) - 128).astype(np.int8)


@pytest.mark.parametrize(("pixels", "quantised"), [(False, False), (True, False), (False, True)])
def test_yolo_end_to_end(pixels: bool, quantised: bool) -> None:
    tensor, values = end_to_end(pixels=pixels, quantised=quantised)
    task = detection([tensor], ["cat", "dog", "bird", "cow"])
    # Nothing at first: that must not tell that pixels are shares, or the other way round.
    assert decode(task, [tensor], [values * 0 + values[0, -1, 0]]) == []
    names = {"0": "cat", "1": "dog", "2": "bird"}
    expected = [
        (names[label], pytest.approx(score, abs=0.01), pytest.approx(box, abs=0.01)) for label, score, box in YOLO_FOUND
    ]
    objects: list[Any] = list(found(decode(task, [tensor], [values])))
    assert objects == expected
    # The model has done the suppression: what overlaps is told.
    values[0, 3] = values[0, 0]
    assert len(decode(task, [tensor], [values])) == 4


def test_six_values_of_each_cell_are_one_class_with_objectness_and_no_end_to_end() -> None:
    cells = 3 * (25 * 13 + 13 * 7 + 7 * 4)  # an input of 200x100
    values = np.zeros((1, cells, 6), np.float32)
    values[0, :, :4] = 0.5
    values[0, 7] = (0.3, 0.4, 0.2, 0.2, 0.875, 1.0)
    tensor = TensorInfo(1, "output0", values.shape, FLOAT)
    assert found(decode(detection([tensor]), [tensor], [values])) == [YOLO_FOUND[0]]


def test_six_values_of_which_the_last_is_no_class_are_refused() -> None:
    tensor, values = end_to_end(pixels=False)
    values[0, 0, 5] = 0.75
    with pytest.raises(OutputMismatch, match="the last is not the number of a class"):
        decode(detection([tensor]), [tensor], [values])


def test_boxes_relative_to_anchors_are_refused() -> None:
    random = np.random.default_rng(1)
    tensors = [TensorInfo(1, "Identity", (1, 500, 4), FLOAT), TensorInfo(2, "Identity_1", (1, 500, 91), FLOAT)]
    values = [random.normal(0, 2, each.shape).astype(np.float32) for each in tensors]
    with pytest.raises(TaskMismatch, match="relative to anchors needs TFLite_Detection_PostProcess"):
        decode(detection(tensors), tensors, values)
