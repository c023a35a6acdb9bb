"""Samples become the tensors that models take."""

from typing import Any

import numpy as np
import pytest
from PIL import Image

from edge_agent.inference.inputs import InputMismatch, ModelInput


def model_input(
    shape: tuple[int, ...], dtype: type, scale: float = 1.0, zero_point: int = 0, **options: Any
) -> ModelInput:
    details = {"index": 0, "shape": np.array(shape), "dtype": dtype, "quantization": (scale, zero_point)}
    defaults: dict[str, Any] = {"resize": "nearest", "mean": 127.5, "std": 127.5}
    return ModelInput(details, **(defaults | options))


def image(height: int, width: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(1).integers(0, 256, (height, width, 3), np.uint8)


def test_an_image_of_the_right_size_goes_in_as_it_is() -> None:
    pixels = image(8, 6)
    tensor, clipped = model_input((1, 8, 6, 3), np.uint8, 1 / 128, 128).prepare(pixels)
    assert tensor.shape == (1, 8, 6, 3)
    assert np.array_equal(tensor[0], pixels)
    assert clipped == 0.0


def test_an_image_is_shifted_for_int8_and_scaled_for_float() -> None:
    pixels = image(4, 4)
    tensor, _ = model_input((1, 4, 4, 3), np.int8, 1 / 128, 0).prepare(pixels)
    assert np.array_equal(tensor[0].astype(int), pixels.astype(int) - 128)
    tensor, _ = model_input((1, 4, 4, 3), np.float32, 0.0, 0).prepare(pixels)
    assert tensor.dtype == np.float32
    assert np.allclose(tensor[0], (pixels - 127.5) / 127.5)


@pytest.mark.parametrize("way", ["nearest", "bilinear", "lanczos"])
def test_an_image_is_resized_as_asked(way: Any) -> None:
    pixels = image(40, 30)
    tensor, _ = model_input((1, 8, 6, 3), np.uint8, resize=way).prepare(pixels)
    expected = Image.fromarray(pixels).resize((6, 8), Image.Resampling[way.upper()])
    assert np.array_equal(tensor[0], np.asarray(expected))


def test_a_grey_model_gets_a_grey_image() -> None:
    tensor, _ = model_input((1, 8, 6, 1), np.uint8).prepare(image(8, 6))
    assert tensor.shape == (1, 8, 6, 1)


def test_values_are_quantised_into_the_shape_of_the_model() -> None:
    tensor, clipped = model_input((1, 2, 2), np.uint8, 0.5, 10).prepare(np.array([0, 1, 1000, -1], np.float32))
    assert tensor.tolist() == [[[10, 12], [255, 8]]]
    assert clipped == 0.25


def test_missing_values_of_a_float_model_become_zero_and_are_counted() -> None:
    tensor, clipped = model_input((1, 4), np.float32, 0.0).prepare(np.array([1, np.nan, 2, 3], np.float32))
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
