"""From real numbers to a model's integers and back.

A quantised tensor holds q for the real number (q - zero_point) * scale (TensorFlow Lite 8-bit quantization
specification). The usual snippet `(data / scale + zero_point).astype(np.uint8)` truncates and wraps around: a
value just above the range becomes a small one, and a failing machine looks healthy. Here values are rounded and
clipped, NaN becomes the real number zero, and the share of values that did not fit is reported: it is the first
sign of drift, or of a model calibrated on the wrong data.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

# What an array's min() and max() come to, without a call in between that costs as much as the reduction.
_smallest, _largest = np.minimum.reduce, np.maximum.reduce


class Quantizer:
    """Quantises float32 arrays of one fixed shape into one reused buffer. Not for use by two threads at once."""

    def __init__(self, shape: tuple[int, ...], dtype: npt.DTypeLike, scale: float, zero_point: int) -> None:
        limits = np.iinfo(np.dtype(dtype))
        self._low, self._high = np.float32(limits.min), np.float32(limits.max)
        self._inverse = np.float32(1.0 / scale)
        self._zero_point = np.float32(zero_point)
        self._real = np.empty(shape, np.float32)
        self._quantized = np.empty(shape, dtype)

    def quantize(self, values: Array) -> tuple[Array, float]:
        """Return the integers and the share (0..1) of `values` that were clipped or not a number.

        `values` is float32 of the quantizer's shape. The returned array is overwritten by the next call.
        """
        real = self._real
        np.multiply(values, self._inverse, out=real)
        np.add(real, self._zero_point, out=real)
        np.rint(real, out=real)
        clipped = 0.0
        # NaN makes both comparisons false, so the usual case costs two reductions and no mask.
        if not (_smallest(real, None) >= self._low and _largest(real, None) <= self._high):
            clipped = self._clip(real)
        np.copyto(self._quantized, real, casting="unsafe")
        return self._quantized, clipped

    def _clip(self, real: Array) -> float:
        missing = np.isnan(real)
        outside = np.count_nonzero((real < self._low) | (real > self._high) | missing)
        np.clip(real, self._low, self._high, out=real)
        real[missing] = self._zero_point
        return float(outside) / real.size


def dequantize_table(dtype: npt.DTypeLike, scale: float, zero_point: int) -> list[float]:
    """Return the real number of each of the 256 values of an 8-bit type, starting with the smallest value."""
    limits = np.iinfo(np.dtype(dtype))
    return [round_off(float(np.float32(scale)) * (q - zero_point)) for q in range(limits.min, limits.max + 1)]


def round_off(value: float) -> float:
    """Return the number with 7 significant digits, which is what float32 holds: an event need not carry 17."""
    return float(f"{value:.7g}")


def plain_numbers(values: Array) -> tuple[list[float], list[int]]:
    """Return the numbers of a one-dimensional array rounded off, with 0 for NaN and infinity, and where these are."""
    finite = np.isfinite(values)
    plain = np.where(finite, values, 0.0)
    return list(map(round_off, plain.tolist())), np.flatnonzero(~finite).tolist()
