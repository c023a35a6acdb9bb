"""Samples become the tensors that models take."""

from typing import Any

import numpy as np
import pytest
from PIL import Image

from edge_agent.inference.interpreter.inputs import InputMismatch, ModelInput, Placement
from edge_agent.inference.interpreter.tensors import TensorInfo


def model_input(
    shape: tuple[int, ...], dtype: type, scale: float = 1.0, zero_point: int = 0, **options: Any
) -> ModelInput:
    tensor = TensorInfo(0, "x", shape, np.dtype(dtype), scale, zero_point)
    defaults: dict[str, Any] = {"resize": "nearest", "mean": 127.5, "std": 127.5}
    return ModelInput(tensor, **(defaults | options))


def prepared(model: ModelInput, data: Any) -> tuple[Any, float]:
    done = model.prepare(data)
    return done.tensor, done.clipped


def image(height: int, width: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(1).integers(0, 256, (height, width, 3), np.uint8)


def test_an_image_of_the_right_size_goes_in_as_it_is() -> None:
    pixels = image(8, 6)
    tensor, clipped = prepared(model_input((1, 8, 6, 3), np.uint8, 1 / 128, 128), pixels)
    assert tensor.shape == (1, 8, 6, 3)
    assert np.array_equal(tensor[0], pixels)
    assert clipped == 0.0


def test_an_image_is_shifted_for_int8_and_scaled_for_float() -> None:
    pixels = image(4, 4)
    tensor, _ = prepared(model_input((1, 4, 4, 3), np.int8, 1 / 128, 0), pixels)
    assert np.array_equal(tensor[0].astype(int), pixels.astype(int) - 128)
    tensor, _ = prepared(model_input((1, 4, 4, 3), np.float32, 0.0, 0), pixels)
    assert tensor.dtype == np.float32
    assert np.allclose(tensor[0], (pixels - 127.5) / 127.5)


@pytest.mark.parametrize("way", ["nearest", "bilinear", "lanczos"])
def test_an_image_is_resized_as_asked(way: Any) -> None:
    pixels = image(40, 30)
    tensor, _ = prepared(model_input((1, 8, 6, 3), np.uint8, resize=way), pixels)
    expected = Image.fromarray(pixels).resize((6, 8), Image.Resampling[way.upper()])
    assert np.array_equal(tensor[0], np.asarray(expected))


def test_a_grey_model_gets_a_grey_image() -> None:
    tensor, _ = prepared(model_input((1, 8, 6, 1), np.uint8), image(8, 6))
    assert tensor.shape == (1, 8, 6, 1)


def test_values_are_quantised_into_the_shape_of_the_model() -> None:
    tensor, clipped = prepared(model_input((1, 2, 2), np.uint8, 0.5, 10), np.array([0, 1, 1000, -1], np.float32))
    assert tensor.tolist() == [[[10, 12], [255, 8]]]
    assert clipped == 0.25


def test_missing_values_of_a_float_model_become_zero_and_are_counted() -> None:
    tensor, clipped = prepared(model_input((1, 4), np.float32, 0.0), np.array([1, np.nan, 2, 3], np.float32))
    assert tensor.tolist() == [[1, 0, 2, 3]]
    assert clipped == 0.25


@pytest.mark.parametrize(
    ("shape", "data", "message"),
    [
        ((1, 128), np.zeros(64, np.float32), "the model takes 128 values (uint8 of shape 1x128), the source gives 64"),
        (
            (1, 128),
            np.zeros((4, 4, 3), np.uint8),
            "the model takes 128 values (uint8 of shape 1x128), the source gives images",
        ),
        (
            (1, 8, 8, 3),
            np.zeros(64, np.float32),
            "the model takes 192 values (uint8 of shape 1x8x8x3), the source gives 64",
        ),
    ],
)
def test_a_sample_that_does_not_fit_is_named(shape: Any, data: Any, message: Any) -> None:
    with pytest.raises(InputMismatch) as caught:
        model_input(shape, np.uint8).prepare(data)
    assert str(caught.value) == message


def test_an_input_that_cannot_be_fed_is_refused() -> None:
    with pytest.raises(InputMismatch, match="the model's input is int64 with scale 0"):
        model_input((1, 4), np.int64, 0.0)


def test_an_image_of_the_right_size_is_not_copied() -> None:
    pixels = image(8, 6)
    for fit in ("stretch", "letterbox"):
        tensor, _ = prepared(model_input((1, 8, 6, 3), np.uint8, 1.0, fit=fit), pixels)
        assert np.shares_memory(tensor, pixels)


@pytest.mark.parametrize(
    ("height", "width", "placement"),
    [
        (20, 40, Placement(40, 20, 0.0, 0.25, 1.0, 0.75)),
        (40, 20, Placement(20, 40, 0.25, 0.0, 0.75, 1.0)),
        (40, 40, Placement(40, 40)),
        # 9.7 rows are 10.
        (20, 33, Placement(33, 20, 0.0, 3 / 16, 1.0, 13 / 16)),
        # So narrow that less than a pixel would be left of it.
        (1, 1000, Placement(1000, 1, 0.0, 7 / 16, 1.0, 8 / 16)),
    ],
)
def test_a_letterbox_keeps_the_proportions(height: int, width: int, placement: Placement) -> None:
    model = model_input((1, 16, 16, 3), np.uint8, 1.0, fit="letterbox")
    pixels = image(height, width)

    done = model.prepare(pixels)

    assert done.placement == placement
    top, bottom = round(placement.top * 16), round(placement.bottom * 16)
    left, right = round(placement.left * 16), round(placement.right * 16)
    expected = np.full((16, 16, 3), 114, np.uint8)
    inner = Image.fromarray(pixels).resize((right - left, bottom - top), Image.Resampling.NEAREST)
    expected[top:bottom, left:right] = np.asarray(inner)
    assert np.array_equal(done.tensor[0], expected)


def test_a_letterbox_follows_a_source_that_changes_its_size() -> None:
    model = model_input((1, 16, 16, 1), np.uint8, 1.0, fit="letterbox")
    for height, width in ((20, 40), (40, 20), (20, 40)):
        done = model.prepare(image(height, width))
        fresh = model_input((1, 16, 16, 1), np.uint8, 1.0, fit="letterbox").prepare(image(height, width))
        assert np.array_equal(done.tensor, fresh.tensor)
        assert done.placement == fresh.placement


def test_a_stretched_image_lies_everywhere_and_values_lie_nowhere() -> None:
    model = model_input((1, 8, 6, 3), np.uint8, 1.0)
    assert model.prepare(image(30, 40)).placement == Placement(40, 30)
    assert model.prepare(np.zeros(144, np.float32)).placement is None


def test_each_channel_can_be_normalised_by_its_own_numbers() -> None:
    pixels = image(4, 4)
    model = model_input((1, 4, 4, 3), np.float32, 0.0, mean=[1.0, 2.0, 3.0], std=[10.0, 20.0, 30.0])
    tensor, _ = prepared(model, pixels)
    assert tensor.dtype == np.float32
    assert np.allclose(tensor[0], (pixels - np.array([1, 2, 3])) / np.array([10, 20, 30]))


def test_an_input_with_a_scale_for_each_row_is_refused() -> None:
    tensor = TensorInfo(0, "x", (1, 4), np.dtype(np.int8), per_axis=True)
    with pytest.raises(InputMismatch, match="the model's input 'x' cannot be fed: it has a scale for each row"):
        ModelInput(tensor, resize="nearest", mean=0.0, std=1.0)
