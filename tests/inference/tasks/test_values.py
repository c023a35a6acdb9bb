"""Values, anomaly scores and raw outputs, through models that put out what the test puts in."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_agent.inference.interpreter.model import LoadedModel, build
from edge_agent.inference.latencies import StageLatencies
from edge_agent.inference.progress import ProgressPage, Reporter, Track
from edge_agent.inference.protocol import ModelOptions
from edge_agent.inference.refusal import ModelRefused
from edge_agent.inference.runtime.runtimes import find_runtime
from edge_agent.inference.tasks.base import OutputMismatch
from edge_agent.inference.tasks.raw import MAX_VALUES
from edge_agent.records import ModelFile, Result, Sample, Tensor
from tests.inference.synthetic import Builder, Spec, slices


def built(model: Builder, folder: Path, task: str, **options: Any) -> LoadedModel:
    path = folder / "model.tflite"
    path.write_bytes(model.bytes())
    given = ModelOptions(task=task, **options)
    return build(find_runtime(), ModelFile(str(path), "m", "v1"), given, None, root=Path("/nowhere"))


def refused(model: Builder, folder: Path, task: str, **options: Any) -> str:
    with pytest.raises(ModelRefused) as caught:
        built(model, folder, task, **options)
    assert not caught.value.permanent  # another task in the settings may suit it
    return str(caught.value)


def run(model: LoadedModel, *values: float) -> Result:
    page = ProgressPage.create()
    try:
        return model.run(Sample(np.array(values, np.float32), 1), Reporter(page, Track.INFERENCE), StageLatencies())
    finally:
        page.close()


# ------------------------------------------------------------------------------------------ regression


def test_values_come_in_the_models_order_and_the_first_one_counts(tmp_path: Path) -> None:
    model = built(slices(Spec("x", (1, 3)), [Spec("y", (1, 2)), Spec("z", (1,))]), tmp_path, "regression")
    result = run(model, 0.1, 20.0, -3.5)
    assert [(score.label, score.score, score.index) for score in result.scores] == [
        ("0", 0.1, 0),
        ("1", 20.0, 1),
        ("2", -3.5, 2),
    ]
    assert (result.value, result.verdict, result.outputs) == (0.1, None, None)


def test_values_are_dequantised(tmp_path: Path) -> None:
    outputs = [Spec("y", (1, 1), "int8", 0.5, 3), Spec("z", (1, 1), "uint8", 0.25, 0)]
    model = built(slices(Spec("x", (1, 2)), outputs), tmp_path, "regression", labels=["bar", "mm"])
    assert [(score.label, score.score) for score in run(model, -20.4, 12.3).scores] == [("bar", -20.5), ("mm", 12.25)]


def test_single_values_go_by_the_names_of_their_outputs(tmp_path: Path) -> None:
    model = built(slices(Spec("x", (1, 2)), [Spec("bar", (1, 1)), Spec("mm", (1, 1))]), tmp_path, "regression")
    assert [score.label for score in run(model, 1.0, 2.0).scores] == ["bar", "mm"]


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({}, [None] * 5),
        ({"low": 10.0}, ["low", "normal", "normal", "normal", "normal"]),
        ({"high": 90.0}, ["normal", "normal", "normal", "normal", "high"]),
        ({"low": 10.0, "high": 90.0}, ["low", "normal", "normal", "normal", "high"]),
        ({"low": 0.0, "high": 0.0}, ["high"] * 5),
    ],
)
def test_limits_say_what_is_normal(tmp_path: Path, limits: Any, expected: Any) -> None:
    model = built(slices(Spec("x", (1, 1)), [Spec("y", (1, 1))]), tmp_path, "regression", **limits)
    assert [run(model, value).verdict for value in (9.9, 10.0, 50.0, 90.0, 90.1)] == expected
    assert model.task.labels == (("0", "low", "normal", "high") if limits else ("0",))


def test_a_value_that_is_no_number_is_an_error_of_the_sample(tmp_path: Path) -> None:
    model = built(slices(Spec("x", (1, 1)), [Spec("y", (1, 1))]), tmp_path, "regression")
    with pytest.raises(OutputMismatch, match="values that are no numbers"):
        run(model, np.inf)
    assert run(model, 1.0).value == 1.0


def test_what_is_no_regression_is_refused(tmp_path: Path) -> None:
    assert refused(slices(Spec("x", (1, 1001)), [Spec("y", (1, 1001))]), tmp_path, "regression") == (
        "no regression: expected 1 to 1000 output values, found 1x1001; [inference].task is 'regression'"
    )
    labels = refused(slices(Spec("x", (1, 2)), [Spec("y", (1, 2))]), tmp_path, "regression", labels=["a"])
    assert labels.startswith("1 labels, but the model has 2 outputs")


# ------------------------------------------------------------------------------------------ anomaly


def test_a_single_value_is_the_score(tmp_path: Path) -> None:
    model = built(slices(Spec("x", (1, 4)), [Spec("y", (1, 1))]), tmp_path, "anomaly", high=0.5)
    assert str(model.task) == "an anomaly score"
    for value, verdict in ((0.5, "normal"), (0.625, "anomaly")):
        result = run(model, value, 0, 0, 0)
        assert (result.value, result.verdict) == (value, verdict)
        assert [(score.label, score.score, score.index) for score in result.scores] == [("0", value, 0)]


@pytest.mark.parametrize(("limits", "verdict"), [({}, None), ({"low": 1.0}, "anomaly"), ({"low": 0.0}, "normal")])
def test_a_score_below_its_lower_limit_is_an_anomaly_too(tmp_path: Path, limits: Any, verdict: Any) -> None:
    model = built(slices(Spec("x", (1, 4)), [Spec("y", ())]), tmp_path, "anomaly", labels=["wear"], **limits)
    result = run(model, 0.5, 0, 0, 0)
    assert result.verdict == verdict
    assert result.scores[0].label == "wear"
    assert model.task.labels == (("wear", "normal", "anomaly") if limits else ("wear",))


def test_an_autoencoders_score_is_the_mean_of_the_squared_differences(tmp_path: Path) -> None:
    # It cannot say more than 2.0, so that is how far it follows its input.
    entry, output = Spec("x", (1, 4), "int8", 0.05, 0), Spec("again", (1, 4), "uint8", 0.0078125, 0)
    model = built(slices(entry, [output]), tmp_path, "anomaly", high=0.1)
    assert str(model.task) == "an autoencoder"
    values = [0.5, 1.0, 4.0, 9.0]
    result = run(model, *values)

    # The model sees at most 127 * 0.05.
    seen = np.float32(0.05) * np.rint(np.minimum(values, 127 * 0.05) / np.float32(0.05))
    again = np.minimum(np.rint(seen / 0.0078125), 255) * 0.0078125
    assert result.value == pytest.approx(np.mean((seen - again) ** 2), rel=1e-5)
    assert (result.verdict, result.clipped) == ("anomaly", 0.25)
    assert run(model, 0.0, 0.5, 1.0, 1.5).verdict == "normal"


def test_an_autoencoder_of_images_compares_with_what_it_saw(tmp_path: Path) -> None:
    entry = Spec("x", (1, 2, 2, 3), "uint8", 1 / 128, 128)
    model = built(slices(entry, [Spec("again", (1, 2, 2, 3), "int8", 1 / 128, 0)]), tmp_path, "anomaly")
    page = ProgressPage.create()
    picture = np.random.default_rng(5).integers(0, 256, (2, 2, 3), np.uint8)
    assert model.run(Sample(picture, 1), Reporter(page, Track.INFERENCE), StageLatencies()).value == 0.0
    page.close()


@pytest.mark.parametrize("outputs", [[(1, 3)], [(1, 1), (1, 1)], [(1, 4), (1, 1)], [(1, 4), (1, 4)]])
def test_what_is_no_anomaly_detector_is_refused(tmp_path: Path, outputs: Any) -> None:
    size = sum(int(np.prod(shape)) for shape in outputs)
    builder = slices(Spec("x", (1, 4)), [])
    row = builder.graph.operators[0].outputs[0]
    for shape in outputs:
        builder.output(builder.slice(row, 0, int(np.prod(shape))), Spec("y", shape))
    assert size
    assert (
        "no anomaly detector: expected one output of a single value, or one of the shape of the input, 1x4"
        in refused(builder, tmp_path, "anomaly")
    )


# ------------------------------------------------------------------------------------------ raw


def test_raw_outputs_come_with_name_shape_and_real_values(tmp_path: Path) -> None:
    outputs = [Spec("a", (1, 2, 2)), Spec("b", (1, 2), "int8", 0.1, -5), Spec("c", ())]
    model = built(slices(Spec("x", (1, 7)), outputs), tmp_path, "raw")
    result = run(model, 0.1, np.inf, -np.inf, 1e-30, 1.04, 99.0, 3.0)
    assert result.outputs == [
        Tensor("a", [1, 2, 2], [0.1, 0.0, 0.0, 1e-30], [1, 2]),
        Tensor("b", [1, 2], [1.0, 13.2]),
        Tensor("c", [], [3.0]),
    ]
    assert (result.scores, result.value, result.verdict) == ([], None, None)


def test_more_values_than_an_event_can_carry_are_refused(tmp_path: Path) -> None:
    outputs = [Spec("y", (1, MAX_VALUES)), Spec("z", (1, 1))]
    assert refused(slices(Spec("x", (1, MAX_VALUES + 1)), outputs), tmp_path, "raw") == (
        "its outputs have 10001 values (1x10000, 1x1), which is too much for an event; the task 'raw' is for up to "
        "10000; [inference].task is 'raw'"
    )
    model = built(slices(Spec("x", (1, MAX_VALUES)), outputs[:1]), tmp_path, "raw")
    assert str(model.task) == "10000 output values"


def test_whole_numbers_come_as_they_are(tmp_path: Path) -> None:
    model = slices(Spec("x", (1, 2)), [])
    row = model.graph.operators[0].outputs[0]
    from ai_edge_litert import schema_py_generated as schema  # noqa: PLC0415  only here

    options = schema.CastOptionsT()
    options.inDataType, options.outDataType = schema.TensorType.FLOAT32, schema.TensorType.INT64
    cast = model.operator(
        schema.BuiltinOperator.CAST, [row], Spec("n", (2,), "int64"), options, schema.BuiltinOptions.CastOptions
    )
    model.graph.outputs.append(cast)
    assert run(built(model, tmp_path, "raw"), 3.0, 70000.0).outputs == [Tensor("n", [2], [3.0, 70000.0])]
    assert run(built(model, tmp_path, "regression"), 3.0, 70000.0).value == 3.0
