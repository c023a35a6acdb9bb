"""What a model file holds, read in a throw-away process: `python -m edge_agent.inference.checks.inspection FILE`.

It prints `ModelFacts` as JSON. The interpreter is made without a delegate and nothing is run, so that a model for the
Edge TPU can be inspected where there is none. The agent's process imports this module too, so the runtime is imported
only in the child.
"""

import sys
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec

from edge_agent.inference.accelerators.devices import CUSTOM_OP
from edge_agent.inference.checks.throwaway import NoAnswerError, ask
from edge_agent.inference.child import child_environment, die_with_parent
from edge_agent.inference.interpreter.edgetpu_package import EdgeTpuPackage, read_package

MODULE = "edge_agent.inference.checks.inspection"
DEADLINE = 60.0
# They stand between floating-point numbers and quantised ones, so they touch both.
_CONVERSIONS = {"QUANTIZE", "DEQUANTIZE"}


class TensorFacts(msgspec.Struct, frozen=True):
    """An input or output. A length of -1 in `shape` is only known at run time. `type` is NumPy's name."""

    shape: tuple[int, ...]
    type: str

    def __str__(self) -> str:
        return f"{self.type} of shape {'x'.join(map(str, self.shape)) or 'scalar'}"


class ModelFacts(msgspec.Struct, frozen=True):
    """What was found. `operators` are the names of the graph's operators and how many there are of each.

    `floating` are those of them that work on floating-point numbers, and `dynamic` is how many tensors have a length
    that is only known at run time. `package` is None where there is no code for the Edge TPU, or none that is
    understood.
    """

    inputs: list[TensorFacts]
    outputs: list[TensorFacts]
    operators: dict[str, int]
    floating: dict[str, int] = {}
    dynamic: int = 0
    package: EdgeTpuPackage | None = None

    @property
    def compiled(self) -> bool:
        """Whether it is for the Edge TPU."""
        return CUSTOM_OP in self.operators

    @property
    def on_cpu(self) -> dict[str, int]:
        """The operators of a compiled model that the Edge TPU does not run."""
        return {name: count for name, count in self.operators.items() if name != CUSTOM_OP}


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
        answer = _Answer(_facts(find_runtime().interpreter(path), read_package(Path(path))))
    except ModelRefused as refused:
        answer = _Answer(problem=str(refused))
    sys.stdout.write(msgspec.json.encode(answer).decode())


def _facts(interpreter: Any, package: EdgeTpuPackage | None) -> ModelFacts:
    # The runtime has no public call that lists the operators; TensorFlow's own tests use this one.
    operators = interpreter._get_ops_details()
    tensors = {each["index"]: each for each in interpreter.get_tensor_details()}
    floating = Counter(each["op_name"] for each in operators if _works_on_floats(each, tensors))
    return ModelFacts(
        [_tensor(each) for each in interpreter.get_input_details()],
        [_tensor(each) for each in interpreter.get_output_details()],
        dict(Counter(each["op_name"] for each in operators)),
        dict(floating),
        sum(any(length < 0 for length in each["shape_signature"].tolist()) for each in tensors.values()),
        package,
    )


def _works_on_floats(operator: dict[str, Any], tensors: dict[int, dict[str, Any]]) -> bool:
    touched = [tensors.get(index) for index in (*operator["inputs"], *operator["outputs"])]
    floats = any(each is not None and each["dtype"].__name__.startswith("float") for each in touched)
    return floats and operator["op_name"] not in _CONVERSIONS


def _tensor(details: dict[str, Any]) -> TensorFacts:
    return TensorFacts(tuple(details["shape_signature"].tolist()), details["dtype"].__name__)


if __name__ == "__main__":
    main()
