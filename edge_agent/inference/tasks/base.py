"""What a task is: it reads a model's output tensors and says what they mean."""

from collections.abc import Sequence
from typing import Any, Protocol

import msgspec
import numpy.typing as npt
from msgspec import UNSET, UnsetType

from edge_agent.inference.interpreter.inputs import Prepared
from edge_agent.inference.interpreter.tensors import TensorInfo
from edge_agent.records import Score, Tensor

Array = npt.NDArray[Any]


class OutputMismatch(ValueError):
    """The model's outputs are not usable."""


class TaskMismatch(OutputMismatch):
    """The model's outputs are not those of the task in the settings."""


class Answer(msgspec.Struct, frozen=True, gc=False):
    """What the model said of one sample; the fields are those of `Result`."""

    scores: list[Score]
    verdict: str | None = None
    value: float | None = None
    outputs: list[Tensor] | None = None

    @property
    def prediction(self) -> str | UnsetType:
        """As `Result.prediction`."""
        if self.verdict is not None:
            return self.verdict
        return self.scores[0].label if self.scores and self.value is None else UNSET


class Task(Protocol):
    """Reads one model's outputs. Made for the model, used by one thread at a time."""

    @property
    def outputs(self) -> tuple[int, ...]:
        """The numbers of the tensors that `decode` takes."""

    @property
    def labels(self) -> tuple[str, ...] | None:
        """All labels that its answers can have, as the prediction or of a score; None if there is no list of them."""

    def decode(self, outputs: Sequence[Array], prepared: Prepared) -> Answer:
        """Return what the tensors, in the order of `outputs`, say of the input. Raises OutputMismatch."""

    def __str__(self) -> str:
        """What the model puts out, for a log line."""


def require_numbers(tensors: Sequence[TensorInfo]) -> None:
    """Raise OutputMismatch for a tensor whose values cannot be told."""
    for tensor in tensors:
        if tensor.fault:
            raise OutputMismatch(f"the model's output '{tensor.name}' cannot be read: {tensor.fault}")


def listed(tensors: Sequence[TensorInfo]) -> str:
    """Return the tensors' shapes as people write them."""
    return ", ".join(tensor.dimensions for tensor in tensors) or "none"
