"""Scores out of output tensors."""

from typing import Any

import msgspec
import numpy as np
import pytest

from edge_agent.inference.interpreter.labels import LabelsError
from edge_agent.inference.interpreter.tensors import TensorInfo
from edge_agent.inference.tasks.base import OutputMismatch, TaskMismatch
from edge_agent.inference.tasks.classification import Classification
from edge_agent.records import Score
from tests.inference.conftest import NOTHING


def outputs(classes: int, dtype: Any = np.uint8, scale: float = 1 / 256, zero_point: int = 0) -> list[TensorInfo]:
    return [TensorInfo(7, "scores", (1, classes), np.dtype(dtype), scale, zero_point)]


def decoded(task: Classification, values: Any) -> list[Score]:
    return task.decode([values], NOTHING).scores


def test_best_classes_come_first_with_their_label_and_number() -> None:
    task = Classification(outputs(3), ["normal", "warning", "failure"], 2)
    assert task.labels == ("normal", "warning", "failure")
    scores = decoded(task, np.array([[10, 64, 128]], np.uint8))
    assert [(s.label, s.score, s.index) for s in scores] == [("failure", 0.5, 2), ("warning", 0.25, 1)]


@pytest.mark.parametrize("classes", [4, 1001])
@pytest.mark.parametrize(("dtype", "low", "high", "zero_point"), [(np.uint8, 0, 255, 0), (np.int8, -128, 127, -128)])
def test_small_and_large_outputs_give_what_a_plain_sort_gives(
    classes: Any, dtype: Any, low: Any, high: Any, zero_point: Any
) -> None:
    values = np.random.default_rng(3).integers(low, high + 1, (1, classes)).astype(dtype)
    task = Classification(outputs(classes, dtype, 1 / 256, zero_point), None, 5)

    scores = decoded(task, values)

    ranked = sorted(range(classes), key=lambda i: (-int(values[0, i]), i))[:5]
    assert [score.index for score in scores] == ranked
    assert [score.score for score in scores] == pytest.approx([(int(values[0, i]) - zero_point) / 256 for i in ranked])


def test_float_outputs_are_read_as_they_are_and_rubbish_is_refused() -> None:
    task = Classification(outputs(3, np.float32, 0.0), None, 3)
    assert [s.score for s in decoded(task, np.array([[0.1, 0.7, 0.2]], np.float32))] == pytest.approx([0.7, 0.2, 0.1])
    with pytest.raises(OutputMismatch, match="values that are no numbers"):
        decoded(task, np.array([[0.1, np.nan, 0.2]], np.float32))


def test_outputs_of_no_classifier_are_refused() -> None:
    with pytest.raises(TaskMismatch, match="expected one output of shape 1xN, found 1x10x4"):
        Classification([msgspec.structs.replace(outputs(4)[0], shape=(1, 10, 4))], None, 3)
    with pytest.raises(TaskMismatch, match="expected one output of shape 1xN, found 1x3, 1x3"):
        Classification(outputs(3) * 2, None, 3)
    with pytest.raises(OutputMismatch, match="int64 with scale 0"):
        Classification(outputs(3, np.int64, 0.0), None, 3)


def test_labels_that_do_not_fit_are_refused() -> None:
    with pytest.raises(LabelsError, match="2 labels, but the model has 3 outputs"):
        Classification(outputs(3), ["a", "b"], 3)


@pytest.mark.parametrize(
    ("dtype", "values"), [(np.uint8, [[128, 127, 0]]), (np.int8, [[0, -1, -128]]), (np.float32, [[0.5, 0.499, 0]])]
)
def test_a_class_below_the_threshold_is_left_out(dtype: Any, values: Any) -> None:
    zero_point = -128 if dtype is np.int8 else 0
    scale = 0.0 if dtype is np.float32 else 1 / 256
    task = Classification(outputs(3, dtype, scale, zero_point), None, 3, 0.5)
    assert decoded(task, np.array(values, dtype)) == [Score("0", 0.5, 0)]
    assert decoded(task, np.full((1, 3), zero_point, dtype)) == []


def test_an_output_with_a_scale_for_each_row_is_refused() -> None:
    with pytest.raises(OutputMismatch, match="'scores' cannot be read: it has a scale for each row"):
        Classification([msgspec.structs.replace(outputs(3)[0], per_axis=True)], None, 3)
