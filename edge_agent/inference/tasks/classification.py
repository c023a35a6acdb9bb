"""From a classifier's output tensor to the best classes."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_agent.inference.labels import fit_labels
from edge_agent.inference.quantization import dequantize_table
from edge_agent.records import Score

_FEW = 32


class OutputMismatch(ValueError):
    """The model's outputs are not those of a classifier, or not usable."""


class Classification:
    """Reads scores out of one tensor of shape (1, classes), float32, uint8 or int8."""

    def __init__(self, outputs: list[dict[str, Any]], labels: Sequence[str] | None, top_k: int) -> None:
        shapes = [tuple(int(size) for size in output["shape"]) for output in outputs]
        if len(shapes) != 1 or not shapes[0] or np.prod(shapes[0]) != shapes[0][-1]:
            found = ", ".join("x".join(map(str, shape)) or "a single number" for shape in shapes) or "none"
            raise OutputMismatch(f"no classifier: expected one output of shape 1xN, found {found}")
        details = outputs[0]
        self.index: int = details["index"]
        self.classes = shapes[0][-1]
        self._dtype = np.dtype(details["dtype"])
        self._labels = fit_labels(labels, self.classes)
        self._top = min(top_k, self.classes)
        self._table = self._make_table(*details["quantization"])
        self._lowest = 0 if self._dtype == np.uint8 else -128

    def _make_table(self, scale: float, zero_point: int) -> list[float] | None:
        if self._dtype == np.float32:
            return None
        if self._dtype not in (np.dtype(np.uint8), np.dtype(np.int8)) or scale <= 0:
            raise OutputMismatch(f"the model's output is {self._dtype} with scale {scale}, which is no score")
        return dequantize_table(self._dtype, scale, zero_point)

    def decode(self, output: npt.NDArray[Any]) -> list[Score]:
        """Return the best classes, best first; of equal scores the lower class comes first.

        Raises OutputMismatch when the model answers with something that is no number.
        """
        values = output.reshape(-1)
        best, raw = self._few(values) if self.classes <= _FEW else self._many(values)
        labels, table, lowest = self._labels, self._table, self._lowest
        if table is not None:
            return [Score(labels[i], table[q - lowest], i) for i, q in zip(best, raw, strict=True)]
        if not np.isfinite(values).all():
            raise OutputMismatch("the model's output holds values that are no numbers")
        return [Score(labels[i], score, i) for i, score in zip(best, raw, strict=True)]

    def _few(self, values: npt.NDArray[Any]) -> tuple[list[int], list[Any]]:
        # For a handful of classes a Python sort is several times cheaper than NumPy's calls.
        raw = values.tolist()
        best = sorted(range(len(raw)), key=raw.__getitem__, reverse=True)[: self._top]
        return best, [raw[i] for i in best]

    def _many(self, values: npt.NDArray[Any]) -> tuple[list[int], list[Any]]:
        # Float32 holds every 8-bit value exactly, and can be negated.
        best = np.argsort(-values.astype(np.float32), kind="stable")[: self._top]
        return best.tolist(), values[best].tolist()
