"""From a classifier's output tensor to the best classes."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_agent.inference.interpreter.inputs import Prepared
from edge_agent.inference.interpreter.labels import fit_labels
from edge_agent.inference.interpreter.quantization import dequantize_table
from edge_agent.inference.interpreter.tensors import TensorInfo
from edge_agent.inference.tasks.base import Answer, OutputMismatch, TaskMismatch, listed, require_numbers
from edge_agent.records import Score

_FEW = 32


class Classification:
    """Reads scores out of one tensor of shape (1, classes), float32, uint8 or int8.

    The answer has at most `top_k` classes, and none with a score below `threshold`.
    """

    def __init__(
        self, outputs: Sequence[TensorInfo], labels: Sequence[str] | None, top_k: int, threshold: float = 0.0
    ) -> None:
        if len(outputs) != 1 or not outputs[0].shape or outputs[0].size != outputs[0].shape[-1]:
            raise TaskMismatch(f"no classifier: expected one output of shape 1xN, found {listed(outputs)}")
        require_numbers(outputs)
        self.outputs = (outputs[0].index,)
        self.classes = outputs[0].shape[-1]
        self._labels = fit_labels(labels, self.classes)
        self._top = min(top_k, self.classes)
        self._threshold = threshold
        self._table = _make_table(outputs[0])

    def __str__(self) -> str:
        return f"{self.classes} classes"

    @property
    def labels(self) -> tuple[str, ...]:
        """One for each class."""
        return tuple(self._labels)

    def decode(self, outputs: Sequence[npt.NDArray[Any]], prepared: Prepared) -> Answer:  # noqa: ARG002  no use for it
        """Return the best classes, best first; of equal scores the lower class comes first.

        Raises OutputMismatch when the model answers with something that is no number.
        """
        values = outputs[0].reshape(-1)
        best, raw = self._few(values) if self.classes <= _FEW else self._many(values)
        labels, table = self._labels, self._table
        if table is not None:
            scores = [Score(labels[i], table[q], i) for i, q in zip(best, raw, strict=True)]
        elif np.isfinite(values).all():
            scores = [Score(labels[i], score, i) for i, score in zip(best, raw, strict=True)]
        else:
            raise OutputMismatch("the model's output holds values that are no numbers")
        if self._threshold:
            scores = [score for score in scores if score.score >= self._threshold]
        return Answer(scores)

    def _few(self, values: npt.NDArray[Any]) -> tuple[list[int], Iterable[Any]]:
        # For a handful of classes a Python sort is several times cheaper than NumPy's calls.
        raw = values.tolist()
        best = sorted(range(len(raw)), key=raw.__getitem__, reverse=True)[: self._top]
        return best, map(raw.__getitem__, best)

    def _many(self, values: npt.NDArray[Any]) -> tuple[list[int], Iterable[Any]]:
        # Float32 holds every 8-bit value exactly, and can be negated.
        best = np.argsort(-values.astype(np.float32), kind="stable")[: self._top]
        return best.tolist(), values[best].tolist()


def _make_table(tensor: TensorInfo) -> list[float] | None:
    if tensor.dtype == np.float32:
        return None
    if not tensor.quantized:
        raise OutputMismatch(f"the model's output is {tensor.dtype} with scale {tensor.scale}, which is no score")
    table = dequantize_table(tensor.dtype, tensor.scale, tensor.zero_point)
    # In the order of Python's indices, in which -1 is the last: then an int8 needs no offset.
    return table if tensor.dtype == np.uint8 else table[128:] + table[:128]
