"""From an anomaly detector's output to one score: how far a sample is from what is normal."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_agent.inference.interpreter.inputs import Prepared
from edge_agent.inference.interpreter.labels import fit_labels
from edge_agent.inference.interpreter.quantization import round_off
from edge_agent.inference.interpreter.tensors import TensorInfo
from edge_agent.inference.tasks.base import Answer, OutputMismatch, TaskMismatch, listed, require_numbers
from edge_agent.inference.tasks.regression import Limits
from edge_agent.records import Score


class Anomaly:
    """Reads one score. A model with a single output value gives it itself.

    A model that gives its input again is an autoencoder: the score is the mean of the squared differences between
    output and input, both as real numbers, the input as the model saw it, after resizing, normalising and clipping.
    """

    def __init__(
        self,
        outputs: Sequence[TensorInfo],
        model_input: TensorInfo,
        labels: Sequence[str] | None,
        limits: Limits,
    ) -> None:
        tensor, self._autoencoder = _find_score(outputs, model_input)
        require_numbers([tensor])
        self.outputs = (tensor.index,)
        self._tensor = tensor
        self._input = model_input
        self._limits = limits
        self._label = fit_labels(labels, 1)[0]

    def __str__(self) -> str:
        return "an autoencoder" if self._autoencoder else "an anomaly score"

    @property
    def labels(self) -> tuple[str, ...]:
        """The name of the score, and what it is called by the limits, if there are any."""
        return (self._label, *(("normal", "anomaly") if self._limits else ()))

    def decode(self, outputs: Sequence[npt.NDArray[Any]], prepared: Prepared) -> Answer:
        """Return the score. Raises OutputMismatch when it is no number."""
        real = self._tensor.real(outputs[0]).reshape(-1)
        if self._autoencoder:
            difference = real - self._input.real(prepared.tensor).reshape(-1)
            score = float(np.mean(np.square(difference)))
        else:
            score = real.item()
        if not math.isfinite(score):
            raise OutputMismatch("the model's output holds values that are no numbers")
        score = round_off(score)
        verdict = ("anomaly" if self._limits.beyond(score) else "normal") if self._limits else None
        return Answer([Score(self._label, score, 0)], verdict, score)


def _find_score(outputs: Sequence[TensorInfo], model_input: TensorInfo) -> tuple[TensorInfo, bool]:
    """Return the output that the score is in, and whether that is an autoencoder's."""
    again = [tensor for tensor in outputs if tensor.same_shape == model_input.same_shape and tensor.size > 1]
    single = [tensor for tensor in outputs if tensor.size == 1]
    if len(again) == 1 and not single:
        return again[0], True
    if len(single) == 1 and not again:
        return single[0], False
    raise TaskMismatch(
        "no anomaly detector: expected one output of a single value, or one of the shape of the input, "
        f"{model_input.dimensions}; found {listed(outputs)}"
    )
