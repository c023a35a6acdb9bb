"""What a model file holds, read in a throw-away process: `python -m edge_agent.inference.checks.inspection FILE`.

It prints `ModelFacts` as JSON. The interpreter is made without a delegate and nothing is run, so that a model for the
Edge TPU can be inspected where there is none. The agent's process imports this module too, so the runtime is imported
only in the child.
"""

import sys
from collections import Counter
from typing import Any

import msgspec

from edge_agent.inference.checks.throwaway import NoAnswerError, ask
from edge_agent.inference.child import child_environment, die_with_parent

MODULE = "edge_agent.inference.checks.inspection"
DEADLINE = 60.0
EDGETPU_OPERATOR = "edgetpu-custom-op"


class TensorFacts(msgspec.Struct, frozen=True):
    """An input or output. A length of -1 in `shape` is only known at run time. `type` is NumPy's name."""

    shape: tuple[int, ...]
    type: str

    def __str__(self) -> str:
        return f"{self.type} of shape {'x'.join(map(str, self.shape)) or 'scalar'}"


class ModelFacts(msgspec.Struct, frozen=True):
    """`operators` are the names of the graph's operators and how many there are of each."""

    inputs: list[TensorFacts]
    outputs: list[TensorFacts]
    operators: dict[str, int]

    @property
    def compiled(self) -> bool:
        """Whether it is for the Edge TPU."""
        return EDGETPU_OPERATOR in self.operators


class NotInspectedError(ValueError):
    """The file could not be read as a model. The message goes on behind its name."""


async def inspect(path: str) -> ModelFacts:
    """Return what the file holds. Raises NotInspectedError."""
    try:
        answer = await ask(_Answer, MODULE, path, environment=child_environment(), timeout=DEADLINE)
    except NoAnswerError as error:
        raise NotInspectedError(f"cannot be used: its check {error}") from error
    if answer.facts is None:
        raise NotInspectedError(f"cannot be used: {answer.problem}")
    return answer.facts


class _Answer(msgspec.Struct, frozen=True):
    facts: ModelFacts | None = None
    problem: str = ""


def main() -> None:
    """Inspect the file named on the command line."""
    die_with_parent()
    from edge_agent.inference.interpreter.model import try_file  # noqa: PLC0415  not in the agent's process
    from edge_agent.inference.refusal import ModelRefused  # noqa: PLC0415
    from edge_agent.inference.runtime.runtimes import find_runtime  # noqa: PLC0415

    path = sys.argv[1]
    try:
        try_file(path)
        answer = _Answer(_facts(find_runtime().interpreter(path)))
    except ModelRefused as refused:
        answer = _Answer(problem=str(refused))
    sys.stdout.write(msgspec.json.encode(answer).decode())


def _facts(interpreter: Any) -> ModelFacts:
    # The runtime has no public call that lists the operators; TensorFlow's own tests use this one.
    operators = Counter(each["op_name"] for each in interpreter._get_ops_details())
    inputs, outputs = interpreter.get_input_details(), interpreter.get_output_details()
    return ModelFacts([_tensor(each) for each in inputs], [_tensor(each) for each in outputs], dict(operators))


def _tensor(details: dict[str, Any]) -> TensorFacts:
    return TensorFacts(tuple(details["shape_signature"].tolist()), details["dtype"].__name__)


if __name__ == "__main__":
    main()
