"""Makes a model for the Edge TPU out of a quantised CPU model, without the Edge TPU compiler.

A compiled model is a TensorFlow Lite file in which the nodes that the Edge TPU can run have become one custom
operation, `edgetpu-custom-op`, whose options hold the machine code. The models made here have that shape, the inputs
and outputs of the CPU model with their quantisation, and no code: the stand-in can run them, an Edge TPU cannot.
"""

from typing import Any

import flatbuffers  # type: ignore[import-untyped]  # it ships no types
from ai_edge_litert import schema_py_generated as schema

CUSTOM_OP = b"edgetpu-custom-op"
_FILE_IDENTIFIER = b"TFL3"


def edgetpu_model(cpu_model: bytes, *, output_type: int | None = None, then: bytes = b"") -> bytes:
    """The bytes of a `.tflite` file in which one custom operation does all that `cpu_model` does.

    `output_type`, a `schema.TensorType`, replaces the type of the outputs. `then` names another custom operation, which
    the compiler has left behind that one, for the CPU.
    """
    source = schema.ModelT.InitFromObj(schema.Model.GetRootAs(cpu_model, 0))
    graph = source.subgraphs[0]
    inputs = [_without_data(graph.tensors[index]) for index in graph.inputs]
    outputs = [_without_data(graph.tensors[index]) for index in graph.outputs]
    for output in outputs if output_type is not None else []:
        output.type = output_type
    return _packed(_model(source.version, inputs, outputs, [CUSTOM_OP, then] if then else [CUSTOM_OP]))


def _without_data(tensor: Any) -> Any:
    tensor.buffer = 0
    return tensor


def _model(version: int, inputs: list[Any], outputs: list[Any], operations: list[bytes]) -> Any:
    """One operation after the other; the results of all are tensors like `outputs`."""
    graph = schema.SubGraphT()
    graph.tensors = list(inputs)
    graph.inputs = graph.outputs = list(range(len(inputs)))
    graph.operators = []
    for index in range(len(operations)):
        operator = schema.OperatorT()
        operator.opcodeIndex = index
        operator.inputs = graph.outputs
        operator.outputs = [len(graph.tensors) + number for number in range(len(outputs))]
        operator.customOptions = list(b"edgetpu stand-in")
        graph.tensors += outputs
        graph.operators.append(operator)
        graph.outputs = operator.outputs

    model = schema.ModelT()
    model.version = version
    model.operatorCodes = [_code(name) for name in operations]
    model.subgraphs = [graph]
    model.buffers = [schema.BufferT()]
    return model


def _code(name: bytes) -> Any:
    code = schema.OperatorCodeT()
    code.builtinCode = schema.BuiltinOperator.CUSTOM
    code.deprecatedBuiltinCode = schema.BuiltinOperator.CUSTOM
    code.customCode = name
    code.version = 1
    return code


def _packed(model: Any) -> bytes:
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), file_identifier=_FILE_IDENTIFIER)
    return bytes(builder.Output())
