"""Small models made for a test: their outputs are slices of their input, so that a test says what comes out."""

import io
import zipfile
from collections.abc import Sequence
from typing import Any

import flatbuffers  # type: ignore[import-untyped]  # it ships no types
import msgspec
import numpy as np
from ai_edge_litert import schema_py_generated as schema

TYPES = {
    "float32": schema.TensorType.FLOAT32,
    "uint8": schema.TensorType.UINT8,
    "int8": schema.TensorType.INT8,
    "int64": schema.TensorType.INT64,
}
_OP = schema.BuiltinOperator


class Spec(msgspec.Struct):
    """An input or an output. With a scale it is quantised."""

    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"
    scale: float = 0.0
    zero_point: int = 0


class Builder:
    """A graph under construction. All numbers in it are float32 until they are put out."""

    def __init__(self) -> None:
        self.graph = schema.SubGraphT()
        self.graph.tensors, self.graph.operators = [], []
        self.graph.inputs, self.graph.outputs = [], []
        self.model = schema.ModelT()
        self.model.version = 3
        self.model.subgraphs = [self.graph]
        self.model.buffers = [schema.BufferT()]
        self.model.operatorCodes = []

    def tensor(self, spec: Spec, data: bytes | None = None) -> int:
        made = schema.TensorT()
        made.name = spec.name.encode()
        made.shape = list(spec.shape)
        made.type = TYPES.get(spec.dtype, schema.TensorType.INT32)
        if spec.scale:
            made.quantization = schema.QuantizationParametersT()
            made.quantization.scale, made.quantization.zeroPoint = [spec.scale], [spec.zero_point]
        if data is not None:
            buffer = schema.BufferT()
            buffer.data = list(data)
            made.buffer = len(self.model.buffers)
            self.model.buffers.append(buffer)
        self.graph.tensors.append(made)
        return len(self.graph.tensors) - 1

    def constant(self, values: Any, dtype: str = "int32") -> int:
        array = np.asarray(values, dtype)
        return self.tensor(Spec("constant", array.shape, dtype), array.tobytes())

    def operator(self, code: int, inputs: Sequence[int], output: Spec, options: Any = None, kind: int = 0) -> int:
        codes = [each.builtinCode for each in self.model.operatorCodes]
        if code not in codes:
            added = schema.OperatorCodeT()
            added.builtinCode, added.deprecatedBuiltinCode = code, min(code, 127)
            added.version = 2 if code in {_OP.DEQUANTIZE, _OP.QUANTIZE} else 1
            self.model.operatorCodes.append(added)
            codes.append(code)
        made = schema.OperatorT()
        made.opcodeIndex = codes.index(code)
        made.inputs, made.outputs = list(inputs), [self.tensor(output)]
        made.builtinOptions, made.builtinOptionsType = options, kind
        self.graph.operators.append(made)
        index: int = made.outputs[0]
        return index

    def input(self, spec: Spec) -> int:
        """Add an input; return its values as one row of float32."""
        index = self.tensor(spec)
        self.graph.inputs.append(index)
        if spec.dtype != "float32":
            index = self.operator(_OP.DEQUANTIZE, [index], Spec("real", spec.shape))
        size = int(np.prod(spec.shape))
        return self.operator(_OP.RESHAPE, [index, self.constant([size])], Spec("row", (size,)))

    def slice(self, row: int, start: int, length: int) -> int:
        bounds = [self.constant([each]) for each in (start, start + length, 1)]
        options = schema.StridedSliceOptionsT()
        kind = schema.BuiltinOptions.StridedSliceOptions
        return self.operator(_OP.STRIDED_SLICE, [row, *bounds], Spec("slice", (length,)), options, kind)

    def add(self, left: int, right: int, length: int) -> int:
        return self.operator(
            _OP.ADD, [left, right], Spec("sum", (length,)), schema.AddOptionsT(), schema.BuiltinOptions.AddOptions
        )

    def output(self, row: int, spec: Spec) -> int:
        """Put out a row of float32 in this shape and type."""
        shape = self.constant(list(spec.shape) or np.empty(0))
        real = spec if spec.dtype == "float32" else Spec("real", spec.shape)
        index = self.operator(_OP.RESHAPE, [row, shape], real)
        if spec.dtype != "float32":
            index = self.operator(_OP.QUANTIZE, [index], spec)
        self.graph.outputs.append(index)
        return index

    def signature(self, inputs: dict[str, int], outputs: dict[str, int]) -> None:
        """Name inputs and outputs by their position."""
        made = schema.SignatureDefT()
        made.signatureKey = b"serving_default"
        made.subgraphIndex = 0
        made.inputs = [_named(name, self.graph.inputs[at]) for name, at in inputs.items()]
        made.outputs = [_named(name, self.graph.outputs[at]) for name, at in outputs.items()]
        self.model.signatureDefs = [made]

    def bytes(self) -> bytes:
        """Return the model file."""
        builder = flatbuffers.Builder(1024)
        builder.Finish(self.model.Pack(builder), file_identifier=b"TFL3")
        return bytes(builder.Output())


def _named(name: str, index: int) -> Any:
    made = schema.TensorMapT()
    made.name, made.tensorIndex = name.encode(), index
    return made


def slices(entry: Spec, outputs: Sequence[Spec]) -> Builder:
    """Return a model whose outputs are, one after another, the first values of its input."""
    builder = Builder()
    row, start = builder.input(entry), 0
    for output in outputs:
        length = int(np.prod(output.shape))
        builder.output(builder.slice(row, start, length), output)
        start += length
    return builder


def counter(
    entry: Spec, states: Sequence[tuple[Spec, Spec]], *, order: Sequence[int] = (), answer: Spec | None = None
) -> Builder:
    """Return a model that adds each sample to its states: input and outputs have the same number of values.

    The first output is the sum of sample and first state. `order` is that of the inputs, of which 0 takes the sample.
    """
    builder = Builder()
    length = int(np.prod(entry.shape))
    specs = [entry, *(state for state, _ in states)]
    rows = {at: builder.input(specs[at]) for at in order or range(len(specs))}
    sums = [builder.add(rows[0], rows[at + 1], length) for at in range(len(states))]
    builder.output(sums[0], answer or Spec("answer", entry.shape))
    for row, (_, output) in zip(sums, states, strict=True):
        builder.output(row, output)
    return builder


def with_metadata(
    model: Builder,
    *,
    files: dict[str, bytes] | None = None,
    labels: Sequence[tuple[str, int]] = (),
    mean: Sequence[float] = (),
    std: Sequence[float] = (),
    titles: Sequence[str] = (),
    damage: Any = None,
) -> bytes:
    """Return the model file with metadata: `labels` are names and types of files of the first output."""
    content = _metadata(model, labels, mean, std, titles)
    buffer = schema.BufferT()
    buffer.data = list(damage(content) if damage else content)
    entry = schema.MetadataT()
    entry.name, entry.buffer = b"TFLITE_METADATA", len(model.model.buffers)
    model.model.buffers.append(buffer)
    model.model.metadata = [entry]
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, text in (files or {}).items():
            packed.writestr(name, text)
    return model.bytes() + (archive.getvalue() if files is not None else b"")


def _metadata(model: Builder, labels: Any, mean: Any, std: Any, titles: Any) -> bytes:
    builder = flatbuffers.Builder(256)
    files = [_table(builder, {0: _text(builder, name), 2: ("Int8", kind)}) for name, kind in labels]
    outputs = []
    for at in range(len(model.graph.outputs)):
        fields: dict[int, Any] = {0: _text(builder, titles[at] if at < len(titles) else "")}
        if at == 0 and files:
            fields[6] = _vector(builder, files)
        outputs.append(_table(builder, fields))
    units = []
    if mean or std:
        options = _table(builder, {0: _floats(builder, mean), 1: _floats(builder, std)})
        units = [_table(builder, {0: ("Uint8", 1), 1: options})]
    inputs = [_table(builder, {4: _vector(builder, units)}) for _ in model.graph.inputs]
    graph = _table(builder, {2: _vector(builder, inputs), 3: _vector(builder, outputs)})
    builder.Finish(_table(builder, {3: _vector(builder, [graph])}), file_identifier=b"M001")
    return bytes(builder.Output())


def _text(builder: Any, text: str) -> int:
    made: int = builder.CreateString(text)
    return made


def _floats(builder: Any, values: Sequence[float]) -> int:
    made: int = builder.CreateNumpyVector(np.asarray(values, np.float32))
    return made


def _vector(builder: Any, items: Sequence[int]) -> int:
    builder.StartVector(4, len(items), 4)
    for item in reversed(items):
        builder.PrependUOffsetTRelative(item)
    made: int = builder.EndVector()
    return made


def _table(builder: Any, fields: dict[int, Any]) -> int:
    builder.StartObject(8)
    for slot, value in fields.items():
        if isinstance(value, tuple):
            getattr(builder, f"Prepend{value[0]}Slot")(slot, value[1], 0)
        else:
            builder.PrependUOffsetTRelativeSlot(slot, value, 0)
    made: int = builder.EndObject()
    return made
