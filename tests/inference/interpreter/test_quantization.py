"""Quantisation against the definition, over the whole range of what a sensor may send."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from edge_agent.inference.interpreter.quantization import Quantizer, dequantize_table, plain_numbers
from edge_agent.inference.interpreter.tensors import TensorInfo

SCALES = st.floats(1e-4, 10.0).map(lambda scale: float(np.float32(scale)))
VALUES = arrays.arrays(
    np.float32, st.integers(1, 64), elements=st.floats(width=32, allow_nan=True, allow_infinity=True)
)
TYPES = st.sampled_from([(np.uint8, 0, 255), (np.int8, -128, 127)])


@given(VALUES, SCALES, TYPES, st.integers(0, 255))
def test_every_value_is_the_nearest_integer_clipped(values: Any, scale: Any, kind: Any, offset: Any) -> None:
    dtype, low, high = kind
    zero_point = low + offset
    quantizer = Quantizer(values.shape, dtype, scale, zero_point)

    with np.errstate(over="ignore"):
        quantized, clipped = quantizer.quantize(values)
        real = values * np.float32(1.0 / scale) + np.float32(zero_point)

    outside = 0
    for value, got in zip(real.tolist(), quantized.tolist(), strict=True):
        if math.isnan(value):
            expected, out = zero_point, True
        else:
            nearest = value if math.isinf(value) else float(np.rint(np.float32(value)))
            expected, out = min(max(nearest, low), high), not low <= nearest <= high
        assert got == expected
        outside += out
    assert clipped == pytest.approx(outside / values.size)


def test_a_failing_machine_does_not_wrap_around_to_normal() -> None:
    scale, zero_point = 0.0245, 20
    values = np.full(128, 6.8, np.float32)

    wrapped = (values / scale + zero_point).astype(np.int64).astype(np.uint8)
    quantized, clipped = Quantizer((128,), np.uint8, scale, zero_point).quantize(values)

    assert set(wrapped.tolist()) == {41}  # what the usual snippet makes of it: 0.5, a healthy machine
    assert set(quantized.tolist()) == {255}
    assert clipped == 1.0


def test_the_buffer_starts_afresh_with_each_sample() -> None:
    quantizer = Quantizer((3,), np.int8, 0.5, 0)
    assert quantizer.quantize(np.array([np.nan, 1e9, 1], np.float32))[1] == pytest.approx(2 / 3)
    quantized, clipped = quantizer.quantize(np.array([1, 2, 3], np.float32))
    assert (quantized.tolist(), clipped) == ([2, 4, 6], 0.0)


@pytest.mark.parametrize(("dtype", "zero_point"), [(np.uint8, 0), (np.uint8, 128), (np.int8, -128), (np.int8, 3)])
def test_the_table_holds_the_real_number_of_each_integer(dtype: Any, zero_point: Any) -> None:
    table = dequantize_table(dtype, 0.00390625, zero_point)
    low = np.iinfo(dtype).min
    assert len(table) == 256
    assert all(value == pytest.approx((low + i - zero_point) / 256, abs=1e-7) for i, value in enumerate(table))


@given(arrays.arrays(np.uint8, 32), SCALES, TYPES, st.integers(0, 255))
def test_all_ways_back_to_real_numbers_agree(raw: Any, scale: Any, kind: Any, offset: Any) -> None:
    dtype, low, _ = kind
    values = raw.view(dtype)
    zero_point = low + offset
    tensor = TensorInfo(0, "x", values.shape, np.dtype(dtype), scale, zero_point)
    table = dequantize_table(dtype, scale, zero_point)

    real = tensor.real(values)

    for value, got in zip(values.tolist(), real.tolist(), strict=True):
        assert got == pytest.approx((value - zero_point) * scale, rel=1e-12)
        assert table[value - low] == pytest.approx(got, rel=1e-6)
    if 0 <= zero_point - low <= 255:
        quantized, clipped = Quantizer(values.shape, dtype, scale, zero_point).quantize(real.astype(np.float32))
        assert np.array_equal(quantized, values)
        assert clipped == 0.0


@given(st.lists(st.floats(width=32)))
def test_what_is_no_number_is_told_apart_and_all_else_keeps_the_precision_of_float32(values: Any) -> None:
    numbers, missing = plain_numbers(np.array(values, np.float64))
    assert missing == [at for at, value in enumerate(values) if not math.isfinite(value)]
    for at, (value, plain) in enumerate(zip(values, numbers, strict=True)):
        assert plain == (0.0 if at in missing else pytest.approx(value, rel=5e-7))
        assert len(repr(plain)) <= 24
