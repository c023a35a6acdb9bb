"""A model's outputs as they are, for whoever reads the events."""

from collections.abc import Sequence
from typing import Any

import numpy.typing as npt
from msgspec import UNSET

from edge_agent.inference.interpreter.inputs import Prepared
from edge_agent.inference.interpreter.quantization import plain_numbers
from edge_agent.inference.interpreter.tensors import TensorInfo
from edge_agent.inference.tasks.base import Answer, TaskMismatch, listed, require_numbers
from edge_agent.records import Tensor

# About 100 kB as JSON: more is no event, and Pub/Sub takes no message of more than 10 MB.
MAX_VALUES = 10_000


class Raw:
    """Hands on all outputs, dequantised."""

    def __init__(self, outputs: Sequence[TensorInfo]) -> None:
        require_numbers(outputs)
        self._values = sum(tensor.size for tensor in outputs)
        if self._values > MAX_VALUES:
            raise TaskMismatch(
                f"its outputs have {self._values} values ({listed(outputs)}), which is too much for an event; the task "
                f"'raw' is for up to {MAX_VALUES}"
            )
        self._tensors = outputs
        self.outputs = tuple(tensor.index for tensor in outputs)

    def __str__(self) -> str:
        return f"{self._values} output values"

    @property
    def labels(self) -> None:
        """It names tensors, and says nothing of a sample."""

    def decode(self, outputs: Sequence[npt.NDArray[Any]], prepared: Prepared) -> Answer:  # noqa: ARG002  no use for it
        """Return the tensors with their names."""
        return Answer([], outputs=list(map(_as_it_is, self._tensors, outputs)))


def _as_it_is(tensor: TensorInfo, values: npt.NDArray[Any]) -> Tensor:
    numbers, missing = plain_numbers(tensor.real(values).reshape(-1))
    return Tensor(tensor.name, list(values.shape), numbers, missing or UNSET)
