"""What golden samples say of real models, and of small ones made for it."""

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from edge_agent.inference.evaluation import Figures, evaluate, record
from edge_agent.inference.golden import Golden, GoldenError, read_golden, write_golden
from edge_agent.inference.interpreter.model import LoadedModel, build
from edge_agent.inference.protocol import ModelOptions
from edge_agent.inference.runtime.runtimes import find_runtime
from edge_agent.records import ModelFile, Terms
from tests.inference.conftest import ROOT
from tests.inference.synthetic import Builder, Spec, counter, slices

SHARED = ROOT.parent / "shared/models"
OPTIONS = ModelOptions()
ROW = Spec("x", (1, 4))


def built(path: Path, **options: Any) -> LoadedModel:
    model = ModelFile(str(path), "m", "v1", options.pop("labels", None))
    return build(find_runtime(), model, msgspec.structs.replace(OPTIONS, **options), None)


def made(tmp_path: Path, model: Builder, **options: Any) -> LoadedModel:
    path = tmp_path / "model.tflite"
    path.write_bytes(model.bytes())
    return built(path, **options)


def rows(*values: list[float]) -> Any:
    return np.array(values, np.float32)


def nudged(golden: Golden, at: int, by: float, output: int = 0) -> Golden:
    """The same samples, of which one expects something else."""
    outputs = [each.copy() for each in golden.outputs]
    outputs[output][at].flat[0] += by
    return Golden(golden.input, tuple(outputs), golden.labels)


# ------------------------------------------------------------------------------------------ numbers


@pytest.mark.parametrize("kind", ["float32", "uint8", "int8"])
def test_a_model_agrees_with_itself_and_with_nothing_beyond_the_tolerance(tmp_path: Path, kind: str) -> None:
    scale = 0.0 if kind == "float32" else 1 / 32
    model = made(tmp_path, slices(ROW, [Spec("y", (1, 3), kind, scale, 0)]), task="raw")
    golden = record(model, rows([0, 1, 2, 0], [1, 2, 3, 0], [0.5, 0.5, 0.5, 0]))
    terms = Terms(tolerance=0.1)
    figures = evaluate(model, golden, terms)
    assert (figures.agreed, figures.agreement, figures.accuracy, figures.worst) == (3, 1.0, None, "")
    assert figures.latency_ms is not None
    assert figures.latency_ms > 0
    assert figures.refusal(terms) == ""
    # The span is 3, so 0.3 is let pass.
    assert evaluate(model, nudged(golden, 2, 0.29), terms).agreed == 3
    figures = evaluate(model, nudged(nudged(golden, 0, 0.31), 2, -0.5), terms)
    assert figures.refusal(terms) == (
        "golden samples: 1 of 3 agree, 3 must; sample 2: output 0 is 0.5 from the expected (tolerance 0.3)"
    )
    assert figures.refusal(Terms(min_agreement=1 / 3)) == ""


@pytest.mark.parametrize("kind", ["uint8", "int8"])
def test_two_steps_of_quantisation_are_no_deviation_whatever_the_tolerance(tmp_path: Path, kind: str) -> None:
    step = 1 / 64
    model = made(tmp_path, slices(ROW, [Spec("y", (1, 3), kind, step, 0)]), task="raw")
    golden = record(model, rows([0, 0.5, 1, 0], [1, 0, 1, 0]))
    terms = Terms(tolerance=1e-9)
    for by, agreed in ((2 * step, 2), (-2 * step, 2), (3 * step, 1)):
        assert evaluate(model, nudged(golden, 1, by), terms).agreed == agreed


def test_each_output_has_a_span_of_its_own(tmp_path: Path) -> None:
    model = made(tmp_path, slices(ROW, [Spec("a", (1, 1)), Spec("b", (1, 3))]), task="raw")
    golden = record(model, rows([0, 0, 50, 100], [1, 0, 50, 100]))
    terms = Terms(tolerance=0.1)
    assert evaluate(model, nudged(golden, 0, 9.0, output=1), terms).agreed == 2
    figures = evaluate(model, nudged(golden, 0, 0.2, output=0), terms)
    assert figures.worst == "sample 0: output 0 is 0.2 from the expected (tolerance 0.08)"


def test_a_single_sample_is_measured_by_its_own_size(tmp_path: Path) -> None:
    model = made(tmp_path, slices(ROW, [Spec("y", (1, 1))]), task="raw")
    golden = record(model, rows([8, 0, 0, 0]))
    assert evaluate(model, nudged(golden, 0, 0.7), Terms(tolerance=0.1)).agreed == 1
    assert evaluate(model, nudged(golden, 0, 1.0), Terms(tolerance=0.1)).agreed == 0
    nothing = record(model, rows([0, 0, 0, 0]))
    assert evaluate(model, nothing, Terms()).agreed == 1
    assert evaluate(model, Golden(rows([1, 0, 0, 0]), nothing.outputs), Terms()).agreed == 0


def test_an_output_that_is_no_number_agrees_with_nothing(tmp_path: Path) -> None:
    entry = rows([1, 2, 3, 0], [1, 2, 3, 0])
    raw = made(tmp_path, slices(ROW, [Spec("y", (1, 3))]), task="raw")
    golden = record(raw, entry)
    entry[1, 0] = np.inf
    broken = Golden(entry, golden.outputs)
    figures = evaluate(raw, broken, Terms())
    assert (figures.agreed, figures.worst) == (1, "sample 1: output 0 is no number")
    # A classifier has no answer then.
    figures = evaluate(made(tmp_path, slices(ROW, [Spec("y", (1, 3))])), broken, Terms())
    assert (figures.agreed, figures.worst) == (1, "sample 1: the model's output holds values that are no numbers")


def test_each_sample_begins_without_a_memory(tmp_path: Path) -> None:
    model = made(tmp_path, counter(ROW, [(Spec("state_in", (1, 4)), Spec("state_out", (1, 4)))]), task="raw")
    golden = record(model, rows([1, 0, 0, 0], [2, 0, 0, 0]))
    # The state is no output.
    assert [output[:, 0, 0].tolist() for output in golden.outputs] == [[1, 2]]
    assert evaluate(model, golden, Terms()).agreed == 2


# ------------------------------------------------------------------------------------------ labels, time, range


def test_accuracy_is_that_of_the_labelled_samples(tmp_path: Path) -> None:
    model = made(tmp_path, slices(ROW, [Spec("y", (1, 3))]), labels=["a", "b", "c"])
    golden = record(model, rows([1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [1, 0, 0, 0]), ["a", "c", "c", ""])
    figures = evaluate(model, golden, Terms())
    assert (figures.right, figures.labelled, figures.accuracy) == (2, 3, 2 / 3)
    assert figures.refusal(Terms(min_accuracy=2 / 3)) == ""
    assert figures.refusal(Terms(min_accuracy=0.7)) == "golden samples: 2 of 3 are told right, 3 must"
    unlabelled = evaluate(model, Golden(golden.input, golden.outputs), Terms())
    assert (
        unlabelled.refusal(Terms(min_accuracy=0.7)) == "golden samples: none has a label, and the accuracy must be 0.7"
    )


def test_the_prediction_is_the_one_that_an_event_would_have(tmp_path: Path) -> None:
    model = made(tmp_path, slices(ROW, [Spec("y", (1, 1))]), task="regression", high=1.0)
    golden = record(model, rows([0, 0, 0, 0], [2, 0, 0, 0]), ["normal", "high"])
    assert evaluate(model, golden, Terms()).accuracy == 1.0


def test_a_model_that_is_too_slow_gets_another_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = made(tmp_path, slices(ROW, [Spec("y", (1, 3))]))
    golden = record(model, rows(*[[float(each), 0, 0, 0] for each in range(20)]))
    milliseconds = iter([*[1] * 18, 9, 9, *[1] * 18, 3, 9, *[1] * 20])
    examine = LoadedModel.examine
    calls = []

    def timed(model: LoadedModel, data: Any) -> Any:
        calls.append(data[0])
        taken = next(milliseconds) if len(calls) > 1 else 100  # the first is not counted
        return msgspec.structs.replace(examine(model, data), invoke_ns=taken * 1_000_000)

    monkeypatch.setattr(LoadedModel, "examine", timed)
    terms = Terms(max_latency_ms=3.0)
    figures = evaluate(model, golden, terms)
    assert (figures.latency_ms, figures.agreed, len(calls)) == (3.0, 20, 41)
    assert figures.refusal(terms) == ""
    slow = msgspec.structs.replace(figures, latency_ms=3.456)
    assert slow.refusal(terms) == "golden samples: one in 20 takes 3.46 ms or more, 3 ms are allowed"
    # Without a limit there is nothing to try again for, and there is an end to it.
    milliseconds = iter([9] * 100)
    assert evaluate(model, golden, Terms()).latency_ms == 9.0
    calls.clear()
    assert evaluate(model, golden, terms).latency_ms == 9.0
    assert len(calls) == 1 + 3 * 20


def test_what_is_out_of_range_is_counted(tmp_path: Path) -> None:
    quantized = Spec("x", (1, 4), "uint8", 1 / 255)
    model = made(tmp_path, slices(quantized, [Spec("y", (1, 3))]))
    figures = evaluate(model, record(model, rows([0, 1, 0, 1], [0, 1, 2, 3])), Terms())
    assert figures.clipped == pytest.approx(0.25)


@given(share=st.sampled_from([each / 100 for each in range(101)]), agreed=st.integers(0, 100))
def test_a_share_is_met_by_just_that_many(share: float, agreed: int) -> None:
    figures = Figures(samples=100, agreed=agreed, labelled=0, right=0, latency_ms=None, clipped=0, worst="")
    assert (figures.refusal(Terms(min_agreement=share)) == "") is (agreed >= round(share * 100))


def test_every_reason_is_told() -> None:
    figures = Figures(samples=10, agreed=7, labelled=10, right=8, latency_ms=12.0, clipped=0, worst="sample 3: x")
    assert figures.refusal(Terms(min_accuracy=0.9, max_latency_ms=10.0)) == (
        "golden samples: 7 of 10 agree, 10 must; sample 3: x; 8 of 10 are told right, 9 must; "
        "one in 20 takes 12 ms or more, 10 ms are allowed"
    )


# ------------------------------------------------------------------------------------------ samples of another model


def test_samples_of_another_model_are_told_so(tmp_path: Path) -> None:
    model = made(tmp_path, slices(ROW, [Spec("y", (1, 3))]))
    golden = record(model, rows([1, 0, 0, 0]))
    pictures = np.zeros((1, 8, 8, 3), np.uint8)
    for wrong, reason in (
        (Golden(rows([1, 0]), golden.outputs), "each has 2 values, the model takes 4 (float32 of shape 1x4)"),
        (Golden(pictures, golden.outputs), "the model takes 4 values (float32 of shape 1x4), the source gives images"),
        (Golden(golden.input, golden.outputs * 2), "they have 2 outputs, the model has 1"),
        (
            Golden(golden.input, (rows([1, 2]),)),
            "output 0 has 2 values, that of the model 3 (float32 of shape 1x3)",
        ),
    ):
        with pytest.raises(GoldenError) as caught:
            evaluate(model, wrong, Terms())
        assert str(caught.value) == reason


# ------------------------------------------------------------------------------------------ detectors

WIDE = Spec("x", (1, 4, 4, 3))
BOXES = [Spec("boxes", (1, 3, 4)), Spec("classes", (1, 3)), Spec("scores", (1, 3)), Spec("count", (1,))]


def objects(*found: tuple[list[float], int, float], count: int | None = None) -> tuple[Any, ...]:
    """The outputs of TFLite_Detection_PostProcess for one picture."""
    full = [*found, *[([0.0, 0, 0, 0], 0, 0.0)] * (3 - len(found))]
    columns = zip(*full, strict=True)
    boxes, classes, scores = (np.array([column], np.float32) for column in columns)
    return boxes, classes, scores, np.array([len(found) if count is None else count], np.float32)


A, B = [0.0, 0.0, 0.5, 0.5], [0.5, 0.5, 1.0, 1.0]


def difference(tmp_path: Path, expected: tuple[Any, ...], found: tuple[Any, ...], **options: Any) -> str:
    """What evaluate says of a detector that finds this, where that is expected."""
    model = made(tmp_path, slices(WIDE, BOXES), task="detection", labels=["cat", "dog"], **options)
    entry = np.zeros((1, 4, 4, 3), np.float32)
    values = np.concatenate([each.reshape(-1) for each in found])
    entry.reshape(-1)[: len(values)] = values
    golden = Golden(entry, tuple(each.reshape(1, *each.shape[1:]) for each in expected))
    figures = evaluate(model, golden, Terms(tolerance=0.1))
    assert (figures.agreed == 1) is (figures.worst == "")
    return figures.worst


def test_near_equal_objects_may_change_places(tmp_path: Path) -> None:
    one, other = objects((A, 0, 0.80), (B, 1, 0.79)), objects((B, 1, 0.80), (A, 0, 0.79))
    assert difference(tmp_path, one, other) == ""


def test_what_is_behind_the_last_object_is_of_no_interest(tmp_path: Path) -> None:
    one = objects((A, 0, 0.8), count=1)
    other = objects((A, 0, 0.8), (B, 1, 0.7), (B, 0, 0.6), count=1)
    assert difference(tmp_path, one, other) == ""


@pytest.mark.parametrize(
    ("expected", "found", "words"),
    [
        (objects((A, 0, 0.8)), objects(), "'cat' with a score of 0.8 is expected and not found"),
        (objects(), objects((A, 0, 0.8)), "'cat' with a score of 0.8 is found and not expected"),
        (objects((A, 0, 0.8)), objects((A, 1, 0.8)), "'cat' with a score of 0.8 is expected and not found"),
        (objects((A, 0, 0.8)), objects((B, 0, 0.8)), "'cat' with a score of 0.8 is expected and not found"),
        (objects((A, 0, 0.8)), objects((A, 0, 0.6)), "'cat' with a score of 0.8 is expected and not found"),
        (objects((A, 0, 0.8)), objects((A, 0, 0.7)), ""),
        (objects((A, 0, 0.8)), objects(([0, 0, 0.5, 0.4], 0, 0.8)), ""),
        # Close to the threshold of 0.4, one may be on this side and the other on that.
        (objects((A, 0, 0.45)), objects((A, 0, 0.39)), ""),
        (objects((A, 0, 0.8), (B, 0, 0.45)), objects((A, 0, 0.8)), ""),
        (objects(), objects((A, 0, 0.55)), "'cat' with a score of 0.55 is found and not expected"),
    ],
)
def test_objects_are_compared_by_class_place_and_score(
    tmp_path: Path, expected: tuple[Any, ...], found: tuple[Any, ...], words: str
) -> None:
    assert difference(tmp_path, expected, found) == (f"sample 0: {words}" if words else "")


def test_where_only_the_best_are_told_the_last_of_them_may_be_another(tmp_path: Path) -> None:
    one, other = objects((A, 0, 0.80), (B, 1, 0.79)), objects((B, 1, 0.80), (A, 0, 0.79))
    assert difference(tmp_path, one, other, top_k=1) == ""
    other = objects((B, 1, 0.65), (A, 0, 0.5))
    assert "'cat' with a score of 0.8 is expected" in difference(tmp_path, one, other, top_k=1)


# ------------------------------------------------------------------------------------------ real models


def photo(name: str) -> Any:
    with Image.open(SHARED / name) as image:
        return np.asarray(image.convert("RGB"))


@pytest.mark.skipif(not SHARED.exists(), reason=f"{SHARED} is missing")
def test_a_real_classifier(tmp_path: Path) -> None:
    labels = (SHARED / "imagenet_labels.txt").read_text().splitlines()
    model = built(SHARED / "mobilenet_v2_1.0_224_quant.tflite", labels=labels)
    cat = photo("cat.bmp")
    golden = record(model, np.stack([cat, cat[:, ::-1], 255 - cat]))
    golden = Golden(golden.input, golden.outputs, (str(model.examine(cat).answer.prediction), "", ""))
    write_golden(tmp_path / "golden.npz", golden)
    terms = Terms(tolerance=0.02, min_accuracy=1.0)
    figures = evaluate(model, read_golden(tmp_path / "golden.npz"), terms)
    assert (figures.agreed, figures.accuracy, figures.refusal(terms)) == (3, 1.0, "")
    # A model of the same form that was trained otherwise is found out.
    smaller = built(SHARED / "mobilenet_v1_0.25_128_quant.tflite", labels=labels)
    assert evaluate(smaller, golden, terms).refusal(terms).startswith("golden samples: 0 of 3 agree, 3 must; sample ")


@pytest.mark.skipif(not SHARED.exists(), reason=f"{SHARED} is missing")
def test_a_real_detector() -> None:
    model = built(SHARED / "traffic_model.tflite", task="detection", labels=["car", "truck"], threshold=0.3)
    street = photo("traffic_0001.bmp")
    golden = record(model, np.stack([street, street[:, ::-1]]))
    assert evaluate(model, golden, Terms()).agreed == 2
    swapped = Golden(golden.input[::-1], golden.outputs)
    figures = evaluate(model, swapped, Terms())
    assert figures.agreed == 0
    assert "is expected and not found" in figures.worst
