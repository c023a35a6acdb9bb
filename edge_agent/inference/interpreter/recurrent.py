"""Models with a memory: some outputs are inputs of the next run.

Nothing in a file says which, so names are compared, and where these do not tell, shapes and quantisation. A wrong
guess would give wrong results without a word, so what is ambiguous is refused.
"""

import re
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from edge_agent.inference.interpreter.inputs import InputMismatch
from edge_agent.inference.interpreter.quantization import Quantizer
from edge_agent.inference.interpreter.tensors import TensorInfo
from edge_agent.inference.runtime.runtimes import Interpreter
from edge_agent.inference.tasks.base import OutputMismatch

Array = npt.NDArray[Any]

_WORD = re.compile(r"[a-z]+|\d+")
_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])")
# What tells the side of a state and not which one it is.
_SIDES = {"in", "input", "inputs", "out", "output", "outputs", "raw", "serving", "default"}
_SIDES |= {"init", "initial", "prev", "previous", "last", "old", "next", "new", "cur", "current", "final"}
_STATE = {"state", "states", "hidden", "cell", "carry", "memory", "cache", "lstm", "gru", "rnn", "recurrent", "h", "c"}


class StatePair(msgspec.Struct, frozen=True):
    """An output that goes into an input at the next run."""

    output: TensorInfo
    input: TensorInfo


class Roles(msgspec.Struct, frozen=True):
    """What a model's tensors are for: one input takes the samples, `outputs` are for the task."""

    data: TensorInfo
    states: list[StatePair]
    outputs: list[TensorInfo]


def find_roles(inputs: Sequence[TensorInfo], outputs: Sequence[TensorInfo]) -> Roles:
    """Tell the state of a model from its data. Raises InputMismatch naming the tensors that remain unclear."""
    if not inputs:
        raise InputMismatch("the model has no input")
    states: list[StatePair] = []
    data, free = list(inputs), list(outputs)
    for same in (_same_name, _same_kind):
        if len(data) > 1:
            found = _pairs(data, free, same)
            states += found
            data = [each for each in data if each not in [pair.input for pair in found]]
            free = [each for each in free if each not in [pair.output for pair in found]]
    if len(data) != 1:
        raise InputMismatch(_unclear(inputs, outputs, data))
    return Roles(data[0], states, free)


def _pairs(inputs: Sequence[TensorInfo], outputs: Sequence[TensorInfo], same: Any) -> list[StatePair]:
    """Return the pairs in which each is the only one that the other could belong to."""
    found = []
    for each in inputs:
        answers = [output for output in outputs if same(each, output)]
        if len(answers) == 1 and [other for other in inputs if same(other, answers[0])] == [each]:
            found.append(StatePair(answers[0], each))
    return found


def _same_name(each: TensorInfo, output: TensorInfo) -> bool:
    if each.shape != output.shape:
        return False
    ours, theirs = _keys(each), _keys(output)
    return bool(ours & theirs)


def _same_kind(each: TensorInfo, output: TensorInfo) -> bool:
    kind = (output.shape, output.dtype, output.scale, output.zero_point)
    return (each.shape, each.dtype, each.scale, each.zero_point) == kind


def _keys(tensor: TensorInfo) -> set[tuple[str, ...]]:
    """Return the tensor's names without folders, and without the words that say on which side it is."""
    keys = set()
    for words in _words(tensor):
        key = tuple(word for word in words if word not in _SIDES)
        # "input" and "output" are no pair, "state_in" and "state_out" are one.
        if any(not word.isdigit() for word in key):
            keys.add(tuple(word for word in key if word != "state") or ("state",))
    return keys


def _words(tensor: TensorInfo) -> list[list[str]]:
    last_parts = [name.removesuffix(":0").rsplit("/", 1)[-1] for name in (tensor.name, *tensor.also)]
    return [_WORD.findall(_CAMEL.sub("_", part).lower()) for part in last_parts]


def _unclear(inputs: Sequence[TensorInfo], outputs: Sequence[TensorInfo], data: Sequence[TensorInfo]) -> str:
    if not data:
        return f"the model has {len(inputs)} inputs that all look like its state; which one takes the sample is unclear"
    if any(_is_state(each) for each in data):
        return (
            f"the model has {len(inputs)} inputs, of which one can take the sample and the others must be its state, "
            f"but {_listed(data)} remain; which output belongs to which input is unclear: {_listed(outputs)}"
        )
    return (
        f"the model has {len(inputs)} inputs, and {_listed(data)} all take data; "
        "only models with one such input can be fed"
    )


def _is_state(tensor: TensorInfo) -> bool:
    return any(not _STATE.isdisjoint(words) for words in _words(tensor))


def _listed(tensors: Sequence[TensorInfo]) -> str:
    return ", ".join(f"'{tensor.name}' ({tensor})" for tensor in tensors)


class State:
    """The state between two runs. It begins as the real number zero."""

    def __init__(self, pairs: Sequence[StatePair]) -> None:
        for pair in pairs:
            _check(pair.input)
            _check(pair.output)
        self._ports = [_Port(pair) for pair in pairs]
        self.reset()

    def reset(self) -> None:
        """Forget all runs so far."""
        self._values = [port.zero for port in self._ports]

    def feed(self, interpreter: Interpreter) -> None:
        """Set the inputs for the next run."""
        for port, value in zip(self._ports, self._values, strict=True):
            interpreter.set_tensor(port.input, value)

    def keep(self, interpreter: Interpreter) -> None:
        """Take over what the last run has put out.

        Raises OutputMismatch, and begins anew, when that is no number: it would spoil all runs to come.
        """
        self._values = [port.convert(interpreter.get_tensor(port.output)) for port in self._ports]
        if not all(np.isfinite(value).all() for value in self._values if value.dtype == np.float32):
            self.reset()
            raise OutputMismatch("the model's state is no number any more, so it begins anew")


def _check(tensor: TensorInfo) -> None:
    if tensor.fault or not (tensor.quantized or tensor.dtype == np.float32):
        reason = tensor.fault or f"it is {tensor.dtype} with scale {tensor.scale}"
        raise InputMismatch(f"the model's state '{tensor.name}' cannot be kept: {reason}")


class _Port:
    """One pair, and how the output's numbers become the input's."""

    def __init__(self, pair: StatePair) -> None:
        source, target = pair.output, pair.input
        self.output, self.input = source.index, target.index
        self.zero = np.full(target.shape, target.zero_point if target.quantized else 0, target.dtype)
        self._source = source
        self._same = _same_kind(target, source)
        self._quantizer = (
            Quantizer(target.shape, target.dtype, target.scale, target.zero_point) if target.quantized else None
        )

    def convert(self, values: Array) -> Array:
        if self._same:
            return values
        real = self._source.real(values).astype(np.float32)
        return real if self._quantizer is None else self._quantizer.quantize(real)[0]
