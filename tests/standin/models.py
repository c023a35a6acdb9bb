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


def edgetpu_model(cpu_model: bytes, *, output_type: int | None = None) -> bytes:
    """The bytes of a `.tflite` file in which one custom operation does all that `cpu_model` does.

    `output_type`, a `schema.TensorType`, replaces the type of the outputs.
    """
    source = schema.ModelT.InitFromObj(schema.Model.GetRootAs(cpu_model, 0))
    graph = source.subgraphs[0]
    inputs = [_without_data(graph.tensors[index]) for index in graph.inputs]
    outputs = [_without_data(graph.tensors[index]) for index in graph.outputs]
    for output in outputs if output_type is not None else []:
        output.type = output_type
    return _packed(_model(source.version, inputs, outputs))


def _without_data(tensor: Any) -> Any:
    tensor.buffer = 0
    return tensor


def _model(version: int, inputs: list[Any], outputs: list[Any]) -> Any:
    operator = schema.OperatorT()
    operator.opcodeIndex = 0
    operator.inputs = list(range(len(inputs)))
    operator.outputs = list(range(len(inputs), len(inputs) + len(outputs)))
    operator.customOptions = list(b"edgetpu stand-in")

    graph = schema.SubGraphT()
    graph.tensors = inputs + outputs
    graph.inputs, graph.outputs = operator.inputs, operator.outputs
    graph.operators = [operator]

    code = schema.OperatorCodeT()
    code.builtinCode = schema.BuiltinOperator.CUSTOM
    code.deprecatedBuiltinCode = schema.BuiltinOperator.CUSTOM
    code.customCode = CUSTOM_OP
    code.version = 1

    model = schema.ModelT()
    model.version = version
    model.operatorCodes = [code]
    model.subgraphs = [graph]
    model.buffers = [schema.BufferT()]
    return model


def _packed(model: Any) -> bytes:
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), file_identifier=_FILE_IDENTIFIER)
    return bytes(builder.Output())
