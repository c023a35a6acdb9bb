"""The demo model as it ships: its shape, its arithmetic, and whether README.md says the truth about it."""

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter

from edge_agent.demo import train

FOLDER = Path(train.__file__).parent
MODEL = FOLDER / train.MODEL_NAME
LABELS = (FOLDER / train.LABELS_NAME).read_text().splitlines()

# The guides' data, stated once more, so that a slip in train.py does not go unseen.
DISTRIBUTIONS = {"normal": (0.5, 0.1), "warning": (1.2, 0.3), "failure": (2.5, 0.8)}


class Classifier:
    """The model, from readings to the number of the best class."""

    def __init__(self) -> None:
        self.interpreter = Interpreter(model_path=str(MODEL))
        self.interpreter.allocate_tensors()
        self.input = self.interpreter.get_input_details()[0]
        self.output = self.interpreter.get_output_details()[0]
        self.scale, self.zero_point = self.input["quantization"]

    def classes(self, readings: train.Floats, quantise: train.Quantise = train.rounded) -> list[int]:
        return [self.class_of(row) for row in quantise(readings, self.scale, self.zero_point)]

    def class_of(self, row: npt.NDArray[np.uint8]) -> int:
        self.interpreter.set_tensor(self.input["index"], row[None])
        self.interpreter.invoke()
        return int(np.argmax(self.interpreter.get_tensor(self.output["index"])))

    def accuracy(self, readings: train.Floats, classes: train.Classes, quantise: train.Quantise) -> float:
        return float(np.mean(self.classes(readings, quantise) == classes))


@pytest.fixture(scope="module")
def classifier() -> Classifier:
    return Classifier()


@pytest.fixture(scope="module")
def stated() -> dict[str, str]:
    """The table of README.md: what was measured, and its value."""
    text = (FOLDER / train.README_NAME).read_text()
    table = text.partition(train.TABLE_BEGIN)[2].partition(train.TABLE_END)[0]
    rows = [[cell.strip() for cell in line.strip("|\n").split("|")] for line in table.splitlines()[2:]]
    return {name: value for name, value in rows}  # noqa: C416 - it checks that each row has two cells


def test_the_facts_beside_the_model_are_those_of_the_readme(stated: dict[str, str]) -> None:
    assert (FOLDER / train.FACTS_NAME).read_text() == train.facts(stated)
    assert json.loads((FOLDER / train.FACTS_NAME).read_text())["labels"] == LABELS


def test_is_small() -> None:
    assert MODEL.stat().st_size < 100_000


def test_input_and_output_are_uint8_of_fixed_shape(classifier: Classifier) -> None:
    for entry, shape in ((classifier.input, [1, 128]), (classifier.output, [1, 3])):
        assert entry["dtype"] is np.uint8
        assert entry["shape"].tolist() == shape


def test_no_tensor_has_an_open_shape_and_none_is_float(classifier: Classifier) -> None:
    tensors = classifier.interpreter.get_tensor_details()

    assert len(tensors) > 10
    assert all(tensor["shape_signature"].tolist() == tensor["shape"].tolist() for tensor in tensors)
    assert {tensor["dtype"] for tensor in tensors} <= {np.int8, np.uint8, np.int32}


def test_uses_only_operations_that_the_edge_tpu_compiler_maps() -> None:
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(MODEL.read_bytes(), 0))
    names = {code: name for name, code in vars(schema.BuiltinOperator).items() if not name.startswith("_")}
    used = {names[code.builtinCode] for code in model.operatorCodes}

    assert used <= {
        "CONV_2D",
        "EXPAND_DIMS",
        "FULLY_CONNECTED",
        "MAX_POOL_2D",
        "QUANTIZE",
        "RESHAPE",
        "SOFTMAX",
        "SQUEEZE",
    }


def test_labels_stand_in_the_order_of_the_outputs(classifier: Classifier) -> None:
    rng = np.random.default_rng(7)

    assert list(DISTRIBUTIONS) == LABELS
    for index, label in enumerate(LABELS):
        readings = rng.normal(*DISTRIBUTIONS[label], (50, 128)).astype(np.float32)
        assert classifier.classes(readings) == [index] * 50


def test_is_right_on_data_it_has_never_seen(classifier: Classifier) -> None:
    rng = np.random.default_rng(20)
    classes = rng.integers(0, 3, 2000)
    means, deviations = np.array(list(DISTRIBUTIONS.values())).T
    readings = rng.normal(means[classes][:, None], deviations[classes][:, None], (2000, 128))

    right = np.array(classifier.classes(readings.astype(np.float32))) == classes

    assert right.mean() >= 0.99


def test_values_far_out_of_range_are_failures_unless_they_wrap(classifier: Classifier) -> None:
    readings = np.random.default_rng(4).normal(6.8, 0.15, (200, 128)).astype(np.float32)

    assert classifier.classes(readings, train.rounded) == [LABELS.index("failure")] * 200
    assert classifier.classes(readings, train.wrapped) == [LABELS.index("normal")] * 200


def test_the_training_data_is_the_guides() -> None:
    readings, classes = train.training_set(seed=3)

    for index, (mean, deviation) in enumerate(DISTRIBUTIONS.values()):
        of_class = readings[classes == index]
        assert of_class.mean() == pytest.approx(mean, abs=0.01)
        assert of_class.std() == pytest.approx(deviation, abs=0.01)
    assert np.bincount(classes) / len(classes) == pytest.approx([0.7, 0.2, 0.1], abs=0.02)


def test_held_out_samples_are_not_those_of_training() -> None:
    held_out, _ = train.held_out_set(seed=3)
    training, _ = train.training_set(seed=3)

    assert not {row.tobytes() for row in held_out} & {row.tobytes() for row in training}


def test_readme_states_what_the_file_holds(classifier: Classifier, stated: dict[str, str]) -> None:
    assert stated["size"] == f"{MODEL.stat().st_size} bytes"
    assert float(stated["input scale"]) == pytest.approx(classifier.scale, rel=1e-8)
    assert int(stated["input zero point"]) == classifier.zero_point


def test_readme_states_the_accuracy_that_is_measured(classifier: Classifier, stated: dict[str, str]) -> None:
    readings, classes = train.held_out_set(int(stated["seed"]))
    failures = classes == LABELS.index("failure")

    for name, quantise in (("", train.rounded), (", wrapping cast", train.wrapped)):
        measured = classifier.accuracy(readings, classes, quantise)
        assert float(stated[f"accuracy, uint8{name}"]) == pytest.approx(measured, abs=5e-5)
    measured = classifier.accuracy(readings[failures], classes[failures], train.rounded)
    assert float(stated["failures recognised, uint8"]) == pytest.approx(measured, abs=5e-5)
