"""From a regression's outputs to named values, and whether the first one is within its limits."""

import math
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy.typing as npt

from edge_agent.inference.interpreter.inputs import Prepared
from edge_agent.inference.interpreter.labels import clean, fit_labels
from edge_agent.inference.interpreter.quantization import round_off
from edge_agent.inference.interpreter.tensors import TensorInfo
from edge_agent.inference.tasks.base import Answer, OutputMismatch, TaskMismatch, listed, require_numbers
from edge_agent.records import Score

# As many as the setting top_k allows for a classifier.
MAX_VALUES = 1000


class Limits(msgspec.Struct, frozen=True):
    """What is normal; either limit may be absent. A value on the limit is still normal."""

    low: float | None = None
    high: float | None = None

    def __bool__(self) -> bool:
        return self.low is not None or self.high is not None

    def beyond(self, value: float) -> str | None:
        """Return "low" or "high" for a value that is beyond that limit."""
        if self.low is not None and value < self.low:
            return "low"
        return "high" if self.high is not None and value > self.high else None


class Regression:
    """Reads values out of all outputs, in their order. The first one is the value that the limits are about."""

    def __init__(self, outputs: Sequence[TensorInfo], labels: Sequence[str] | None, limits: Limits) -> None:
        require_numbers(outputs)
        count = sum(tensor.size for tensor in outputs)
        if not 0 < count <= MAX_VALUES:
            raise TaskMismatch(f"no regression: expected 1 to {MAX_VALUES} output values, found {listed(outputs)}")
        self.outputs = tuple(tensor.index for tensor in outputs)
        self._tensors = outputs
        self._limits = limits
        self._labels = fit_labels(labels, count)
        if labels is None and count > 1 and all(tensor.size == 1 for tensor in outputs):
            self._labels = [clean(tensor.name) for tensor in outputs]

    def __str__(self) -> str:
        return f"{len(self._labels)} values"

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of the values, and what the first one is called by the limits, if there are any."""
        return (*self._labels, *(("low", "normal", "high") if self._limits else ()))

    def decode(self, outputs: Sequence[npt.NDArray[Any]], prepared: Prepared) -> Answer:  # noqa: ARG002  no use for it
        """Return the values. Raises OutputMismatch when one is no number."""
        values: list[float] = []
        for tensor, output in zip(self._tensors, outputs, strict=True):
            values += tensor.real(output).reshape(-1).tolist()
        if not all(map(math.isfinite, values)):
            raise OutputMismatch("the model's output holds values that are no numbers")
        scores = [Score(self._labels[i], round_off(value), i) for i, value in enumerate(values)]
        first = scores[0].score
        verdict = (self._limits.beyond(first) or "normal") if self._limits else None
        return Answer(scores, verdict, first)
